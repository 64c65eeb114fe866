"""Images that are rows of a NumPy array: in memory, in an ``.npy``, or inside an ``.npz``.

The dtype says what the numbers mean, as everywhere: ``uint8`` is 0..255; any other number is in
the caller's own units and becomes ``float32``. ``bool`` is refused, for it is a mask and not an
image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError, UnreadableImageError

__all__ = ["as_images", "as_numpy", "first_not_finite", "open_array", "row_of"]


def as_numpy(x: Any) -> NDArray[Any]:
    """Turn a NumPy array or a torch tensor on any device into a NumPy array."""
    if hasattr(x, "detach"):  # a tensor; torch itself need not be imported to say so
        x = x.detach().cpu()
        x = x.float() if "bfloat16" in str(x.dtype) else x
        return np.asarray(x.numpy())
    return np.asarray(x)


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


def open_array(path: Path, name: str | None = None) -> NDArray[Any]:
    """Open an array file: an ``.npy`` memory-mapped, one array of an ``.npz`` in memory.

    Args:
        path: the file.
        name: of the array in an ``.npz``; None where it holds one array only.

    Raises:
        UnreadableImageError: if the file or the array is not there or is damaged.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(2) == b"PK":
                stream.seek(0)
                return _from_npz(stream, path, name)
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(path, "the file is not there") from error
    except Exception as error:
        raise UnreadableImageError(path, f"not a readable array file: {error}") from error


def _from_npz(stream: BinaryIO, path: Path, name: str | None) -> NDArray[Any]:
    with np.load(stream, allow_pickle=False) as opened:
        chosen = name or (opened.files[0] if len(opened.files) == 1 else "")
        if chosen not in opened.files:
            names = ", ".join(opened.files)
            raise UnreadableImageError(path, f"no array {name!r} in it; there are: {names}")
        return np.asarray(opened[chosen])


def row_of(x: NDArray[Any], index: int, path: Path) -> NDArray[Any]:
    """Return one image of an array as (C, H, W), ``uint8`` or ``float32``.

    Raises:
        UnreadableImageError: if there is no such row or it holds NaN or infinity.
    """
    if not 0 <= index < len(x):
        raise UnreadableImageError(path, f"no row {index}: the array has {len(x)}")
    try:
        (image,) = as_images(x[index : index + 1], what="an array file's images")
    except DataError as error:
        raise UnreadableImageError(path, str(error)) from error
    if first_not_finite(image[None]) is not None:
        raise UnreadableImageError(path, f"NaN or infinity in row {index}")
    return np.asarray(image if image.dtype == np.uint8 else image.astype(np.float32))
