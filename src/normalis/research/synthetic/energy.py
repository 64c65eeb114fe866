"""One energy for every family: ‖δ‖ = contrast · √(Σ_i λ_i), whatever the way it is spent.

A family draws images at a given strength (amplitude, opacity, displacement, ...); the strength of
each image is found by fixed-point iteration, a ← a · √(wanted / got), since the energy grows about
as a². What clipping to [0, 1] takes away is thereby given back, up to the family's maximum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError, SettingsError

__all__ = ["match_energy", "normal_energy"]

_ROUNDS = 6  # within 2 % of the wanted energy where the maximum allows it
_START = 0.3


def normal_energy(images: NDArray[np.float32]) -> float:
    """Compute the total variance of normal images, Σ_i λ_i: mean ‖x - mean‖².

    Raises:
        DataError: if the images are not (N, S, S) in [0, 1] or are all equal.
    """
    if images.ndim != 3 or len(images) < 2 or images.shape[1] != images.shape[2]:
        raise DataError(f"images must be (N, S, S) with N >= 2, got shape {images.shape}")
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise DataError("images must be finite and in [0, 1]; clip them to the normal range first")
    energy = float(images.var(axis=0, dtype=np.float64).sum())
    if energy <= 0:
        raise DataError("normal images must differ from one another to say what a change means")
    return energy


def match_energy(
    images: NDArray[np.float32],
    render: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    contrast: float,
) -> NDArray[np.float32]:
    """Draw anomalous images whose change has the energy asked, as far as the family can.

    Args:
        images: (N, S, S) normal images in [0, 1].
        render: strengths (N, 1, 1) in (0, 1] -> (N, S, S) images, not yet clipped; 1 is the most
            that the family can do.
        contrast: length of the change over √(Σ λ), above 0.

    Returns:
        (N, S, S) float32 in [0, 1].
    """
    if not (np.isfinite(contrast) and contrast > 0):
        raise SettingsError(f"contrast must be a finite number above 0, got {contrast}")
    wanted = contrast**2 * normal_energy(images)
    strength = np.full((len(images), 1, 1), _START, dtype=np.float32)
    for _ in range(_ROUNDS):
        drawn = np.clip(render(strength), 0, 1)
        got = ((drawn - images) ** 2).sum(axis=(1, 2), keepdims=True, dtype=np.float64)
        factor = np.sqrt(wanted / np.maximum(got, 1e-12))
        strength = np.clip(strength * factor, 1e-3, 1).astype(np.float32)
    return np.clip(render(strength), 0, 1).astype(np.float32)
