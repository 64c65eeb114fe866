r"""Area under the ROC curve: the chance that an anomalous image outscores a normal one.

.. math:: AUROC = P(s_a > s_n) + \tfrac12 P(s_a = s_n)

Fawcett, *An introduction to ROC analysis*, Pattern Recognition Letters 27 (2006). It does not
depend on how many images are anomalous, and is unchanged by any increasing map of the scores.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from normalis.metrics.ranking import rank

__all__ = ["auroc"]


def auroc(scores: ArrayLike, is_anomalous: ArrayLike) -> float:
    """Return the area under the ROC curve of image scores.

    Args:
        scores: (N,) anomaly scores, higher = more anomalous.
        is_anomalous: (N,) bool or 0/1.

    Returns:
        A number in [0, 1]; 0.5 is what chance gives. Equal to scikit-learn's ``roc_auc_score``.

    Raises:
        MetricError: if a class is empty, shapes differ, or a score is not finite.

    Example:
        >>> auroc([0.1, 0.2, 0.2, 0.9], [False, False, True, True])
        0.875
    """
    return rank(scores, is_anomalous, metric="AUROC").auroc()
