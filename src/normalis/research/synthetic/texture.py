"""Band-limited texture added in a region: reticulation, mottling, an infiltrate's granularity.

White noise smoothed to a correlation length of an eighth of the region's width, with mean zero: it
changes no mean intensity, only structure. Noise independent from pixel to pixel is left out on
purpose (see the package's docstring).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from normalis.research.synthetic.energy import match_energy
from normalis.research.synthetic.region import draw_centres, soft_region

__all__ = ["texture"]


def texture(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Add texture to a region of each image.

    Args:
        images: (N, S, S) float32 in [0, 1].
        scale_px: width of the region.
        contrast: length of the change over the normal images' spread.
        seed: of positions and noise.

    Returns:
        Images (N, S, S) float32 in [0, 1], and masks (N, S, S) of the region.
    """
    rng = np.random.default_rng(seed)
    region = soft_region(draw_centres(images, rng), images.shape[1], scale_px=scale_px, sharpness=2)
    white = rng.standard_normal(images.shape).astype(np.float32)
    smooth = gaussian_filter(white, sigma=(0, max(scale_px / 16, 0.7), max(scale_px / 16, 0.7)))
    grain = smooth / smooth.std() * region  # strength 1: a standard deviation of the full range
    drawn = match_energy(images, lambda a: images + a * grain, contrast=contrast)
    return drawn, region >= 0.5
