"""``images/`` + ``data.json``: the layout of the MedIAnomaly benchmark.

::

    data.json   {"train": {"0": [names], "unlabeled": ...}, "test": {"0": [names], "1": [names]}}
    images/     the files that the lists name
    masks/      masks of anomalous images, if there are any (`normalis.datasets.pairing`)

"0" is normal, "1" anomalous; the words of `normalis.datasets.words` mean the same. Any other list
is an error. The lists called ``unlabeled`` belong to another task (Cai et al., *Dual-distribution
discrepancy*, 2022); they are neither read nor counted as missing.

Reference: Cai, Zhang, Chen, Cheng, *MedIAnomaly*, arXiv:2404.04518 (2024).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Options, Sample, Split
from normalis.datasets.listing import folders_in, is_file, list_images, quote_some
from normalis.datasets.pairing import of_no_images, pair_masks
from normalis.datasets.words import is_mask_name, meaning, split_of
from normalis.errors import DataError, LayoutError
from normalis.errors.words import counted, verb

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "images + data.json"

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether the path is a folder with ``data.json`` and ``images/``, or a JSON file."""
    if path.is_file():
        return path.suffix.lower() == ".json"
    return (path / "data.json").is_file() and (path / "images").is_dir()


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the images that the JSON names, in its order.

    Args:
        path: the folder, or the JSON file itself; its images lie in ``images/`` beside it, or
            else beside it.
        options: not used.

    Raises:
        LayoutError: if the JSON has another form, or lists that are not understood.
        DataError: if it lists an anomalous training image, or one file as normal and as anomalous,
            or if no file that it lists exists.
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
        if name in present or is_file(file):
            samples.append(Sample(path=file, split=split, is_anomalous=is_anomalous))
        else:
            missing.append(name)
    if not samples:
        raise DataError(
            f"{listing}: none of the {len(missing)} files that it lists is in {images}"
            f" (first: {quote_some(missing)})"
        )
    samples, twice = _once(samples, listing)
    samples, of_masks = _with_masks(samples, images)
    return Dataset(
        name=_name(listing),
        root=path,
        layout=LAYOUT,
        samples=tuple(samples),
        notes=(*_notes(missing, listing), *twice, *of_masks),
    )


def _name(listing: Path) -> str:
    folder = listing.resolve().parent.name
    return folder if listing.name == "data.json" else f"{folder}/{listing.stem}"


def _read_lists(listing: Path) -> Mapping[str, Any]:
    try:
        lists = json.loads(listing.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_key_twice)
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"{listing}: must be a JSON file, but cannot be read: {error}") from error
    known = {key: split_of(key) for key in lists} if isinstance(lists, dict) else {}
    if not any(known.values()) or not all(
        isinstance(lists[key], dict) for key, split in known.items() if split
    ):
        raise LayoutError(
            f'{listing}: must have the form {{"train": {{"0": [names]}}, "test": {{"0": [names],'
            ' "1": [names]}}; for any other list write a manifest with the column path'
        )
    if odd := [key for key, split in known.items() if not split and _holds_names(lists[key])]:
        raise LayoutError(
            f"{listing}: holds {', '.join(odd)}, which is no split; known are train, validation "
            "and test: rename it, or take it out"
        )
    return {str(split): lists[key] for key, split in known.items() if split}


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that comes twice, of which Python would keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} comes twice")
    return found


def _holds_names(value: Any) -> bool:
    """Whether a value may be a list of images; a title or a date is none."""
    return isinstance(value, list | dict)


def _entries(lists: Mapping[str, Any], listing: Path) -> Iterator[tuple[Split, bool, str]]:
    for split in _SPLITS:
        for label in sorted(lists.get(split, {}), key=lambda key: meaning(key) != "normal"):
            if meaning(label) == "unknown" or label.lower().startswith("unlabel"):
                continue
            names = lists[split][label]
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise LayoutError(f"{listing}: {split}/{label} must be a list of file names")
            is_anomalous = _label(label, split, listing)
            if names and is_anomalous and split != "test":
                raise DataError(
                    f"{listing}: {split} must hold normal images only, but lists {len(names)} as"
                    f' "{label}" ({quote_some(names)}); move them to test or take them out'
                )
            yield from ((split, is_anomalous, name) for name in names)


def _label(label: str, split: str, listing: Path) -> bool:
    said = meaning(label)
    if said is None:
        raise LayoutError(
            f'{listing}: {split} holds the list "{label}", which is not understood; "0" is normal '
            'and "1" anomalous: rename the list, or write a manifest with the columns path, label '
            "and split"
        )
    return said == "anomalous"


def _once(samples: list[Sample], listing: Path) -> tuple[list[Sample], list[str]]:
    """Keep each file once in a split, say which came again, and refuse two labels of one file."""
    kept: dict[tuple[Path, Split], Sample] = {}
    first: dict[Path, Sample] = {}
    again: list[str] = []
    for sample in samples:
        before = first.setdefault(sample.path, sample)
        if before.is_anomalous != sample.is_anomalous:
            raise DataError(
                f"{listing}: lists {sample.path.name} as normal (in {before.split}) and as "
                f"anomalous (in {sample.split}); take it out of one of the lists"
            )
        if kept.setdefault((sample.path, sample.split), sample) is not sample:
            again.append(sample.path.name)
    notes = []
    if again:
        notes.append(
            f"{listing.name} lists {counted(len(again), 'file')} more than once: "
            f"{quote_some(again)}."
        )
    if across := len(kept) - len(first):
        notes.append(
            f"{listing.name} lists {counted(across, 'file')} in two splits, which is a leak."
        )
    return list(kept.values()), notes


def _with_masks(samples: list[Sample], images: Path) -> tuple[list[Sample], list[str]]:
    """Pair the masks that lie beside ``images/``, if there are any."""
    if images.name != "images":
        return samples, []
    found_in = {
        folder: list_images(folder)
        for name, folder in folders_in(images.parent).items()
        if is_mask_name(name)
    }
    masks = [(m, m.relative_to(folder)) for folder, found in found_in.items() for m in found.images]
    said = [note for found in found_in.values() for note in of_no_images(found)]
    if not masks:
        return samples, said
    places = {s.path: s.path.relative_to(images) for s in samples}
    pairs = pair_masks(places.items(), masks)
    anomalous = [s.path for s in samples if s.is_anomalous]
    found = [dataclasses.replace(s, **pairs.of(s.path)) for s in samples]  # type: ignore[arg-type]
    return found, [*said, *pairs.notes(anomalous, any_masks=True)]


def _notes(missing: list[str], listing: Path) -> tuple[str, ...]:
    if not missing:
        return ()
    files, are = counted(len(missing), "file"), verb(len(missing), "is", "are")
    return (f"{files} that {listing.name} lists {are} missing: {quote_some(missing)}.",)
