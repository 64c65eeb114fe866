"""Names and contents of what ``normalis score`` writes for each image: maps above all.

Maps and pictures keep the tree and the whole names of the files: ``a.png.npy``, ``a.dcm_0003.npy``
of a frame, ``x.npz_validation_0003.npy`` of an array other than ``test``, ``a.nii.nii.gz`` of a
volume. An ending that a name has already is not repeated.

Each file is renamed into place when it is whole, and the same image gives the same bytes, so that a
map which a killed process wrote, or half wrote, is simply written again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from normalis.images.ahead import map_ahead
from normalis.output.names import clashing, picture_name
from normalis.output.overlays import resize_map
from normalis.storage import write_atomically

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.loading.arrays import Row

__all__ = ["ImageFiles", "do_all", "slice_label"]


@dataclass(frozen=True)
class ImageFiles:
    """The files of each image below a folder.

    Args:
        folder: where they go.
        root: folder that their names are relative to.
        odd: images whose names could be taken for others' (`normalis.output.names`).
    """

    folder: Path
    root: Path
    odd: frozenset[str] = frozenset()

    def located(self) -> Self:
        """Return the same for processes with another working folder."""
        folder, root = (Path(os.path.abspath(p)) for p in (self.folder, self.root))  # noqa: PTH100
        return replace(self, folder=folder, root=root)

    def keeping_apart(self, paths: Iterable[Path]) -> Self:
        """Return the same for these images, among which some names may need to be told apart."""
        return replace(self, odd=clashing(self._below(path).as_posix() for path in set(paths)))

    def inside(self, path: Path) -> PurePath | None:
        """Return a file relative to the root, None if it lies elsewhere."""
        # Not resolved: links may lead many names to one file, or to a name that means nothing.
        file, root = (Path(os.path.abspath(p)) for p in (path, self.root))  # noqa: PTH100
        return file.relative_to(root) if file.is_relative_to(root) else None

    def _below(self, path: Path) -> PurePath:
        # Files of a manifest may lie elsewhere, with one name in several folders: keep them apart.
        found = self.inside(path)
        whole = Path(os.path.abspath(path))  # noqa: PTH100
        return whole.relative_to(whole.anchor) if found is None else found

    def below(self, path: Path, place: str, suffix: str) -> str:
        """Return where a map or picture goes, relative to the folder of its kind.

        Args:
            path: of the image's file.
            place: slice or row within it, as in ``scores.csv``.
            suffix: of the map or picture.
        """
        below = self._below(path)
        is_odd = below.as_posix() in self.odd
        return picture_name(below, place, suffix, is_odd=is_odd).as_posix()

    def name(self, kind: str, row: Row, suffix: str, *, whole: bool = False) -> Path:
        """Return where a map or picture goes; ``whole`` means that of a file, not of a slice."""
        place = "" if whole else slice_label(row.sample, row.slice_index)
        return self.folder / kind / self.below(row.path, place, suffix)

    def has_map(self, path: Path, place: str) -> bool:
        """Return whether the map of an image is there, of its own or within its volume's."""
        names = self.below(path, place, ".npy"), self.below(path, "", ".nii.gz")
        return any((self.folder / "maps" / name).is_file() for name in names)

    def write_maps(self, rows: Sequence[Row], maps: NDArray[np.float32]) -> None:
        """Write maps (B, S, S) of some images; side by side, since each waits for the disk."""
        writes: list[Callable[[], None]] = []
        volumes: dict[Path, list[int]] = {}
        for i, row in enumerate(rows):
            if row.header.get("format") == "NIfTI":
                volumes.setdefault(row.path, []).append(i)
            else:
                writes.append(partial(self._write_map, row, maps[i]))
        for chosen in volumes.values():
            of_volume = [rows[i] for i in chosen]
            writes.append(partial(self._write_volume, of_volume, maps[chosen]))
        do_all(writes)

    def _write_map(self, row: Row, small: NDArray[np.float32]) -> None:
        whole = resize_map(small, row.original_shape)
        write_atomically(
            self.name("maps", row, ".npy"), partial(_save_npy, array=whole), tidy=False
        )

    def _write_volume(self, rows: Sequence[Row], small: NDArray[np.float32]) -> None:
        from normalis.images import save_map_volume

        slices = np.stack(
            [resize_map(m, r.original_shape) for m, r in zip(small, rows, strict=True)]
        )
        target = self.name("maps", rows[0], ".nii.gz", whole=True)
        places = [row.slice_index or 0 for row in rows]
        header = rows[0].header
        write_atomically(
            target, lambda p: save_map_volume(p, slices, header, slices=places), tidy=False
        )


def slice_label(sample: Sample, slice_index: int | str | None) -> str:
    """Return which image of its file this is, as in the column ``slice``; empty if it is alone."""
    if sample.index is None:
        return "" if slice_index is None else str(slice_index)
    array = "" if sample.array in (None, "test") else f"{sample.array}_"
    return f"{array}{sample.index}"


def do_all(
    actions: Iterable[Callable[[], None]], done: Callable[[int], None] | None = None
) -> None:
    """Carry out in threads, a few ahead; ``done`` hears how many are."""
    for number, _ in enumerate(map_ahead(lambda action: action(), actions, ahead=2), start=1):
        if done:
            done(number)


def _save_npy(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:  # a name without .npy would get one appended
        np.save(file, array)
