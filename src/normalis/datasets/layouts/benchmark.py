"""``images/`` + ``data.json``: the layout of the MedIAnomaly benchmark.

::

    data.json   {"train": {"0": [names], "unlabeled": ...}, "test": {"0": [names], "1": [names]}}
    images/     the files that the lists name

"0" is normal, "1" anomalous. The lists called ``unlabeled`` belong to another task (Cai et al.,
*Dual-distribution discrepancy*, 2022); they are neither read nor counted as missing.

Reference: Cai, Zhang, Chen, Cheng, *MedIAnomaly*, arXiv:2404.04518 (2024).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Sample, Split
from normalis.datasets.listing import quote_some
from normalis.errors import DataError, LayoutError

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "images + data.json"

_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "test": "test"}


def recognise(path: Path) -> bool:
    """Whether the path is a folder with ``data.json`` and ``images/``, or a JSON file."""
    if path.is_file():
        return path.suffix.lower() == ".json"
    return (path / "data.json").is_file() and (path / "images").is_dir()


def read(path: Path) -> Dataset:
    """List the images that the JSON names, in its order.

    Args:
        path: the folder, or the JSON file itself; its images lie in ``images/`` beside it, or
            else beside it.

    Raises:
        LayoutError: if the JSON has another form.
        DataError: if it lists an anomalous training image, or if no file that it lists exists.
    """
    listing = path if path.is_file() else path / "data.json"
    lists = _read_lists(listing)
    images = listing.parent / "images"
    images = images if images.is_dir() else listing.parent
    with os.scandir(images) as entries:
        present = {entry.name for entry in entries}
    samples: list[Sample] = []
    missing: list[str] = []
    for split, is_anomalous, name in _entries(lists, listing):
        file = images / name
        # One listing of the folder is much faster than a question to the disk for each name.
        if name in present or file.is_file():
            samples.append(Sample(path=file, split=split, is_anomalous=is_anomalous))
        else:
            missing.append(name)
    if not samples:
        raise DataError(
            f"{listing}: none of the {len(missing)} files that it lists is in {images}"
            f" (first: {quote_some(missing)})"
        )
    return Dataset(
        name=_name(listing),
        root=path,
        layout=LAYOUT,
        samples=tuple(samples),
        notes=_notes(samples, missing, listing),
    )


def _name(listing: Path) -> str:
    folder = listing.resolve().parent.name
    return folder if listing.name == "data.json" else f"{folder}/{listing.stem}"


def _read_lists(listing: Path) -> Mapping[str, Any]:
    try:
        lists = json.loads(listing.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise LayoutError(f"{listing}: must be a JSON file, but cannot be read: {error}") from error
    if not isinstance(lists, dict) or not all(isinstance(lists.get(s, {}), dict) for s in _SPLITS):
        lists = {}
    if not any(split in lists for split in _SPLITS):
        raise LayoutError(
            f'{listing}: must have the form {{"train": {{"0": [names]}}, "test": {{"0": [names],'
            ' "1": [names]}}; for any other list write a manifest with the column path'
        )
    return lists


def _entries(lists: Mapping[str, Any], listing: Path) -> Iterator[tuple[Split, bool, str]]:
    for key, split in _SPLITS.items():
        for label in ("0", "1"):
            names = lists.get(key, {}).get(label, [])
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise LayoutError(f"{listing}: {key}/{label} must be a list of file names")
            if names and label == "1" and split != "test":
                raise DataError(
                    f"{listing}: {key} must hold normal images only, but lists {len(names)} as"
                    f' "1" ({quote_some(names)}); move them to test or take them out'
                )
            yield from ((split, label == "1", name) for name in names)


def _notes(samples: list[Sample], missing: list[str], listing: Path) -> tuple[str, ...]:
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} files that {listing.name} lists are missing: {quote_some(missing)}."
        )
    twice = len(samples) - len({sample.path for sample in samples})
    if twice:
        notes.append(f"{listing.name} lists {twice} files more than once.")
    return tuple(notes)
