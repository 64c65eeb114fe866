"""Sensitivity by lesion: what a reader misses are lesions, not pixels.

A lesion is a connected component of a mask (corners touch); it is found if the map reaches the
threshold anywhere inside it. Its *peak*, the map's maximum inside, is all that a threshold needs,
so one pass over the masks answers for every threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import MetricError, SettingsError
from normalis.metrics.pixels import Maps

__all__ = ["Lesions", "find_lesions", "lesion_sensitivity"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Lesions:
    """The lesions of a set of masks.

    Attributes:
        image: (L,) number of the image that each lies in.
        size: (L,) pixels.
        peak: (L,) highest value of the map inside.
    """

    image: NDArray[np.int64]
    size: NDArray[np.int64]
    peak: NDArray[np.float64]


def find_lesions(maps: Maps, masks: Maps, *, min_size: int = 1) -> Lesions:
    """Find the connected components of each mask.

    Args:
        maps: (N, H, W) anomaly maps, or a list of (H, W).
        masks: bool of the same shape.
        min_size: components of fewer pixels are left out.

    Raises:
        MetricError: if the shapes of a map and its mask differ, or a map holds NaN in a lesion.
    """
    from scipy import ndimage

    corners = np.ones((3, 3))
    image, size, peak = [], [], []
    for i, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        if np.shape(one) != np.shape(mask):
            raise MetricError(
                f"map and mask must have one shape, got {np.shape(one)} and {np.shape(mask)} "
                f"for image {i}"
            )
        labels, count = ndimage.label(np.asarray(mask, dtype=bool), structure=corners)
        index = np.arange(1, count + 1)
        size.append(np.bincount(labels.ravel(), minlength=count + 1)[1:])
        peak.append(np.asarray(ndimage.maximum(one, labels, index), dtype=np.float64))
        image.append(np.full(count, i))
    sizes = _joined(size, np.int64)
    peaks = _joined(peak, np.float64)
    if not np.isfinite(peaks).all():
        raise MetricError("maps must be finite inside every lesion, got NaN or infinity")
    keep = sizes >= min_size
    return Lesions(image=_joined(image, np.int64)[keep], size=sizes[keep], peak=peaks[keep])


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)


def lesion_sensitivity(
    lesions: Lesions, *, threshold: float, edges: Sequence[float] = (1, 10, 30, 100)
) -> list[dict[str, float]]:
    """Return the share of lesions found, by size.

    Args:
        lesions: from `find_lesions`.
        threshold: of the map; deployable only if calibrated on normal images.
        edges: lower ends of the size classes in pixels, ascending; the last class is open.

    Returns:
        One row per class: ``min_size``, ``max_size`` (exclusive, infinite for the last), ``n``,
        ``found``, ``sensitivity`` (NaN for an empty class).

    Raises:
        SettingsError: if the edges do not ascend.
    """
    if len(edges) == 0 or np.any(np.diff(edges) <= 0):
        raise SettingsError(f"edges of the size classes must ascend, got {list(edges)}")
    rows = []
    for low, high in zip(edges, [*edges[1:], np.inf], strict=True):
        inside = (lesions.size >= low) & (lesions.size < high)
        n, found = int(inside.sum()), int((lesions.peak[inside] >= threshold).sum())
        share = found / n if n else float("nan")
        rows.append(
            {"min_size": low, "max_size": high, "n": n, "found": found, "sensitivity": share}
        )
    return rows
