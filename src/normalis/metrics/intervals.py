"""Bootstrap intervals that respect who belongs together, without sorting again.

Images of one patient, or copies of one image, are not independent: an interval that pretends they
are is too narrow. So *groups* are drawn with replacement (Efron and Tibshirani, *An Introduction
to the Bootstrap*, 1993; the cluster bootstrap of Field and Welsh, JRSS B 69, 2007), every image of
a group as often as the group. A draw is then a vector of integer weights on the images, whose
order does not change: one sort serves all draws, which are cumulative sums. Draws in which a class
is empty are drawn again, and counted.

Pixels are first counted into common bins, per group and class; a draw is a weighted sum of
histograms. Order inside a bin is lost, by an amount that `normalis.metrics.streaming.bounds`
proves; the interval runs from the quantile of the lower bounds to that of the upper bounds, so the
approximation can only widen it. Point values stay exact.

No interval claims more than its units can prove (`normalis.metrics.few`): its ends reach at least
those of perfect, and of perfectly wrong, data of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError, SettingsError
from normalis.metrics.auroc import auroc
from normalis.metrics.average_precision import average_precision
from normalis.metrics.few import class_units, widest_ends
from normalis.metrics.pixels import Maps, pixel_metrics, pool_pixels
from normalis.metrics.ranking import check_scores
from normalis.metrics.sensitivity import sensitivity_at_fpr
from normalis.metrics.streaming import bounds, float_keys

__all__ = [
    "Draws",
    "Interval",
    "bootstrap",
    "draw_statistics",
    "ends_of",
    "interval_of",
    "pixel_bootstrap",
]

Metric = Callable[[Any, Any], float]

_KEY_BITS = 20  # leading bits of a float32 that tell pixels apart: 0.05 %
_CELLS = 1 << 22  # numbers per block of draws: 32 MiB of float64
_PATIENCE = 50  # a draw in 50 with both classes is too few to call the result an interval


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its bootstrap percentile interval.

    Attributes:
        value: on the data as they are.
        low: lower end.
        high: upper end.
        n_units: independent units that were drawn (images, or groups of them).
        confidence: nominal coverage.
        n_draws: draws used.
        n_rejected: draws that were drawn again since a class was empty.
        slack: largest width that binning adds to a draw; 0 where nothing is binned.
    """

    value: float
    low: float
    high: float
    n_units: int
    confidence: float = 0.95
    n_draws: int = 1000
    n_rejected: int = 0
    slack: float = 0.0

    @classmethod
    def bare(cls, value: float, n_units: int) -> Interval:
        """Return a value whose interval cannot be had: its ends are NaN."""
        nan = float("nan")
        return cls(value=value, low=nan, high=nan, n_units=n_units, n_draws=0)

    def to_dict(self) -> dict[str, float]:
        """Return the fields as plain numbers."""
        return asdict(self)


@dataclass(frozen=True, eq=False, kw_only=True)
class Draws:
    """Weights of bootstrap draws, in blocks of bounded size.

    Attributes:
        member: (N,) number of each image's group, 0 to n_units - 1.
        n_units: number of groups.
        n: number of draws.
        seed: of the generator; equal seeds and groups give equal draws, hence paired comparisons.
    """

    member: NDArray[np.int64]
    n_units: int
    n: int
    seed: int

    @classmethod
    def of(cls, groups: ArrayLike | None, size: int, *, n: int = 1000, seed: int = 0) -> Draws:
        """Number the groups; without groups each image is one.

        Raises:
            MetricError: if the number of group names is not the number of images, or fewer than
                two groups remain.
            SettingsError: if ``n`` is not positive.
        """
        if n < 1:
            raise SettingsError(f"the number of bootstrap draws must be at least 1, got {n}")
        names = np.arange(size) if groups is None else np.asarray(groups)
        if names.shape != (size,):
            raise MetricError(
                f"groups must name one group per image, got shape {names.shape} for {size} images"
            )
        unique, member = np.unique(names, return_inverse=True)
        if unique.size < 2:
            raise MetricError(
                f"an interval needs at least 2 independent units, got {unique.size} "
                f"(of {size} images); report the value without one"
            )
        return cls(member=member, n_units=unique.size, n=n, seed=seed)

    def blocks(self, keep: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.float64], int]]:
        """Yield weights (b, n_units) and how many draws were rejected for them.

        Args:
            keep: (n_classes, n_units) which groups have a member of each class that a draw needs.

        Raises:
            MetricError: if nearly no draw has all classes.
        """
        rng = np.random.default_rng(self.seed)
        rows = max(1, min(self.n, _CELLS // self.member.size))
        missing, tried = self.n, 0
        while missing:
            picks = rng.integers(self.n_units, size=(rows, self.n_units))
            picks += self.n_units * np.arange(rows)[:, None]
            weights = np.bincount(picks.ravel(), minlength=rows * self.n_units)
            weights = weights.reshape(rows, self.n_units)
            good = (weights @ keep.T.astype(np.int64) > 0).all(axis=1)
            tried += rows
            if tried > _PATIENCE * (self.n - missing + int(good.sum())) + 1000:
                raise MetricError(
                    f"nearly no bootstrap draw of {self.n_units} units has both classes; "
                    "report the value without an interval"
                )
            chosen = weights[good][:missing].astype(np.float64)
            missing -= len(chosen)
            yield chosen, int((~good).sum()) if missing else 0


def interval_of(
    value: float,
    draws: NDArray[np.float64],
    *,
    units: Draws,
    confidence: float,
    rejected: int = 0,
    reach: tuple[float, float] = (float("inf"), -float("inf")),
) -> Interval:
    """Make a percentile interval from statistics (n,) or from their bounds (n, 2).

    Args:
        value: on the data as they are.
        draws: of the statistic.
        units: who was drawn.
        confidence: coverage.
        rejected: draws that were drawn again.
        reach: ends that the interval must reach, from `ends_of`.
    """
    _check_confidence(confidence)
    ends = draws if draws.ndim == 2 else np.stack([draws, draws], axis=1)
    tail = (1.0 - confidence) / 2.0
    return Interval(
        value=value,
        low=min(float(np.quantile(ends[:, 0], tail)), reach[0]),
        high=max(float(np.quantile(ends[:, 1], 1.0 - tail)), reach[1]),
        n_units=units.n_units,
        confidence=confidence,
        n_draws=len(ends),
        n_rejected=rejected,
        slack=float((ends[:, 1] - ends[:, 0]).max()),
    )


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise SettingsError(f"confidence must be between 0 and 1, got {confidence}")


def ends_of(
    metric: Metric, labels: NDArray[np.bool_], *, units: Draws, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the ends that an interval of a metric must reach with these units.

    Of a metric that is none of ours they are unknown, and nothing is widened.

    Args:
        metric: as in `bootstrap`.
        labels: (N,) which images are anomalous.
        units: which images belong together.
        confidence: coverage.
    """
    _check_confidence(confidence)
    if metric not in _BOUNDED:
        return float("inf"), -float("inf")
    present = np.zeros((2, units.n_units), dtype=bool)
    present[labels.astype(int), units.member] = True
    return widest_ends(
        _BOUNDED[metric],
        *class_units(present),
        prevalence=float(labels.mean()),
        confidence=confidence,
    )


def _ends(sorted_scores: NDArray[Any]) -> NDArray[np.int64]:
    """Return where runs of equal scores end."""
    changes = sorted_scores[1:] != sorted_scores[:-1]
    return np.flatnonzero(np.append(changes, True))


def _weighted(name: str, tp: NDArray[np.float64], fp: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the metric of each row of cumulative weights (b, K), by descending score."""
    gained = np.diff(tp, axis=1, prepend=0.0)
    if name == "auroc":
        middle = fp - np.diff(fp, axis=1, prepend=0.0) / 2
        found: NDArray[np.float64] = 1.0 - (gained * middle).sum(1) / (tp[:, -1] * fp[:, -1])
        return found
    if name == "sensitivity_at_fpr":
        allowed = fp <= 0.05 * fp[:, -1:] + 1e-9
        found = (tp * allowed).max(1) / tp[:, -1]
        return found
    found = (gained * tp / np.maximum(tp + fp, 1.0)).sum(1) / tp[:, -1]
    return found


_FAST: dict[Metric, str] = {
    auroc: "auroc",
    average_precision: "average_precision",
    sensitivity_at_fpr: "sensitivity_at_fpr",  # at its default rate
}


#: Metrics of which `normalis.metrics.few` knows what few units prove.
_BOUNDED: dict[Metric, str] = {
    auroc: "auroc",
    average_precision: "average_precision",
    sensitivity_at_fpr: "sensitivity",
}


def draw_statistics(
    metric: Metric, scores: ArrayLike, is_anomalous: ArrayLike, *, units: Draws
) -> tuple[NDArray[np.float64], int]:
    """Return the metric on each draw, (n,), and the number of rejected draws.

    Args:
        metric: `auroc`, `average_precision` and `sensitivity_at_fpr` take cumulative sums of
            weights; anything else is called on the repeated images.
        scores: (N,) anomaly scores.
        is_anomalous: (N,) labels.
        units: who is drawn.

    Raises:
        MetricError: as the metric, or if nearly no draw has both classes.
    """
    values, labels = check_scores(scores, is_anomalous)
    present = np.zeros((2, units.n_units), dtype=bool)
    present[labels.astype(int), units.member] = True
    order = np.argsort(-values, kind="stable")
    ends, member, positive = _ends(values[order]), units.member[order], labels[order]
    results, rejected = [], 0
    for weights, refused in units.blocks(present):
        rejected += refused
        if metric in _FAST:
            each = weights[:, member]
            tp = np.cumsum(each * positive, axis=1)[:, ends]
            fp = np.cumsum(each * ~positive, axis=1)[:, ends]
            results.append(_weighted(_FAST[metric], tp, fp))
        else:
            repeats = (
                np.repeat(np.arange(values.size), w.astype(int)) for w in weights[:, units.member]
            )
            results.append(np.array([metric(values[i], labels[i]) for i in repeats]))
    return np.concatenate(results), rejected


def bootstrap(
    metric: Metric,
    scores: ArrayLike,
    is_anomalous: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a metric of image scores with its interval.

    Args:
        metric: (scores, is_anomalous) -> float.
        scores: (N,) anomaly scores.
        is_anomalous: (N,) bool or 0/1.
        groups: (N,) patient or duplicate group of each image; None if all are independent.
        n: draws. 1000 settle the ends of a 95 % interval to about a tenth of its width.
        confidence: coverage.
        seed: of the draws.

    Raises:
        MetricError: where the metric is undefined, with fewer than two units, or where nearly no
            draw has both classes.
        SettingsError: if ``n`` or ``confidence`` is out of range.
    """
    value = metric(scores, is_anomalous)
    units = Draws.of(groups, np.asarray(scores).size, n=n, seed=seed)
    reach = ends_of(
        metric, check_scores(scores, is_anomalous)[1], units=units, confidence=confidence
    )
    draws, rejected = draw_statistics(metric, scores, is_anomalous, units=units)
    return interval_of(
        value, draws, units=units, confidence=confidence, rejected=rejected, reach=reach
    )


def _common_bins(
    values: NDArray[Any], labels: NDArray[np.bool_], *, n_bins: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number each pixel's bin, by ascending value, and say which bins hold one value only.

    A bin holds at most about 2 / n_bins of either class, unless one value alone has more.
    """
    keys = float_keys(values, bits=_KEY_BITS)
    share = np.zeros(2**_KEY_BITS)
    for one in (labels, ~labels):
        share += np.bincount(keys[one], minlength=share.size) / one.sum()
    # A bin is named by the mass that lies below it, so what follows a heavy key starts a new bin.
    below = np.cumsum(share) - share
    table = np.minimum(below * n_bins / 2, n_bins - 1).astype(np.int64)
    tied = np.zeros(n_bins, dtype=bool)
    for heavy in np.flatnonzero(share > 4 / n_bins):
        held = values[keys == heavy]
        alone = np.count_nonzero(share[table == table[heavy]]) == 1
        tied[table[heavy]] = alone and held.min() == held.max()
    return table[keys], tied


def pixel_bootstrap(
    maps: Maps,
    masks: Maps,
    *,
    groups: ArrayLike | None = None,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    n_bins: int = 4096,
) -> dict[str, Interval]:
    """Return pixel AUROC, AP and best Dice with intervals over images or patients.

    Args:
        maps: (N, H, W) anomaly maps, or a list of (H, W).
        masks: bool of the same shape; all False for a normal image.
        groups: (N,) patient or duplicate group of each image.
        n: draws.
        confidence: coverage.
        seed: of the draws.
        n_bins: bins per histogram; memory is 16 bytes x bins x groups.

    Returns:
        ``pixel_auroc``, ``pixel_average_precision`` and ``best_dice`` (oracle), the values exact.

    Raises:
        MetricError: where the metrics are undefined or with fewer than two units.
    """
    exact = pixel_metrics(maps, masks)
    units = Draws.of(groups, len(maps), n=n, seed=seed)
    values, labels = pool_pixels(maps, masks)
    labels = labels.astype(bool)
    bins, tied = _common_bins(values, labels, n_bins=n_bins)
    sizes = [np.size(m) for m in maps]
    cell = np.repeat(units.member * n_bins, sizes) + bins
    shape = (units.n_units, n_bins)
    positive = np.bincount(cell[labels], minlength=units.n_units * n_bins).reshape(shape)
    normal = np.bincount(cell[~labels], minlength=units.n_units * n_bins).reshape(shape)
    results, rejected = [], 0
    present = np.stack([positive.any(axis=1), normal.any(axis=1)])
    p, q = positive.astype(np.float64), normal.astype(np.float64)
    for weights, refused in units.blocks(present):
        rejected += refused
        for part in np.array_split(weights, max(1, len(weights) * n_bins // _CELLS * 4)):
            low, _, high = bounds(part @ p, part @ q, tied=tied)
            results.append(np.stack([low, high], axis=-1))
    draws = np.concatenate(results)
    points = (exact.auroc, exact.average_precision, exact.best_dice)
    names = ("pixel_auroc", "pixel_average_precision", "best_dice")
    shared: dict[str, Any] = {"units": units, "confidence": confidence, "rejected": rejected}
    counts, prevalence = class_units(present[::-1]), float(labels.mean())
    found = {}
    # An image has many pixels: only where no draw differs do its draws say nothing. Dice is then
    # bounded as the sensitivity is.
    for i, bound in enumerate(("auroc", "average_precision", "sensitivity")):
        plain = interval_of(points[i], draws[:, i], **shared)
        if plain.high - plain.low <= plain.slack + 1e-12:
            reach = widest_ends(bound, *counts, prevalence=prevalence, confidence=confidence)
            plain = replace(plain, low=min(plain.low, reach[0]), high=max(plain.high, reach[1]))
        found[names[i]] = plain
    return found
