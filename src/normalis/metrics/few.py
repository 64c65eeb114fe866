"""What few units can prove of a metric, so that no interval claims more.

A bootstrap draws from what was seen. Where the classes separate, every draw separates them, and its
interval runs from 1.000 to 1.000 even with one image a class. Bounds that hold for any distribution
are had from the event itself, as in Clopper and Pearson's interval (Biometrika 26, 1934):

* **AUROC** is the chance theta that an anomalous image scores above a normal one. Among m disjoint
  pairs of units all are in order with probability theta^m, so that with a confidence of 1 - a,
  theta >= (a / 2)^(1 / m).
* **Sensitivity.** All of p anomalous units lie above a threshold with probability q^p, so that
  q >= (a / 2)^(1 / p).
* **Average precision.** The lowest of p anomalous units leaves at most g = 1 - (a / 4)^(1 / p) of
  the anomalous images below it, and if n normal units all lie below that one, at most
  f = 1 - (a / 4)^(1 / n) of the normal images are above. With a share pi of anomalous images the
  average precision is at least the integral from 0 to 1 - g of pi t / (pi t + (1 - pi) f) dt.

An interval of worse data cannot begin higher than that of perfect data of the same size, nor end
lower than that of perfectly wrong data: `widest_ends` are the ends that every interval must reach.
A unit that holds both classes can stand for one of them only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_units", "widest_ends"]


def class_units(present: NDArray[np.bool_]) -> tuple[int, int]:
    """Return how many units can stand for the normal and for the anomalous class, disjoint.

    Args:
        present: (2, n_units) whether a unit holds normal, and anomalous, images.
    """
    normal, anomalous = np.asarray(present, dtype=bool)
    mixed = int((normal & anomalous).sum())
    ours, theirs = int(normal.sum()) - mixed, int(anomalous.sum()) - mixed
    to_normal = min(mixed, max(0, (theirs + mixed - ours + 1) // 2))  # as even as can be
    return ours + to_normal, theirs + mixed - to_normal


def widest_ends(
    metric: str, n_normal: int, n_anomalous: int, *, prevalence: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the highest lower end and the lowest upper end that so few units allow.

    Args:
        metric: ``auroc``, ``average_precision`` or ``sensitivity``.
        n_normal: units that stand for the normal class.
        n_anomalous: units that stand for the anomalous class.
        prevalence: share of anomalous images (or pixels).
        confidence: of the interval.

    Example:
        >>> widest_ends("auroc", 1, 1, prevalence=0.5)
        (0.025, 0.975)
    """
    tail = (1.0 - confidence) / 2.0
    pairs = min(n_normal, n_anomalous)
    if metric == "sensitivity":
        low = _at_least(n_anomalous, tail)
        return low, 1.0 - low
    low = _at_least(pairs, tail)
    if metric == "auroc":
        return low, 1.0 - low
    # At best a share 1 - low of the anomalous images is above all normal ones, the others below.
    high = (1.0 - low) + low * prevalence
    return _least_precision(n_normal, n_anomalous, prevalence, tail), high


def _at_least(count: int, tail: float) -> float:
    """Return the least chance of an event that occurred each of ``count`` times; 0 for none."""
    return float(round(tail ** (1.0 / count), 12)) if count else 0.0


def _least_precision(n_normal: int, n_anomalous: int, prevalence: float, tail: float) -> float:
    kept, below = _at_least(n_anomalous, tail / 2), _at_least(n_normal, tail / 2)
    if not kept or not 0 < prevalence < 1:
        return 0.0
    # The integral of t / (t + c) from 0 to kept, c the odds of a normal image above.
    c = (1.0 - prevalence) / prevalence * (1.0 - below)
    return float(kept - c * np.log1p(kept / c)) if c > 0 else kept
