r"""Average precision: the mean, over anomalous images, of the precision at each one's own score.

.. math:: AP = \sum_k (R_k - R_{k-1}) P_k

with precision P and recall R at the k-th distinct score, tied scores taken together and nothing
interpolated. Unlike AUROC it depends on how many images are anomalous: a random score gets their
share.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from normalis.metrics.ranking import rank

__all__ = ["average_precision"]


def average_precision(scores: ArrayLike, is_anomalous: ArrayLike) -> float:
    """Return the average precision of image scores.

    Args:
        scores: (N,) anomaly scores, higher = more anomalous.
        is_anomalous: (N,) bool or 0/1.

    Returns:
        A number in (0, 1]. Equal to scikit-learn's ``average_precision_score``.

    Raises:
        MetricError: if no image is anomalous, shapes differ, or a score is not finite.

    Example:
        >>> average_precision([0.1, 0.2, 0.3, 0.9], [False, True, False, True])
        0.8333333333333333
    """
    ranking = rank(scores, is_anomalous, metric="average precision", both=False)
    return ranking.average_precision()
