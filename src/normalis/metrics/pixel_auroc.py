"""Area under the ROC curve over all pixels of all test images."""

from __future__ import annotations

from normalis.metrics.pixels import Maps, rank_pixels

__all__ = ["pixel_auroc"]


def pixel_auroc(maps: Maps, masks: Maps) -> float:
    """Return the AUROC of pixels; use `pixel_metrics` to get all three from one sort.

    Args:
        maps: (N, H, W) anomaly maps, or a list of (H, W).
        masks: bool of the same shape, all False for a normal image.

    Returns:
        A number in [0, 1]. A lesion's size weighs it: large lesions dominate.

    Raises:
        MetricError: if a class has no pixel, shapes differ, or a value is not finite.
    """
    return rank_pixels(maps, masks, metric="pixel AUROC").auroc()
