"""A change of pose or proportion of the whole image: enlargement, rotation, displacement.

    x(A p + t),   A = exp of a random 2 x 2 matrix of norm a / 2, t up to a / 8 of the side

Enlarged hearts and ventricles, scoliosis, a mis-centred patient: each pixel is normal, the whole is
not. Its energy lies in the leading directions wherever normal poses vary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.ndimage import affine_transform

from normalis.research.synthetic.energy import match_energy

__all__ = ["geometric"]


def geometric(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rotate, stretch, shear and move each image about its centre.

    Args:
        images: (N, S, S) float32 in [0, 1].
        scale_px: extent over which the displacement may reach an eighth; the side by default.
        contrast: length of the change over the normal images' spread.
        seed: of the matrices and displacements.

    Returns:
        Images (N, S, S) float32 in [0, 1], and masks (N, S, S), all True.
    """
    rng = np.random.default_rng(seed)
    generator = rng.standard_normal((len(images), 2, 2))
    generator /= 2 * np.linalg.norm(generator, axis=(1, 2), keepdims=True)
    move = rng.uniform(-1, 1, (len(images), 2)) * scale_px / 8
    centre = (np.array(images.shape[1:]) - 1) / 2

    def posed(strength: NDArray[np.float32]) -> NDArray[np.float32]:
        drawn = np.empty_like(images)
        for i, a in enumerate(strength[:, 0, 0].astype(float)):
            matrix = expm(a * generator[i])
            offset = centre - matrix @ centre + a * move[i]
            drawn[i] = affine_transform(images[i], matrix, offset, order=1, mode="nearest")
        return drawn

    return match_energy(images, posed, contrast=contrast), np.ones(images.shape, dtype=bool)
