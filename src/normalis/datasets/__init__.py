"""Which files are normal, anomalous, of which patient, in which split. Nothing is decoded here.

`LAYOUTS` lists the forms of a data folder that are recognised; a new one is a file with
``recognise(path, options) -> bool`` and ``read(path, options) -> Dataset``, and a line in the
table.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Options, Sample, Split
from normalis.errors import DataError, LayoutError, SettingsError
from normalis.errors.arguments import check_kind, path_of
from normalis.shelf import Shelf

__all__ = [
    "KNOWN_PATTERNS",
    "LAYOUTS",
    "Dataset",
    "Options",
    "Sample",
    "Split",
    "offer_pattern",
    "open_dataset",
    "patients_from_pattern",
]

_log = logging.getLogger("normalis.datasets")

# In this order they are asked. The first wins over all others; the last two take what is left.
LAYOUTS = Shelf(
    "layout",
    {
        "images + data.json": "normalis.datasets.layouts.benchmark",
        "train + test/{normal,tumor,annotation}": "normalis.datasets.layouts.brats",
        "MVTec/BMAD": "normalis.datasets.layouts.mvtec",
        "BIDS": "normalis.datasets.layouts.bids",
        "nnU-Net/Decathlon": "normalis.datasets.layouts.segmentation",
        "MOOD": "normalis.datasets.layouts.mood",
        "ZIP": "normalis.datasets.layouts.archive",
        "DICOMDIR": "normalis.datasets.layouts.dicomdir",
        "manifest": "normalis.datasets.layouts.manifest",
        "arrays": "normalis.datasets.layouts.arrays",
        "one folder per class": "normalis.datasets.layouts.classes",
        "folder of images": "normalis.datasets.layouts.folder",
    },
)

_LAZY = {
    "KNOWN_PATTERNS": "normalis.datasets.patients",
    "offer_pattern": "normalis.datasets.patients",
    "patients_from_pattern": "normalis.datasets.patients",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def open_dataset(
    data: str | Path,
    *,
    normal_class: str | Sequence[str] = (),
    ignore_tables: bool = False,
) -> Dataset:
    """Recognise the layout of a folder or file, and list what is in it.

    Args:
        data: a folder, or a JSON, manifest, array or image file.
        normal_class: which classes are normal, where folders or labels name classes; ``*`` for
            all of them.
        ignore_tables: read a folder as if no table or list lay in it.

    Returns:
        The data set; its ``layout`` and ``notes`` say how it was read.

    Raises:
        DataError: if there is nothing at this path, or no image.
        LayoutError: if the layout is ambiguous, or a table in the folder is not understood; the
            message says what to do.
        SettingsError: if a normal class is named for a data set without classes.
    """
    path = path_of("a data set", data, DataError).expanduser()
    if not isinstance(normal_class, str):
        listed = isinstance(normal_class, set | frozenset)
        check_kind("normal_class", list(normal_class) if listed else normal_class, "texts")
    named = (normal_class,) if isinstance(normal_class, str) else tuple(normal_class)
    options = Options(normal_class=named, ignore_tables=ignore_tables)
    try:
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder (looked in {Path.cwd()})")
        layout = _recognise(path, options)
        _check_used(path, layout, options)
        found: Dataset = LAYOUTS.load(layout).read(path, options)
        _log.info("%s: %d files, layout %s", path, len(found.samples), layout)
        return _without_objects(found) if path.is_dir() and layout in _LISTED else found
    except OSError as error:  # no permission, a broken disk, a folder that vanishes meanwhile
        raise DataError(f"{path}: cannot be listed ({error})") from error


# Layouts that take whatever lies in a folder, while others name every file.
_LISTED = frozenset(LAYOUTS) - {"images + data.json", "manifest", "arrays"}
_WITH_CLASSES = ("manifest", "one folder per class", "ZIP", "BIDS")


def _recognise(path: Path, options: Options) -> str:
    from normalis.datasets.listing import is_output

    if path.is_dir() and is_output(path):
        raise LayoutError(
            f"{path}: is a folder that normalis wrote (a run, or scores), no data set"
        )
    *described, classes, fallback = LAYOUTS
    if options.ignore_tables and path.is_dir():
        described.remove("images + data.json")
    fitting = _fitting(path, described, options)
    if not fitting:
        if path.is_dir():
            _refuse_what_is_no_plain_folder(path, described, options)
        return next(iter(_fitting(path, [classes], options)), fallback)
    if len(fitting) > 1 and fitting[0] != next(iter(LAYOUTS)):
        raise LayoutError(
            f"{path}: fits several layouts: {'; '.join(fitting)}. It holds {_contents(path)}."
            " Give the file that describes it, or move the rest away"
            + (" (or add --ignore-tables)" if "manifest" in fitting else "")
        )
    return fitting[0]


def _fitting(path: Path, layouts: list[str], options: Options) -> list[str]:
    modules = {name: LAYOUTS.load(name) for name in layouts}
    return [name for name, module in modules.items() if module.recognise(path, options)]


def _check_used(path: Path, layout: str, options: Options) -> None:
    """Refuse a normal class where nothing has a class, rather than ignore it."""
    if not options.says() or layout in _WITH_CLASSES or options.normal_class == ("*",):
        return
    if layout == "folder of images":
        from normalis.datasets.listing import folders_in, quote_some

        names = quote_some(folders_in(path), limit=8) if path.is_dir() else ""
        what = f"no folder of that name (folders: {names or 'none'})"
    else:
        what = "a layout that says itself which images are normal"
    raise SettingsError(
        f"{path}: {' and '.join(options.normal_class)} was said to be the normal class, but this "
        f"data set has {what}; layout: {layout}"
    )


def _without_objects(data: Dataset) -> Dataset:
    from normalis.datasets.foreign import without_objects

    return without_objects(data)


def _refuse_what_is_no_plain_folder(path: Path, described: list[str], options: Options) -> None:
    """Keep images from being taken as normal because a folder or table is not understood."""
    from normalis.datasets.foreign import refuse_structures, refuse_tables
    from normalis.datasets.layouts import classes
    from normalis.datasets.listing import folders_in, list_images

    folders = folders_in(path)
    listing = list_images(path)
    has_splits = {"train", "test"} <= {name.lower() for name in folders}
    has_json = (path / "data.json").is_file() and not options.ignore_tables
    if has_json or (has_splits and not classes.recognise(path, options)):
        raise LayoutError(
            f"{path}: the layout is not known: it holds {_contents(path)}. Known are"
            f" {'; '.join(described)}. Give the folder of normal images, a JSON of that form, or a"
            " manifest with the column path; or, if folders below train and test are classes, name "
            "the normal one: --normal-class NAME"
        )
    inner = [name for name, folder in folders.items() if _fitting(folder, described[:3], options)]
    if inner:
        raise LayoutError(
            f"{path}: is no data set itself but holds some: {', '.join(inner)}. Give one of them"
        )
    refuse_structures(path)
    if not options.ignore_tables:
        refuse_tables(path, listing)


def _contents(path: Path, *, limit: int = 8) -> str:
    from normalis.datasets.listing import quote_some

    with os.scandir(path) as entries:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
    return quote_some(names, limit=limit)
