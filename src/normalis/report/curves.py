"""ROC and precision-recall curves with bootstrap bands, as arrays.

Patients are drawn with replacement (images where no patient is known), all images of a patient as
often as the patient; the band is the pointwise 2.5 to 97.5 % range of the curves. Weights do not
change the order of the scores, so one sort serves all draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import MetricError
from normalis.metrics.intervals import Draws

__all__ = ["Curve", "precision_recall", "roc"]

Floats = NDArray[np.float64]
Groups = NDArray[Any] | None
_GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """A curve and its band.

    Attributes:
        x: (K,) false-positive rate, or recall.
        y: (K,) sensitivity, or precision.
        grid: (G,) where the band is given.
        low: (G,) its lower edge; empty where there are too few units for a band.
        high: (G,) its upper edge.
    """

    x: Floats
    y: Floats
    grid: Floats
    low: Floats
    high: Floats


def roc(
    scores: Floats,
    is_anomalous: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    n: int = 400,
) -> Curve:
    """Return sensitivity by false-positive rate, from (0, 0) to (1, 1).

    Args:
        scores: (N,) higher is more anomalous.
        is_anomalous: (N,) with both classes.
        groups: (N,) patient of each image; None if all are independent.
        n: bootstrap draws.
    """
    tp, fp = _counts(scores, is_anomalous, np.ones((1, scores.size)))
    x, y = _rates(fp)[0], _rates(tp)[0]
    bands = [
        np.interp(_GRID, _rates(f)[i], t)
        for tps, f in _draws(scores, is_anomalous, groups, n)
        for i, t in enumerate(_rates(tps))
    ]
    return _curve(x, y, bands)


def precision_recall(
    scores: Floats,
    is_anomalous: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    n: int = 400,
) -> Curve:
    """Return precision by recall; arguments as for `roc`."""
    tp, fp = _counts(scores, is_anomalous, np.ones((1, scores.size)))
    x, y = _recall_precision(tp[0], fp[0])
    bands = [
        np.interp(_GRID, *_recall_precision(t, f))
        for tps, fps in _draws(scores, is_anomalous, groups, n)
        for t, f in zip(tps, fps, strict=True)
    ]
    return _curve(x, y, bands)


def _curve(x: Floats, y: Floats, bands: list[Floats]) -> Curve:
    low, high = np.quantile(bands, (0.025, 0.975), axis=0) if bands else (np.empty(0), np.empty(0))
    return Curve(x=x, y=y, grid=_GRID, low=low, high=high)


def _counts(
    scores: Floats, is_anomalous: NDArray[np.bool_], weights: Floats
) -> tuple[Floats, Floats]:
    """Return weighted true and false positives (b, K + 1) as the threshold falls; 0 first."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    ordered, labels = weights[:, order], is_anomalous[order]
    start = ((0, 0), (1, 0))
    tp = np.pad(np.cumsum(ordered * labels, axis=1)[:, ends], start)
    fp = np.pad(np.cumsum(ordered * ~labels, axis=1)[:, ends], start)
    return tp, fp


def _rates(counts: Floats) -> Floats:
    rates: Floats = counts / counts[:, -1:]
    return rates


def _recall_precision(tp: Floats, fp: Floats) -> tuple[Floats, Floats]:
    """Leave out the empty start, where precision is undefined."""
    some = tp + fp > 0
    recall, precision = tp[some] / tp[-1], tp[some] / (tp + fp)[some]
    return np.append(0.0, recall), np.append(precision[0], precision)


def _draws(
    scores: Floats, is_anomalous: NDArray[np.bool_], groups: Groups, n: int
) -> list[tuple[Floats, Floats]]:
    """Return weighted counts of bootstrap draws; none where no interval can be given."""
    try:
        units = Draws.of(groups, scores.size, n=n)
        keep = np.stack(
            [
                np.bincount(units.member, weights=of_class, minlength=units.n_units) > 0
                for of_class in (is_anomalous, ~is_anomalous)
            ]
        )
        blocks = list(units.blocks(keep))
    except MetricError:
        return []
    return [_counts(scores, is_anomalous, weights[:, units.member]) for weights, _ in blocks]
