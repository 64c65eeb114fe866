"""Images that are rows of a NumPy array: in memory, in an ``.npy``, or inside an ``.npz``.

The dtype says what the numbers mean, as everywhere: ``uint8`` is 0..255; any other number is in
the caller's own units and becomes ``float32``. ``bool`` is refused, for it is a mask and not an
image.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError, UnreadableImageError
from normalis.images.limits import check_values
from normalis.images.raster import check_finite

__all__ = [
    "ArrayRows",
    "as_images",
    "as_numpy",
    "claimed_bytes",
    "first_not_finite",
    "open_array",
    "read_header",
    "row_of",
    "to_float32",
]

_HELD_BYTES = 64 * 2**20  # of a compressed array that is held whole
_KEPT_BYTES = 128 * 2**20  # of rows that were passed over


def as_numpy(x: Any) -> NDArray[Any]:
    """Turn a NumPy array or a torch tensor on any device into a NumPy array.

    Raises:
        DataError: if that cannot be done, or would show values that a mask hides.
    """
    if np.ma.is_masked(x):
        hidden = int(np.ma.getmaskarray(x).sum())
        raise DataError(
            f"images must have all their values, but {hidden} of this array are masked: "
            "give x.filled(value) with the background's value"
        )
    try:
        if hasattr(x, "detach"):  # a tensor; torch itself need not be imported to say so
            x = x.detach().cpu()
            x = x.float() if "bfloat16" in str(x.dtype) else x
            return np.asarray(x.numpy())
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, sparse and meta tensors
        raise DataError(
            f"images must be an array of numbers of one shape, got {type(x).__name__} that is none "
            f"({error})"
        ) from error


def as_images(x: NDArray[Any], *, what: str = "images") -> NDArray[Any]:
    """Check an array of images and return it as (N, C, H, W), without copying.

    Args:
        x: (N, H, W) or (N, C, H, W) with C = 1 or 3.
        what: name of the array, for messages.

    Raises:
        DataError: if the shape, the dtype or a value is not usable.
    """
    if x.dtype == np.bool_ or x.dtype.kind not in "uif":
        hint = "; a mask is not an image" if x.dtype == np.bool_ else ""
        raise DataError(f"{what} must be uint8, integers or floats, got dtype {x.dtype}{hint}")
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        hint = ""
        if x.ndim == 2:
            hint = "; for one image give x[None]"
        elif x.ndim == 4 and x.shape[3] in (1, 3):
            hint = "; channels come second: np.moveaxis(x, 3, 1)"
        raise DataError(
            f"{what} must have the shape (N, H, W), or (N, C, H, W) with C = 1 or 3, "
            f"got {x.shape}{hint}"
        )
    if 0 in x.shape:
        raise DataError(f"{what} must not be empty, got the shape {x.shape}")
    return x


def first_not_finite(x: NDArray[Any]) -> int | None:
    """Return the index of the first image with NaN or infinity, None if there is none."""
    if x.dtype.kind != "f":
        return None
    for index, image in enumerate(x):
        if not np.isfinite(image).all():
            return index
    return None


class ArrayRows:
    """The rows of a compressed array, read from its file as they are asked for.

    Rows are expected in order, or nearly, as several threads ask for them: some that were passed
    over are kept. A row that lies further back makes the file be read from its start again.

    Args:
        path: of the ``.npz``.
        name: of the member in it.
        shape: of the whole array.
        dtype: of the whole array.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.name, self.shape, self.dtype = path, name, shape, dtype
        self.ndim = len(shape)
        self._row_bytes = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._keep = max(1, min(64, _KEPT_BYTES // max(1, self._row_bytes)))
        self._archive: zipfile.ZipFile | None = None
        self._stream: Any = None
        self._next = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Return one row.

        Raises:
            EOFError: if the file ends before it.
        """
        with self._lock:
            if index not in self._kept:
                self._read_to(index)
            return self._kept[index]

    def _read_to(self, index: int) -> None:
        if self._stream is None or index < self._next:
            self._rewind()
        while self._next <= index:
            row = np.empty(self.shape[1:], self.dtype)
            view = row.reshape(-1).view(np.uint8).data
            done = 0
            while done < len(view):
                got = self._stream.readinto(view[done : done + 2**20])
                if not got:
                    raise EOFError(f"the array {self.name} ends in row {self._next}")
                done += got
            self._kept[self._next] = row
            self._next += 1
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)

    def _rewind(self) -> None:
        if self._archive is not None:
            self._stream.close()
            self._archive.close()
        self._archive = zipfile.ZipFile(self.path)
        self._stream = self._archive.open(f"{self.name}.npy")
        read_header(self._stream)
        self._next = 0


def read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the head of an ``.npy``: shape, whether the first axis runs fastest, dtype.

    Raises:
        ValueError: if it is damaged, or claims what no array has.
    """
    try:
        version = np.lib.format.read_magic(stream)
        first = np.lib.format.read_array_header_1_0
        later = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = (first if version == (1, 0) else later)(stream)
    except Exception as error:  # its parser raises also TokenError, SystemError, MemoryError
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"its header is damaged ({type(error).__name__}: {said})") from error
    lengths = tuple(int(n) for n in shape)
    if any(n < 0 for n in lengths):
        raise ValueError(f"its header is damaged: it claims the shape {lengths}")
    return lengths, bool(fortran), dtype


def claimed_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes that an array of a shape takes, however many that be."""
    return int(np.prod(shape, dtype=object)) * dtype.itemsize


def open_array(path: Path, name: str | None = None) -> NDArray[Any] | ArrayRows:
    """Open an array file without holding it: an ``.npy`` is mapped into memory.

    Of an ``.npz`` a small array is held, a large one read row by row.

    Args:
        path: the file.
        name: of the array in an ``.npz``; None where it holds one array only.

    Raises:
        UnreadableImageError: if the file or the array is not there or is damaged.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(2) == b"PK":
                return _from_npz(path, name)
            stream.seek(0)
            shape, _, dtype = read_header(stream)
            held, needed = path.stat().st_size - stream.tell(), claimed_bytes(shape, dtype)
            if held < needed:
                raise UnreadableImageError(
                    path, f"truncated: {held} bytes of values, where its header claims {needed}"
                )
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(path, "the file is not there") from error
    except Exception as error:
        raise UnreadableImageError(path, f"not a readable array file: {error}") from error


def _from_npz(path: Path, name: str | None) -> NDArray[Any] | ArrayRows:
    with zipfile.ZipFile(path) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        chosen = name or (names[0] if len(names) == 1 else "")
        if chosen not in names:
            listed = ", ".join(names)
            raise UnreadableImageError(path, f"no array {name!r} in it; there are: {listed}")
        with archive.open(f"{chosen}.npy") as stream:
            shape, fortran, dtype = read_header(stream)
            if dtype.hasobject:
                raise UnreadableImageError(path, f"the array {chosen} holds Python objects")
            size = claimed_bytes(shape, dtype)
            if size <= _HELD_BYTES:
                return np.lib.format.read_array(archive.open(f"{chosen}.npy"), allow_pickle=False)
    if fortran:
        raise UnreadableImageError(
            path,
            f"the array {chosen} of {size >> 20:,} MiB is stored with its first axis running "
            "fastest, so that no image can be read alone; save np.ascontiguousarray of it",
        )
    check_values(path, *(shape[1:] or (1,)))
    return ArrayRows(path, chosen, shape, dtype)


def row_of(x: NDArray[Any] | ArrayRows, index: int, path: Path) -> NDArray[Any]:
    """Return one image of an array as (C, H, W), ``uint8`` or ``float32``.

    Raises:
        UnreadableImageError: if there is no such row, it claims too much, or it holds NaN,
            infinity, or a number that float32 cannot hold.
    """
    if not 0 <= index < len(x):
        raise UnreadableImageError(path, f"no row {index}: the array has {len(x)}")
    if x.ndim not in (3, 4):
        raise UnreadableImageError(path, f"an array of images must have 3 or 4 axes, got {x.shape}")
    check_values(path, *x.shape[1:])
    try:
        (image,) = as_images(np.asarray(x[index])[None], what="an array file's images")
    except DataError as error:
        raise UnreadableImageError(path, str(error)) from error
    if image.dtype == np.uint8:
        return np.asarray(image)
    if first_not_finite(image[None]) is not None:
        raise UnreadableImageError(path, f"NaN or infinity in row {index}")
    values = to_float32(image)
    check_finite(values, path, where=f" in row {index}")
    return values


def to_float32(x: NDArray[Any]) -> NDArray[np.float32]:
    """Turn numbers into float32; what it cannot hold becomes infinity, without a warning."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32)
