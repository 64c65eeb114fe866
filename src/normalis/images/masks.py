"""Ground-truth regions: masks of images, frames and slices.

What is inside depends on how a mask was stored:

* whole numbers: any value above 0; of a palette its index, not its colour, since index 0 is the
  background of label images; of a JPEG, whose compression smears edges, what lies above half of
  its largest value, at most 127;
* transparency: where the colours are all alike and the alpha channel is not, the alpha channel;
* floating point: from half of the largest value, at most 0.5, so that a floor of 1e-6 is outside.

A mask must lie on the grid of its image: of the same shape or of the same aspect, and for volumes
of the same affine. Masks are resized by nearest neighbour, as in the authors' code, but a connected
part that would vanish keeps one pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.errors import UnreadableImageError
from normalis.images.arrays import open_array
from normalis.images.frame import Frame
from normalis.images.reader import read_frames

__all__ = [
    "check_grid",
    "fit_mask",
    "is_inverted",
    "marks_something",
    "read_masks",
    "read_masks_of_array",
]

Mask = NDArray[np.bool_]

_WHITE_EDGE = 0.9  # share of the border from which a mask that covers most of the image is inverted
_SAME_MM = 0.01  # of affines, whose entries are stored as float32


def read_masks(
    path: Path,
    slices: Sequence[int | None],
    *,
    plane: str = "axial",
    grids: Sequence[Mapping[str, Any]] = (),
) -> list[Mask]:
    """Read the masks of some frames or slices, (H, W) each.

    Args:
        path: a mask in any format that images have.
        slices: ``slice_index`` of each image wanted; None for a file of one image.
        plane: that the image's slices were read in.
        grids: of each image wanted its ``shape`` (H, W) and, of a volume, its ``affine`` and
            ``volume_shape``; empty where the grid is not to be compared.

    Raises:
        UnreadableImageError: if the file is unreadable, has no mask for one of them, or lies on
            another grid.
    """
    found: dict[int | None, Frame] = {}
    for frame in _frames(path, plane):
        if frame.slice_index in slices:
            found[frame.slice_index] = frame
    missing = sorted(str(s) for s in slices if s not in found)
    if missing and list(slices) == [None]:
        raise UnreadableImageError(
            path,
            "a mask must have the frames of its image: it holds several pages or slices, and its "
            "image is a single one; save the page that is meant",
        )
    if missing:
        raise UnreadableImageError(
            path,
            f"a mask must have the frames of its image; missing: {', '.join(missing[:5])} "
            "(None: the mask of a single image)",
        )
    for wanted, grid in zip(slices, grids, strict=bool(grids)):
        check_grid(path, found[wanted].pixels.shape[-2:], found[wanted].header, grid)
    return [_region(found[s], path) for s in slices]


def read_masks_of_array(
    path: Path,
    rows: Sequence[int],
    *,
    array: str = "test",
    grids: Sequence[Mapping[str, Any]] = (),
) -> list[Mask]:
    """Read rows of the array ``<array>_mask`` of an ``.npz``, or of an ``.npy``.

    Args:
        path: the array file.
        rows: of the array.
        array: name of the images' array.
        grids: as of `read_masks`.

    Raises:
        UnreadableImageError: if the array has another shape than its images.
    """
    masks = open_array(path, f"{array}_mask")
    if masks.ndim < 3 or max(rows) >= len(masks):
        raise UnreadableImageError(
            path, f"masks must be (N, H, W) with N > {max(rows)}, got the shape {masks.shape}"
        )
    for grid in grids:
        check_grid(path, masks.shape[-2:], {}, grid)
    return [_above(np.asarray(masks[i]).reshape(masks.shape[-2:])) for i in rows]


def marks_something(path: Path) -> bool:
    """Return whether a mask marks any pixel, of any of its frames or slices.

    Raises:
        UnreadableImageError: if the mask cannot be read.
    """
    return any(bool(_inside(frame).any()) for frame in _frames(path, "axial"))


def check_grid(
    path: Path, shape: tuple[int, ...], header: Mapping[str, Any], grid: Mapping[str, Any]
) -> None:
    """Refuse a mask of another aspect than its image, or of another place in space.

    Args:
        path: the mask.
        shape: (H, W) of it.
        header: of it.
        grid: ``shape`` (H, W) and, of a volume, ``affine`` and ``volume_shape`` of the image.

    Raises:
        UnreadableImageError: saying both.
    """
    height, width = grid["shape"]
    # Sizes are whole numbers, so that a mask of half the size may be off by one pixel.
    slack = max(height, width, *shape)
    if abs(shape[0] * width - shape[1] * height) > slack:
        turned = " (is it transposed?)" if tuple(shape) == (width, height) else ""
        raise UnreadableImageError(
            path,
            f"a mask must have the shape of its image or the same aspect, got {shape[0]} x "
            f"{shape[1]} for an image of {height} x {width}{turned}",
        )
    ours, theirs = _canonical(header), _canonical(grid)
    if ours is None or theirs is None:
        return
    if ours[0] != theirs[0] or not np.allclose(ours[1], theirs[1], atol=_SAME_MM):
        raise UnreadableImageError(
            path,
            f"a mask must have the voxels of its image, but has {ours[0]} of them for "
            f"{theirs[0]}, or another affine; resample it to the image",
        )


def _canonical(header: Mapping[str, Any]) -> tuple[tuple[int, ...], NDArray[Any]] | None:
    """Return a volume's shape and affine once its axes point right, forward and up.

    That is how slices are read, so that a mask may be stored with other axes than its image.
    """
    if header.get("affine") is None or header.get("volume_shape") is None:
        return None
    from nibabel.orientations import inv_ornt_aff, io_orientation

    affine, shape = np.asarray(header["affine"], float), tuple(header["volume_shape"])[:3]
    turns = io_orientation(affine)
    turned = tuple(int(shape[int(at)]) for at in np.argsort(turns[:, 0]))
    return turned, affine @ inv_ornt_aff(turns, shape)


def fit_mask(mask: Mask, *, image_size: int, keep_small: bool = True) -> Mask:
    """Resize a mask to (S, S).

    Args:
        mask: (H, W).
        image_size: S.
        keep_small: keep a pixel of each connected part that nearest neighbours would lose.
    """
    image = Image.fromarray(mask.astype(np.uint8))
    size = (image_size, image_size)
    fitted = np.array(image.resize(size, Image.Resampling.NEAREST)) > 0
    if not keep_small or min(mask.shape) <= image_size or not mask.any():
        return fitted
    for row, column in _lost(mask, fitted):
        fitted[row, column] = True
    return fitted


def is_inverted(mask: Mask) -> bool:
    """Whether a mask marks the background: most of the image and nearly all of its border, not all.

    Args:
        mask: (H, W).
    """
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(0.5 < mask.mean() < 1 and border.mean() >= _WHITE_EDGE)


def _frames(path: Path, plane: str) -> Sequence[Frame]:
    if (frame := _of_labels(path)) is not None:
        return [frame]
    return list(read_frames(path, plane=plane, voi=False))


def _of_labels(path: Path) -> Frame | None:
    """Return a PNG or TIFF with a palette or transparency as the labels that it holds."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1 or image.mode not in ("P", "PA", "LA", "RGBA"):
                return None
            if image.mode in ("P", "PA"):
                values = np.asarray(image if image.mode == "P" else image.getchannel("P"))
                return Frame(pixels=values[None], path=path)
            return Frame(pixels=_without_alpha(np.asarray(image)), path=path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # no picture, or a damaged one: the reader says what is wrong


def _without_alpha(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (1, H, W): the colours, or the alpha channel where only that one varies."""
    colours, alpha = values[..., :-1].max(axis=-1), values[..., -1]
    if colours.min() == colours.max() and alpha.min() != alpha.max():
        return alpha[None]
    return np.where(alpha > 0, colours, 0)[None].astype(np.uint8)


def _region(frame: Frame, path: Path) -> Mask:
    """Return the region of a mask, which has to leave something outside.

    Raises:
        UnreadableImageError: if it is of many values of which none is zero, as an image, an overlay
            or a mask on white is.
    """
    inside, values = _inside(frame), frame.pixels
    flat = values.reshape(len(values), -1)
    if inside.all() and values.dtype.kind != "f" and (flat != flat[:, :1]).any():
        raise UnreadableImageError(
            path,
            f"a mask must be zero outside the lesion, but its values run from {values.min()} to "
            f"{values.max()} and no pixel is zero: is it an image, an overlay, or a mask on white?",
        )
    return inside


def _inside(frame: Frame) -> Mask:
    values = frame.pixels.max(axis=0)
    if frame.header.get("format") == "JPEG":
        return np.asarray(values > min(127, values.max() / 2))
    return _above(values)


def _above(values: NDArray[Any]) -> Mask:
    if values.dtype.kind != "f":
        return np.asarray(values > 0)
    largest = float(values.max(initial=0))
    if largest <= 0:
        return np.zeros(values.shape, dtype=bool)
    return np.asarray(values >= min(0.5, largest / 2))


def _lost(mask: Mask, fitted: Mask) -> list[tuple[int, int]]:
    """Return a pixel of the small image for each connected part that has none there."""
    from scipy.ndimage import center_of_mass, label

    parts, count = label(mask, structure=np.ones((3, 3)))
    size = fitted.shape[0]
    kept = Image.fromarray(parts.astype(np.int32)).resize((size, size), Image.Resampling.NEAREST)
    gone = sorted(set(range(1, count + 1)) - set(np.unique(np.asarray(kept)).tolist()))
    scale = np.array([size, size]) / mask.shape
    places = [(np.array(at) + 0.5) * scale for at in center_of_mass(mask, parts, gone)]
    return [(min(int(y), size - 1), min(int(x), size - 1)) for y, x in places]
