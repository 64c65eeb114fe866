"""The one sort that every metric of a ranking is computed from.

AUROC, average precision and the best Dice depend on the scores only through four counts at each
*distinct score of an anomalous unit* (an image or a pixel): a threshold between two of them, or at
a score that only normal units have, adds false positives and no true one. With the distinct
anomalous scores :math:`t_1 < ... < t_K` (a unit is flagged if its score is >= t)::

    tp_k = #{anomalous, score >= t_k}     fp_k   = #{normal, score >= t_k}
                                          ties_k = #{normal, score == t_k}

Two sorts of the two classes apart replace one sort of pairs: together they cost less than sorting
all scores once, move no labels, and use NumPy's vectorised sort of plain numbers. The alternatives
are timed in ``benchmarks/metrics.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError

__all__ = ["Ranking", "check_scores", "need_classes", "rank"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """Counts at each distinct score of an anomalous unit, by ascending score.

    Attributes:
        thresholds: (K,) the distinct scores of anomalous units.
        tp: (K,) anomalous units with a score >= the threshold.
        fp: (K,) normal units with a score >= the threshold.
        ties: (K,) normal units with a score equal to the threshold.
        n_anomalous: number of anomalous units, :math:`tp_1`.
        n_normal: number of normal units.
    """

    thresholds: NDArray[Any]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    ties: NDArray[np.int64]
    n_anomalous: int
    n_normal: int

    @property
    def positives(self) -> NDArray[np.int64]:
        """Anomalous units with exactly each threshold's score, (K,)."""
        found: NDArray[np.int64] = self.tp - np.append(self.tp[1:], 0)
        return found

    def auroc(self) -> float:
        """Area under the ROC curve, a tie counting one half (Mann-Whitney's U / (P N))."""
        below_twice = 2 * (self.n_normal - self.fp) + self.ties
        wins = np.dot(self.positives.astype(np.float64), below_twice.astype(np.float64))
        return float(wins / (2.0 * self.n_anomalous * self.n_normal))

    def average_precision(self) -> float:
        """Mean precision at the anomalous units' own thresholds (no interpolation)."""
        return float(np.dot(self.positives, self.tp / (self.tp + self.fp)) / self.n_anomalous)

    def best_dice(self) -> tuple[float, float]:
        """Largest Dice over every threshold, and the highest threshold that reaches it."""
        dice = 2.0 * self.tp / (self.tp + self.fp + self.n_anomalous)
        best = dice.size - 1 - int(np.argmax(dice[::-1]))
        return float(dice[best]), float(self.thresholds[best])


def _as_floats(scores: NDArray[Any]) -> NDArray[Any]:
    """Keep float32 and float64 as they are; make anything else one of them without loss."""
    if scores.dtype in (np.float32, np.float64):
        return scores
    if scores.dtype.kind not in "biuf":
        raise MetricError(f"scores must be numbers, got dtype {scores.dtype}")
    return scores.astype(np.float32 if scores.dtype.itemsize <= 2 else np.float64)


def _as_labels(labels: NDArray[Any], *, unit: str) -> NDArray[np.bool_]:
    """Read bool, or numbers that are all 0 or 1."""
    if labels.dtype == np.bool_:
        return labels
    if labels.dtype.kind not in "iuf" or not np.isin(labels, (0, 1)).all():
        raise MetricError(
            f"labels must be bool, or 0 (normal) and 1 (anomalous) for each of the {unit}s, "
            f"got dtype {labels.dtype} with values such as {labels.ravel()[:3].tolist()}"
        )
    return labels.astype(np.bool_)


def check_scores(
    scores: ArrayLike, is_anomalous: ArrayLike, *, unit: str = "image"
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return scores and labels as 1-D arrays of equal length, or say what is wrong with them.

    Args:
        scores: (N,) finite numbers, higher = more anomalous.
        is_anomalous: (N,) bool or 0/1.
        unit: what one score belongs to, for messages.

    Raises:
        MetricError: for wrong shapes, unequal lengths, labels other than two classes, or a score
            that is NaN or infinite.
    """
    values = np.asarray(scores)
    labels = np.asarray(is_anomalous)
    if values.ndim != 1 or labels.ndim != 1 or values.shape != labels.shape:
        raise MetricError(
            f"scores and labels must be one number and one label per {unit}, "
            f"got shapes {values.shape} and {labels.shape}"
        )
    values, labels = _as_floats(values), _as_labels(labels, unit=unit)
    finite = np.isfinite(values)
    if not finite.all():
        where = int(np.argmin(finite))
        raise MetricError(
            f"scores must be finite, got {values[where]} for {unit} {where} "
            f"and {int((~finite).sum())} such of {values.size}; leave out what could not be scored"
        )
    return values, labels


def need_classes(
    metric: str, *, n_normal: int, n_anomalous: int, unit: str = "image", both: bool = True
) -> None:
    """Raise the error of an empty class.

    Raises:
        MetricError: if there is no anomalous unit, or (with ``both``) no normal one.
    """
    if n_anomalous and (n_normal or not both):
        return
    needs = "both classes" if both else f"at least one anomalous {unit}"
    raise MetricError(
        f"{metric} needs {needs}, got {n_normal} normal and {n_anomalous} anomalous {unit}s"
    )


def rank(
    scores: ArrayLike,
    is_anomalous: ArrayLike,
    *,
    metric: str = "a ranking",
    unit: str = "image",
    both: bool = True,
) -> Ranking:
    """Sort once and count (see the module's docstring).

    Args:
        scores: (N,) higher = more anomalous.
        is_anomalous: (N,) bool or 0/1.
        metric: name for messages.
        unit: what one score belongs to, for messages.
        both: whether at least one normal unit is needed as well.

    Returns:
        The counts, from which each metric takes O(K).

    Raises:
        MetricError: if a class is empty or `check_scores` refuses the input.
    """
    values, labels = check_scores(scores, is_anomalous, unit=unit)
    anomalous, normal = np.sort(values[labels]), np.sort(values[~labels])
    need_classes(metric, n_normal=normal.size, n_anomalous=anomalous.size, unit=unit, both=both)
    first = np.flatnonzero(np.append(True, anomalous[1:] != anomalous[:-1]))
    thresholds = anomalous[first]
    below = np.searchsorted(normal, thresholds, side="left")
    return Ranking(
        thresholds=thresholds,
        tp=anomalous.size - first,
        fp=normal.size - below,
        ties=np.searchsorted(normal, thresholds, side="right") - below,
        n_anomalous=anomalous.size,
        n_normal=normal.size,
    )
