"""A local push of anatomy: mass effect, volume loss, a displaced organ.

    x(p + a · w(p) · v)   with v a random direction, at most scale / 2 pixels long

Intensities keep their values and move: nothing is brighter or darker than in normal images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from normalis.research.synthetic.energy import match_energy
from normalis.research.synthetic.region import draw_centres, soft_region

__all__ = ["warp"]


def warp(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Push a region of each image in a random direction.

    Args:
        images: (N, S, S) float32 in [0, 1].
        scale_px: width of the region.
        contrast: length of the change over the normal images' spread; less where the region is
            flat, for the push is at most half its width.
        seed: of positions and directions.

    Returns:
        Images (N, S, S) float32 in [0, 1], and masks (N, S, S) of the region.
    """
    rng = np.random.default_rng(seed)
    size = images.shape[1]
    region = soft_region(draw_centres(images, rng), size, scale_px=scale_px)
    angle = rng.uniform(0, 2 * np.pi, len(images))
    push = np.stack([np.sin(angle), np.cos(angle)], axis=1) * scale_px / 2
    grid = np.mgrid[:size, :size]

    def moved(strength: NDArray[np.float32]) -> NDArray[np.float32]:
        fields = (strength * region)[:, None] * push[:, :, None, None]
        return np.stack(
            [
                map_coordinates(x, grid + f, order=1, mode="nearest")
                for x, f in zip(images, fields, strict=True)
            ]
        )

    return match_energy(images, moved, contrast=contrast), region >= 0.5
