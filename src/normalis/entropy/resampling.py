"""Error bars for any statistic of a set of images, over images or over patients.

The ordinary bootstrap draws with replacement. A repeated image has a nearest neighbour at distance
zero, which ruins every k-nearest-neighbour estimate and lowers the rank of a covariance. So halves
are drawn *without* replacement: with h of the N groups in each, the delete-(N - h) jackknife

    se² = h / (N - h) · mean_b (θ_b - θ̄)²        (Shao & Wu 1989, eq. 1.3)

whose factor is 1 for exact halves. Halves of *patients* are drawn where groups are given: slices of
one patient are not independent. The interval is the estimate ± 1.96 se, a normal approximation; it
covers sampling error and not the bias of the statistic itself, which each estimator describes.

Reference: Shao & Wu, A general theory for jackknife variance estimation, Ann. Statist. 17, 1989.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.entropy.validity import ValidityWarning, undefined
from normalis.errors import DataError, SettingsError

__all__ = ["Estimate", "half_sampling"]

MIN_GROUPS = 10  # with fewer, the spread of half samples says little about the next patient


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where it is undefined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def half_sampling(
    statistic: Callable[[NDArray[np.float64]], ArrayLike],
    x: NDArray[np.float64],
    *,
    groups: ArrayLike | None = None,
    repeats: int = 20,
    seed: int = 0,
    least: float = -math.inf,
) -> list[Estimate]:
    """Compute a statistic on all of ``x``, with intervals from half samples of its groups.

    Args:
        statistic: pure function of (n, ...) samples; returns one number or a vector of them.
        x: (N, ...) samples.
        groups: (N,) patient or duplicate group of each; None makes each sample its own group.
        repeats: half samples drawn; 20 gives the standard error to about 16 %.
        seed: of the draws.
        least: smallest value that the statistic can have; no interval goes below.

    Returns:
        One `Estimate` for each number that the statistic returns. With fewer than 10 groups the
        limits are NaN, with a warning.

    Raises:
        DataError: if ``groups`` has another length than ``x``.
        SettingsError: if ``repeats`` is below 2.
    """
    if repeats < 2:
        raise SettingsError(f"repeats must be at least 2, got {repeats}")
    labels = np.arange(len(x)) if groups is None else np.asarray(groups)
    if labels.shape != (len(x),):
        raise DataError(f"groups must have one entry per sample, {len(x)}, got {labels.shape}")
    value = np.atleast_1d(np.asarray(statistic(x), dtype=np.float64))
    spread = _half_sample_error(statistic, x, labels, repeats, seed, value.shape)
    return [
        Estimate(float(v), float(np.maximum(v - 1.96 * s, least)), float(v + 1.96 * s))
        for v, s in zip(value, spread, strict=True)
    ]


def _half_sample_error(
    statistic: Callable[[NDArray[np.float64]], ArrayLike],
    x: NDArray[np.float64],
    labels: NDArray[np.generic],
    repeats: int,
    seed: int,
    shape: tuple[int, ...],
) -> NDArray[np.float64]:
    names = np.unique(labels)
    if len(names) < MIN_GROUPS:
        reason = f"an interval needs at least {MIN_GROUPS} groups, got {len(names)}"
        return np.full(shape, undefined(reason))
    rng = np.random.default_rng(seed)
    half = len(names) // 2
    draws = []
    with warnings.catch_warnings():  # a half may be too small where the whole is not: NaN is enough
        warnings.simplefilter("ignore", ValidityWarning)
        for _ in range(repeats):
            chosen = np.isin(labels, rng.permutation(names)[:half])
            draws.append(np.atleast_1d(np.asarray(statistic(x[chosen]), dtype=np.float64)))
    found: NDArray[np.float64] = np.std(draws, axis=0) * math.sqrt(half / (len(names) - half))
    return found
