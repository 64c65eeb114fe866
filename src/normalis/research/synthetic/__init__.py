"""Families of synthetic anomalies on normal images: one file each, listed in `SYNTHETIC`.

A selector that looks at normal images alone cannot know the best capacity
(`docs/explanation/theory.md`): it depends on the lesion. These families state what a lesion may
be, so that a capacity can be chosen that is not far from the best for any of them. **The choice of
families is the method**, so it was fixed by four arguments, before any capacity was chosen with
them:

1. *Span the scale.* In the closed form (`entropy.water_filling`) the lesion's size decides the best
   capacity: the extents are 1/16, 1/4 and 1/2 of the image's side and the whole image, each four
   (or two) times the one before.
2. *Both signs, and both kinds.* Findings are brighter or darker than what they replace; they add
   structure (blob, texture, pasted patch), remove it (blur, opacity) or move it (warp, geometry).
3. *One energy.* Every family changes an image by the same stated amount,
   ‖δ‖ = ``contrast`` · √(total variance of the normal images), so that families differ in *where*
   in the spectrum of normal variation their energy lies and in nothing else; 0.2 makes it 4 % of
   the energy by which two normal images differ from their mean: lost in the leading directions,
   plain outside them. Clipping to [0, 1] and each family's natural maximum may leave it lower.
4. *What optics can make.* No noise that is independent from pixel to pixel: an image that was
   resized has none, and it tests the camera, not the anatomy. The texture is band-limited.

Every family is a pure function of (images, seed): ``(images, *, scale_px, contrast, seed) ->
(images, masks)``, with (N, S, S) float32 images in [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import DataError
from normalis.shelf import Shelf

__all__ = ["SCALES", "SYNTHETIC", "synthesise"]

#: family -> "module:function"
SYNTHETIC = Shelf(
    "family",
    {
        "small-bright": "normalis.research.synthetic.blob:bright_blob",
        "small-dark": "normalis.research.synthetic.blob:dark_blob",
        "large-bright": "normalis.research.synthetic.blob:bright_blob",
        "large-dark": "normalis.research.synthetic.blob:dark_blob",
        "texture": "normalis.research.synthetic.texture:texture",
        "pasted-patch": "normalis.research.synthetic.patch:pasted_patch",
        "blur": "normalis.research.synthetic.blur:blur",
        "warp": "normalis.research.synthetic.warp:warp",
        "opacity": "normalis.research.synthetic.opacity:opacity",
        "photometric": "normalis.research.synthetic.photometric:photometric",
        "geometric": "normalis.research.synthetic.geometric:geometric",
    },
)

#: family -> extent as a share of the image's side
SCALES: dict[str, float] = {
    "small-bright": 1 / 16,
    "small-dark": 1 / 16,
    "large-bright": 1 / 4,
    "large-dark": 1 / 4,
    "texture": 1 / 4,
    "pasted-patch": 1 / 4,
    "blur": 1 / 4,
    "warp": 1 / 4,
    "opacity": 1 / 2,
    "photometric": 1.0,
    "geometric": 1.0,
}


def synthesise(
    family: str, images: ArrayLike, *, contrast: float = 0.2, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn normal images into anomalous ones of a family, at the family's own scale.

    Args:
        family: a name of `SYNTHETIC`.
        images: (N, S, S) normal images in [0, 1], N >= 2.
        contrast: length of the change over the typical length of normal deviations; see above.
        seed: of all randomness; equal seeds give equal images.

    Returns:
        (N, S, S) float32 images in [0, 1] and (N, S, S) masks of what was changed.

    Raises:
        SettingsError: if there is no such family; names the nearest one.
        DataError: if the images are not as described.
    """
    SYNTHETIC.check(family)
    x = np.asarray(images, dtype=np.float32)
    if x.ndim != 3 or x.shape[1] != x.shape[2] or len(x) < 2:
        raise DataError(f"images must be (N, S, S) with N >= 2, got shape {x.shape}")
    make = SYNTHETIC.load(family)
    scale_px = SCALES[family] * x.shape[1]
    result: tuple[NDArray[np.float32], NDArray[np.bool_]] = make(
        x, scale_px=scale_px, contrast=contrast, seed=seed
    )
    return result
