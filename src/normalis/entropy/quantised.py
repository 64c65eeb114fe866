"""Entropy of a quantised latent vector: the nats that a file of it would take.

    Z_Δ = round(Z / Δ),   H(Z_Δ) ≈ h(Z) - Σ_j log Δ_j   for small Δ   (Cover & Thomas, Th. 8.3.1)

The step is part of the definition. Set it by the decoder: uniform noise of variance Δ_j² / 12 in
coordinate j moves the image by ‖∂x̂/∂z_j‖² Δ_j² / 12, and an equal share of the allowed error D per
pixel gives Δ_j = √(12 D P / (d ‖∂x̂/∂z_j‖²)).

Coded with a factorised prior fitted on other images, the rate is an upper bound of the entropy that
holds out of sample: a vector with dependent coordinates, or one that drifts, costs more.

Limits: the plug-in entropy of one coordinate from n samples in m occupied bins is biased low by
(m - 1) / 2n, which is added (Miller 1955); m > n / 5 answers NaN with a warning.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.entropy.validity import as_matrix, positive, undefined
from normalis.errors import DataError

__all__ = ["decoder_steps", "heldout_code_length", "quantised_entropy"]


def decoder_steps(
    metric: NDArray[np.floating], distortion: float, *, pixels: int
) -> NDArray[np.float64]:
    """Compute the steps Δ_j (d,) whose quantisation noise the decoder turns into D per pixel.

    Args:
        metric: (d, d) mean JᵀJ, from `decoder_referred.decoder_geometry`.
        distortion: D, mean squared error per pixel.
        pixels: P.

    Raises:
        DataError: if the decoder ignores a coordinate, which needs no step at all.
    """
    sensitivity = np.diag(np.asarray(metric, dtype=np.float64))
    if sensitivity.min() <= 0:
        raise DataError(f"the decoder ignores {int((sensitivity <= 0).sum())} coordinates of z")
    allowed = positive(distortion, "distortion") * pixels / len(sensitivity)
    return np.asarray(np.sqrt(12.0 * allowed / sensitivity))


def quantised_entropy(z: ArrayLike, step: ArrayLike) -> float:
    """Estimate Σ_j H(Z_Δ,j), the entropy of the quantised coordinates as if independent.

    Args:
        z: (N, d).
        step: Δ, one number or (d,).

    Returns:
        Nats, an upper bound of the joint entropy; NaN with a warning if a coordinate occupies more
        than N / 5 bins.
    """
    codes = _quantise(as_matrix(z, "z"), step)
    total = 0.0
    for column in codes.T:
        counts = np.unique(column, return_counts=True)[1]
        if len(counts) > len(codes) / 5:
            reason = f"{len(counts)} bins from {len(codes)} samples"
            return undefined(f"a quantised entropy needs 5 samples a bin, got {reason}; widen Δ")
        share = counts / len(codes)
        total += float(-(share * np.log(share)).sum() + (len(counts) - 1) / (2 * len(codes)))
    return total


def heldout_code_length(train: ArrayLike, heldout: ArrayLike, step: ArrayLike) -> float:
    """Compute the mean code length of held-out vectors under a prior fitted on others.

    Each coordinate's prior is a logistic distribution, integrated over the bins, with the mean and
    the variance of the training vectors: a histogram would give codes never seen no length at all.

    Args:
        train: (N, d) vectors that the prior is fitted on.
        heldout: (M, d) vectors that are coded.
        step: Δ, one number or (d,).

    Returns:
        Nats per image; an upper bound of H(Z_Δ) of the held-out source.
    """
    reference, samples = as_matrix(train, "train"), as_matrix(heldout, "heldout")
    width = _steps(step, reference.shape[1])
    if samples.shape[1] != reference.shape[1]:
        raise DataError(f"train has {reference.shape[1]} coordinates, heldout {samples.shape[1]}")
    scale = reference.std(axis=0, ddof=1).clip(min=1e-12) * np.sqrt(3) / np.pi
    centre = (_quantise(samples, width) * width - reference.mean(axis=0)) / scale
    half = width / (2 * scale)
    # log(σ(c + h) - σ(c - h)) without cancellation in the tails, with |c| by symmetry
    low = np.abs(centre) - half
    log_mass = (
        np.log(-np.expm1(-2 * half)) - np.logaddexp(0, low) - np.logaddexp(0, -(low + 2 * half))
    )
    return float(-log_mass.sum(axis=1).mean())


def _steps(step: ArrayLike, d: int) -> NDArray[np.float64]:
    width = np.broadcast_to(np.asarray(step, dtype=np.float64), (d,))
    if not (np.isfinite(width).all() and width.min() > 0):
        raise DataError(f"steps must be finite and above 0, got {width}")
    return width


def _quantise(z: NDArray[np.float64], step: ArrayLike) -> NDArray[np.float64]:
    return np.rint(z / _steps(step, z.shape[1]))
