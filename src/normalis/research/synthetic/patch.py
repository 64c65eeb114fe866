"""A patch of another normal image pasted in: plausible texture in the wrong place.

    x + a · w · (x' - x),   x' another image, moved by a random displacement

After CutPaste (Li et al., CVPR 2021) and foreign patch interpolation (Tan et al., MELBA 2022),
whose interpolation factor is the strength here. Nothing that is pasted is foreign to normal images:
only its place is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normalis.research.synthetic.energy import match_energy
from normalis.research.synthetic.region import draw_centres, soft_region

__all__ = ["pasted_patch"]


def pasted_patch(
    images: NDArray[np.float32], *, scale_px: float, contrast: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Paste a patch of another image into each image.

    Args:
        images: (N, S, S) float32 in [0, 1], N >= 2.
        scale_px: width of the patch.
        contrast: length of the change over the normal images' spread; less where the two images
            agree, for a patch is pasted once at most.
        seed: of partners, positions and displacements.

    Returns:
        Images (N, S, S) float32 in [0, 1], and masks (N, S, S) of the patch.
    """
    rng = np.random.default_rng(seed)
    count, size = len(images), images.shape[1]
    region = soft_region(draw_centres(images, rng), size, scale_px=scale_px, sharpness=4)
    partner = (np.arange(count) + rng.integers(1, count, count)) % count  # never the image itself
    most = max(1, size // 4)
    shift = rng.integers(-most, most + 1, (count, 2))
    other = np.stack(
        [np.roll(images[p], tuple(s), axis=(0, 1)) for p, s in zip(partner, shift, strict=True)]
    )
    change = (region * (other - images)).astype(np.float32)
    return match_energy(images, lambda a: images + a * change, contrast=contrast), region >= 0.5
