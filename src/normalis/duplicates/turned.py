"""Copies that are flipped or turned by right angles, as augmentation makes them; a pure function.

Mean, spread and the sorted means of the quadrants stay as they are whichever way an image is
turned, so that only images close in them are compared pixel by pixel, in all seven ways. Resizing
rounds a mirrored image a little differently, hence a tolerance of 3 % of the image's contrast.
Images of symmetric things are alike whichever way they are turned, which says nothing: turning must
bring two images closer than they are as they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["turned_pairs"]

Pixels = NDArray[Any]

_CLOSE = 0.6  # grey levels of 256, between what no turn changes
_SAME = 0.03  # root mean square of the difference, in standard deviations of the image
_CLOSER = 0.5  # of it, as a share of the difference of the images as they lie


def turned_pairs(pixels: Pixels) -> list[tuple[int, int]]:
    """Return the pairs of images of which one is the other flipped or turned.

    Args:
        pixels: (N, C, H, W), ``uint8`` or floats with the nominal range [0, 1].

    Returns:
        (i, j) with i < j; constant images are left out.
    """
    from scipy.spatial import cKDTree

    scale = 1.0 if pixels.dtype == np.uint8 else 255.0
    unchanged = _unchanged(pixels) * scale
    shown = np.flatnonzero(unchanged[:, 1] > 0)
    if len(shown) < 2:
        return []
    near = cKDTree(unchanged[shown]).query_pairs(_CLOSE, p=np.inf, output_type="ndarray")
    pairs = ((int(a), int(b)) for a, b in np.sort(shown[near], axis=1))
    return [(i, j) for i, j in sorted(pairs) if _is_turned(pixels[i], pixels[j])]


def _unchanged(pixels: Pixels) -> NDArray[np.float64]:
    """Return (N, 6): mean, standard deviation and the quadrants' means in order."""
    top, left = pixels.shape[2] // 2, pixels.shape[3] // 2
    rows, columns = (slice(None, top), slice(-top, None)), (slice(None, left), slice(-left, None))
    quadrants = [
        pixels[:, :, r, c].mean(axis=(1, 2, 3), dtype=np.float64) for r in rows for c in columns
    ]
    whole = [f(pixels, axis=(1, 2, 3), dtype=np.float64) for f in (np.mean, np.std)]
    return np.stack([*whole, *np.sort(quadrants, axis=0)], axis=1)


def _is_turned(x: Pixels, y: Pixels) -> bool:
    first, second = x.astype(np.float32), y.astype(np.float32)
    as_they_lie = float(np.square(first - second).mean())
    most = min((_SAME * float(second.std())) ** 2, _CLOSER**2 * as_they_lie)
    return any(float(np.square(way - second).mean()) <= most for way in _ways(first))


def _ways(x: Pixels) -> Iterator[Pixels]:
    """Yield an image (C, H, W) flipped in three ways, and a square one turned in four more."""
    flips = (x[:, ::-1], x[:, :, ::-1], x[:, ::-1, ::-1])
    yield from flips
    if x.shape[1] == x.shape[2]:
        yield from (flip.transpose(0, 2, 1) for flip in (x, *flips))
