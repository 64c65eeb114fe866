"""Average precision over all pixels of all test images."""

from __future__ import annotations

from normalis.metrics.pixels import Maps, rank_pixels

__all__ = ["pixel_average_precision"]


def pixel_average_precision(maps: Maps, masks: Maps) -> float:
    """Return the average precision of pixels; `pixel_metrics` gets all three from one sort.

    Args:
        maps: (N, H, W) anomaly maps, or a list of (H, W).
        masks: bool of the same shape, all False for a normal image.

    Returns:
        A number in (0, 1]; a random map gets the share of anomalous pixels, often below 0.02.

    Raises:
        MetricError: if no pixel is anomalous, shapes differ, or a value is not finite.
    """
    ranking = rank_pixels(maps, masks, metric="pixel average precision", both=False)
    return ranking.average_precision()
