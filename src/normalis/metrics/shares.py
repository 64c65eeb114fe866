"""The share of units that are flagged, with an interval that also holds at 0 and 1.

Clopper and Pearson's interval (Biometrika 26, 1934), which never covers less than it says, with the
number of images replaced by the *effective* one when images come in groups,

    n_eff = share (1 - share) / V,     V = sum_k (x_k - share n_k)^2 / n^2 · K / (K - 1),

with x_k flagged of the n_k images of group k (the linearised variance of a ratio; Korn and
Graubard, Survey Methodology 24, 1998). n_eff lies between the number of groups and of images here:
less correlation than none is not assumed, and with all or none flagged only groups are counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError
from normalis.metrics.intervals import Interval

__all__ = ["share"]


def share(
    flags: ArrayLike, *, groups: ArrayLike | None = None, confidence: float = 0.95
) -> Interval:
    """Return the share of True with its interval.

    Args:
        flags: (N,) bool.
        groups: (N,) patient or duplicate group of each image.
        confidence: coverage.

    Raises:
        MetricError: if there is no image, or the numbers of flags and groups differ.
    """
    from scipy.stats import beta

    x = np.asarray(flags, dtype=bool)
    names = np.arange(x.size) if groups is None else np.asarray(groups)
    if x.ndim != 1 or not x.size or names.shape != x.shape:
        raise MetricError(
            f"a share needs one flag and one group per image and at least one image, "
            f"got shapes {x.shape} and {names.shape}"
        )
    member = np.unique(names, return_inverse=True)[1]
    n = _effective(x, member)
    p, tail = float(x.mean()), (1.0 - confidence) / 2.0
    hits, misses = p * n, (1.0 - p) * n
    return Interval(
        value=p,
        low=float(beta.ppf(tail, hits, misses + 1.0)) if hits > 0 else 0.0,
        high=float(beta.ppf(1.0 - tail, hits + 1.0, misses)) if misses > 0 else 1.0,
        n_units=int(member.max()) + 1,
        confidence=confidence,
        n_draws=0,
    )


def _effective(flags: NDArray[np.bool_], member: NDArray[np.int64]) -> float:
    """Return the number of independent images that would be as informative."""
    sizes, p, k = np.bincount(member), flags.mean(), int(member.max()) + 1
    if k == flags.size:
        return float(k)
    if k == 1 or p in (0.0, 1.0):
        return float(k)
    residual = np.bincount(member, flags) - p * sizes
    variance = np.square(residual).sum() / flags.size**2 * k / (k - 1)
    return float(np.clip(p * (1 - p) / max(variance, 1e-300), k, flags.size))
