"""A change of brightness and contrast of the whole image: exposure, window, a diffuse disease.

    x^γ,   γ = 4^(± a),  the sign drawn for each image

The lesion without a place. All of its energy lies in a few leading directions, so it asks for a
small capacity, or for none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normalis.research.synthetic.energy import match_energy

__all__ = ["photometric"]


def photometric(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Change the gamma of each image, half of them brighter and half darker.

    Args:
        images: (N, S, S) float32 in [0, 1].
        scale_px: unused, for the whole image is changed; there so that all families are alike.
        contrast: length of the change over the normal images' spread.
        seed: of the signs.

    Returns:
        Images (N, S, S) float32 in [0, 1], and masks (N, S, S), all True.
    """
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], (len(images), 1, 1)).astype(np.float32)
    drawn = match_energy(images, lambda a: images ** (4.0 ** (sign * a)), contrast=contrast)
    return drawn, np.ones(images.shape, dtype=bool)
