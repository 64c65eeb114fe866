"""What images show inside their outline, so that a shared outline is not taken for a copy.

Organs cut out on black, fundus discs and centred heads share their outline and their brightness
from person to person, and then correlate above 0.95 as a whole. What tells people apart lies
inside, and is finer. For each image::

    fine = x - blur(x)          within the foreground, by normalised convolution
    fine = fine - mean(fine)    over all images: what all share is no evidence
    fine = 0                    outside the foreground and within two pixels of its edge

and of two images the correlation of ``fine`` counts. In four collections it is at least 0.79 for 99
of 100 copies (re-encoded, rescaled, darkened), and of pairs of different people in fundus
photographs that correlate above 0.95 as a whole it is at most 0.60 for 99 of 100; `SAME_INSIDE`
lies between.

Reference: Knutsson and Westin, "Normalized and differential convolution" (1993).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAME_INSIDE", "correlations", "fine_detail"]

#: Correlation of the fine detail from which two images that look alike may be copies.
SAME_INSIDE = 0.65

_BLUR = 2.0  # pixels of 64
_EDGE = 2  # pixels next to the outline that are left out
_BACKGROUND = 0.06  # of the range: how far background may lie from the border's median
_LEAST_BACKGROUND = 0.05  # of the pixels, for an image to have a background at all
_FLAT = 1.0  # grey levels of 255; below this fine detail is the rounding of 8 bits
_CHUNK = 512
_DENSE = 0.02  # share of pairs from which one matrix product is cheaper than single ones

Fine = NDArray[np.float16]


def fine_detail(pixels: NDArray[Any]) -> Fine:
    """Return the fine detail of each image as rows of length 1; zeros where there is none.

    Args:
        pixels: (N, H, W) images, uint8, or of any range, [0, 1] being that of uint8.

    Returns:
        (N, H * W).
    """
    scale = 1.0 if pixels.dtype == np.uint8 else 255.0
    fine = np.empty(pixels.shape, np.float16)
    inside = np.empty(pixels.shape, bool)
    total = np.zeros(pixels.shape[1:], np.float64)
    for at in range(0, len(pixels), _CHUNK):
        part = slice(at, at + _CHUNK)
        one, inside[part] = _high_pass(scale * pixels[part].astype(np.float32))
        fine[part] = one
        total += one.sum(axis=0, dtype=np.float64)
    shared = (total / np.maximum(1, inside.sum(axis=0))).astype(np.float32)
    if len(pixels) < 3:  # a mean of two images says more of them than of what all share
        shared[:] = 0
    for at in range(0, len(pixels), _CHUNK):
        part = slice(at, at + _CHUNK)
        fine[part] = _rows(fine[part].astype(np.float32) - shared * inside[part], inside[part])
    return fine.reshape(len(pixels), -1)


def correlations(ours: Fine, theirs: Fine, near: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the correlation of fine detail where asked; 1 where it is not or there is none.

    Args:
        ours: (A, P) of `fine_detail`.
        theirs: (B, P) likewise.
        near: (A, B) which pairs are asked for.
    """
    out = np.ones(near.shape, np.float32)
    row, column = np.nonzero(near)
    if not len(row):
        return out
    if len(row) > _DENSE * near.size:
        values = (ours.astype(np.float32) @ theirs.astype(np.float32).T)[near]
    else:
        parts = [slice(at, at + _CHUNK) for at in range(0, len(row), _CHUNK)]
        values = np.concatenate([_products(ours[row[p]], theirs[column[p]]) for p in parts])
    known = np.isin(row, _with_detail(ours)) & np.isin(column, _with_detail(theirs))
    out[near] = np.where(known, values, np.float32(1))
    return out


def _with_detail(rows: Fine) -> NDArray[np.intp]:
    return np.flatnonzero(np.any(rows, axis=1))


def _products(a: Fine, b: Fine) -> NDArray[np.float32]:
    return np.asarray(np.einsum("np,np->n", a.astype(np.float32), b.astype(np.float32)))


def _high_pass(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return what a blur takes away, and where it counts: inside, away from the outline."""
    from scipy.ndimage import gaussian_filter, minimum_filter

    shown = _foreground(x)
    weight = shown.astype(np.float32)
    sigma = (0, _BLUR, _BLUR)
    blurred = gaussian_filter(x * weight, sigma) / np.maximum(gaussian_filter(weight, sigma), 1e-6)
    size = 2 * _EDGE + 1
    inside = minimum_filter(shown.astype(np.uint8), size=(1, size, size)) > 0
    return np.where(inside, x - blurred, np.float32(0)), inside


def _foreground(x: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return all but the even area around: connected to the border and of the border's value."""
    from scipy.ndimage import label

    edges = (x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1])
    level = np.median(np.concatenate(edges, axis=1), axis=1)[:, None, None]
    spread = np.maximum(np.ptp(x, axis=(1, 2)), 1)[:, None, None]
    even = np.abs(x - level) <= _BACKGROUND * spread
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1, 1, :] = in_plane[1, :, 1] = True
    areas, count = label(even, structure=in_plane)
    touching = np.zeros(count + 1, bool)
    for edge in (areas[:, 0], areas[:, -1], areas[:, :, 0], areas[:, :, -1]):
        touching[edge] = True
    touching[0] = False
    around = touching[areas]
    has_background = around.mean(axis=(1, 2)) >= _LEAST_BACKGROUND
    found: NDArray[np.bool_] = ~(around & has_background[:, None, None])
    return found


def _rows(fine: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale each image to length 1, or to zeros where its detail is no more than rounding."""
    count = np.maximum(1, inside.sum(axis=(1, 2)))
    length = np.sqrt((fine**2).sum(axis=(1, 2), dtype=np.float64))
    flat = length / np.sqrt(count) < _FLAT
    return np.asarray(
        np.where(flat[:, None, None], 0, fine / np.maximum(length, 1e-9)[:, None, None]), np.float32
    )
