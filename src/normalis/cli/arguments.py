"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Data",
    "IgnoreTables",
    "Network",
    "NormalClass",
    "PatientPattern",
    "Run",
    "Threads",
    "Trust",
    "Where",
]


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
PatientPattern = Annotated[
    str | None,
    typer.Option(
        "--patient-pattern",
        help="Regular expression that finds the patient in a file's name, or with a / in it in the "
        "path below the folder; group 1 is the id.",
    ),
]
