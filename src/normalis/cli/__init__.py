"""The command line: parses, calls, prints; nothing else.

Everything slow is imported inside the commands, so that ``normalis --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalis.cli.calibrate import app as calibrate
from normalis.cli.calibrate import say_calibration
from normalis.cli.console import Progress as Bar
from normalis.cli.console import (
    cell,
    console,
    errors,
    escape,
    progress,
    show_warnings,
    table,
)  # fmt: skip
from normalis.cli.export import app as export
from normalis.cli.pacs import app as pacs
from normalis.cli.stopping import Stopped, print_anything, stoppable
from normalis.cli.values import typed_values, use_threads, wait_without_spinning
from normalis.errors import CalibrationWarning, NormalisError, SettingsError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from normalis.datasets import Dataset
    from normalis.studies.kinds import Kind
    from normalis.training.loop import Progress

__all__ = ["app", "main"]

app = typer.Typer(
    name="normalis",
    help="Learn what normal medical images look like; rank new ones by how abnormal they are.\n\n"
    "For triage and research, not for diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(export)
app.add_typer(pacs)
app.add_typer(calibrate)

#: Commands that moved below `normalis research`.
MOVED = ("prepare", "sweep", "reproduce", "results", "compare", "fingerprint")


def _mount() -> None:
    """Add the command groups that installed packages offer, such as ``research``."""
    for entry in entry_points(group="normalis.commands"):
        app.add_typer(entry.load(), name=entry.name)
    for name in MOVED:
        app.command(name, hidden=True, context_settings=_ANYTHING)(_moved(name))


_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _moved(name: str) -> Callable[[], None]:
    def answer() -> None:
        raise SettingsError(f"`normalis {name}` is now `normalis research {name}`")

    return answer


Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder, data.json, manifest or array.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Rule that headers or columns must fulfil: Modality=DX, ViewPosition=PA,AP, "
        "SeriesDescription~flair, slices>=20; repeatable, all must hold."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of the processor; by default as many as pay, measured."),
]
NormalClass = Annotated[
    list[str] | None,
    typer.Option(
        "--normal-class",
        help="Folder or label of DATA that is normal, where these name classes; repeatable, '*' "
        "for all.",
    ),
]
IgnoreTables = Annotated[
    bool,
    typer.Option("--ignore-tables", help="Read a folder as if no table or list lay in it."),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Import a method that RUN names as module:Class, which runs its code: only for a "
        "folder whose writer you trust.",
    ),
]

Network = Annotated[
    Path | None,
    typer.Option(
        "--backbone",
        help="File of the feature network that RUN was fitted with, where it is one of your own "
        "that lies elsewhere now, or TorchScript.",
    ),
]


def main() -> None:
    """Run the command line; errors that we raise become one line and exit status 2."""
    print_anything()
    wait_without_spinning()
    show_warnings()
    try:
        with stoppable():
            app()
    except NormalisError as error:
        errors.styled(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except Stopped as stopped:
        errors.styled(f"[bold]stopped[/] by {stopped}; {_how_to_go_on()}")
        sys.exit(128 + stopped.signal)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _how_to_go_on() -> str:
    if {"fit", "score", "demo", "sweep", "prepare", "reproduce"} & set(sys.argv[1:3]):
        return "what was done is kept: run the same command again to go on"
    return "nothing was left half-written: run the same command again"


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from normalis import __version__

        console.print(__version__)
        raise typer.Exit
    del context


def _most_anomalous(top: list[dict[str, Any]]) -> RichTable:
    """Tabulate rows of scores; paths below the folder that they share, columns that say something.

    A path that is no file's own, such as a row of an array, stays as it is.
    """
    folders = {str(Path(row["path"]).parent) for row in top}
    shared = os.path.commonpath(folders) if folders and all(map(os.path.isabs, folders)) else ""
    named = {"image": "path", "slice": "slice", "score": "anomaly_score", "p-value": "p_value"}
    kept = {c: k for c, k in named.items() if any(row[k] not in (None, "") for row in top)}
    rows = [[row[key] for key in kept.values()] for row in top]
    if shared:
        rows = [[os.path.relpath(path, shared), *others] for path, *others in rows]
    return table("Most anomalous" + f", below {shared}" * bool(shared), list(kept), rows)


def _describe(data: Dataset) -> None:
    """Say how a data set was recognised."""
    errors.styled(f"[bold]{escape(str(data.root))}[/]: layout {escape(data.layout)}")
    for (split, label), count in sorted(data.counts().items()):
        shown = label if label != split else ""
        errors.print(f"  {split:<10} {shown:<10} {count:>7}")
    for note in data.notes:
        errors.styled(f"  [yellow]note:[/] {escape(note)}")
    if data.unclear:
        errors.styled(f"  [bold red]unclear:[/] {escape(data.unclear)}")


def _report_skipped(skipped: Sequence[tuple[Path, str]], where: Path | None = None) -> None:
    if not skipped:
        return
    listed = f"; all are listed in {where}" if where else ""
    said = f"{len(skipped)} images could not be read and were skipped"
    errors.styled(f"[yellow]{said}[/]{escape(listed)}")
    for path, reason in skipped[:5]:
        errors.print(f"  {path}: {reason}", soft_wrap=True)


@app.command()
def check(
    data: Data,
    patients: Annotated[
        str | None,
        typer.Option(help="Pattern that finds the patient in a file name, group 1 is the id."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object only.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON here.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 where leaks are found.")] = False,
    normal_class: NormalClass = None,
    ignore_tables: IgnoreTables = False,
    where: Where = None,
) -> None:
    """Say what is in DATA and what is wrong with it, before any training."""
    from normalis.audit import audit

    dataset = _open(data, normal_class=normal_class, ignore_tables=ignore_tables, offer=False)
    dataset, kinds = _select(dataset, where or ())
    if not as_json:
        _describe(dataset)
        if kinds:
            console.print(_kinds_table(kinds))
    with progress("check") as bar:
        found = audit(dataset, patient_pattern=patients, progress=_stages(bar))
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print_audit(found)
    if out is not None:
        from normalis.storage import write_json

        write_json(out, found.to_dict())
    if strict and found.has_leaks:
        raise typer.Exit(1)


def _stages(bar: Bar) -> Callable[[str, float], None]:
    def update(stage: str, share: float) -> None:
        bar.update(round(100 * share), 100, stage)

    return update


def _print_audit(found: Any) -> None:
    _report_skipped([(Path(path), reason) for path, reason in found.unreadable])
    for title, columns, rows in found.tables():
        console.print(table(title, columns, rows))
    colours = {"leak": "red", "confound": "magenta", "shift": "yellow", "note": "cyan"}
    for finding in found.findings:
        colour = colours.get(finding.severity, "white")
        console.print(
            f"[{colour}]{finding.severity:>9}[/] {escape(finding.text)}",
            soft_wrap=True,
            markup=True,
        )


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    method: Annotated[
        str, typer.Option(help="Method; see `normalis methods`. panel: several, with one score.")
    ] = "panel",
    members: Annotated[
        str | None,
        typer.Option(
            help="Of the panel, by default ae-u,feature-knn,feature-gaussian,spade. One alone is "
            "that method: --members ae-u needs no pretrained weights."
        ),
    ] = None,
    latent_dim: Annotated[
        str,
        typer.Option(help="Size of the bottleneck, the paper's d; auto: the method's own default."),
    ] = "auto",
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels, a multiple of 16; by default 64, of feature methods 128."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Feature network of a feature method: efficientnet-lite0, or a file of your own "
            "(.onnx or TorchScript, docs/howto/own_backbone.md)."
        ),
    ] = None,
    channels: Annotated[int, typer.Option(help="1 (grey) or 3.")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training images; by default the recipe's own."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per training step.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam; by default the recipe's own.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="paper (250 epochs), fast (a third of them, a little worse), or auto: fast in a "
            "panel, else paper."
        ),
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    standardize: Annotated[
        bool, typer.Option("--standardize", help="Remove each image's brightness and contrast.")
    ] = False,
    scorer: Annotated[
        str,
        typer.Option(
            help="How the residual is read; auto: median, or native where a method has a score "
            "of its own. The paper's is native."
        ),
    ] = "auto",
    reduction: Annotated[
        str | None,
        typer.Option(
            help="Map to number: mean, max, top:0.01, quantile:0.95; by default the scorer's own."
        ),
    ] = None,
    calibration: Annotated[
        str,
        typer.Option(
            help="split holds out normals for p-values; cv+ trains one model per fold and holds "
            "out none (few images); auto chooses by their number; none trains on all, without "
            "p-values."
        ),
    ] = "auto",
    folds: Annotated[int, typer.Option(help="Of --calibration cv+.")] = 5,
    plane: Annotated[str, typer.Option(help="axial, coronal or sagittal (volumes).")] = "axial",
    slices: Annotated[
        tuple[float, float], typer.Option(help="Range of slices of a volume, 0 to 1.")
    ] = (0.0, 1.0),
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Values that become 0 and 1, for images deeper than 8 bits."),
    ] = None,
    percentiles: Annotated[
        tuple[float, float],
        typer.Option(help="Percentiles of training values that become 0 and 1."),
    ] = (0.5, 99.5),
    margin: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.4,
            help="Share of the side at each edge that is blanked in every image: for text, "
            "letterboxes or film edges that `normalis check` names.",
        ),
    ] = 0.0,
    patients: Annotated[
        str | None,
        typer.Option(help="Pattern that finds the patient in a file name, group 1 is the id."),
    ] = None,
    where: Where = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Setting of the method, NAME=VALUE; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    normal_class: NormalClass = None,
    ignore_tables: IgnoreTables = False,
) -> None:
    """Learn from the normal training images of DATA; an interrupted fit goes on."""
    use_threads(threads)
    options = _with_backbone(_options(option), backbone, method)
    dataset = _open(data, patients, normal_class=normal_class, ignore_tables=ignore_tables)
    dataset, _ = _select(dataset, where or ())
    _describe(dataset)
    if all(sample.split == "unlabelled" for sample in dataset.to_train_on()):
        errors.print(f"  all {len(dataset.samples)} are taken as normal, since fit was given them")
    from normalis.detector import AnomalyDetector

    detector = AnomalyDetector(
        method=method,
        latent_dim=_whole_or_rule(latent_dim),
        image_size=image_size,
        channels=channels,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        recipe=recipe,
        precision=precision,
        standardize=standardize,
        scorer=scorer,
        reduction=reduction,
        calibration=calibration,
        folds=folds,
        plane=plane,
        slice_range=slices,
        window=window,
        percentiles=percentiles,
        margin=margin,
        random_state=seed,
        device=device,
        method_options=options,
        where=where or (),
        members=members.split(",") if members else None,
    )
    _notice_latent(method, latent_dim)
    if footprint := detector.footprint(len(dataset.to_train_on())):
        errors.print(f"  memory: {footprint}")
    with progress(f"fit {method}") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # said below
        detector.fit(dataset, run=out, overwrite=overwrite, progress=_epochs(bar))
    _report_skipped(detector.skipped_, out / "skipped.csv")
    _summarise_fit(detector, out)


def _open(
    data: Path,
    patients: str | None = None,
    *,
    normal_class: list[str] | None = None,
    ignore_tables: bool = False,
    offer: bool = True,
) -> Dataset:
    from normalis.datasets import offer_pattern, open_dataset, patients_from_pattern

    dataset = open_dataset(data, normal_class=normal_class or (), ignore_tables=ignore_tables)
    if patients:
        found: Dataset = patients_from_pattern(dataset, patients)
        return found
    offered = offer_pattern(dataset) if offer else None
    if offered:
        errors.print(
            f"note: file names look as if they held patient ids ({offered[0]}); confirm with "
            f"--patients '{offered[1]}'",
            soft_wrap=True,
        )
    return dataset


def _select(dataset: Dataset, rules: Sequence[str]) -> tuple[Dataset, list[Kind]]:
    """Return the images that the rules choose, and the kinds of DICOM images among them."""
    from normalis.studies.kinds import kinds_of, mixture
    from normalis.studies.select import select
    from normalis.studies.where import parse_all

    if not dataset.samples or (dataset.samples[0].index is not None and not rules):
        return dataset, []
    with progress("reading headers") as bar:
        found = select(dataset, parse_all(rules), progress=bar.update)
    kept = {sample.path for sample in found.dataset.samples}
    kinds = kinds_of(s for s in found.series.values() if kept & {e.path for e in s.entries})
    chosen, said = found.dataset, mixture(kinds)
    if found.aside:
        counts = ", ".join(f"{count} {reason}" for reason, count in found.reasons().items())
        chosen = replace(chosen, notes=(*chosen.notes, f"Left aside: {counts}."))
    return (replace(chosen, notes=(*chosen.notes, said)) if said else chosen), kinds


def _kinds_table(kinds: list[Kind]) -> RichTable:
    columns = ["modality", "view", "plane", "series", "studies", "series", "images", "slices"]
    rows = [
        [k.modality, k.view, k.plane, k.description, k.studies, k.series, k.images, k.lie]
        for k in kinds
    ]
    return table("DICOM studies", columns, rows)


def _whole_or_rule(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def _notice_latent(method: str, latent_dim: str) -> None:
    from normalis.models import model_class

    if latent_dim != "auto" and not model_class(method).has_latent:
        errors.print(f"note: {method} has no latent vector; --latent-dim {latent_dim} is ignored")


def _options(pairs: list[str] | None) -> dict[str, Any] | None:
    """Read NAME=VALUE pairs; values as TOML would read them, else text."""
    given: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--option must be NAME=VALUE, got {pair!r}")
        given[name] = value
    return typed_values(given) or None


def _with_backbone(
    options: dict[str, Any] | None, backbone: str | None, method: str
) -> dict[str, Any] | None:
    """Add the feature network to the options of a method that has one."""
    if backbone is None:
        return options
    from normalis.models import model_class

    if not hasattr(model_class(method).Settings, "backbone"):
        raise typer.BadParameter(
            f"--backbone needs a method on features, such as spade, got --method {method}"
        )
    return {**(options or {}), "backbone": backbone}


def _epochs(bar: Bar) -> Callable[[Progress], None]:
    def update(step: Progress) -> None:
        losses = "  ".join(f"{name} {value:.4g}" for name, value in step.losses.items())
        bar.update(step.epoch, step.epochs, losses)

    return update


def _summarise_fit(detector: Any, out: Path) -> None:
    info = detector.info_
    console.print(
        f"fitted {info['data']['train_images']} normal images in {info['fit_s']:.0f} s; "
        f"{info['data']['calibration_images']} scored unseen for calibration"
    )
    if "members" in info:
        console.print(f"panel of {', '.join(info['members'])}", soft_wrap=True)
        for name, reason in info["left_out"].items():
            console.print(f"note: {name} is left out: {escape(reason)}", soft_wrap=True)
    if detector.history_:
        used = detector.training_
        console.print(
            f"trained by the recipe {used.recipe}: {used.epochs} epochs, "
            f"learning rate {used.learning_rate:g}, {_count(info['threads'], 'thread')}"
        )
    if measured := info.get("measured"):
        said = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        console.print(f"measured on held-out normal images: {said}", soft_wrap=True)
    say_calibration(detector.fitted_)
    console.print(f"run: {out}\nnext: normalis score {out} IMAGES --out OUT", soft_wrap=True)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + "s" * (number != 1)


@app.command()
def score(
    run: Run,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder, file or data set.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder to write.")],
    fpr: Annotated[float, typer.Option(help="Share of normals that may be flagged.")] = 0.05,
    maps: Annotated[bool, typer.Option(help="Write anomaly maps.")] = True,
    overlays: Annotated[bool, typer.Option(help="Write pictures.")] = True,
    all_overlays: Annotated[
        bool, typer.Option("--all-overlays", help="Pictures of all, even beyond 1,000 images.")
    ] = False,
    scorer: Annotated[
        str | None, typer.Option(help="Read the model another way; needs --normals.")
    ] = None,
    reduction: Annotated[
        str | None, typer.Option(help="With --scorer: mean, max, top:0.01, quantile:0.95.")
    ] = None,
    scorer_option: Annotated[
        list[str] | None, typer.Option(help="Setting of the scorer, NAME=VALUE; repeatable.")
    ] = None,
    normals: Annotated[
        Path | None, typer.Option(help="With --scorer: the data that RUN was fitted on.")
    ] = None,
    patients: Annotated[str | None, typer.Option(help="Pattern for patient ids.")] = None,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="torch, onnx (CPUs; for tens of thousands) or ray (a cluster).")
    ] = "torch",
    address: Annotated[
        str,
        typer.Option(help="Ray cluster; local starts one on this machine, auto finds one."),
    ] = "local",
    cpus_per_job: Annotated[float, typer.Option(help="Cores of one worker (ray).")] = 1.0,
    gpus_per_job: Annotated[float, typer.Option(help="Share of a GPU of one worker (ray).")] = 0.0,
    trust: Trust = False,
    normal_class: NormalClass = None,
    ignore_tables: IgnoreTables = False,
    backbone: Network = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace scores in OUT once the new are complete.")
    ] = False,
    relative_paths: Annotated[
        bool,
        typer.Option(
            "--relative-paths",
            help="Name files relative to IMAGES in tables and pages, not as given: for what is "
            "shared.",
        ),
    ] = False,
) -> None:
    """Score IMAGES: a table, anomaly maps and pictures in OUT."""
    use_threads(threads)
    from normalis.engines.cluster import Cluster
    from normalis.fitted import FittedDetector
    from normalis.loading.held_out import samples_to_score
    from normalis.output.folder import ScoreOptions, score_to_folder

    if not 0 < fpr < 1:
        raise typer.BadParameter(f"--fpr must be in (0, 1), got {fpr}")
    detector = FittedDetector.load(run, device=device, trust=trust, backbone=backbone)
    if scorer is not None:
        if normals is None:
            raise typer.BadParameter("--scorer needs --normals, the data that RUN was fitted on")
        chosen = _open(normals, patients)
        detector = detector.with_scorer(
            scorer, chosen, reduction=reduction, scorer_options=_options(scorer_option)
        )
    dataset = _open(images, patients, normal_class=normal_class, ignore_tables=ignore_tables)
    dataset, _ = _select(dataset, detector.image_settings.where)
    _describe(dataset)
    samples = samples_to_score(dataset)
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    options = ScoreOptions(
        maps=maps,
        overlays=overlays,
        all_overlays=all_overlays,
        fpr=fpr,
        engine=engine,
        overwrite=overwrite,
        relative_paths=relative_paths,
        cluster=Cluster(address=address, cpus_per_job=cpus_per_job, gpus_per_job=gpus_per_job),
    )
    with progress("score") as bar:
        summary = score_to_folder(
            detector,
            samples,
            out,
            root=root,
            options=options,
            progress=bar.update,
        )
    console.print(_most_anomalous(summary.top))
    console.print(f"{summary.images} images scored, {summary.skipped} skipped")
    for reason in summary.drift:
        errors.styled(f"[yellow]drift:[/] {escape(reason)}")
    if summary.flagged is not None:
        console.print(f"{summary.flagged} flagged at a false-positive rate of {fpr:g}")
    elif detector.calibration is None:
        console.print("no p-values: the run was fitted with --calibration none")
    else:
        least = detector.calibration.smallest_rate
        console.print(
            f"none flagged: the normals held out certify rates from {least:.2g}, not {fpr:g}"
        )
    console.print(f"table: {out / 'scores.csv'}", soft_wrap=True)
    if overlays:
        console.print(f"pictures: {out / 'overlays'}", soft_wrap=True)
    console.print("for triage and research, not for diagnosis")


@app.command()
def evaluate(
    run: Run,
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file; by default RUN/evaluation_NAME.json."),
    ] = None,
    fpr: Annotated[float, typer.Option(help="Nominal false-positive rate.")] = 0.05,
    patients: Annotated[str | None, typer.Option(help="Pattern for patient ids.")] = None,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    trust: Trust = False,
    normal_class: NormalClass = None,
    ignore_tables: IgnoreTables = False,
    backbone: Network = None,
) -> None:
    """Evaluate RUN on the labelled test images of DATA, beside trivial baselines."""
    use_threads(threads)
    from normalis.evaluation.of_detector import evaluate_detector
    from normalis.fitted import FittedDetector
    from normalis.storage import write_json

    detector = FittedDetector.load(run, device=device, trust=trust, backbone=backbone)
    dataset = _open(data, patients, normal_class=normal_class, ignore_tables=ignore_tables)
    dataset, _ = _select(dataset, detector.image_settings.where)
    _describe(dataset)
    with progress("evaluate") as bar:
        result, found, skipped = evaluate_detector(
            detector, dataset, fpr=fpr, progress=_stages(bar)
        )
    _report_skipped(skipped)
    _print_evaluation(dataset.name, result)
    for finding in found.findings:
        if finding.severity in ("leak", "confound"):
            console.print(f"{finding.severity}: {finding.text}", soft_wrap=True)
    file = out or run / f"evaluation_{dataset.name.replace('/', '_')}.json"
    write_json(
        file,
        {
            "data": dataset.name,
            "method": detector.params["method"],
            "skipped": len(skipped),
            **result.to_dict(),
            "findings": [{"severity": f.severity, "text": f.text} for f in found.findings],
        },
    )
    console.print(f"metrics: {file}", soft_wrap=True)


def _print_evaluation(name: str, result: Any) -> None:
    titles = {
        "ranking": "Ranking",
        "kind": "AUROC by kind of anomaly",
        "baseline": "Trivial baselines (AUROC)",
        "deployable": "At the threshold from normal images",
        "group": "False-positive rate by group",
        "lesion": "Lesions",
        "oracle": "Oracle: something was chosen with these labels",
    }
    for section, title in titles.items():
        rows = [row for row in result.table() if row.section == section]
        if section == "baseline":
            rows = [row for row in rows if row.subset == "all"][:8]
        rows = [row for row in rows if row.value == row.value]  # NaN: nothing to count
        if rows:
            columns = ["images", "figure", "value", "95 % interval", "n"]
            cells = [
                [r.subset, r.name, r.value, _interval(r.low, r.high), r.n_images] for r in rows
            ]
            notes = [r.note for r in rows]
            common = len(set(notes)) == 1
            if not common:
                columns, cells = (
                    [*columns, ""],
                    [[*c, n] for c, n in zip(cells, notes, strict=True)],
                )
            shown = table(f"{title}: {name}", columns, cells)
            shown.caption, shown.caption_justify = (notes[0] if common else None), "left"
            console.print(shown)
    verdict = {True: "beats every", False: "does not beat every", None: "was not compared with a"}
    console.print(f"The method {verdict[result.beats_baselines]} trivial baseline.")
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if low == low else "none"


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the generated images and the training.")] = 0,
) -> None:
    """Do the main job on generated head slices: fit, score, evaluate, report."""
    from normalis.datasets.phantom import write_demo

    data, run, scored = out / "data", out / "run", out / "scored"
    if not data.exists():
        write_demo(data, seed=seed)
    console.rule("1. normalis fit: learn normal images")
    context = {"epochs": epochs, "seed": seed}
    if not (run / "model.json").exists():
        fit(data, run, **{**_defaults(fit), **context})
    console.rule("2. normalis score: rank new images")
    if not (scored / "scores.csv").exists():
        score(run, data, scored, **_defaults(score))
    console.rule("3. normalis evaluate: with the labels of the generated images")
    evaluate(run, data, **_defaults(evaluate) | {"out": scored / "evaluation.json"})
    console.rule("4. normalis report: a page to look through")
    report(scored, out / "report.html", **_defaults(report))
    console.rule("where to look")
    console.print(
        f"  {out / 'report.html'}   open it in a browser\n"
        f"  {scored / 'overlays'}   a picture per image\n"
        f"  {scored / 'scores.csv'}   one row per image\n"
        f"  {run / 'model.json'}   what was fitted",
        soft_wrap=True,
    )


def _defaults(command: Callable[..., None]) -> dict[str, Any]:
    """Return the default of every option of a command, to call it from another."""
    import inspect

    parameters = inspect.signature(command).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@app.command()
def report(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run, or an output of `score`.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
) -> None:
    """Write one HTML page that opens from disk: figures, tables and, for scores, a triage view."""
    from normalis.report import write_report

    page = write_report(path, out)
    console.print(f"page: {page}   open it in a browser", soft_wrap=True)
    console.print("for triage and research, not for diagnosis")


@app.command()
def methods() -> None:
    """List the methods that `fit --method` takes, what they are, and what `fit` sets of them."""
    from inspect import cleandoc

    from normalis.models import model_class, model_names

    rows = []
    for name in model_names():
        cls = model_class(name)
        said = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
        usual = ", ".join(f"{k}={cell(v)}" for k, v in cls.usual_options.items())
        rows.append([name, " ".join(cleandoc(said).split("\n\n")[0].split()), usual])
    shown = table("Methods", ["method", "what it is", "set by fit"], rows)
    shown.columns[0].no_wrap = True
    for column in shown.columns:
        column.justify = "left"
    console.print(shown)


def _write_or_print(value: Any, out: Path | None) -> None:
    from normalis.storage import write_json

    if out is None:
        print(json.dumps(value, indent=1))
    else:
        write_json(out, value)


_mount()
