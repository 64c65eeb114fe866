"""What tells the classes, or training and test, apart without looking at anatomy.

Three questions, each answered with a number:

* *Which baseline score separates the classes?* AUROC with a bootstrap interval, by patient or
  duplicate group. A property of files or headers has no natural direction and is reported in the
  one that separates better.
* *How do the classes' headers differ?* The share of each class that has a value, or its median.
* *Do the test's normal images differ from the training's?* For a measured quantity the
  standardised mean difference d and the Kolmogorov-Smirnov distance D; for a category the total
  variation distance T between the two shares::

      d = (mean_test - mean_train) / sqrt((var_test + var_train) / 2)
      D = max_v |F_test(v) - F_train(v)|            T = 1/2 sum_k |p_test(k) - p_train(k)|

Reference: Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), for d.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis import baselines
from normalis.metrics.auroc import auroc
from normalis.metrics.intervals import bootstrap

__all__ = [
    "BaselineScore",
    "ClassDifference",
    "Shift",
    "class_differences",
    "find_shifts",
    "separate",
]

SHIFT_D = 0.5  # Cohen's "medium": half a standard deviation
SHIFT_DISTANCE = 0.25  # a quarter of the images would have to change places
_MAX_CATEGORIES = 20  # beyond this a category is nearly an identifier
_DRAWS = 500  # of the bootstrap: the ends of an interval move by less than 0.005


@dataclass(frozen=True, kw_only=True)
class BaselineScore:
    """How well one baseline score separates the classes.

    Attributes:
        name: of the score; ``_reversed`` or ``!=`` where small values are the anomalous ones.
        auroc: on the test images.
        low: lower end of its 95 % interval.
        high: upper end.
        detail: for one bit, how many images of each class have it.
    """

    name: str
    auroc: float
    low: float
    high: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """One property, seen by class: the share of images that have a value, or the median."""

    name: str
    anomalous: str
    normal: str
    size: float


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One quantity of normal images, in training and in test.

    Attributes:
        name: of the quantity.
        train: mean, or the most common value with its share.
        test: likewise.
        d: standardised mean difference; None for a category and where nothing varies.
        distance: Kolmogorov-Smirnov or total variation distance, in [0, 1].
        notable: whether it is beyond a stated threshold and not chance (p < 0.001).
    """

    name: str
    train: str
    test: str
    d: float | None
    distance: float
    notable: bool


def separate(
    scores: Mapping[str, NDArray[Any]],
    is_anomalous: NDArray[np.bool_],
    *,
    groups: NDArray[Any] | None = None,
    either: bool = False,
) -> list[BaselineScore]:
    """Return the AUROC of each score with its interval, best first.

    Args:
        scores: name -> (N,).
        is_anomalous: (N,) labels, of both classes.
        groups: (N,) patient or duplicate group of each image.
        either: report a score in the direction that separates better.
    """
    found = []
    for name, score in scores.items():
        reverse = either and auroc(score, is_anomalous) < 0.5
        shown = _reversed(name) if reverse else name
        value = bootstrap(
            auroc, -score if reverse else score, is_anomalous, groups=groups, n=_DRAWS
        )
        detail = _count(score, is_anomalous) if "=" in name else ""
        found.append(
            BaselineScore(
                name=shown, auroc=value.value, low=value.low, high=value.high, detail=detail
            )
        )
    return sorted(found, key=lambda score: -score.auroc)


def class_differences(
    properties: Sequence[Mapping[str, Any]], is_anomalous: NDArray[np.bool_], *, most: int = 12
) -> list[ClassDifference]:
    """Return the properties that differ most between the classes, most telling first.

    Args:
        properties: one mapping per image.
        is_anomalous: (N,) labels, of both classes.
        most: how many.

    Returns:
        The differences; their ``size`` is that of the shares, or of AUROC from chance, doubled.
    """
    found = []
    for name, score in baselines.property_scores(properties).items():
        ours, theirs = score[is_anomalous], score[~is_anomalous]
        if "=" in name:
            size = abs(ours.mean() - theirs.mean())
            shown = f"{ours.mean():.0%}", f"{theirs.mean():.0%}"
        else:
            size = abs(2 * auroc(score, is_anomalous) - 1)
            shown = f"median {np.median(ours):.4g}", f"median {np.median(theirs):.4g}"
        found.append(ClassDifference(name=name, anomalous=shown[0], normal=shown[1], size=size))
    return sorted(found, key=lambda one: -one.size)[:most]


def find_shifts(
    train: Mapping[str, Sequence[Any]], test: Mapping[str, Sequence[Any]]
) -> list[Shift]:
    """Compare quantities and categories of normal images, those that differ most first.

    Args:
        train: name -> values of the training images; numbers, or text for a category.
        test: the same of the normal test images.
    """
    both = [name for name in train if name in test and len(train[name]) and len(test[name])]
    found = [_compare(name, train[name], test[name]) for name in both]
    return sorted((s for s in found if s is not None), key=lambda s: (-s.notable, -s.distance))


def _compare(name: str, train: Sequence[Any], test: Sequence[Any]) -> Shift | None:
    if isinstance(train[0], str):
        return _compare_categories(name, train, test)
    return _compare_numbers(name, np.asarray(train, float), np.asarray(test, float))


def _compare_numbers(name: str, train: NDArray[Any], test: NDArray[Any]) -> Shift | None:
    from scipy.stats import ks_2samp

    spread = np.sqrt((train.var() + test.var()) / 2)
    if not spread > 0 and train.mean() == test.mean():
        return None
    d = float((test.mean() - train.mean()) / spread) if spread > 0 else None
    ks = ks_2samp(train, test, method="asymp")
    notable = ks.pvalue < 1e-3 and (
        ks.statistic >= SHIFT_DISTANCE or (d is not None and abs(d) >= SHIFT_D)
    )
    return Shift(
        name=name,
        train=f"{train.mean():.4g}",
        test=f"{test.mean():.4g}",
        d=d,
        distance=float(ks.statistic),
        notable=bool(notable),
    )


def _compare_categories(name: str, train: Sequence[str], test: Sequence[str]) -> Shift | None:
    from scipy.stats import chi2_contingency

    kinds = sorted({*train, *test})
    if not 1 < len(kinds) <= _MAX_CATEGORIES:
        return None
    counts = np.array([[Counter(side)[kind] for kind in kinds] for side in (train, test)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    chance = chi2_contingency(counts).pvalue
    return Shift(
        name=name,
        train=_most_common(train),
        test=_most_common(test),
        d=None,
        distance=distance,
        notable=bool(chance < 1e-3 and distance >= SHIFT_DISTANCE),
    )


def _most_common(values: Sequence[str]) -> str:
    value, count = Counter(values).most_common(1)[0]
    return f"{value} ({count / len(values):.0%})"


def _reversed(name: str) -> str:
    return name.replace("=", "!=", 1) if "=" in name else f"{name}_reversed"


def _count(bit: NDArray[Any], is_anomalous: NDArray[np.bool_]) -> str:
    ours, theirs = bit[is_anomalous], bit[~is_anomalous]
    return (
        f"{int(ours.sum())} of {len(ours)} anomalous, {int(theirs.sum())} of {len(theirs)} normal"
    )
