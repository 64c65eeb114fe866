"""The command that puts two runs, or two scorings, side by side: compare. It parses and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normalis.cli.console import console, table

__all__ = ["compare"]


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run, or an output of `score`.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    fpr: Annotated[float, typer.Option(help="p-value at and below which images count.")] = 0.05,
) -> None:
    """Put two runs side by side by their evaluations, or two outputs of `score` by their images."""
    from normalis.report.side_by_side import compare as side_by_side

    for found in side_by_side(first, second, fpr=fpr):
        console.print(table(found.title, found.columns, [list(row) for row in found.rows]))
        for note in found.notes:
            console.print(f"note: {note}", soft_wrap=True)
    console.print("many experiments: normalis research compare RESULTS", soft_wrap=True)
