"""Loss of detail in a region: oedema, a consolidated or treated area, a moved acquisition.

    x + a · w · (G_σ * x - x),   σ = scale / 4

It removes energy where the other local families add some. An autoencoder blurs by itself, so this
is the family that a small capacity hides: a blurred region is *easier* to rebuild. At most the
detail of the region can go, and where there is little the change stays below the energy asked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from normalis.research.synthetic.energy import match_energy
from normalis.research.synthetic.region import draw_centres, soft_region

__all__ = ["blur"]


def blur(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Blur a region of each image.

    Args:
        images: (N, S, S) float32 in [0, 1].
        scale_px: width of the region.
        contrast: length of the change over the normal images' spread, as far as detail allows.
        seed: of the positions.

    Returns:
        Images (N, S, S) float32 in [0, 1], and masks (N, S, S) of the region.
    """
    centres = draw_centres(images, np.random.default_rng(seed))
    region = soft_region(centres, images.shape[1], scale_px=scale_px, sharpness=4)
    sigma = scale_px / 4
    change = region * (gaussian_filter(images, sigma=(0, sigma, sigma)) - images)
    return match_energy(images, lambda a: images + a * change, contrast=contrast), region >= 0.5
