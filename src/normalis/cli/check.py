"""``normalis check``: what is in the data, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalis.cli.arguments import Data, IgnoreTables, NormalClass, PatientPattern, Where
from normalis.cli.console import console, escape, progress, stages, table
from normalis.cli.data import check_out, describe, open_data, report_skipped, select

if TYPE_CHECKING:
    from rich.table import Table

    from normalis.studies.kinds import Kind

__all__ = ["check"]


def check(
    data: Data,
    patient_pattern: PatientPattern = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object only.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON here.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 where leaks are found.")] = False,
    normal_class: NormalClass = None,
    ignore_tables: IgnoreTables = False,
    where: Where = None,
) -> None:
    """Say what is in DATA and what is wrong with it, before any training."""
    from normalis.audit import audit

    dataset = open_data(data, normal_class=normal_class, ignore_tables=ignore_tables, offer=False)
    check_out(out, {"root": str(dataset.root), "layout": dataset.layout}, "audit")
    dataset, kinds = select(dataset, where or ())
    if not as_json:
        describe(dataset)
        if kinds:
            console.print(_kinds_table(kinds))
    with progress("check") as bar:
        found = audit(dataset, patient_pattern=patient_pattern, progress=stages(bar))
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print_audit(found, said=dataset.notes)
    if out is not None:
        from normalis.storage import write_json

        write_json(out, found.to_dict())
    if strict and found.has_leaks:
        raise typer.Exit(1)


def _kinds_table(kinds: list[Kind]) -> Table:
    columns = ["modality", "view", "plane", "description", "studies", "series", "images", "slices"]
    rows = [
        [k.modality, k.view, k.plane, k.description, k.studies, k.series, k.images, k.lie]
        for k in kinds
    ]
    return table("DICOM studies", columns, rows)


def _print_audit(found: Any, said: Sequence[str]) -> None:
    """Print tables and findings, but those notes on the data set that stand above them."""
    report_skipped([(Path(path), reason) for path, reason in found.unreadable])
    for title, columns, rows in found.tables():
        console.print(table(title, columns, rows))
    colours = {"leak": "red", "confound": "magenta", "shift": "yellow", "note": "cyan"}
    for finding in found.findings:
        if finding.text in said:
            continue
        colour = colours.get(finding.severity, "white")
        console.print(
            f"[{colour}]{finding.severity:>9}[/] {escape(finding.text)}",
            soft_wrap=True,
            markup=True,
        )
