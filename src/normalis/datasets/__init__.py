"""Which files are normal, anomalous, of which patient, in which split. Nothing is decoded here.

`LAYOUTS` lists the forms of a data folder that are recognised; a new one is a file with
``recognise(path) -> bool`` and ``read(path) -> Dataset``, and a line in the table.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Sample, Split
from normalis.errors import DataError, LayoutError

__all__ = [
    "KNOWN_PATTERNS",
    "LAYOUTS",
    "Dataset",
    "Sample",
    "Split",
    "offer_pattern",
    "open_dataset",
    "patients_from_pattern",
]

# In this order they are asked. The first wins over all others, the last takes what is left.
LAYOUTS: dict[str, str] = {
    "images + data.json": "normalis.datasets.layouts.benchmark",
    "train + test/{normal,tumor,annotation}": "normalis.datasets.layouts.brats",
    "MVTec/BMAD": "normalis.datasets.layouts.mvtec",
    "manifest": "normalis.datasets.layouts.manifest",
    "arrays": "normalis.datasets.layouts.arrays",
    "folder of images": "normalis.datasets.layouts.folder",
}

_LAZY = {
    "KNOWN_PATTERNS": "normalis.datasets.patients",
    "offer_pattern": "normalis.datasets.patients",
    "patients_from_pattern": "normalis.datasets.patients",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def open_dataset(data: str | Path) -> Dataset:
    """Recognise the layout of a folder or file, and list what is in it.

    Args:
        data: a folder, or a JSON, manifest, array or image file.

    Returns:
        The data set; its ``layout`` and ``notes`` say how it was read.

    Raises:
        DataError: if there is nothing at this path, or no image.
        LayoutError: if the layout is ambiguous; the message lists what was found.
    """
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder (looked in {Path.cwd()})")
    try:
        return importlib.import_module(LAYOUTS[_recognise(path)]).read(path)
    except OSError as error:  # no permission, a broken disk, a folder that vanishes meanwhile
        raise DataError(f"{path}: cannot be listed ({error})") from error


def _recognise(path: Path) -> str:
    *described, fallback = LAYOUTS
    fitting = _fitting(path, described)
    if not fitting:
        if path.is_dir():
            _refuse_what_is_no_plain_folder(path, described)
        return fallback
    if len(fitting) > 1 and fitting[0] != described[0]:
        raise LayoutError(
            f"{path}: fits several layouts: {'; '.join(fitting)}. It holds {_contents(path)}."
            " Give the file that describes it, or move the rest away"
        )
    return fitting[0]


def _fitting(path: Path, layouts: list[str]) -> list[str]:
    return [name for name in layouts if importlib.import_module(LAYOUTS[name]).recognise(path)]


def _refuse_what_is_no_plain_folder(path: Path, described: list[str]) -> None:
    """Keep anomalous images from being taken as normal because a folder is named otherwise."""
    from normalis.datasets.listing import folders_in

    folders = folders_in(path)
    if {"train", "test"} <= {name.lower() for name in folders} or (path / "data.json").is_file():
        raise LayoutError(
            f"{path}: the layout is not known: it holds {_contents(path)}. Known are"
            f" {'; '.join(described)}. Give the folder of normal images, a JSON of that form, or a"
            " manifest with the column path"
        )
    inner = [name for name, folder in folders.items() if _fitting(folder, described[:3])]
    if inner:
        raise LayoutError(
            f"{path}: is no data set itself but holds some: {', '.join(inner)}. Give one of them"
        )


def _contents(path: Path, *, limit: int = 8) -> str:
    from normalis.datasets.listing import quote_some

    with os.scandir(path) as entries:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
    return quote_some(names, limit=limit)
