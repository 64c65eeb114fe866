"""The commands about experiments: prepare, sweep, reproduce, results. They parse, call, print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalis.cli.console import PlainConsole, cell, console, errors, escape, table
from normalis.cli.values import typed_values
from normalis.errors import SettingsError
from normalis.research.cli_theory import app as theory

if TYPE_CHECKING:
    from normalis.research.experiments import Experiment
    from normalis.research.sweep import Event

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="The laboratory: experiments, the paper's tables, what normal images hold.",
)
app.add_typer(theory)

Out = Annotated[Path, typer.Option("--out", help="Results folder; what is done there is kept.")]
Root = Annotated[
    Path | None, typer.Option("--data", help="Folder whose subfolders are the data sets.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Jobs = Annotated[int | None, typer.Option(help="Worker processes; by default one per core.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Engine = Annotated[str, typer.Option(help="local or ray.")]
Address = Annotated[
    str, typer.Option(help="Ray cluster; local starts one on this machine, auto finds one.")
]
Gpus = Annotated[float, typer.Option(help="Share of a GPU that one training gets (ray).")]
Keep = Annotated[bool, typer.Option(help="Keep fitted models in RESULTS/models.")]
Stacked = Annotated[
    int | None,
    typer.Option(
        "--stack",
        min=1,
        help="Trainings computed as one (local engine); by default 24 on a GPU, 1 on a CPU.",
    ),
]


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Data set; without one all are listed.")] = "",
    raw: Annotated[
        Path | None, typer.Option("--raw", help="Folder or archive that you downloaded.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder to build.")] = None,
    download: Annotated[
        Path | None,
        typer.Option("--download", help="Fetch the authors' archive into this folder first."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Setting of the data set, NAME=VALUE; repeatable.")
    ] = None,
) -> None:
    """Build a data set of the paper from what you downloaded, counted and checked."""
    from normalis.research import datasets

    if not name:
        _list_datasets()
        return
    if out is None:
        raise SettingsError("--out is needed: the folder to build")
    if download is not None:
        with errors.status("downloading"):
            raw = datasets.download_archive(name, download)
    with errors.status("building"):
        made = datasets.prepare(name, raw, out, **typed_values(_pairs(option, "--option")))
    rows = [[split, label, count] for (split, label), count in sorted(made.counts().items())]
    console.print(table(str(out), ["split", "label", "images"], rows))
    for note in made.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _list_datasets() -> None:
    from normalis.research.datasets import DATASETS, named

    rows: list[list[Any]] = []
    for name in DATASETS:
        known = named(name)
        counts = known.counts
        rows.append(
            [
                name,
                known.modality,
                f"{counts.train} + {counts.test_normal} / {counts.test_anomalous}",
                known.archive or "",
                known.licence,
            ]
        )
    head = ["name", "modality", "train + test normal / anomalous", "archive", "licence"]
    console.print(table("Data sets", head, rows))


@app.command()
def sweep(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="TOML file; see examples/.")],
    out: Out,
    data: Root = None,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    device: Device = "auto",
    engine: Engine = "local",
    address: Address = "local",
    gpus_per_job: Gpus = 0.0,
    keep_models: Keep = True,
    stack: Stacked = None,
) -> None:
    """Run every experiment of PLAN that has no record in RESULTS yet; interrupt at will."""
    from normalis.research.experiments import read_plan

    engine_options = _engine(engine, jobs, device, address, gpus_per_job, keep_models, stack)
    _run([read_plan(plan)], out, data, dry_run, engine_options)


@app.command()
def reproduce(
    part: Annotated[str, typer.Argument(help="table1, table2, figure3, methods or cited.")],
    out: Out,
    data: Root = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", "--sets", help="Only this data set; repeatable."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trainings of each kind; 3, of cited 2.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this system or method (cited); repeatable."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="fast, the default of cited, or paper (cited).")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of every training, not the recipe's (cited).")
    ] = None,
    effort: Annotated[
        float | None, typer.Option(help="Share of each system's epochs, 0.3 for a look (cited).")
    ] = None,
    dry_run: DryRun = False,
    only_draw: Annotated[
        bool, typer.Option("--only-draw", help="Train nothing; draw what there is.")
    ] = False,
    jobs: Jobs = None,
    device: Device = "auto",
    engine: Engine = "local",
    address: Address = "local",
    gpus_per_job: Gpus = 0.0,
    keep_models: Keep = True,
    stack: Stacked = None,
) -> None:
    """Train what a table or figure of the paper needs; print it beside the paper's numbers."""
    from normalis.research.reproduce import datasets_under, plan_of

    engine_options = _engine(engine, jobs, device, address, gpus_per_job, keep_models, stack)
    if not only_draw and data is None:
        raise SettingsError("--data is needed to train (--only-draw draws what there is)")
    if part == "cited":
        asked: dict[str, Any] = {"only": only or (), "recipe": recipe or "fast", "epochs": epochs}
        asked |= {"sets": dataset or (), "seeds": range(seeds or 2), "effort": effort or 1.0}
        _reproduce_cited(out, None if only_draw else data, dry_run, engine_options, asked)
        return
    if only or recipe or epochs or effort:
        raise SettingsError(
            f"--only, --recipe, --epochs and --effort are of the part cited, got {part!r}"
        )
    if not only_draw:
        names = dataset or datasets_under(data)  # type: ignore[arg-type]
        tables = [plan_of(part, names, seeds=range(seeds or 3))]
        _run(tables, out, data, dry_run, engine_options)
    if not dry_run:
        _show(part, out)


def _reproduce_cited(
    out: Path,
    data: Path | None,
    dry_run: bool,
    engine: tuple[str, dict[str, Any]],
    asked: dict[str, Any],
) -> None:
    """Run the systems that the paper cites, as far as they are asked for; write their table."""
    from normalis.research import cited
    from normalis.research.cited_table import write_cited
    from normalis.research.data import Store

    name, options = engine
    if name != "local":
        raise SettingsError("the part cited runs on --engine local: run pieces of it with --only")
    if data is not None:
        store = Store(out, data)
        with errors.status("reading the data"):
            experiments = cited.plan_cited(store, **asked)
        if dry_run:
            _print_plan(experiments, out, store)
            return
        with _progress() as hear:
            failed = cited.run_cited(experiments, out, callback=hear, **options)
        for title, message in failed.items():  # a row of the table, not the end of it
            errors.print(f"[red]failed[/] {escape(title)}: {escape(message)}", soft_wrap=True,
                         markup=True)  # fmt: skip
    console.print(f"written: {', '.join(map(str, write_cited(out)))}", soft_wrap=True, markup=False)


def _show(part: str, out: Path) -> None:
    from normalis.research import tables
    from normalis.research.reproduce import compare, figure3

    if part == "figure3":
        curves = figure3(out)
        columns, rows = list(tables.FIGURE_COLUMNS), tables.figure_rows(curves)
        console.print(table("Figure 3", columns, rows))
        written = tables.write_figure(curves, out / "tables") if curves else []
    else:
        comparison = compare(part, out)
        for name in comparison.datasets:
            shown = table(f"{comparison.title}: {name}", *tables.wide(comparison, name))
            _wide().print(shown)
        for note in tables.notes(comparison):
            console.print(note, soft_wrap=True)
        written = tables.write_all(comparison, out / "tables")
    console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True, markup=False)


@app.command()
def page(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of `sweep`.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
) -> None:
    """Write one HTML page of all records of RESULTS that opens from disk."""
    from normalis.research.page import write_results

    console.print(f"page: {write_results(results, out)}   open it in a browser", soft_wrap=True)


@app.command()
def pack(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of `sweep`.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the two files.")],
) -> None:
    """Write all records of RESULTS into two compact files, for shipping."""
    from normalis.research import packed
    from normalis.research.records import Records

    written = packed.pack(Records(results).all(), out)
    for file in written:
        console.print(f"{file}: {file.stat().st_size / 1e6:.2f} MB", soft_wrap=True)


@app.command()
def rekey(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of `sweep`.")],
) -> None:
    """Name the records of RESULTS by the settings that this version knows; measure nothing anew."""
    from normalis.research.rekey import rekey as rename

    with errors.status("naming records anew"):
        done = rename(results)
    counts = f"{done.records} records, {done.models} models, {len(done.tables)} other tables"
    console.print(f"named anew: {counts}", soft_wrap=True)
    for name, why in done.left.items():
        errors.print(f"left as it is: {name[:12]}: {why}", soft_wrap=True, markup=False)


@app.command()
def results(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="Results folder.")],
    where: Annotated[
        list[str] | None, typer.Option(help="Filter, COLUMN=VALUE; repeatable.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns, comma-separated.")] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by, descending.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write the table here.")] = None,
) -> None:
    """List the records of RESULTS; columns that are the same in all are named above the table."""
    from normalis.research.records import listing
    from normalis.storage import write_csv

    shown = columns.split(",") if columns else None
    head, rows = listing(folder, where=_pairs(where), columns=shown, sort=sort)
    if csv is not None:
        write_csv(csv, head, rows)
    same = [i for i, values in enumerate(zip(*rows, strict=True)) if len(set(values)) == 1]
    same = [] if shown or len(rows) < 2 else same
    varying = [i for i in range(len(head)) if i not in same]
    equal = ", ".join(f"{head[i]} {cell(rows[0][i])}" for i in same)
    title = f"{len(rows)} records" + (f"; all of {equal}" if equal else "")
    body = [[_brief(head[i], row[i]) for i in varying] for row in rows]
    out = _wide()
    out.styled(f"[bold]{escape(title)}[/]")
    out.print(table("", [head[i] for i in varying], body))


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(metavar="RESULTS", help="Results folder.")],
    dataset: Annotated[str, typer.Option(help="Name of the data set.")],
    against: Annotated[
        str | None,
        typer.Option(help="Row to compare with; by default the best method without a network."),
    ] = None,
    metric: Annotated[str, typer.Option(help="auroc or average_precision.")] = "auroc",
    rows: Annotated[
        str | None,
        typer.Option(help="Regular expression that a row must contain to take part."),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write the table here.")] = None,
) -> None:
    """Compare records on the same test images, patient by patient."""
    from normalis.research.paired import versus
    from normalis.storage import write_csv

    reference, found = versus(folder, dataset=dataset, against=against, metric=metric, rows=rows)
    cells = [
        [one.row, one.n_seeds, f"{100 * one.value:.1f}", f"{100 * one.difference:+.1f}",
         f"{100 * one.low:+.1f} to {100 * one.high:+.1f}", f"{one.adjusted_p:.2g}", one.verdict]
        for one in found
    ]  # fmt: skip
    head = ["method", "seeds", metric, "difference", "95 %", "p, corrected", "verdict"]
    out = _wide()
    out.print(
        f"[bold]{escape(dataset)}: against {escape(reference)}[/]", soft_wrap=True, markup=True
    )
    out.print(table("", head, cells))
    if csv is not None and found:
        bodies = [one.to_dict() for one in found]
        write_csv(csv, list(bodies[0]), [list(body.values()) for body in bodies])


def _wide() -> PlainConsole:
    """Return where wide tables go: piped output has no width to break cells for."""
    return console if console.is_terminal else PlainConsole(width=max(console.width, 160))


def _brief(column: str, value: Any) -> Any:
    """Shorten a hash to what tells it from others."""
    return str(value)[:12] if column in ("id", "data", "training_key") else value


def _pairs(given: list[str] | None, flag: str = "--where") -> dict[str, str]:
    pairs = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"{flag} must be NAME=VALUE, got {pair!r}")
        pairs[name] = value
    return pairs


Run = Callable[..., dict[str, str]]


def _engine(
    name: str,
    jobs: int | None,
    device: str,
    address: str,
    gpus_per_job: float,
    keep_models: bool,
    stack: int | None,
) -> tuple[str, dict[str, Any]]:
    """Return the engine and its options; fail before anything is read."""
    common = {"device": device, "keep_models": keep_models}
    if name == "local":
        return name, {"jobs": jobs, "stack": stack, **common}
    if name == "ray":
        return name, {"address": address, "gpus_per_job": gpus_per_job, **common}
    raise SettingsError(f"--engine must be local or ray, got {name!r}")


def _run(
    tables: list[dict[str, Any]],
    out: Path,
    data: Path | None,
    dry_run: bool,
    engine: tuple[str, dict[str, Any]],
) -> None:
    from normalis.research.data import Store
    from normalis.research.experiments import plan, write_plan
    from normalis.research.rekey import check_names

    store = Store(out, data)
    with errors.status("reading the data"):
        experiments = [e for table in tables for e in plan(table, store.fingerprints)]
    file = write_plan(out, experiments)
    errors.print(f"plan: {file}", soft_wrap=True, markup=False)
    if dry_run:
        check_names(out)
        _print_plan(experiments, out, store)
        return
    name, options = engine
    with _progress() as hear:
        failures = _engine_function(name)(experiments, out, callback=hear, **options)
    for title, message in failures.items():
        errors.print(
            f"[red]failed[/] {escape(title)}: {escape(message)}", soft_wrap=True, markup=True
        )
    if failures:
        raise typer.Exit(1)


def _engine_function(name: str) -> Run:
    if name == "ray":
        from normalis.research.ray import run_plan_on_ray

        return run_plan_on_ray
    from normalis.research.sweep import run_plan

    return run_plan


def _print_plan(experiments: list[Experiment], out: Path, store: Any) -> None:
    from normalis.research.jobs import estimate, is_trained, jobs_of
    from normalis.research.records import Records

    records = Records(out)
    known = records.table()
    total = 0.0
    for job in jobs_of(experiments):
        is_done = all(e.identity in records for e in job.experiments)
        n_train = int((store.get(job.experiments[0].data).split == "train").sum())
        seconds = estimate(job, n_train=n_train, known=known)
        if is_trained(job, out):
            seconds = 5.0 * len(job.experiments)  # reading it
        seconds *= not is_done
        total += seconds
        for experiment in job.experiments:
            state = "done" if experiment.identity in records else _span(seconds)
            print(f"{experiment.identity[:12]}  {state:>8}  {experiment}")
            seconds = 0.0
    print(f"{len(experiments)} experiments, about {_span(total)} of one worker")


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _progress() -> Iterator[Callable[[Event], None]]:
    """Show trainings as they go, with the time left of the whole plan, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=errors) as bar:
        whole = bar.add_task("plan", total=None, note="")
        shown: dict[str, Any] = {}

        def hear(event: Event) -> None:
            if event.kind == "lost":
                bar.console.print(f"[yellow]{escape(event.message)}[/]", markup=True)
                return
            left = "" if event.left_s is None else f"{_span(event.left_s)} left"
            bar.update(whole, completed=event.done, total=event.total, note=left)
            if event.key not in shown:
                shown[event.key] = bar.add_task(escape(event.title), total=event.epochs, note="")
            bar.update(shown[event.key], completed=event.epoch)
            if event.kind in ("done", "failed"):
                bar.remove_task(shown.pop(event.key))

        yield hear
