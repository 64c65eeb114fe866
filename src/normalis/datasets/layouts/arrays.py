"""``.npz`` and ``.npy``: images as arrays, (N, H, W) or (N, C, H, W).

An ``.npz`` may hold ``train``, ``validation``, ``test`` and, for each of them, columns with one
entry per image: ``test_label`` (0 or 1), ``test_patient``, ``test_names``, ``test_mask`` (N, H, W);
any other one (``test_slice_pos``) goes to the sample's header. An ``.npy`` holds images of which
nothing is known, as a plain folder does. Pixels are not read here: only the headers of the arrays
and the columns are.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.base import Dataset, Options, Sample, Split
from normalis.datasets.columns import LABELS, PATIENTS
from normalis.datasets.columns import key as plain_key
from normalis.datasets.listing import list_images, natural_key, quote_some
from normalis.errors import DataError, LayoutError
from normalis.images.arrays import claimed_bytes, read_header

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "arrays"

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SUFFIXES = (".npz", ".npy")
_MAX_ROWS = 500_000  # each becomes an entry of the data set; a header can claim any number
_MAX_COLUMN = 256 * 2**20  # bytes of a column such as names or patients


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether the path is an array file, or a folder of array files without any image."""
    if path.is_file():
        return path.suffix.lower() in _SUFFIXES
    return bool(_arrays_in(path)) and not list_images(path).images


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the rows of an array file.

    Args:
        path: the file, or a folder with one such file.
        options: not used.

    Raises:
        LayoutError: if a folder holds several array files.
        DataError: if the file is damaged, has no array of images, or its arrays do not fit.
    """
    files = [path] if path.is_file() else _arrays_in(path)
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise LayoutError(f"{path}: must hold one array file, found {names}; give one of them")
    file = files[0]
    try:
        samples = _npz(file) if file.suffix.lower() == ".npz" else _npy(file)
    except DataError:
        raise
    except Exception as error:  # damaged bytes raise almost anything in NumPy's and zip's parsers
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{file}: the array file cannot be read ({said})") from error
    if not samples:
        raise DataError(f"{file}: holds no image")
    name = file.stem if path.is_dir() else f"{file.resolve().parent.name}/{file.stem}"
    notes = tuple(_unread(file)) if file.suffix.lower() == ".npz" else ()
    return Dataset(name=name, root=path, layout=LAYOUT, samples=tuple(samples), notes=notes)


def _unread(file: Path) -> Iterator[str]:
    """Say which arrays of an archive belong to no split."""
    known = tuple(f"{split}_" for split in _SPLITS)
    left = [n for n in _shapes(file) if n not in (*_SPLITS, "names") and not n.startswith(known)]
    if left:
        yield f"Arrays that are not read: {quote_some(left, limit=6)}."


def _arrays_in(folder: Path) -> list[Path]:
    files = [f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES and f.is_file()]
    return sorted((f for f in files if f.name[0] != "."), key=lambda f: natural_key(f.name))


def _npy(file: Path) -> list[Sample]:
    with file.open("rb") as stream:
        held = file.stat().st_size
        shape = _shape(stream, where=str(file), held=held)
    return [
        Sample(path=file, split="unlabelled", index=row)
        for row in range(_images_in(shape, where=str(file)))
    ]


def _npz(file: Path) -> list[Sample]:
    shapes = _shapes(file)
    present = [split for split in _SPLITS if split in shapes]
    if not present:
        raise DataError(
            f"{file}: must hold an array train, validation or test, found {', '.join(shapes)}"
        )
    samples: list[Sample] = []
    with np.load(file, allow_pickle=False) as arrays:
        for split in present:
            where = f"{file}, array {split}"
            count = _images_in(shapes[split], where=where)
            columns = _columns(arrays, split, count=count, shapes=shapes, file=file)
            samples += _rows(file, split, count=count, columns=columns)
    return samples


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with zipfile.ZipFile(file) as archive:
        members = [m for m in archive.namelist() if m.endswith(".npy")]
        shapes = {}
        for member in members:
            with archive.open(member) as stream:
                shapes[member.removesuffix(".npy")] = _shape(
                    stream,
                    where=f"{file}, {member}",
                    held=archive.getinfo(member).file_size,
                )
    return shapes


def _shape(stream: Any, *, where: str, held: int) -> tuple[int, ...]:
    """Read the shape from an array's header, without its values, and compare it with its size."""
    try:
        shape, _, dtype = read_header(stream)
    except ValueError as error:
        raise DataError(f"{where}: not a NumPy array ({error})") from error
    if dtype.hasobject:
        raise DataError(f"{where}: holds Python objects, which are never unpickled here")
    needed = claimed_bytes(shape, dtype)
    if needed > held:
        raise DataError(
            f"{where}: its header claims the shape {shape}, which is {needed:,} bytes, but it "
            f"holds {held:,}; truncated or damaged"
        )
    if len(shape) == 1 and needed > _MAX_COLUMN:
        raise DataError(f"{where}: a column of {needed:,} bytes, beyond the limit")
    return shape


def _images_in(shape: tuple[int, ...], *, where: str) -> int:
    if len(shape) not in (3, 4):
        raise DataError(f"{where}: must have shape (N, H, W) or (N, C, H, W), got {shape}")
    if shape[0] > _MAX_ROWS:
        raise DataError(
            f"{where}: claims {shape[0]:,} images, beyond the limit of {_MAX_ROWS:,}; split it"
        )
    return shape[0]


def _columns(
    arrays: Mapping[str, NDArray[Any]],
    split: Split,
    *,
    count: int,
    shapes: Mapping[str, tuple[int, ...]],
    file: Path,
) -> dict[str, NDArray[Any]]:
    """Read the one-dimensional columns of a split; a mask is only looked for, not read."""
    columns: dict[str, NDArray[Any]] = {}
    for key, shape in shapes.items():
        if not key.startswith(f"{split}_"):
            continue
        if not shape or shape[0] != count:
            raise DataError(
                f"{file}: {key} must have one entry for each of the {count} images of {split},"
                f" got shape {shape}"
            )
        name = key.removeprefix(f"{split}_")
        if math.prod(shape) == count:  # (N, 1) is how some write a column
            columns[name] = arrays[key].reshape(count)
        elif name == "mask":
            columns[name] = np.ones(count, dtype=bool)
        elif plain_key(name) in (*LABELS, *PATIENTS):
            raise DataError(
                f"{file}: {key} must be a column with one value for each image, got shape {shape}; "
                "of several labels an image give one, 0 for normal and 1 for anomalous"
            )
    if split == "test" and "names" not in columns and shapes.get("names") == (count,):
        columns["names"] = arrays["names"]
    return columns


def _rows(
    file: Path, split: Split, *, count: int, columns: dict[str, NDArray[Any]]
) -> list[Sample]:
    labels = _labels(_named(columns, LABELS), split, count=count, file=file)
    patients = _named(columns, PATIENTS)
    masks = columns.pop("mask", None)
    if "names" in columns:
        columns["name"] = columns.pop("names")
    return [
        Sample(
            path=file,
            split=split,
            is_anomalous=labels[row],
            patient_id=None if patients is None else str(patients[row]),
            mask=None if masks is None else file,
            index=row,
            array=split,
            header={key: column[row].item() for key, column in columns.items()},
        )
        for row in range(count)
    ]


def _named(columns: dict[str, NDArray[Any]], names: Sequence[str]) -> NDArray[Any] | None:
    """Take the first column that has one of these names; the others stay properties."""
    found = [column for column in columns if plain_key(column) in names]
    return columns.pop(min(found, key=lambda c: names.index(plain_key(c)))) if found else None


def _labels(
    labels: NDArray[Any] | None, split: Split, *, count: int, file: Path
) -> list[bool | None]:
    if labels is None:
        return [None if split == "test" else False] * count
    odd = sorted({str(v) for v in labels.tolist()} - {"0", "1", "False", "True", "0.0", "1.0"})
    if odd:
        raise DataError(f"{file}: {split}_label must hold 0 and 1, got {', '.join(odd[:3])}")
    if split != "test" and labels.any():
        raise DataError(
            f"{file}: {split} must hold normal images only, but {split}_label marks"
            f" {int((labels != 0).sum())} as anomalous; move them to test"
        )
    return [bool(value) for value in labels]
