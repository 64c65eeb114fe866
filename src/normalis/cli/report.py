"""``normalis report``: one page of a run or of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normalis.cli.console import console

__all__ = ["report"]


def report(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run, or an output of `score`.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    pseudonyms: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYFILE",
            help="Show patients, accession numbers and UIDs under the pseudonyms of this key; the "
            "key is made if the file is not there.",
        ),
    ] = None,
) -> None:
    """Write one HTML page that opens from disk: figures, tables and, for scores, a triage view."""
    from normalis.output.pseudonyms import replaced
    from normalis.report import write_report

    page = write_report(path, out, leaves=replaced(pseudonyms))
    console.print(f"page: {page}   open it in a browser", soft_wrap=True)
    console.print("for triage and research, not for diagnosis")
