"""Ground-truth regions: masks of images, frames and slices.

Masks are resized by nearest neighbour, as in the authors' code. Any value above 0 is inside; in a
JPEG, whose compression smears edges, any above 127.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.errors import UnreadableImageError
from normalis.images.arrays import open_array
from normalis.images.reader import read_frames

__all__ = ["fit_mask", "read_masks", "read_masks_of_array"]


def read_masks(
    path: Path, slices: Sequence[int | None], *, plane: str = "axial"
) -> list[NDArray[np.bool_]]:
    """Read the masks of some frames or slices, (H, W) each.

    Args:
        path: a mask in any format that images have.
        slices: ``slice_index`` of each image wanted; None for a file of one image.
        plane: that the image's slices were read in.

    Raises:
        UnreadableImageError: if the file is unreadable or has no mask for one of them.
    """
    found: dict[int | None, NDArray[np.bool_]] = {}
    for frame in read_frames(path, plane=plane, voi=False):
        if frame.slice_index in slices:
            threshold = 127 if frame.header.get("format") == "JPEG" else 0
            found[frame.slice_index] = np.any(frame.pixels > threshold, axis=0)
    missing = sorted(str(s) for s in slices if s not in found)
    if missing:
        raise UnreadableImageError(
            path,
            f"a mask must have the frames of its image; missing: {', '.join(missing[:5])} "
            "(None: the mask of a single image)",
        )
    return [found[s] for s in slices]


def read_masks_of_array(
    path: Path, rows: Sequence[int], *, array: str = "test"
) -> list[NDArray[np.bool_]]:
    """Read rows of the array ``<array>_mask`` of an ``.npz``, or of an ``.npy``."""
    masks = open_array(path, f"{array}_mask")
    if masks.ndim < 3 or max(rows) >= len(masks):
        raise UnreadableImageError(
            path, f"masks must be (N, H, W) with N > {max(rows)}, got the shape {masks.shape}"
        )
    return [np.asarray(masks[i]).reshape(masks.shape[-2:]) > 0 for i in rows]


def fit_mask(mask: NDArray[np.bool_], *, image_size: int) -> NDArray[np.bool_]:
    """Resize a mask to (S, S)."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.NEAREST)) > 0
