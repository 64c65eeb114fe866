"""Ground-truth regions of loaded images, and what should be known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError
from normalis.errors.words import counted
from normalis.images.ahead import map_ahead
from normalis.images.masks import fit_mask, is_inverted, read_masks, read_masks_of_array

if TYPE_CHECKING:
    from normalis.loading.images import Row

__all__ = ["load_masks"]


def load_masks(
    rows: Sequence[Row],
    *,
    image_size: int,
    keep_small: bool = True,
    notes: list[str] | None = None,
) -> NDArray[np.bool_]:
    """Read the ground-truth region of each row, see `normalis.images.masks`.

    A row without a mask has an empty one; of several masks the union counts.

    Args:
        rows: of `Loaded`.
        image_size: S.
        keep_small: keep a pixel of each part that would vanish at this size. The authors' code
            does not.
        notes: what a reader of the figures should know is added to this list.

    Returns:
        (N, S, S).

    Raises:
        DataError: if a mask cannot be read, lies on another grid than its image, or if most masks
            mark the background: metrics with wrong masks would be wrong.
    """
    masks = np.zeros((len(rows), image_size, image_size), dtype=bool)
    by_file: dict[Path, list[int]] = {}
    for number, row in enumerate(rows):
        for path in () if row.mask is None else (row.mask, *row.sample.more_masks):
            by_file.setdefault(path, []).append(number)
    seen = _Seen()

    def fitted(path: Path) -> list[NDArray[np.bool_]]:
        found = _masks_of(path, rows, by_file[path])
        for mask in found:
            seen.add(path, mask)
        fitted = [fit_mask(mask, image_size=image_size) for mask in found]
        plain = [fit_mask(m, image_size=image_size, keep_small=False) for m in found]
        seen.small += sum(bool((a != b).any()) for a, b in zip(fitted, plain, strict=True))
        return fitted if keep_small else plain

    for path, found in zip(by_file, map_ahead(fitted, by_file), strict=True):
        for number, mask in zip(by_file[path], found, strict=True):
            masks[number] |= mask
    seen.check()
    if notes is not None:
        notes += seen.notes(image_size)
        normal = np.array([row.is_anomalous is False for row in rows], dtype=bool)
        if marked := int((normal & masks.any(axis=(1, 2))).sum()):
            notes.append(f"Labelled normal, with marked pixels: {counted(marked, 'image')}.")
    return masks


@dataclass
class _Seen:
    """What masks look like, all together."""

    count: int = 0
    small: int = 0
    whole: int = 0
    inverted: list[Path] = field(default_factory=list)

    def add(self, path: Path, mask: NDArray[np.bool_]) -> None:
        self.count += bool(mask.any())
        self.whole += bool(mask.all())
        if is_inverted(mask):
            self.inverted.append(path)

    def check(self) -> None:
        """Refuse masks most of which mark the background."""
        if 2 * len(self.inverted) > self.count > 1:
            raise DataError(
                f"{self.inverted[0]}: a mask must mark the lesion, but {len(self.inverted)} of "
                f"{self.count} masks mark most of the image up to its border and leave a hole: "
                "they look inverted; invert them"
            )

    def notes(self, image_size: int) -> list[str]:
        said = {
            "mark most of the image up to its border; are they inverted?": len(self.inverted),
            "cover the whole image": self.whole,
            f"have parts smaller than a pixel at {image_size} x {image_size}, which keep one "
            "pixel": self.small,
        }
        return [f"{n} of {self.count} masks {text}." for text, n in said.items() if n]


def _masks_of(path: Path, rows: Sequence[Row], chosen: list[int]) -> list[NDArray[np.bool_]]:
    """Read the masks of the rows that share a mask file."""
    first, grids = rows[chosen[0]], [_grid(rows[n]) for n in chosen]
    if first.sample.index is not None and path.suffix.lower() in (".npz", ".npy"):
        indices = [rows[n].sample.index or 0 for n in chosen]
        array = first.sample.array or "test"
        return read_masks_of_array(path, indices, array=array, grids=grids)
    return read_masks(
        path,
        [rows[n].slice_index for n in chosen],
        plane=str(first.header.get("plane", "axial")),
        grids=grids,
    )


def _grid(row: Row) -> dict[str, Any]:
    return {
        "shape": row.original_shape,
        "affine": row.header.get("affine"),
        "volume_shape": row.header.get("volume_shape"),
    }
