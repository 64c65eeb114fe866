"""What is known of each image besides its pixels: file, header, listing, patient.

The `properties` of a `Fact` are what a shortcut could use: size, format, bytes, scanner, age,
position. Identifiers (patients, studies, file names) are kept out of them, for they would tell any
two images apart.
"""

from __future__ import annotations

import hashlib
import numbers
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalis.datasets.base import Sample
from normalis.errors import UnreadableImageError

if TYPE_CHECKING:
    from normalis.images import Probe
    from normalis.loading.arrays import Row

__all__ = ["Fact", "count_properties", "image_key", "take_inventory"]

_IDENTIFIERS = {
    "accession_number", "affine", "mode", "name", "patient_id", "volume_shape", "window",
}  # fmt: skip
_SHOWN = ("format", "bits", "channels", "size", "modality")
_LEAST_SLICES = 5  # of a patient, for "relative position" to mean something
_MOSTLY = 0.8  # share of images in such stacks, for numbers in file names to be slices at all
_CHUNK = 1 << 20
_RAW = 0.95  # of the pixels' bytes, from which a file is not compressed


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What is known of one image.

    Attributes:
        key: name that is unique in the data set: the file, and the row or slice in it.
        is_test: the side, test or what a method is fitted on.
        is_anomalous: None where nobody said.
        patient_id: None where unknown.
        volume: the file, where the image is one slice or frame of several; else None.
        split: of the listing, ``train``, ``validation`` or ``test``.
        digest: SHA-256 of the file with the slice's number; None for a row of an array file.
        properties: plain name -> number or text.
    """

    key: str
    is_test: bool
    is_anomalous: bool | None
    patient_id: str | None
    volume: str | None
    digest: str | None
    properties: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"


def image_key(sample: Sample, slice_index: int | None = None) -> str:
    """Return a name for one image: ``PATH``, ``PATH#SLICE`` or ``PATH#ARRAY/ROW``."""
    if sample.index is not None:
        return f"{sample.path}#{sample.array or 'array'}/{sample.index}"
    return str(sample.path) if slice_index is None else f"{sample.path}#{slice_index}"


def take_inventory(
    rows: Sequence[Row], *, progress: Callable[[float], None] | None = None
) -> list[Fact]:
    """Hash and probe the files of images that were loaded.

    Args:
        rows: of `normalis.loading.arrays.Loaded`.
        progress: called with the share that is done.
    """
    files = list(dict.fromkeys(r.sample.path for r in rows if r.sample.index is None))
    seen: dict[Path, tuple[str, dict[str, Any]]] = {}
    with ThreadPoolExecutor(4) as pool:
        for path, found in zip(files, pool.map(_examine, files), strict=True):
            seen[path] = found
            if progress is not None:
                progress(len(seen) / len(files))
    places = _relative_positions(rows)
    return [_fact(row, seen, place) for row, place in zip(rows, places, strict=True)]


def count_properties(facts: Sequence[Fact], *, most: int = 6) -> list[tuple[str, ...]]:
    """Count format, bits, channels, size and modality by split and class.

    Returns:
        Rows (property, value, train, test normal, test anomalous, test unlabelled), common ones
        first; what is beyond the ``most`` common values of a property is one row.
    """
    table: list[tuple[str, ...]] = []
    for name in _SHOWN:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for fact in facts:
            if name in fact.properties:
                counts[str(fact.properties[name])][_column(fact)] += 1
        ordered = sorted(counts.items(), key=lambda item: -item[1].total())
        shown = ordered[:most]
        if len(ordered) > most:
            rest = sum((count for _, count in ordered[most:]), Counter())
            shown.append((f"other values ({len(ordered) - most})", rest))
        columns = ("train", "normal", "anomalous", "unlabelled")
        table += [(name, value, *(str(n[c]) for c in columns)) for value, n in shown]
    return table


def _column(fact: Fact) -> str:
    if not fact.is_test:
        return "train"
    return {None: "unlabelled", False: "normal", True: "anomalous"}[fact.is_anomalous]


def _examine(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a file's digest and what its header says."""
    from normalis.images import probe

    digest = hashlib.sha256()
    with path.open("rb") as stream:
        size = 0
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    try:
        header = probe(path)
    except UnreadableImageError:  # its pixels were read all the same, so the file counts
        return digest.hexdigest(), {}
    said = {
        **header.header,
        "format": header.format,
        "bits": header.bits,
        "channels": header.channels,
    }
    if not _is_uncompressed(header, size):
        said["bytes"] = size
    return digest.hexdigest(), said


def _is_uncompressed(header: Probe, size: int) -> bool:
    """Whether a file's size is that of its pixels, and its rest the length of names and dates.

    The size of a compressed file says how much detail an image holds, that of any other nothing.
    """
    if header.format in ("PNG", "JPEG"):
        return False
    a_value = -(-header.bits // 8)
    pixels = header.height * header.width * header.channels * max(1, header.frames) * a_value
    return size >= _RAW * pixels


def _fact(row: Row, seen: Mapping[Path, tuple[str, dict[str, Any]]], place: float | None) -> Fact:
    sample = row.sample
    digest, said = seen.get(sample.path, (None, {})) if sample.index is None else (None, {})
    height, width = row.original_shape
    shape = {"width": width, "height": height, "size": f"{width}x{height}"}
    stated = {**shape, **said, **row.header, **sample.header}
    properties = {k: _plain(v) for k, v in stated.items() if not _identifies(k)}
    if place is not None:
        properties["relative_position"] = place
        properties["centrality"] = -abs(place - 0.5)
    return Fact(
        key=image_key(sample, row.slice_index),
        is_test=sample.split == "test",
        is_anomalous=sample.is_anomalous,
        patient_id=row.patient_id,
        volume=None if row.slice_index is None else str(sample.path),
        digest=digest and f"{digest}#{row.slice_index or 0}",
        properties={k: v for k, v in properties.items() if v is not None},
        split=sample.split,
    )


def _identifies(name: str) -> bool:
    return name in _IDENTIFIERS or name.endswith("_uid")


def _plain(value: Any) -> Any:
    """Return a number or short text; of several numbers, the first."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    text = str(value).strip() if isinstance(value, str) else ""
    return text[:40] or None


def _relative_positions(rows: Sequence[Row]) -> list[float | None]:
    """Return each slice's place in its patient's stack, in [0, 1], where names or files tell it.

    The number is the slice in its file, or the last number in the file's name; it is divided by
    the patient's largest. Nothing is returned where patients are unknown, or where most of them
    have too few images for a stack of slices.
    """
    numbers_of = [_slice_number(row) for row in rows]
    largest: dict[str, int] = defaultdict(int)
    count: Counter[str] = Counter()
    for row, number in zip(rows, numbers_of, strict=True):
        if row.patient_id is not None and number is not None:
            largest[row.patient_id] = max(largest[row.patient_id], number)
            count[row.patient_id] += 1
    places = [
        number / max(1, largest[row.patient_id])
        if number is not None
        and row.patient_id is not None
        and count[row.patient_id] >= _LEAST_SLICES
        else None
        for row, number in zip(rows, numbers_of, strict=True)
    ]
    in_stacks = sum(place is not None for place in places) >= _MOSTLY * len(places)
    return places if in_stacks else [None] * len(places)


def _slice_number(row: Row) -> int | None:
    if row.slice_index is not None:
        return row.slice_index
    name = str(row.sample.header.get("name", "")) if row.sample.index is not None else ""
    found = re.search(r"(\d+)\D*$", Path(name or row.sample.path).stem)
    return int(found[1]) if found and len(found[1]) <= 4 else None
