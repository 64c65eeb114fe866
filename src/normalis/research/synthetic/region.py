"""Where a local anomaly lies: a centre inside the body, and a soft region around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from normalis.errors import SettingsError

__all__ = ["draw_centres", "soft_body", "soft_region"]

_BODY = 0.1  # brighter than a tenth of the brightest pixel: not air, not the black of a mask


def draw_centres(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a pixel of each image's body, all equally likely.

    Args:
        images: (N, S, S).
        rng: source of randomness.

    Returns:
        (N, 2) rows and columns.
    """
    centres = np.empty((len(images), 2), dtype=np.int64)
    for i, image in enumerate(images):
        body = np.flatnonzero(image >= _BODY * image.max())
        centres[i] = np.unravel_index(rng.choice(body), image.shape)
    return centres


def soft_body(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, S, S) weights, 1 inside the body and 0 outside, with an edge two pixels wide."""
    body = images >= _BODY * images.max(axis=(1, 2), keepdims=True)
    return np.asarray(gaussian_filter(body.astype(np.float32), sigma=(0, 1, 1)), dtype=np.float32)


def soft_region(
    centres: NDArray[np.int64], size: int, *, scale_px: float, sharpness: int = 1
) -> NDArray[np.float32]:
    """Draw a region of height 1 with soft edges around each centre.

    Args:
        centres: (N, 2).
        size: side of the images.
        scale_px: full width at half maximum.
        sharpness: p in 2^-(2r / scale)^(2p): 1 is a Gaussian, more has a flat top.

    Returns:
        (N, S, S), at least one half inside the width asked.
    """
    if not (np.isfinite(scale_px) and scale_px > 0):
        raise SettingsError(f"scale_px must be a finite number above 0, got {scale_px}")
    grid = np.arange(size)
    rows = grid[None, :, None] - centres[:, 0, None, None]
    columns = grid[None, None, :] - centres[:, 1, None, None]
    relative = (rows**2 + columns**2) / (scale_px / 2) ** 2  # 1 at half maximum
    return np.exp2(-(relative**sharpness)).astype(np.float32)
