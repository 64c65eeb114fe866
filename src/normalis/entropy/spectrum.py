"""Principal spectra of images: how their variance is spread over directions and over scales.

    Cov(x) = Σ_i λ_i u_i u_iᵀ,   λ_1 >= λ_2 >= ...

An eigenvalue of the training sample flatters itself: its direction was chosen to have much variance
there. `heldout_spectrum` measures the variance of *other* images along the same directions, and
what they have outside all of them; that is the honest spectrum for a statement about new images.

Limits: n samples give at most n - 1 eigenvalues above zero; the large ones are biased up and the
small ones down by about (rank / n) of themselves (Marchenko & Pastur 1967).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.entropy.validity import as_matrix
from normalis.errors import DataError, SettingsError

__all__ = [
    "Spectrum",
    "components_for_share",
    "effective_rank",
    "heldout_spectrum",
    "participation_ratio",
    "radial_power",
    "spectrum",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Spectrum:
    """Variance along principal directions.

    Attributes:
        eigenvalues: (K,) variance along each direction, in squared intensity; of the samples that
            the directions come from in falling order.
        directions: (K, P) orthonormal rows.
        mean: (P,) of the samples that the directions come from.
        remainder: mean squared deviation outside all K directions; 0 on the samples themselves.
        samples: number of samples that the variances were measured on.
    """

    eigenvalues: NDArray[np.float64]
    directions: NDArray[np.float64]
    mean: NDArray[np.float64]
    remainder: float
    samples: int

    @property
    def total(self) -> float:
        """Total variance, the sum over pixels."""
        return float(self.eigenvalues.sum() + self.remainder)


def spectrum(x: ArrayLike) -> Spectrum:
    """Compute the principal spectrum of samples.

    Args:
        x: (N, P) samples; images flattened.

    Returns:
        K = min(N - 1, P) eigenvalues with their directions.
    """
    samples = as_matrix(x)
    mean = samples.mean(axis=0)
    _, s, directions = np.linalg.svd(samples - mean, full_matrices=False)
    keep = min(len(samples) - 1, samples.shape[1])
    return Spectrum(
        eigenvalues=s[:keep] ** 2 / (len(samples) - 1),
        directions=directions[:keep],
        mean=mean,
        remainder=0.0,
        samples=len(samples),
    )


def heldout_spectrum(fitted: Spectrum, x: ArrayLike) -> Spectrum:
    """Measure the second moments of other samples along the directions of a fitted spectrum.

    Args:
        fitted: from `spectrum`.
        x: (N, P) other samples of the same source, for instance other patients.

    Returns:
        The same directions and mean, with E (u_i · (x - mean))² in place of the eigenvalues (not
        sorted) and the energy outside all directions as ``remainder``.

    Raises:
        DataError: if the number of pixels differs.
    """
    samples = as_matrix(x)
    if samples.shape[1] != len(fitted.mean):
        raise DataError(f"x must have {len(fitted.mean)} pixels, got {samples.shape[1]}")
    centred = samples - fitted.mean
    energy = ((centred @ fitted.directions.T) ** 2).mean(axis=0)
    rest = max(0.0, float((centred**2).sum(axis=1).mean() - energy.sum()))
    return Spectrum(
        eigenvalues=energy,
        directions=fitted.directions,
        mean=fitted.mean,
        remainder=rest if rest > 1e-9 * energy.sum() else 0.0,
        samples=len(samples),
    )


def participation_ratio(eigenvalues: ArrayLike) -> float:
    """Compute (Σ λ)² / Σ λ², the number of equal directions with the same two moments."""
    values = _spectrum_values(eigenvalues)
    return float(values.sum() ** 2 / (values**2).sum())


def effective_rank(eigenvalues: ArrayLike) -> float:
    """Compute exp(-Σ p log p) with p = λ / Σ λ (Roy & Vetterli, The effective rank, 2007)."""
    values = _spectrum_values(eigenvalues)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def components_for_share(eigenvalues: ArrayLike, share: float) -> int:
    """Count the leading directions that hold a share, in (0, 1], of the variance."""
    if not 0 < share <= 1:
        raise SettingsError(f"share must be in (0, 1], got {share}")
    values = np.sort(_spectrum_values(eigenvalues))[::-1]
    reached = np.cumsum(values) >= share * values.sum() * (1 - 1e-12)
    return int(np.argmax(reached)) + 1


def radial_power(images: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the power of images' deviations from their mean against spatial frequency.

    Args:
        images: (N, S, S).

    Returns:
        Frequencies in cycles per pixel, 1/S to 1/2, and mean power at each; natural images follow
        frequency^-2 (Field 1987), which is a spectrum of lesion sizes too.

    Raises:
        DataError: if the images are not square.
    """
    stack = np.asarray(images, dtype=np.float64)
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2]:
        raise DataError(f"images must be (N, S, S), got {stack.shape}")
    size = stack.shape[1]
    power = (np.abs(np.fft.fft2(stack - stack.mean(axis=0))) ** 2).mean(axis=0) / size**2
    cycles = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))) * size
    ring = np.rint(cycles).astype(int).ravel()
    mean = np.bincount(ring, power.ravel()) / np.bincount(ring)
    rings = np.arange(1, size // 2 + 1)
    return rings / size, mean[rings]


def _spectrum_values(eigenvalues: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim != 1 or not len(values) or values.min() < 0 or not 0 < values.sum() < np.inf:
        raise DataError("eigenvalues must be (K,), not negative, and not all zero")
    return values
