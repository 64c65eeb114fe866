"""Arithmetic of calibration: tails and levels of weighted scores, and rates with intervals."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError, SettingsError

__all__ = [
    "EPS",
    "Floats",
    "benjamini_hochberg",
    "realised_rate_interval",
    "smallest_level",
    "tail",
    "weighted_quantile",
]

Floats = NDArray[np.float64]

EPS = 1e-9  # alpha (K + 1) is often an integer that floating point misses by 1e-15


def benjamini_hochberg(p_values: ArrayLike, *, dependent: bool = False) -> Floats:
    """Return adjusted p-values: flag those <= q, and at most a share q of the flagged is false.

    Conformal p-values of one calibration set are positively dependent, for which the procedure is
    proven (Bates et al., 2023). For hierarchical ones that proof does not cover several images of
    one patient; ``dependent=True`` (Benjamini and Yekutieli) holds under any dependence.

    Args:
        p_values: (M,) of one batch.
        dependent: use the stricter correction.

    Raises:
        MetricError: if a value is not a probability.
    """
    from scipy.stats import false_discovery_control

    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise MetricError(f"p-values must be a list of numbers in [0, 1], got shape {p.shape}")
    if not p.size:
        return p
    return np.asarray(false_discovery_control(p, method="by" if dependent else "bh"))


def realised_rate_interval(
    n_calibration: int, n_test: int, rate: float, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return where the realised false-positive rate of one split lies.

    Of M fresh normal units, the number above the (K + 1 - l)-th smallest of K calibration scores,
    l = floor(rate (K + 1)), is beta-binomial (M, l, K + 1 - l) if no scores tie (Vovk, ACML 2012).

    Args:
        n_calibration: K independent units.
        n_test: M independent normal units.
        rate: nominal false-positive rate.
        confidence: of the interval.

    Raises:
        SettingsError: if K units cannot certify the rate.
    """
    from scipy.stats import betabinom

    flagged = int(np.floor(rate * (n_calibration + 1) + EPS))
    if flagged < 1:
        raise SettingsError(
            f"{n_calibration} units cannot certify a false-positive rate below "
            f"1/{n_calibration + 1} = {100 / (n_calibration + 1):.2g} %, got {100 * rate:.3g} %"
        )
    tail = (1.0 - confidence) / 2.0
    law = betabinom(n_test, flagged, n_calibration + 1 - flagged)
    return float(law.ppf(tail)) / n_test, float(law.ppf(1.0 - tail)) / n_test


def tail(scores: Floats, weight: Floats, new: Floats, *, ties: bool = True) -> Floats:
    """Return the weight of calibration scores >= (or, without ties, >) each new one."""
    order = np.argsort(scores)
    above = np.append(np.cumsum(weight[order][::-1])[::-1], 0.0)
    side: Literal["left", "right"] = "left" if ties else "right"
    return above[np.searchsorted(scores[order], new, side=side)]


def weighted_quantile(scores: Floats, weight: Floats, rate: float, *, n_units: int) -> float:
    """Return the smallest score with at most rate (K + 1) - 1 of weight strictly above it."""
    return smallest_level(scores, weight, rate * (n_units + 1) - 1.0)


def smallest_level(scores: Floats, weight: Floats, allowed: float) -> float:
    """Return the smallest of the scores (n,) that at most an allowed weight lies strictly above."""
    candidates = np.unique(scores)
    above = tail(scores, weight, candidates, ties=False)
    return float(candidates[above <= allowed + EPS][0])
