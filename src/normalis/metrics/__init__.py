"""Metrics: pure functions (scores, labels) -> number, one file each, and intervals around them.

Image metrics take (N,) scores and labels; pixel metrics take maps and masks. Higher scores mean
more anomalous, and of every metric higher is better. `sensitivity_at_fpr` and `best_dice` are
**label-tuned**: they choose something with the very labels they are scored on, and so do not belong
beside figures at an operating point that was fixed beforehand.
"""

from __future__ import annotations

from normalis.metrics.auroc import auroc
from normalis.metrics.average_precision import average_precision
from normalis.metrics.best_dice import best_dice
from normalis.metrics.comparison import Comparison, delong, holm, paired_bootstrap, welch
from normalis.metrics.intervals import Interval, bootstrap, pixel_bootstrap
from normalis.metrics.lesions import Lesions, find_lesions, lesion_sensitivity
from normalis.metrics.pixel_auroc import pixel_auroc
from normalis.metrics.pixel_average_precision import pixel_average_precision
from normalis.metrics.pixels import PixelMetrics, pixel_metrics
from normalis.metrics.sensitivity import false_positive_rate, sensitivity, sensitivity_at_fpr
from normalis.metrics.shares import share
from normalis.metrics.streaming import Bounded, StreamingPixelMetrics

__all__ = [
    "Bounded",
    "Comparison",
    "Interval",
    "Lesions",
    "PixelMetrics",
    "StreamingPixelMetrics",
    "auroc",
    "average_precision",
    "best_dice",
    "bootstrap",
    "delong",
    "false_positive_rate",
    "find_lesions",
    "holm",
    "lesion_sensitivity",
    "paired_bootstrap",
    "pixel_auroc",
    "pixel_average_precision",
    "pixel_bootstrap",
    "pixel_metrics",
    "sensitivity",
    "sensitivity_at_fpr",
    "share",
    "welch",
]
