"""Entropy and mutual information of a Gaussian, in nats; an upper bound for everything else.

    h(x) = ½ log det(2πe Σ)                                  (Cover & Thomas 2006, Theorem 8.4.1)

No density with covariance Σ has more entropy (Theorem 8.6.5), so for images this is a bound. The
plug-in of a sample covariance is biased low; with S the scatter matrix Σ (x - x̄)(x - x̄)ᵀ of n
samples, the unbiased estimator for Gaussian data is

    ĥ = d/2 log(πe) + ½ log det S - ½ Σ_{j=1..d} ψ((n - j) / 2)     (Ahmed & Gokhale 1989, eq. 3.2)

with variance ¼ Σ_j ψ'((n - j) / 2).

Limits: n > d, else det S = 0; a covariance that is singular (d larger than the support's dimension)
has h = -∞. Both answer NaN with a warning.

Reference: Ahmed & Gokhale, Entropy expressions and their estimators for multivariate distributions,
IEEE Trans. Inf. Theory 35, 1989.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, polygamma

from normalis.entropy.validity import as_matrix, undefined
from normalis.errors import DataError

__all__ = [
    "gaussian_entropy",
    "gaussian_entropy_of",
    "gaussian_entropy_standard_error",
    "gaussian_mutual_information",
]


def gaussian_entropy_of(covariance: ArrayLike) -> float:
    """Compute ½ log det(2πe Σ) of a known covariance.

    Args:
        covariance: (d, d), symmetric.

    Returns:
        Nats; NaN with a warning if Σ is singular.

    Raises:
        DataError: if it is not a square matrix.
    """
    sigma = np.atleast_2d(np.asarray(covariance, dtype=np.float64))
    if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1]:
        raise DataError(f"covariance must be (d, d), got {sigma.shape}")
    found: float = 0.5 * len(sigma) * np.log(2 * np.pi * np.e) + 0.5 * _log_det(sigma)
    return found


def gaussian_entropy(x: ArrayLike) -> float:
    """Estimate the entropy of the Gaussian with the samples' covariance, without bias.

    Args:
        x: (N, d) samples, N > d.

    Returns:
        Nats; an upper bound of h(x) if x is not Gaussian. NaN with a warning outside the limits.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100_000, 2))
        >>> round(gaussian_entropy(x), 1)  # log(2πe) = 2.838
        2.8
    """
    samples = as_matrix(x)
    n, d = samples.shape
    if n <= d:
        return undefined(f"a Gaussian entropy in {d} dimensions needs more than {d} samples: {n}")
    centred = samples - samples.mean(axis=0)
    correction = digamma((n - np.arange(1, d + 1)) / 2).sum()
    return float(0.5 * (d * np.log(np.pi * np.e) + _log_det(centred.T @ centred) - correction))


def gaussian_entropy_standard_error(n: int, d: int) -> float:
    """Compute the standard error of `gaussian_entropy` for Gaussian data, in nats."""
    if n <= d:
        return undefined(f"a Gaussian entropy in {d} dimensions needs more than {d} samples: {n}")
    return float(np.sqrt(0.25 * polygamma(1, (n - np.arange(1, d + 1)) / 2).sum()))


def gaussian_mutual_information(x: ArrayLike, y: ArrayLike) -> float:
    """Estimate I(x; y) = h(x) + h(y) - h(x, y) as if (x, y) were jointly Gaussian.

    Unlike the entropy this bounds nothing for other densities; it reads linear dependence only.

    Args:
        x: (N, d_x) samples.
        y: (N, d_y) samples of the same N.

    Returns:
        Nats, unbiased for Gaussian data (so possibly below 0); NaN if N <= d_x + d_y or if one is
        a linear function of the other, where the true value is infinite.
    """
    first, second = as_matrix(x, "x"), as_matrix(y, "y")
    if len(first) != len(second):
        raise DataError(f"x and y must pair up, got {len(first)} and {len(second)} samples")
    joint = gaussian_entropy(np.hstack([first, second]))
    return gaussian_entropy(first) + gaussian_entropy(second) - joint


def _log_det(matrix: NDArray[np.float64]) -> float:
    eigenvalues = np.linalg.eigvalsh(matrix)
    if eigenvalues[0] <= len(matrix) * np.finfo(np.float64).eps * abs(eigenvalues[-1]):
        return undefined(
            "the covariance must have full rank, its smallest eigenvalue is "
            f"{eigenvalues[0]:.1e} of {eigenvalues[-1]:.1e}: the entropy is -infinity; project the "
            "samples on their principal components first"
        )
    return float(np.log(eigenvalues).sum())
