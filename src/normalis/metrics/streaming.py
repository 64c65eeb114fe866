r"""Pixel metrics of any number of pixels in bounded memory, with a proven bound on the error.

A float32's bit pattern, its sign bit flipped (or all bits, if negative), is an unsigned integer in
the same order as the floats. Its leading ``bits`` number a bin, fine where values are small (a
relative width of :math:`2^{9 - bits}`), and bins of two shards can simply be added.

**The bound.** Let p and n be the anomalous and normal pixels of a bin, t and f those of all higher
bins, P and N the totals. Whatever the order (and the ties) inside the bins,

* AUROC lies within :math:`\sum p n / (2 P N)` of the value with each bin taken as one tie, since
  only pairs that share a bin are undecided;
* the precision at the i-th highest anomalous pixel of a bin lies between
  :math:`(t+i) / (t+i+f+n)` (all normal pixels of the bin above it, none tied) and
  :math:`(t+p) / (t+p+f)` (the reverse, all tied); AP is its mean. The lower sum has the closed
  form :math:`p - (f+n) (\psi(t+p+f+n+1) - \psi(t+f+n+1))` with the digamma function;
* Dice at any threshold within a bin is at most :math:`2 (t+p) / (t+p+f+P)`, and the thresholds
  between bins reach :math:`\max 2 (t+p) / (t+p+f+n+P)`.

A bin known to hold one value only is a true tie and adds nothing to the bound. The value exactly 0
is such a bin of its own, since maps are often 0 over the whole background.

The bound is computed from the counts that are there, and returned with each value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError, SettingsError
from normalis.metrics.ranking import need_classes

__all__ = ["Bounded", "StreamingPixelMetrics", "bounds", "float_keys"]


@dataclass(frozen=True)
class Bounded:
    """A value, and the interval that the exact one is proven to lie in."""

    value: float
    low: float
    high: float


def float_keys(values: NDArray[Any], *, bits: int = 32) -> NDArray[np.uint32]:
    """Return the leading ``bits`` of each float32 as an integer in the order of the floats.

    Args:
        values: any shape; cast to float32, which keeps the order (not strictly).
        bits: 1 to 32.
    """
    single = np.ascontiguousarray(values, dtype=np.float32) + np.float32(0)  # -0.0 -> 0.0
    raw = single.view(np.uint32)
    flip = (raw.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
    return (raw ^ flip) >> np.uint32(32 - bits)


def bounds(
    anomalous: NDArray[Any], normal: NDArray[Any], *, tied: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return (low, value, high) of AUROC, AP and best Dice from counts per bin.

    Args:
        anomalous: (..., K) anomalous pixels per bin, bins by ascending score.
        normal: (..., K) normal pixels per bin.
        tied: (K,) bins known to hold one value only.

    Returns:
        Three arrays (..., 3). With a class empty the numbers are NaN.
    """
    from scipy.special import digamma

    p, n = (np.asarray(c, dtype=np.float64)[..., ::-1] for c in (anomalous, normal))
    tp, fp = np.cumsum(p, axis=-1), np.cumsum(n, axis=-1)
    t, f = tp - p, fp - n
    open_ = np.ones(p.shape[-1], dtype=bool) if tied is None else ~np.asarray(tied)[::-1]
    best_fp = np.where(open_, f, fp)  # false positives at the best place inside the bin
    total_p, total_n = tp[..., -1:], fp[..., -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = (total_p * total_n)[..., 0]
        auroc = 1.0 - (p * (f + n / 2)).sum(-1) / pairs
        slack = (p * n * open_).sum(-1) / 2 / pairs
        as_tie = p * tp / np.maximum(tp + fp, 1)
        ap = as_tie.sum(-1) / total_p[..., 0]
        ap_high = (p * tp / np.maximum(tp + best_fp, 1)).sum(-1) / total_p[..., 0]
        lower = p - fp * (digamma(tp + fp + 1) - digamma(t + fp + 1))
        # The difference cancels: give away what its rounding could have added.
        lower -= np.where(p > 0, 8 * np.finfo(float).eps * fp * np.log(tp + fp + 2), 0.0)
        ap_low = np.where(open_, lower, as_tie).sum(-1) / total_p[..., 0]
        dice = (2 * tp / (tp + fp + total_p)).max(-1)
        dice_high = (2 * tp / (tp + best_fp + total_p)).max(-1)
    low = np.stack([auroc - slack, ap_low, dice], axis=-1)
    value = np.stack([auroc, ap, dice], axis=-1)
    high = np.stack([auroc + slack, ap_high, dice_high], axis=-1)
    return np.clip(low, 0, 1), value, np.clip(high, 0, 1)


class StreamingPixelMetrics:
    """Pixel AUROC, AP and best Dice from batches of maps, in 16 bytes per bin.

    Args:
        bits: leading bits of the float32 that number a bin. The default, 20, takes 16 MiB and
            keeps 11 bits of the mantissa (values 0.05 % apart are told apart).

    Example:
        >>> metrics = StreamingPixelMetrics()
        >>> _ = metrics.update(np.array([[0.1, 0.9]]), np.array([[False, True]]))
        >>> metrics.auroc().value
        1.0
    """

    def __init__(self, *, bits: int = 20) -> None:
        if not 10 <= bits <= 24:
            raise SettingsError(
                f"bits must be 10 to 24 (2^bits bins of 16 bytes; fewer than 10 cut the "
                f"exponent), got {bits}"
            )
        self.bits = bits
        self.counts = np.zeros((2, 2**bits), dtype=np.int64)  # normal, anomalous
        self.n_zero = 0  # pixels that are exactly 0

    def update(self, maps: ArrayLike, masks: ArrayLike) -> Self:
        """Add pixels.

        Args:
            maps: any shape, finite in float32.
            masks: bool or 0/1 of the same shape.

        Raises:
            MetricError: if the shapes differ or a value is not finite; nothing is added then.
        """
        with np.errstate(over="ignore"):  # becomes infinite, and is refused below
            values = np.asarray(maps, dtype=np.float32)
        labels = np.asarray(masks).astype(bool)
        if values.shape != labels.shape:
            raise MetricError(
                f"maps and masks must have one shape, got {values.shape} and {labels.shape}"
            )
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise MetricError(
                f"maps must be finite in float32, got {bad} of {values.size} pixels that are not"
            )
        keys = float_keys(values, bits=self.bits)
        for row, picked in zip(self.counts, (keys[~labels], keys[labels]), strict=True):
            if picked.size > row.size // 8:
                row += np.bincount(picked, minlength=row.size)
            else:
                np.add.at(row, picked, 1)
        self.n_zero += int((values == 0).sum())
        return self

    def merge(self, other: StreamingPixelMetrics) -> Self:
        """Add the counts of another shard.

        Raises:
            MetricError: if the other one has bins of another width.
        """
        if self.bits != other.bits:
            raise MetricError(
                f"only counts of equal bits can be merged, got {self.bits} and {other.bits}"
            )
        self.counts += other.counts
        self.n_zero += other.n_zero
        return self

    @property
    def n_normal(self) -> int:
        """Normal pixels seen."""
        return int(self.counts[0].sum())

    @property
    def n_anomalous(self) -> int:
        """Anomalous pixels seen."""
        return int(self.counts[1].sum())

    def _bounded(self, which: int, name: str) -> Bounded:
        need_classes(name, n_normal=self.n_normal, n_anomalous=self.n_anomalous, unit="pixel")
        used = self.counts.any(axis=0)
        tied = np.zeros(used.size, dtype=bool)
        middle = 2 ** (self.bits - 1)  # the bin of 0; its other members are below 1e-38
        tied[middle] = self.n_zero == self.counts[:, middle].sum()
        counts = self.counts[:, used]
        low, value, high = bounds(counts[1], counts[0], tied=tied[used])
        return Bounded(float(value[which]), float(low[which]), float(high[which]))

    def auroc(self) -> Bounded:
        """Pixel AUROC; raises `MetricError` while a class has no pixel."""
        return self._bounded(0, "pixel AUROC")

    def average_precision(self) -> Bounded:
        """Pixel AP; raises `MetricError` while a class has no pixel."""
        return self._bounded(1, "pixel average precision")

    def best_dice(self) -> Bounded:
        """Best Dice (oracle), from below; raises `MetricError` while a class has no pixel."""
        return self._bounded(2, "best Dice")
