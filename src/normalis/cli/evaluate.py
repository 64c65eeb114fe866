"""``normalis evaluate``: how good a run is on labelled images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalis.cli.arguments import (
    Data,
    IgnoreTables,
    Network,
    NormalClass,
    PatientPattern,
    Run,
    Threads,
    Trust,
)
from normalis.cli.console import console, progress, stages, table
from normalis.cli.data import check_out, describe, open_data, report_skipped, select
from normalis.cli.values import use_threads

if TYPE_CHECKING:
    from rich.table import Table

    from normalis.evaluation.result import TableRow

__all__ = ["evaluate"]


def evaluate(
    run: Run,
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file; by default RUN/evaluation_NAME.json."),
    ] = None,
    fpr: Annotated[float, typer.Option(help="Nominal false-positive rate.")] = 0.05,
    patient_pattern: PatientPattern = None,
    threads: Threads = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    trust: Trust = False,
    normal_class: NormalClass = None,
    ignore_tables: IgnoreTables = False,
    backbone: Network = None,
) -> None:
    """Evaluate RUN on the labelled test images of DATA, beside baselines."""
    use_threads(threads)
    from normalis.evaluation.of_detector import evaluate_detector
    from normalis.fitted import FittedDetector
    from normalis.storage import RunFolder, write_json

    detector = FittedDetector.load(run, device=device, trust=trust, backbone=backbone)
    dataset = open_data(
        data, patient_pattern, normal_class=normal_class, ignore_tables=ignore_tables
    )
    model = RunFolder(run).identity
    check_out(out, {"data": dataset.name, "model": model}, "evaluation")
    dataset, _ = select(dataset.to_evaluate(), detector.image_settings.where)
    describe(dataset)
    with progress("evaluate") as bar:
        result, found, skipped = evaluate_detector(detector, dataset, fpr=fpr, progress=stages(bar))
    report_skipped(skipped)
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
            "model": model,
            "skipped": len(skipped),
            **result.to_dict(),
            "findings": [{"severity": f.severity, "text": f.text} for f in found.findings],
        },
    )
    console.print(f"metrics: {file}", soft_wrap=True)


#: Section of a result -> the title of its table, in the order in which they are printed.
_TITLES = {
    "ranking": "Ranking",
    "kind": "AUROC by kind of anomaly",
    "baseline": "Baselines (AUROC)",
    "deployable": "At the operating point, fixed on normal images",
    "group": "False-positive rate by group",
    "lesion": "Lesions",
    "oracle": "Label-tuned: something was chosen with these labels",
}


def _print_evaluation(name: str, result: Any) -> None:
    for section, title in _TITLES.items():
        rows = [row for row in result.table() if row.section == section]
        if section == "baseline":
            rows = [row for row in rows if row.subset == "all"][:8]
        rows = [row for row in rows if row.value == row.value]  # NaN: nothing to count
        if rows:
            console.print(_figures(f"{title}: {name}", rows))
    verdict = {True: "beats every", False: "does not beat every", None: "was not compared with a"}
    console.print(f"The method {verdict[result.beats_baselines]} baseline.")
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _figures(title: str, rows: list[TableRow]) -> Table:
    """Tabulate figures; what a reader must know of some stands below the table, numbered.

    A table of words and notes fits into 80 columns: names of figures are words there.
    """
    one_subset = len({r.subset for r in rows}) == 1
    columns = ["figure", *([] if one_subset else ["images"]), "value", "95 % interval", "n"]
    cells = [
        [_in_words(r.name), *([] if one_subset else [r.subset]), r.value, *_rest(r)] for r in rows
    ]
    rows = [replace(r, note=r.note.replace("_", " ")) for r in rows]
    notes = list(dict.fromkeys(r.note for r in rows if r.note))
    common = len({r.note for r in rows}) == 1
    if notes and not common:
        columns.append("")
        numbers = {note: f"[{i}]" for i, note in enumerate(notes, 1)}
        cells = [[*c, numbers.get(r.note, "")] for c, r in zip(cells, rows, strict=True)]
        notes = [f"{numbers[note]} {note}" for note in notes]
    shown = table(title, columns, cells)
    shown.caption, shown.caption_justify = "\n".join(notes) or None, "left"
    return shown


def _rest(row: TableRow) -> list[Any]:
    return [_interval(row.low, row.high), row.n_images]


def _in_words(name: str) -> str:
    """Return a figure's name as words; one with values in it, such as a header's, as it is."""
    return name if "=" in name else name.replace("_percent_", " % ").replace("_", " ")


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}" if low == low else "none"
