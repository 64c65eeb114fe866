"""Additive Gaussian blobs, bright or dark: nodules, haemorrhages, calcifications; cysts, air.

    x + a · 2^-(2r / scale)²    and    x - a · 2^-(2r / scale)²

The one family whose effect on the best capacity has a closed form (`entropy.water_filling`). Both
signs, since clipping and texture make them different for an image though not for a linear model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normalis.research.synthetic.energy import match_energy
from normalis.research.synthetic.region import draw_centres, soft_region

__all__ = ["bright_blob", "dark_blob"]


def bright_blob(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Add a bright blob to each image.

    Args:
        images: (N, S, S) float32 in [0, 1].
        scale_px: full width at half maximum.
        contrast: length of the change over the normal images' spread.
        seed: of the positions.

    Returns:
        Images (N, S, S) float32 in [0, 1], and masks (N, S, S) of the half maximum.
    """
    return _blob(images, scale_px, contrast, seed, sign=1.0)


def dark_blob(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Subtract a blob from each image; arguments and returns as `bright_blob`."""
    return _blob(images, scale_px, contrast, seed, sign=-1.0)


def _blob(
    images: NDArray[np.float32], scale_px: float, contrast: float, seed: int, *, sign: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    centres = draw_centres(images, np.random.default_rng(seed))
    region = soft_region(centres, images.shape[1], scale_px=scale_px)
    drawn = match_energy(images, lambda a: images + sign * a * region, contrast=contrast)
    return drawn, region >= 0.5
