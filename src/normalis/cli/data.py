"""DATA of a command line: opened, chosen from, described."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalis.cli.console import errors, escape, progress
from normalis.errors.words import counted

if TYPE_CHECKING:
    from normalis.datasets import Dataset
    from normalis.studies.kinds import Kind

__all__ = ["check_out", "describe", "open_data", "open_unlabelled", "report_skipped", "select"]


def open_data(
    data: Path,
    patient_pattern: str | None = None,
    *,
    normal_class: list[str] | None = None,
    ignore_tables: bool = False,
    offer: bool = True,
) -> Dataset:
    """Open DATA; where no patients are named, offer a pattern that finds them in its names."""
    from normalis.datasets import offer_pattern, open_dataset, patients_from_pattern

    dataset = open_dataset(data, normal_class=normal_class or (), ignore_tables=ignore_tables)
    if patient_pattern:
        found: Dataset = patients_from_pattern(dataset, patient_pattern)
        return found
    offered = offer_pattern(dataset) if offer else None
    if offered:
        errors.print(
            f"note: file names look as if they held patient ids ({offered[0]}); confirm with "
            f"--patient-pattern '{offered[1]}'",
            soft_wrap=True,
        )
    return dataset


def open_unlabelled(
    folder: Path | None, patient_pattern: str | None, *, ignore_tables: bool
) -> Dataset | None:
    """Open images of which nothing is known; their names need not fit the pattern of patients."""
    from normalis.datasets import open_dataset, patients_from_pattern
    from normalis.errors import NormalisError

    if folder is None:
        return None
    found: Dataset = open_dataset(folder, ignore_tables=ignore_tables)
    if not patient_pattern:
        return found
    try:
        named: Dataset = patients_from_pattern(found, patient_pattern)
        return named
    except NormalisError as error:
        errors.print(f"note: unlabelled images are of unknown patients: {error}", soft_wrap=True)
        return found


def select(dataset: Dataset, rules: Sequence[str]) -> tuple[Dataset, list[Kind]]:
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


def describe(data: Dataset, *, labels: bool = True) -> None:
    """Say how a data set was recognised.

    Args:
        data: the data set.
        labels: whether the command asks which images are normal.
    """
    errors.styled(f"[bold]{escape(str(data.root))}[/]: layout {escape(data.layout)}")
    for (split, label), count in sorted(data.counts().items()):
        shown = label if label != split else ""
        errors.print(f"  {split:<10} {shown:<10} {count:>7}")
    for note in data.notes:
        errors.styled(f"  [yellow]note:[/] {escape(note)}")
    if data.unclear and labels:
        errors.styled(f"  [bold red]unclear:[/] {escape(data.unclear)}")


def check_out(file: Path | None, ours: Mapping[str, Any], what: str) -> None:
    """Refuse a file to write that is a folder, or holds something else than the same of before.

    Args:
        file: what the user named; None if nothing was.
        ours: what a JSON that may be replaced says of itself.
        what: it is, for the message.

    Raises:
        RunError: saying what lies there; nothing is overwritten unasked.
    """
    from normalis.errors import RunError

    if file is None or not file.exists():
        return
    if file.is_dir():
        raise RunError(f"{file}: must be a file such as {what}.json, is a folder; add a file name")
    try:
        said = json.loads(file.read_text(encoding="utf-8") or "null")
    except (OSError, ValueError, RecursionError):
        said = ""
    is_same = isinstance(said, dict) and all(said.get(key) == ours[key] for key in ours)
    if said is not None and not is_same:
        raise RunError(
            f"{file}: holds something other than the {what} of the same data, which is not "
            "overwritten; choose another --out, or remove it"
        )


def report_skipped(skipped: Sequence[tuple[Path, str]], where: Path | None = None) -> None:
    """Print how many images could not be read, and the first five."""
    if not skipped:
        return
    listed = f"; all are listed in {where}" if where else ""
    said = f"{counted(len(skipped), 'image')} could not be read"
    errors.styled(f"[yellow]{said}, skipped[/]{escape(listed)}")
    for path, reason in skipped[:5]:
        errors.print(f"  {path}: {reason}", soft_wrap=True)
