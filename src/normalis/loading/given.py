"""What a user hands over as images: files, a data set or numbers; anything else is an error."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from normalis.datasets import Dataset, Sample, open_dataset
from normalis.errors import DataError

__all__ = ["Images", "as_dataset", "is_array"]

#: What users hand over as images.
Images = str | Path | Sequence[str | Path] | Dataset | NDArray[Any] | Tensor

_WANTED = (
    "images must be a folder or data set, a list of files, or an array or tensor of the shape "
    "(N, H, W) or (N, C, H, W)"
)


def is_array(x: Images) -> bool:
    """Whether images are given as numbers rather than as files.

    Raises:
        DataError: if they are given as neither.
    """
    if isinstance(x, str | Path | Dataset):
        return False
    return isinstance(x, Tensor) or _files_in(x) is None


def as_dataset(x: Any) -> Dataset:
    """Return the data set of a folder, of a list of files, or the one given.

    Raises:
        DataError: if there is none, or what was given is none of these.
    """
    if isinstance(x, Dataset):
        return x
    if isinstance(x, str | Path):
        return open_dataset(x)
    files = None if isinstance(x, Tensor) else _files_in(x)
    if files is None:
        raise DataError(f"images must be files here, got numbers ({type(x).__name__})")
    if not files:
        raise DataError("at least one image is needed, got an empty list")
    samples = tuple(Sample(path=path, split="unlabelled") for path in files)
    return Dataset(name="files", root=samples[0].path.parent, layout="files", samples=samples)


def _files_in(x: Any) -> list[Path] | None:
    """Return the files of a list, or of a column of a table; None for numbers."""
    if isinstance(x, np.ndarray):
        if x.ndim == 1 and x.dtype.kind in "OUT" and x.size:
            return _paths(x.tolist(), x)
        return None
    if hasattr(x, "columns"):
        raise DataError(f"{_WANTED}; got a table ({type(x).__name__}): give its column of paths")
    if isinstance(x, bytes | Mapping) or not hasattr(x, "__len__") or not hasattr(x, "__iter__"):
        listed = isinstance(x, Iterable) and not isinstance(x, bytes | Mapping)
        hint = ": give list(...) of it" if listed else ""
        raise DataError(f"{_WANTED}; got {_named(x)}{hint}")
    if isinstance(x, set | frozenset):
        raise DataError(f"{_WANTED}; got a set, which has no order: give sorted(...)")
    items = _items(x)
    if items and all(isinstance(one, str | os.PathLike) for one in items):
        return _paths(items, x)
    if any(isinstance(one, str | os.PathLike) for one in items):
        odd = next(one for one in items if not isinstance(one, str | os.PathLike))
        raise DataError(f"{_WANTED}; got a list of files that holds {_named(odd)}")
    return [] if not items else None


def _items(x: Any) -> list[Any]:
    try:
        return list(x)
    except TypeError as error:
        raise DataError(f"{_WANTED}; got {_named(x)}") from error


def _paths(items: Sequence[Any], x: Any) -> list[Path]:
    odd = [one for one in items if not isinstance(one, str | os.PathLike)]
    if odd:
        raise DataError(f"{_WANTED}; got {type(x).__name__} that holds {_named(odd[0])}")
    for one in items:
        if not str(one) or "\0" in str(one):
            raise DataError(f"a file must have a name, without NUL; got {str(one)!r}")
    return [Path(one) for one in items]


def _named(x: Any) -> str:
    """Return what was given as a message shows it: its type, and its value where that is short."""
    if x is None or isinstance(x, bool | int | float | type | type(...)):
        return repr(x)
    return f"{type(x).__name__}"
