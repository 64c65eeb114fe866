"""Whether one method is better than another: on the same images, and over seeds.

* `delong`: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), in the O(N log N) form of Sun
  and Xu, IEEE Signal Processing Letters 21 (2014). Independent images only.
* `paired_bootstrap`: any metric, groups drawn whole, both methods on the same draws.
* `holm`: Holm, Scandinavian Journal of Statistics 6 (1979), for many comparisons at once.
* `welch`: Welch's t-test on one number per seed (SciPy); says nothing of other patients.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError
from normalis.metrics.intervals import Draws, Metric, draw_statistics
from normalis.metrics.ranking import check_scores, need_classes

__all__ = ["Comparison", "compare_draws", "delong", "holm", "paired_bootstrap", "welch"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A difference first minus second, its interval, and a two-sided p-value.

    Attributes:
        difference: first minus second.
        low: lower end of the interval.
        high: upper end.
        p_value: two-sided, of no difference.
        n_units: independent units.
        test: name of the test.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n_units: int
    test: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def _placements(
    values: NDArray[Any], labels: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of the other class that each anomalous, then each normal unit is ranked right of."""
    from scipy.stats import rankdata

    positive, negative = values[labels], values[~labels]
    everyone = rankdata(values)
    v10 = (everyone[labels] - rankdata(positive)) / negative.size
    v01 = 1.0 - (everyone[~labels] - rankdata(negative)) / positive.size
    return v10, v01


def delong(
    first: ArrayLike, second: ArrayLike, is_anomalous: ArrayLike, *, confidence: float = 0.95
) -> Comparison:
    """Compare the AUROC of two scores of the same independent images.

    Args:
        first: (N,) scores of one method.
        second: (N,) scores of the other.
        is_anomalous: (N,) bool or 0/1.
        confidence: of the interval of the difference.

    Raises:
        MetricError: if a class has fewer than two images, or the input is refused.
    """
    from scipy.stats import norm

    pairs = [check_scores(scores, is_anomalous) for scores in (first, second)]
    labels = pairs[0][1]
    n_anomalous = int(labels.sum())
    n_normal = labels.size - n_anomalous
    if min(n_normal, n_anomalous) < 2:
        raise MetricError(
            "DeLong's test needs at least 2 images of each class, "
            f"got {n_normal} normal and {n_anomalous} anomalous images"
        )
    (a10, a01), (b10, b01) = (_placements(values, labels) for values, _ in pairs)
    difference = float(a10.mean() - b10.mean())
    variance = (a10 - b10).var(ddof=1) / n_anomalous + (a01 - b01).var(ddof=1) / n_normal
    error = float(np.sqrt(variance))
    p_value = _p_value(difference, error, labels.size)
    reach = float(norm.ppf(0.5 + confidence / 2)) * error
    return Comparison(
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        p_value=p_value,
        n_units=labels.size,
        test="DeLong",
    )


def paired_bootstrap(
    metric: Metric,
    first: ArrayLike,
    second: ArrayLike,
    is_anomalous: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare any metric of two scores of the same images, groups drawn whole.

    The interval is made of the draws' percentiles. The p-value is a normal one, of the difference
    over the draws' standard deviation: counting draws beyond zero could not go below 2 / (n + 1),
    which a correction over thirty baselines would make 0.06 for any difference, however large.

    Args:
        metric: (scores, is_anomalous) -> float.
        first: (N,) scores of one method.
        second: (N,) scores of the other.
        is_anomalous: (N,) bool or 0/1.
        groups: (N,) patient or duplicate group of each image.
        n: draws.
        confidence: of the interval of the difference.
        seed: of the draws.

    Raises:
        MetricError: where the metric or its interval is undefined.
    """
    _, labels = check_scores(first, is_anomalous)
    anomalous = int(labels.sum())
    need_classes("a paired comparison", n_normal=labels.size - anomalous, n_anomalous=anomalous)
    units = Draws.of(groups, labels.size, n=n, seed=seed)
    ours, _ = draw_statistics(metric, first, is_anomalous, units=units)
    theirs, _ = draw_statistics(metric, second, is_anomalous, units=units)
    difference = float(metric(first, is_anomalous) - metric(second, is_anomalous))
    return compare_draws(difference, ours - theirs, units=units, confidence=confidence)


def compare_draws(
    difference: float, drawn: NDArray[np.float64], *, units: Draws, confidence: float = 0.95
) -> Comparison:
    """Make a comparison of the differences (n,) on draws of the same units."""
    tail = (1.0 - confidence) / 2.0
    error = float(drawn.std(ddof=1)) if drawn.size > 1 else 0.0
    return Comparison(
        difference=difference,
        low=float(np.quantile(drawn, tail)),
        high=float(np.quantile(drawn, 1.0 - tail)),
        p_value=_p_value(difference, error, units.n_units),
        n_units=units.n_units,
        test="paired bootstrap",
    )


def _p_value(difference: float, error: float, n_units: int) -> float:
    """Return the two-sided normal p-value, no smaller than so few units can prove.

    Exchanging the two methods on each of K units gives 2^K equally likely results, two of which are
    as extreme as the most extreme. Without error no draw differs: ties, or a perfect separation.
    """
    from scipy.stats import norm

    if error == 0 and difference == 0:
        return 1.0
    normal = float(2 * norm.sf(abs(difference) / error)) if error > 0 else 0.0
    return max(normal, 2.0 ** (1 - n_units))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's adjusted p-values: at most ``alpha`` of the families err, however dependent.

    Args:
        p_values: (M,) in [0, 1].

    Returns:
        (M,) adjusted values in the order given.

    Raises:
        MetricError: if a value is not a probability.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise MetricError(f"p-values must be a list of numbers in [0, 1], got {p_values!r}")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return adjusted


def welch(first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95) -> Comparison:
    """Compare two methods by one number per seed, variances unequal.

    Args:
        first: (S,) results of one method, S >= 2.
        second: (T,) results of the other, T >= 2.
        confidence: of the interval of the difference of means.

    Raises:
        MetricError: with fewer than two seeds on a side, or results that are not finite.
    """
    from scipy.stats import ttest_ind

    a, b = (np.asarray(x, dtype=np.float64) for x in (first, second))
    if min(a.size, b.size) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise MetricError(
            f"Welch's test needs at least 2 finite results on each side, got {a.size} and {b.size}"
        )
    difference = float(a.mean() - b.mean())
    if a.var() == 0 and b.var() == 0:
        p, low, high = float(difference == 0), difference, difference
    else:
        result = ttest_ind(a, b, equal_var=False)
        p, (low, high) = float(result.pvalue), result.confidence_interval(confidence)
    return Comparison(
        difference=difference,
        low=float(low),
        high=float(high),
        p_value=p,
        n_units=a.size + b.size,
        test="Welch",
    )
