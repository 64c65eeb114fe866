"""A smooth veil over a large region: pneumonia, effusion, diffuse swelling.

    x + a · w · (level - x),   level = the image's maximum

It brightens towards one level and so flattens what lies beneath, as fluid in air spaces does. The
region is a Gaussian with an irregular edge, drawn by adding smooth noise to its radius, and ends at
the body's outline.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from normalis.research.synthetic.energy import match_energy
from normalis.research.synthetic.region import draw_centres, soft_body, soft_region

__all__ = ["opacity"]


def opacity(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Veil a region of each image.

    Args:
        images: (N, S, S) float32 in [0, 1].
        scale_px: full width at half maximum of the veil.
        contrast: length of the change over the normal images' spread.
        seed: of positions and edges.

    Returns:
        Images (N, S, S) float32 in [0, 1], and masks (N, S, S) of half the veil's maximum.
    """
    rng = np.random.default_rng(seed)
    region = soft_region(draw_centres(images, rng), images.shape[1], scale_px=scale_px)
    white = rng.standard_normal(images.shape).astype(np.float32)
    edge = gaussian_filter(white, sigma=(0, scale_px / 6, scale_px / 6))
    veil = region ** np.exp(0.4 * edge / max(float(edge.std()), 1e-12)) * soft_body(images)
    level = images.max(axis=(1, 2), keepdims=True)
    change = veil * (level - images)
    return match_energy(images, lambda a: images + a * change, contrast=contrast), (
        veil >= 0.5 * veil.max(axis=(1, 2), keepdims=True)
    )
