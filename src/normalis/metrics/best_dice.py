r"""The best Dice: an **oracle**, since it chooses its threshold with the labels it is scored on.

.. math:: \max_t \frac{2 |M \cap \{s \ge t\}|}{|M| + |\{s \ge t\}|}

pooled over all test pixels, the maximum over every threshold. Nobody who deploys a model can reach
it but by luck; it says how well a map *could* be cut, and belongs in a column of its own.
"""

from __future__ import annotations

from normalis.metrics.pixels import Maps, rank_pixels

__all__ = ["best_dice"]


def best_dice(maps: Maps, masks: Maps) -> float:
    """Return the largest Dice over every threshold (oracle: the threshold is chosen with labels).

    Args:
        maps: (N, H, W) anomaly maps, or a list of (H, W).
        masks: bool of the same shape, all False for a normal image.

    Returns:
        A number in (0, 1]. `pixel_metrics` returns its threshold as well.

    Raises:
        MetricError: if no pixel is anomalous, shapes differ, or a value is not finite.
    """
    return rank_pixels(maps, masks, metric="best Dice", both=False).best_dice()[0]
