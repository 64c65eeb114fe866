"""Entropy of a latent vector in the decoder's own scale; defined for any trained autoencoder.

    R_dec(D) = h(Z) + E[½ log det(JᵀJ)] - d/2 · log(2πe D P / d)   nats

with J = ∂x̂/∂z (P, d) and D the allowed mean squared error per pixel. The first two terms are the
entropy of the decoded manifold by the change of variables; the whole is the Shannon lower bound on
coding its points to D. h(Z) alone shifts by d log a when z is rescaled by a although the network
computes the same function; in R_dec the Jacobian shifts back, and so it does for every smooth
invertible change of z.

Limits: asymptotic in small D. A direction whose decoded variance lies below D P / d would not be
coded by reverse water-filling, and R_dec turns too low and then negative; where that holds for the
smallest decoded variance, `decoder_referred_rate` answers NaN with a warning. A latent direction
that the decoder ignores has log det = -∞, NaN with a warning too.

Defined for every D is the coding rate in the same scale (`decoder_coding_rate`): the rate of

    z' = M^½ z / σ,    M = E JᵀJ,    R = ½ log det(I + Cov(z'))   nats

read through noise that changes the decoded image by an energy σ² along each latent direction. It is
unchanged by every *linear* change of z, and by a smooth one as far as J hardly varies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.entropy.coding_rate import coding_rate
from normalis.entropy.gaussian import gaussian_entropy
from normalis.entropy.knn import kozachenko_leonenko
from normalis.entropy.validity import as_matrix, positive, undefined
from normalis.errors import DataError, SettingsError

if TYPE_CHECKING:
    import torch

__all__ = [
    "DecoderGeometry",
    "decoder_coding_rate",
    "decoder_geometry",
    "decoder_referred_rate",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class DecoderGeometry:
    """What the decoder does to small changes of z.

    Attributes:
        log_volume: (N,) ½ log det(JᵀJ) at each z; -inf where the decoder ignores a direction.
        metric: (d, d) mean of JᵀJ over the samples.
        pixels: P.
    """

    log_volume: NDArray[np.float64]
    metric: NDArray[np.float64]
    pixels: int


def decoder_geometry(
    decode: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, *, chunk: int = 16
) -> DecoderGeometry:
    """Compute the decoder's Jacobians, by forward differentiation, in constant memory.

    Args:
        decode: (B, d) -> (B, ...); each image a function of its own z (batch norm in ``eval``).
        z: (N, d) latent vectors, for instance of held-out normal images.
        chunk: vectors at once; the Jacobians of one chunk, chunk x P x d, are in memory.
    """
    import torch
    from torch.func import jacfwd, vmap

    if z.ndim != 2 or not len(z):
        raise DataError(f"z must be (N, d), got shape {tuple(z.shape)}")

    def one(vector: torch.Tensor) -> torch.Tensor:
        return decode(vector[None]).flatten()

    volume: list[torch.Tensor] = []
    metric = torch.zeros(z.shape[1], z.shape[1], dtype=torch.float64)
    pixels = 0
    for part in z.detach().split(chunk):
        with (
            warnings.catch_warnings()
        ):  # PyTorch compiles its own forward rules by torch.jit.script
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            jacobian = vmap(jacfwd(one))(part).detach().double().cpu()
        pixels = jacobian.shape[1]
        product = jacobian.transpose(1, 2) @ jacobian
        volume.append(torch.linalg.svdvals(jacobian)[:, : z.shape[1]].log().sum(dim=1))
        metric += product.sum(dim=0) / len(z)
    return DecoderGeometry(
        log_volume=torch.cat(volume).numpy(), metric=metric.numpy(), pixels=pixels
    )


def decoder_coding_rate(z: ArrayLike, geometry: DecoderGeometry, noise: float) -> float:
    """Compute the coding rate of latent vectors whose decoded images are seen with noise.

    Args:
        z: (N, d).
        geometry: from `decoder_geometry`.
        noise: σ², energy of the noise along each latent direction, summed over the image.

    Returns:
        Nats; NaN with a warning where N is too small (`normalis.entropy.coding_rate`).
    """
    samples = _fitting(z, geometry)
    values, axes = np.linalg.eigh(geometry.metric)
    root = axes * np.sqrt(values.clip(min=0) / positive(noise, "noise"))
    found: float = coding_rate(samples @ root)
    return found


def decoder_referred_rate(
    z: ArrayLike,
    geometry: DecoderGeometry,
    distortion: float,
    *,
    entropy: Literal["gaussian", "knn"] = "gaussian",
) -> float:
    """Compute R_dec(D) of latent vectors.

    Args:
        z: (N, d), the vectors that ``geometry`` was measured at, or more of the same source.
        geometry: from `decoder_geometry`.
        distortion: D, mean squared error per pixel.
        entropy: estimator of h(Z). "gaussian" is an upper bound; "knn" needs n >= 3 2^d.

    Returns:
        Nats; NaN with a warning outside the limits of this module.
    """
    samples = _fitting(z, geometry)
    d = samples.shape[1]
    if entropy not in {"gaussian", "knn"}:
        raise SettingsError(f"entropy must be 'gaussian' or 'knn', got {entropy!r}")
    level = positive(distortion, "distortion") * geometry.pixels / d
    if not np.isfinite(geometry.log_volume).all():
        return undefined("the decoder ignores a latent direction, so the decoded volume is zero")
    smallest = _decoded_variances(samples, geometry).min()
    if smallest < level:
        return undefined(
            f"D must be small: the least decoded variance is {smallest:.3g} and the water level "
            f"D P / d is {level:.3g}; use D <= {smallest * d / geometry.pixels:.3g} or fewer "
            "latent dimensions"
        )
    h = gaussian_entropy(samples) if entropy == "gaussian" else kozachenko_leonenko(samples)
    return float(h + geometry.log_volume.mean() - d / 2 * np.log(2 * np.pi * np.e * level))


def _fitting(z: ArrayLike, geometry: DecoderGeometry) -> NDArray[np.float64]:
    samples = as_matrix(z, "z")
    d = samples.shape[1]
    if geometry.metric.shape != (d, d):
        raise DataError(f"geometry is of {len(geometry.metric)} latent dimensions, z has {d}")
    return samples


def _decoded_variances(z: NDArray[np.float64], geometry: DecoderGeometry) -> NDArray[np.float64]:
    """Return the eigenvalues of J Cov(z) Jᵀ for the mean metric: those of a linear decoder."""
    values, axes = np.linalg.eigh(np.atleast_2d(np.cov(z, rowvar=False)))
    root = (axes * np.sqrt(values.clip(min=0))) @ axes.T
    return np.asarray(np.linalg.eigvalsh(root @ geometry.metric @ root))
