"""Metrics: pure functions (scores, labels) -> number, one file each, and intervals around them.

Image metrics take (N,) scores and labels; pixel metrics take maps and masks. Higher scores mean
more anomalous. `METRICS` lists them by name with what a table must know: whether higher is better,
whether masks are needed, and whether the metric is an **oracle**, that is, chooses something with
the very labels it is scored on, and so does not belong beside what can be deployed.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from normalis.errors import SettingsError
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
    "METRICS",
    "Bounded",
    "Comparison",
    "Interval",
    "Lesions",
    "MetricInfo",
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
    "metric_function",
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


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """What a table must know of a metric.

    Attributes:
        function: "module:function", imported on use.
        title: for tables.
        higher_is_better: the direction.
        needs_masks: whether it takes maps and masks instead of scores and labels.
        oracle: whether it chooses something with the labels it is scored on.
    """

    function: str
    title: str
    higher_is_better: bool = True
    needs_masks: bool = False
    oracle: bool = False


#: name -> what it is; add a metric with one file and one line
METRICS: dict[str, MetricInfo] = {
    "auroc": MetricInfo(function="normalis.metrics.auroc:auroc", title="AUROC"),
    "average_precision": MetricInfo(
        function="normalis.metrics.average_precision:average_precision", title="AP"
    ),
    "sensitivity_at_fpr": MetricInfo(
        function="normalis.metrics.sensitivity:sensitivity_at_fpr",
        title="sensitivity at 5 % false positives",
        oracle=True,
    ),
    "pixel_auroc": MetricInfo(
        function="normalis.metrics.pixel_auroc:pixel_auroc", title="pixel AUROC", needs_masks=True
    ),
    "pixel_average_precision": MetricInfo(
        function="normalis.metrics.pixel_average_precision:pixel_average_precision",
        title="pixel AP",
        needs_masks=True,
    ),
    "best_dice": MetricInfo(
        function="normalis.metrics.best_dice:best_dice",
        title="best Dice (oracle)",
        needs_masks=True,
        oracle=True,
    ),
}


def metric_function(name: str) -> Any:
    """Return the function of a metric in `METRICS`.

    Raises:
        SettingsError: if there is none of that name; names the nearest one.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingsError(f"metric must be one of {', '.join(METRICS)}, got {name!r}{hint}")
    module, _, function = METRICS[name].function.partition(":")
    return getattr(import_module(module), function)
