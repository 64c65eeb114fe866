"""H_D(X_n) := R(D), what normal images hold at an allowed mean squared error D; in nats.

The entropy of continuous images is infinite or means nothing; their rate-distortion function is the
same question with a precision. For a Gaussian source (Cover & Thomas 2006, Theorem 10.3.3, "reverse
water-filling"), with θ the water level,

    R(D) = Σ_i ½ log(λ_i / θ)₊,    Σ_i min(λ_i, θ) = D · P

For a source of any distribution with these second moments, this is an **upper bound** (Gaussian
codebooks reach it: Lapidoth 1997), and the Shannon lower bound is

    R(D) >= h(X) - P/2 · log(2πe D)                        (Berger 1971, section 4.3)

The local slope -2 dR/d log D = D · P / θ counts the directions above the water, plus the fraction
of a direction that those under it make up: an effective number of dimensions at that resolution.

Limits: with n samples and k directions above the water, sample eigenvalues bias R low by about
k² / (4n) nats. Where ``samples`` is given, k > n / 5 answers NaN with a warning. Second moments on
held-out images (`spectrum.heldout_spectrum`) are an upper bound without that limit. Energy that is
known only in total (``remainder``) is never coded, so D cannot go below it: NaN with a warning.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.entropy.validity import ValidityWarning, positive, undefined
from normalis.errors import DataError

__all__ = [
    "RateDistortion",
    "gaussian_rate_distortion",
    "rate_distortion_curve",
    "shannon_lower_bound",
]


@dataclass(frozen=True, kw_only=True)
class RateDistortion:
    """One point of a rate-distortion curve.

    Attributes:
        distortion: allowed mean squared error per pixel, D.
        rate: nats per image.
        water_level: θ, squared intensity per direction.
        components: directions with a variance above the water.
        effective_dimension: -2 dR/d log D, the distortion of the whole image over the water level.
    """

    distortion: float
    rate: float
    water_level: float
    components: int
    effective_dimension: float


def gaussian_rate_distortion(
    eigenvalues: ArrayLike,
    distortion: float,
    *,
    pixels: int,
    remainder: float = 0.0,
    samples: int | None = None,
) -> RateDistortion:
    """Compute R(D) of a Gaussian source by reverse water-filling.

    Args:
        eigenvalues: (K,) variances λ_i, in any order; the other P - K are zero.
        distortion: D, mean squared error per pixel, above 0.
        pixels: P.
        remainder: energy outside the K directions, left uncoded as a whole.
        samples: n that the eigenvalues come from; enforces k <= n / 5.

    Returns:
        The point; its rate is NaN, with a warning, outside the limits.

    Example:
        >>> point = gaussian_rate_distortion([4.0, 1.0], 0.5, pixels=2)
        >>> round(point.rate, 3)  # ½ log(4 / ½) + ½ log(1 / ½)
        1.386
    """
    values = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    if values.ndim != 1 or not len(values) or values[-1] < 0:
        raise DataError("eigenvalues must be (K,) and not negative")
    allowed = positive(distortion, "distortion") * pixels - remainder
    if allowed <= 0:
        reason = f"D must exceed what is outside the known directions, {remainder / pixels:.3g}"
        nan = undefined(f"{reason}, got {distortion:.3g}; fit the directions on more images")
        return RateDistortion(
            distortion=distortion, rate=nan, water_level=nan, components=0, effective_dimension=nan
        )
    level = _water_level(values, allowed)
    above = values[values > level]
    rate, slope = 0.5 * np.log(above / level).sum(), (allowed + remainder) / level
    if samples is not None and len(above) > samples / 5:
        reason = f"{len(above)} directions above the water from {samples} samples"
        rate = slope = undefined(f"R(D) needs 5 samples per direction, got {reason}; raise D")
    return RateDistortion(
        distortion=distortion,
        rate=float(rate),
        water_level=float(level),
        components=len(above),
        effective_dimension=float(slope if len(above) or np.isnan(slope) else 0.0),
    )


def rate_distortion_curve(
    eigenvalues: ArrayLike,
    distortions: ArrayLike,
    *,
    pixels: int,
    remainder: float = 0.0,
    samples: int | None = None,
) -> list[RateDistortion]:
    """Compute R(D) at several D; at most one warning says where the curve is not defined.

    Args:
        eigenvalues: (K,) variances.
        distortions: (M,) mean squared errors per pixel.
        pixels: P.
        remainder: as in `gaussian_rate_distortion`.
        samples: as in `gaussian_rate_distortion`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ValidityWarning)
        points = [
            gaussian_rate_distortion(
                eigenvalues, float(d), pixels=pixels, remainder=remainder, samples=samples
            )
            for d in np.atleast_1d(np.asarray(distortions, dtype=np.float64))
        ]
    lost = [p.distortion for p in points if np.isnan(p.rate)]
    if lost:
        reason = caught[-1].message  # of the largest of them, if the D come in order
        undefined(
            f"R(D) is undefined at {len(lost)} of {len(points)} D, up to {max(lost):.3g}: {reason}"
        )
    return points


def shannon_lower_bound(entropy: float, distortion: float, *, dimension: int) -> float:
    """Compute h - d/2 · log(2πe D), at least 0; tight as D goes to 0.

    Args:
        entropy: h(X) in nats, of a density in ``dimension`` dimensions.
        distortion: D, mean squared error per dimension.
        dimension: d.
    """
    bound = entropy - dimension / 2 * np.log(2 * np.pi * np.e * positive(distortion, "distortion"))
    return float(max(bound, 0.0)) if not np.isnan(bound) else float("nan")


def _water_level(values: NDArray[np.float64], allowed: float) -> float:
    """Return θ with Σ min(λ, θ) = allowed; λ in falling order. All energy allowed: θ = λ_1."""
    tail = np.concatenate([np.cumsum(values[::-1])[::-1][1:], [0.0]])  # energy after each
    counts = np.arange(1, len(values) + 1)
    above = int((counts * values + tail > allowed).sum())  # λ_k > θ where water at λ_k is too much
    return float((allowed - tail[above - 1]) / above) if above else float(values[0])
