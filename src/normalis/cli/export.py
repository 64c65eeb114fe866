"""The command that hands a fitted model to other programs: export. It parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normalis.cli.console import console

__all__ = ["app"]

app = typer.Typer()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import a method that RUN names, which runs its code.")
    ] = False,
) -> None:
    """Write the network of RUN as ONNX: images in, anomaly maps and reconstructions out."""
    from normalis.engines.export import export_onnx
    from normalis.fitted import FittedDetector

    detector = FittedDetector.load(run, device="cpu", trust=trust)
    written = export_onnx(detector, out, overwrite=overwrite)
    console.print(f"written: {written}", soft_wrap=True)
