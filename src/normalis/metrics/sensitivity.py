"""Sensitivity: the share of anomalous images flagged at a threshold or false-positive rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from normalis.errors import MetricError
from normalis.metrics.ranking import check_scores, need_classes, rank

__all__ = ["false_positive_rate", "sensitivity", "sensitivity_at_fpr"]


def sensitivity(scores: ArrayLike, is_anomalous: ArrayLike, *, threshold: float) -> float:
    """Return the share of anomalous images with a score >= ``threshold``.

    Deployable if the threshold comes from elsewhere than these labels, for instance from
    calibration on held-out normal images.

    Raises:
        MetricError: if no image is anomalous, shapes differ, or a score is not finite.
    """
    values, labels = check_scores(scores, is_anomalous)
    need_classes("sensitivity", n_normal=0, n_anomalous=int(labels.sum()), both=False)
    return float(np.mean(values[labels] >= threshold))


def false_positive_rate(scores: ArrayLike, is_anomalous: ArrayLike, *, threshold: float) -> float:
    """Return the share of normal images with a score >= ``threshold``.

    Raises:
        MetricError: if no image is normal, shapes differ, or a score is not finite.
    """
    values, labels = check_scores(scores, is_anomalous)
    if labels.all():
        raise MetricError(
            f"a false-positive rate needs at least one normal image, got 0 of {labels.size}"
        )
    return float(np.mean(values[~labels] >= threshold))


def sensitivity_at_fpr(scores: ArrayLike, is_anomalous: ArrayLike, *, rate: float = 0.05) -> float:
    """Return the largest sensitivity whose false-positive rate is at most ``rate``.

    **Oracle**: the threshold is taken from the test's own normal images. The figure that can be
    deployed is `sensitivity` at a calibrated threshold.

    Args:
        scores: (N,) anomaly scores.
        is_anomalous: (N,) bool or 0/1.
        rate: false-positive rate in [0, 1]; not interpolated between attainable ones.

    Raises:
        MetricError: if a class is empty, shapes differ, a score is not finite, or the rate is not
            in [0, 1].
    """
    if not 0.0 <= rate <= 1.0:
        raise MetricError(f"a false-positive rate must be in [0, 1], got {rate}")
    ranking = rank(scores, is_anomalous, metric="sensitivity at a false-positive rate")
    allowed = ranking.fp <= rate * ranking.n_normal + 1e-9
    return float(ranking.tp[allowed].max(initial=0) / ranking.n_anomalous)
