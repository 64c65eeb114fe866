"""The noisy-latent coding rate: how much a latent vector can say if its reader sees it with noise.

    R(Z) = ½ log det(I + Cov(z))   nats

The decoder sees z + n with n ~ N(0, I). The rate is the capacity of that channel for a Gaussian z,
and an upper bound of I(X; Z + n) for any other (Cover & Thomas 2006, Theorems 8.6.5 and 9.4.1).
Because the decoder feels the noise the scale of z is part of the definition: a larger z costs rate.
Without the noise h(Z) means nothing, for it shifts by d log a when z is rescaled by a.

Limits: a covariance of n samples biases the rate low by about

    (tr(A)² + tr(A²)) / (4 n),   A = Σ (I + Σ)⁻¹       (second order of log det; Wishart moments)

so 64 samples in 128 dimensions say little. Given an array, `coding_rate` answers NaN with a warning
where that bias exceeds 5 % of the rate. Given a tensor it is a training loss: differentiable, and
never NaN; there accumulate the covariance and use `coding_rate_from_covariance`.

Near copies and slices of one patient are not samples of their own. `coding_rate_of_groups` leaves
out one group after the other (jackknife), which takes the bias away to second order and says how
far the next groups may lie:

    R̂ = G R - (G - 1) mean_g R_(g),    se² = (G - 1) / G · Σ_g (R_(g) - mean_g R_(g))²

Reference of that: Efron & Stein, "The jackknife estimate of variance", Ann. Statist. 9, 1981.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.entropy.resampling import MIN_GROUPS, Estimate
from normalis.entropy.validity import as_matrix, undefined
from normalis.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = [
    "coding_rate",
    "coding_rate_bias",
    "coding_rate_from_covariance",
    "coding_rate_of_groups",
]

_MAX_BIAS = 0.05


@overload
def coding_rate(z: torch.Tensor) -> torch.Tensor: ...
@overload
def coding_rate(z: NDArray[np.floating]) -> float: ...
def coding_rate(z: torch.Tensor | NDArray[np.floating]) -> torch.Tensor | float:
    """Compute R = ½ log det(I + Cov(z)) of a set of latent vectors.

    Args:
        z: (N, d), N >= 2; a NumPy array for a measurement, a tensor for a loss.

    Returns:
        Nats. For an array a float, NaN with a warning outside the limits of this module; for a
        tensor a scalar tensor, from the smaller of the d x d and N x N matrices.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(10_000, 1))
        >>> round(coding_rate(z), 2)  # ½ log 2 = 0.347
        0.35
    """
    if isinstance(z, np.ndarray):
        return _measured_rate(as_matrix(z, "z"))
    if z.ndim != 2 or len(z) < 2:
        raise DataError(f"z must be (N, d) with N >= 2, got shape {tuple(z.shape)}")
    import torch

    scaled = (z - z.mean(dim=0)) / (len(z) - 1) ** 0.5
    gram = scaled.T @ scaled if z.shape[1] <= len(z) else scaled @ scaled.T
    return 0.5 * torch.logdet(gram + torch.eye(len(gram), dtype=z.dtype, device=z.device))


@overload
def coding_rate_from_covariance(covariance: torch.Tensor) -> torch.Tensor: ...
@overload
def coding_rate_from_covariance(covariance: NDArray[np.floating]) -> float: ...
def coding_rate_from_covariance(
    covariance: torch.Tensor | NDArray[np.floating],
) -> torch.Tensor | float:
    """Compute ½ log det(I + Σ) of a covariance, for instance one accumulated over batches.

    Args:
        covariance: (d, d), symmetric and positive semi-definite.

    Returns:
        Nats; a float for an array, a scalar tensor for a tensor.

    Raises:
        DataError: if it is not a square matrix.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise DataError(f"covariance must be (d, d), got {tuple(covariance.shape)}")
    if isinstance(covariance, np.ndarray):
        return float(0.5 * np.linalg.slogdet(np.eye(len(covariance)) + covariance)[1])
    import torch

    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return 0.5 * torch.logdet(identity + covariance)


def coding_rate_bias(eigenvalues: NDArray[np.floating], n: int) -> float:
    """Compute by how many nats n samples underestimate the rate of a given spectrum."""
    share = eigenvalues / (1 + eigenvalues)
    return float((share.sum() ** 2 + (share**2).sum()) / (4 * n))


def coding_rate_of_groups(
    z: NDArray[np.floating], groups: ArrayLike | None = None, *, parts: int = 100
) -> Estimate:
    """Estimate R of the population that groups of images were drawn from, bias removed.

    Args:
        z: (N, d) latent vectors.
        groups: (N,) patient or group of near copies of each; None makes each image its own.
        parts: that are left out in turn; more groups than these are left out several at a time.

    Returns:
        Nats with a 95 % interval (a normal approximation); NaN with a warning for fewer than ten
        groups, or where what is to be removed exceeds a tenth of the rate.

    Raises:
        DataError: if there are not as many groups as vectors.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(10_000, 1))
        >>> round(coding_rate_of_groups(z).value, 2)
        0.35
    """
    z = as_matrix(z, "z")
    labels = np.arange(len(z)) if groups is None else np.asarray(groups)
    if labels.shape != (len(z),):
        raise DataError(f"groups must have one entry per vector, {len(z)}, got {labels.shape}")
    member = np.unique(labels, return_inverse=True)[1]
    count = int(member.max()) + 1
    if count < MIN_GROUPS:
        reason = f"the rate of a population needs at least {MIN_GROUPS} groups, got {count}"
        return Estimate(*[undefined(reason)] * 3)
    parts = min(count, max(parts, MIN_GROUPS))
    part = member % parts
    whole = _rate_of(z)
    without = np.array([_rate_of(z[part != k]) for k in range(parts)])
    bias = (parts - 1) * (without.mean() - whole)
    if abs(bias) > 2 * _MAX_BIAS * whole:
        reason = f"{count} groups are too few: {whole:.3g} nats, biased low by about {-bias:.2g}"
        return Estimate(*[undefined(reason)] * 3)
    value, half = whole - bias, 1.96 * np.sqrt((parts - 1) * without.var())
    return Estimate(float(value), float(max(value - half, 0)), float(value + half))


def _rate_of(z: NDArray[np.float64]) -> float:
    return coding_rate_from_covariance(np.atleast_2d(np.cov(z, rowvar=False)))


def _measured_rate(z: NDArray[np.float64]) -> float:
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.cov(z, rowvar=False))).clip(min=0)
    rate = float(0.5 * np.log1p(eigenvalues).sum())
    bias = coding_rate_bias(eigenvalues, len(z))
    if bias > _MAX_BIAS * rate:
        return undefined(
            f"{len(z)} samples are too few for the coding rate of {z.shape[1]} dimensions: "
            f"{rate:.3g} nats, biased low by about {bias:.2g}; use more images"
        )
    return rate
