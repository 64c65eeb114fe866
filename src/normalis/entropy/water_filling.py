"""Lesion-referred water-filling: which directions a latent should keep, given what a lesion is.

Normal images x have variances λ_i along their principal directions; an anomalous one is x + δ with
lesion energy g_i = E δ_i² along the same directions. Restoring the healthy image linearly passes
λ_i / (λ_i + g_i) of direction i (Wiener), more than half exactly where λ_i > g_i: encode those. The
rate kept,

    R = Σ_i ½ log(λ_i / g_i)₊                                                             (1)

is the Gaussian rate-distortion function of normal images with the *lesion's spectrum* as water
level. For detection by the energy of the residual, with the directions outside a set S left in it,
a normal image scores E_n with variance V_n, an anomalous one E_n + 2⟨r, δ⟩ + ‖δ‖², hence

    AUROC ≈ Φ(T / √(2 V_n + 4 C + V_T)),   T = Σ g_i,  C = Σ λ_i g_i   over the residual    (2)

with V_T the variance of the lesion's own residual energy (over positions). The approximation is a
normal one for both scores; V_n = 2 Σ λ_i² for Gaussian images, or measured on held-out normals. The
residual energies of real images are skewed and their variance is that of a few images, so (2) is
pessimistic. With the measured energies E_1 .. E_N of held-out normals in place of a normal law,

    AUROC ≈ 1/N² Σ_ij Φ((E_i + T - E_j) / √(4 C_i + V_T)),   C_i = Σ e_ij g_j              (3)

with e_ij the energy of image i along direction j: only the lesion's part is still a normal law.

What follows: a small focal lesion spreads its energy over all directions, so much may be encoded; a
large diffuse one lies in the directions where normals vary most, so little may. **Normals alone do
not determine the best capacity**: for each choice there is a lesion that defeats it.

Limits: linear encoders (PCA), additive lesions independent of the image, no clipping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from normalis.entropy.spectrum import Spectrum
from normalis.entropy.validity import positive
from normalis.errors import DataError, SettingsError

__all__ = [
    "Allocation",
    "LesionSpectrum",
    "blob",
    "blob_spectrum",
    "encode_components",
    "predicted_auroc",
    "predicted_auroc_from",
]

_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))  # full width at half maximum of a Gaussian, in sigmas


@dataclass(frozen=True, eq=False, kw_only=True)
class Allocation:
    """The directions to encode against a lesion: (1).

    Attributes:
        encode: (K,) bool, λ_i > g_i.
        rate: nats; infinite if the lesion leaves an encoded direction untouched.
    """

    encode: NDArray[np.bool_]
    rate: float

    @property
    def components(self) -> int:
        """Number of directions encoded."""
        return int(self.encode.sum())


@dataclass(frozen=True, eq=False, kw_only=True)
class LesionSpectrum:
    """Energy of a lesion along K principal directions, averaged over where it may lie.

    Attributes:
        energy: (K,) g_i = E δ_i².
        total: E ‖δ‖²; what exceeds Σ g_i lies outside the K directions.
        residual_variance: (K + 1,) variance over positions of the energy left when the first r
            directions are removed, r = 0..K: V_T.
    """

    energy: NDArray[np.float64]
    total: float
    residual_variance: NDArray[np.float64]

    def scaled(self, height: float) -> LesionSpectrum:
        """Return the spectrum of the same lesion, ``height`` times as strong."""
        return LesionSpectrum(
            energy=self.energy * height**2,
            total=self.total * height**2,
            residual_variance=self.residual_variance * height**4,
        )


def encode_components(eigenvalues: ArrayLike, lesion_energy: ArrayLike) -> Allocation:
    """Choose the directions to encode, λ_i > g_i, and the rate that they carry, (1).

    Args:
        eigenvalues: (K,) variances λ_i of normal images.
        lesion_energy: (K,) energies g_i of the lesion along the same directions.

    Raises:
        DataError: if the two differ in length or hold negative values.
    """
    variance, energy = _pair(eigenvalues, lesion_energy)
    encode = variance > energy
    with np.errstate(divide="ignore"):
        rate = 0.5 * np.log(variance[encode] / energy[encode]).sum()
    return Allocation(encode=encode, rate=float(rate))


def predicted_auroc(
    eigenvalues: ArrayLike,
    lesion: LesionSpectrum,
    *,
    remainder: float = 0.0,
    normal_variance: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Predict the AUROC of the residual energy for each number of leading directions, (2).

    Args:
        eigenvalues: (K,) variances λ_i of normal images, leading directions first.
        lesion: from `blob_spectrum`, or any other.
        remainder: normal energy outside the K directions; taken as spread like the smallest λ_i.
        normal_variance: (K + 1,) variance V_n of held-out normals' residual energy after removal of
            the first r directions; None takes the Gaussian 2 Σ λ_i².

    Returns:
        (K + 1,) AUROC after removal of the first r = 0..K directions; 0.5 where nothing is left.
    """
    variance, energy = _pair(eigenvalues, lesion.energy)
    smallest = float(variance[-1])
    outside = max(0.0, lesion.total - float(energy.sum()))
    gap = _tail(energy, outside)
    cross = _tail(variance * energy, smallest * outside)
    spread = 2.0 * _tail(variance**2, smallest * remainder)
    if normal_variance is not None:
        spread = np.asarray(normal_variance, dtype=np.float64)
        if spread.shape != gap.shape:
            raise DataError(f"normal_variance must be {gap.shape}, got {spread.shape}")
    noise = np.sqrt(2.0 * spread + 4.0 * cross + lesion.residual_variance)
    ratio = np.divide(gap, noise, out=np.zeros_like(gap), where=noise > 0)
    return np.asarray(ndtr(ratio), dtype=np.float64)


def predicted_auroc_from(
    energies: ArrayLike,
    lesion: LesionSpectrum,
    *,
    outside: ArrayLike,
    pixels: int,
    ranks: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Predict the AUROC of the residual energy from held-out normal images, (3).

    Args:
        energies: (N, K) squared projections of held-out normals, leading directions first.
        lesion: from `blob_spectrum`, with the same K.
        outside: (N,) energy of each image outside the K directions; taken as spread evenly.
        pixels: P.
        ranks: numbers of leading directions removed; None takes all of 0..K. Each costs N² values.

    Returns:
        (len(ranks),) AUROC.

    Raises:
        DataError: if shapes do not fit.
    """
    e, rest = np.asarray(energies, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    count = len(lesion.energy)
    if e.ndim != 2 or e.shape[1] != count or rest.shape != (len(e),):
        raise DataError(f"energies must be (N, {count}) and outside (N,), got {e.shape}")
    wanted = np.arange(count + 1) if ranks is None else np.asarray(ranks)
    beyond = max(0.0, lesion.total - float(lesion.energy.sum()))
    score = _tails(e) + rest[:, None]
    cross = _tails(e * lesion.energy) + (rest * beyond / max(1, pixels - count))[:, None]
    gap = _tail(lesion.energy, beyond)
    result = np.empty(len(wanted))
    for i, r in enumerate(wanted):
        noise = np.sqrt(4.0 * cross[:, r] + lesion.residual_variance[r]).clip(min=1e-300)
        ahead = score[:, None, r] + gap[r] - score[None, :, r]
        result[i] = ndtr(ahead / noise[:, None]).mean()
    return result


def blob(size: int, *, scale_px: float, row: float, column: float) -> NDArray[np.float64]:
    """Draw a Gaussian blob of height 1.

    Args:
        size: side of the square image, in pixels.
        scale_px: full width at half maximum, in pixels: what a reader would call its diameter.
        row: of the centre.
        column: of the centre.
    """
    sigma = positive(scale_px, "scale_px") / _FWHM
    along = [np.exp(-0.5 * ((np.arange(size) - c) / sigma) ** 2) for c in (row, column)]
    return np.outer(*along)


def blob_spectrum(
    normal: Spectrum,
    *,
    scale_px: float,
    contrast: float,
    positions: ArrayLike | None = None,
    components: int | None = None,
) -> LesionSpectrum:
    """Compute the spectrum of Gaussian blobs averaged over where they may lie.

    Args:
        normal: spectrum of (N, S·S) normal images; its directions are the basis.
        scale_px: full width at half maximum, in pixels.
        contrast: height of the blob; images are in [0, 1].
        positions: (S, S) weight of each centre, for instance 1 inside the body; None is uniform.
        components: K, directions to use; None takes all.

    Raises:
        DataError: if the images are not square or the weights do not fit.
        SettingsError: if ``components`` exceeds the directions known.
    """
    size = round(len(normal.mean) ** 0.5)
    if size * size != len(normal.mean):
        raise DataError(f"images must be square, got {len(normal.mean)} pixels")
    count = len(normal.directions) if components is None else components
    if not 1 <= count <= len(normal.directions):
        raise SettingsError(f"components must be in 1..{len(normal.directions)}, got {count}")
    weight = _weights(positions, size)
    # A blob is a product of two profiles, so all S² projections on a direction are two small
    # matrix products, B U Bᵀ, and not S² inner products of P terms.
    sigma = positive(scale_px, "scale_px") / _FWHM
    grid = np.arange(size)
    profile = np.exp(-0.5 * ((grid[:, None] - grid[None, :]) / sigma) ** 2)
    images = normal.directions[:count].reshape(count, size, size)
    energy = ((profile @ images @ profile.T) ** 2).reshape(count, -1) * contrast**2
    whole = np.outer((profile**2).sum(axis=1), (profile**2).sum(axis=1)).ravel() * contrast**2
    left = whole - np.vstack([np.zeros_like(whole), np.cumsum(energy, axis=0)])  # (K + 1, S²)
    mean = left @ weight
    return LesionSpectrum(
        energy=energy @ weight,
        total=float(whole @ weight),
        residual_variance=((left - mean[:, None]) ** 2) @ weight,
    )


def _weights(positions: ArrayLike | None, size: int) -> NDArray[np.float64]:
    weight = np.ones((size, size)) if positions is None else np.asarray(positions, np.float64)
    if weight.shape != (size, size) or weight.min() < 0 or weight.sum() <= 0:
        raise DataError(f"positions must be ({size}, {size}) weights >= 0, not all 0")
    return np.asarray((weight / weight.sum()).ravel())


def _pair(
    eigenvalues: ArrayLike, lesion_energy: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    variance = np.asarray(eigenvalues, dtype=np.float64)
    energy = np.asarray(lesion_energy, dtype=np.float64)
    if variance.ndim != 1 or variance.shape != energy.shape or not len(variance):
        raise DataError(
            f"eigenvalues and lesion energy must both be (K,), got {variance.shape} and "
            f"{energy.shape}"
        )
    if min(variance.min(), energy.min()) < 0:
        raise DataError("eigenvalues and lesion energy must not be negative")
    return variance, energy


def _tails(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Do as `_tail` for each row."""
    sums = np.cumsum(rows[:, ::-1], axis=1)[:, ::-1]
    return np.hstack([sums, np.zeros((len(rows), 1))])


def _tail(values: NDArray[np.float64], beyond: float) -> NDArray[np.float64]:
    """Sum the values after the first r, for r = 0..K, and what lies beyond them all."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]]) + beyond
