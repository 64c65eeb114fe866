"""A value that stands alone at one end of an image, as what is written for missing values does.

``-9999`` where nothing was measured, or a marker burnt in at the largest number: between it and all
other values lies more than their whole range. It is looked for before an image is resized, which
would smear it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["PLACEHOLDERS", "Alone", "value_alone"]

PLACEHOLDERS = frozenset({-999.0, -9999.0, -99999.0, -32767.0, -32768.0, -2147483648.0})
"""Numbers that are written for missing values, by custom."""

_GAP = 1.0  # of the range of all other values


class Alone(NamedTuple):
    """A value far from all others of its image.

    Attributes:
        value: itself.
        share: of the pixels that hold it.
        low: 0.5 percentile of the others.
        high: 99.5 percentile of the others.
    """

    value: float
    share: float
    low: float
    high: float


def value_alone(pixels: NDArray[Any]) -> Alone | None:
    """Return the value that stands alone at the lower or upper end, None if none does.

    Zero never does: it is what background is.

    Args:
        pixels: of one image, of any shape, finite.
    """
    least, greatest = float(pixels.min()), float(pixels.max())
    for end, is_low in ((least, True), (greatest, False)):
        if end == 0:
            continue
        rest = pixels[pixels > end] if is_low else pixels[pixels < end]
        if not rest.size:
            return None
        near, far = (rest.min(), rest.max()) if is_low else (rest.max(), rest.min())
        if near != far and abs(float(near) - end) > _GAP * abs(float(far) - float(near)):
            low, high = (float(v) for v in np.percentile(rest, (0.5, 99.5)))
            return Alone(end, 1 - rest.size / pixels.size, low, high)
    return None
