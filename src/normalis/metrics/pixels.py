"""Pixel AUROC, pixel average precision and the best Dice, pooled over all pixels, from one sort.

Each pixel of every test image is one unit; its label is the ground-truth mask. Normal images take
part with empty masks. See `normalis.metrics.ranking` for why one sort of each class is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import MetricError
from normalis.metrics.ranking import Ranking, rank

__all__ = ["Maps", "PixelMetrics", "pixel_metrics", "pool_pixels", "rank_pixels"]

Maps = NDArray[Any] | Sequence[NDArray[Any]]
"""(N, H, W), or N arrays (H, W) whose sizes may differ from image to image."""


@dataclass(frozen=True, kw_only=True)
class PixelMetrics:
    """Pixel metrics of one set of maps.

    Attributes:
        auroc: area under the pixel ROC curve.
        average_precision: pixel average precision.
        best_dice: **oracle**: the largest Dice that any one threshold reaches, chosen with labels.
        threshold: the threshold of ``best_dice``; a pixel is flagged if its value is >= it.
        n_pixels: all pixels.
        n_anomalous: pixels inside a mask.
    """

    auroc: float
    average_precision: float
    best_dice: float
    threshold: float
    n_pixels: int
    n_anomalous: int


def pool_pixels(maps: Maps, masks: Maps) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return all pixels' values and labels as 1-D arrays.

    Args:
        maps: (N, H, W) anomaly maps, or a list of (H, W).
        masks: bool or 0/1 of the same shape; an empty mask for a normal image.

    Raises:
        MetricError: if the shapes differ, naming the first image where they do.
    """
    if len(maps) != len(masks):
        raise MetricError(
            f"each map needs one mask (an empty one for a normal image), "
            f"got {len(maps)} maps and {len(masks)} masks"
        )
    for i, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        if np.ndim(one) != 2 or np.shape(one) != np.shape(mask):
            raise MetricError(
                f"map and mask must be (H, W) of equal size, "
                f"got {np.shape(one)} and {np.shape(mask)} for image {i}"
            )
    return _flat(maps), _flat(masks)


def _flat(arrays: Maps) -> NDArray[Any]:
    if isinstance(arrays, np.ndarray):
        return arrays.reshape(-1)
    return np.concatenate([np.asarray(a).reshape(-1) for a in arrays] or [np.empty(0)])


def rank_pixels(maps: Maps, masks: Maps, *, metric: str, both: bool = True) -> Ranking:
    """Pool and sort the pixels; errors speak of pixels."""
    values, labels = pool_pixels(maps, masks)
    return rank(values, labels, metric=metric, unit="pixel", both=both)


def pixel_metrics(maps: Maps, masks: Maps) -> PixelMetrics:
    """Compute the three pixel metrics from one sort.

    Args:
        maps: (N, H, W) anomaly maps, higher = more anomalous, or a list of (H, W).
        masks: (N, H, W) bool, or a list of (H, W); all False for a normal image.

    Returns:
        Exact values, ties handled: the first two equal scikit-learn's, the Dice is the maximum
        over *every* threshold, so a grid of quantiles can only be equal or lower.

    Raises:
        MetricError: if a class has no pixel, shapes differ, or a value is not finite.
    """
    ranking = rank_pixels(maps, masks, metric="pixel metrics")
    dice, threshold = ranking.best_dice()
    return PixelMetrics(
        auroc=ranking.auroc(),
        average_precision=ranking.average_precision(),
        best_dice=dice,
        threshold=threshold,
        n_pixels=ranking.n_normal + ranking.n_anomalous,
        n_anomalous=ranking.n_anomalous,
    )
