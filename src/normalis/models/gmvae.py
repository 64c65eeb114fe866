"""The Gaussian-mixture variational autoencoder: each place of its latent map is of some cluster.

    q(z | x), q(w | x) Gaussian,    w ~ N(0, I),    c uniform,    z | w, c ~ N(m_c(w), v_c(w))
    E = |g(z) - x|² + beta [Σ_c p(c | z, w) KL(q(z | x) | p(z | w, c)) + KL(q(w | x) | N(0, I))
                            + max(free_nats, KL(p(c | z, w) | uniform))]
    loss = E / P,    map = (g(mu_z) - x)²

The latents are maps of ``latent_dim`` channels at a quarter of the image's side, and the terms are
summed over its places; an image has P values, and p(c | z, w) is the share that cluster c has in
the density at z. Below ``free_nats`` a place pays nothing for its choice of a cluster, without
which all clusters become one; at the logarithm of ``clusters`` or above it is never paid for.

It is meant as a prior of normal images: read it by ``scorer=restoration``, as published. `encode`
returns the map flattened, (B, latent_dim (S / 4)²): its ``latent_dim`` must not be compared with
that of a method whose latent is a vector.

Deviations: 16 channels instead of 64, batch normalisation, the training of all other methods
instead of 1.6 million steps at 5e-5. The weight of the bracket is 1/4 rather than 1: a squared
error on [-1, 1] is about a quarter of that on images of unit variance.

Reference: Chen, You, Tezcan and Konukoglu, "Unsupervised lesion detection via image restoration
with a normative prior", Medical Image Analysis 64 (2020), arXiv:2005.00031; Dilokthanakul et al.,
"Deep unsupervised clustering with Gaussian mixture variational autoencoders", 2016,
arXiv:1611.02648.

Use: as the prior of `scorer=restoration` where images are aligned. Its own residual shows edges,
which it blurs, more than lesions, which a latent map lets through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normalis.errors import SettingsError
from normalis.models.base import Autoencoder, ModelSettings, check_at_least
from normalis.models.vae import gaussian_kl

__all__ = ["GMVAE", "GMVAESettings", "Posterior"]

_STRIDE = 4  # pixels of the image a place of the latent map


@dataclass(frozen=True, kw_only=True)
class GMVAESettings(ModelSettings):
    """Settings of the Gaussian-mixture variational autoencoder; ``hidden_dim`` means nothing.

    Args:
        latent_dim: channels of the latent map.
        clusters: Gaussians of the mixture.
        width: channels of the convolutions; 64 in the publication.
        beta: weight of what the latents cost against the squared error, summed over pixels.
        free_nats: least that the choice of a cluster counts, at each place.
    """

    latent_dim: int = 1
    clusters: int = 6
    width: int = 16
    beta: float = 0.25
    free_nats: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, clusters=self.clusters, width=self.width)
        check_at_least(0, beta=self.beta, free_nats=self.free_nats)
        if self.clusters > 256:
            raise SettingsError(f"clusters must be at most 256, got {self.clusters}")


@dataclass(frozen=True)
class Posterior:
    """Mean and log-variance of both latent maps, (B, D, S / 4, S / 4) each."""

    mu_z: Tensor
    log_var_z: Tensor
    mu_w: Tensor
    log_var_w: Tensor


def _convolution(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class GMVAE(Autoencoder):
    """Variational autoencoder whose latent map is drawn from a mixture of Gaussians."""

    Settings: ClassVar[Any] = GMVAESettings

    def __init__(self, settings: GMVAESettings) -> None:
        super().__init__(settings)
        d, width, c = settings.latent_dim, settings.width, settings.channels
        strides = (2, 1, 1, 2, 1, 1)
        inputs = (c, *[width] * 5)
        self.encoder = nn.Sequential(
            *(_convolution(i, width, s) for i, s in zip(inputs, strides, strict=True)),
            nn.Conv2d(width, 4 * d, 1),
        )
        self.prior = nn.Sequential(
            nn.Conv2d(d, width, 1), nn.ReLU(), nn.Conv2d(width, 2 * d * settings.clusters, 1)
        )
        self.decoder = nn.Sequential(
            _convolution(d, width), _convolution(width, width), nn.Upsample(scale_factor=2),
            _convolution(width, width), _convolution(width, width), nn.Upsample(scale_factor=2),
            nn.Conv2d(width, c, 3, padding=1),
        )  # fmt: skip
        side = settings.image_size // _STRIDE
        self.places = nn.Unflatten(1, (d, side, side))

    def posterior(self, x: Tensor) -> Posterior:
        """Return q(z | x) and q(w | x)."""
        return Posterior(*self.encoder(x).float().chunk(4, 1))

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z | x): (B, C, S, S) -> (B, latent_dim (S / 4)²)."""
        return self.posterior(x).mu_z.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim (S / 4)²) -> (B, C, S, S)."""
        x_hat: Tensor = self.decoder(self.places(z))
        return x_hat

    def mixture(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log-variances of the clusters given w: (B, K, D, h, w) each."""
        found = self.prior(w).float().unflatten(1, (2, self.settings.clusters, -1))
        return found[:, 0], found[:, 1]

    def shares(self, z: Tensor, means: Tensor, log_vars: Tensor) -> Tensor:
        """Return the logarithm of p(c | z, w) at each place: (B, K, h, w).

        Args:
            z: (B, D, h, w).
            means: (B, K, D, h, w) of the clusters.
            log_vars: likewise.
        """
        distance = (z[:, None] - means).square() * (-log_vars).exp()
        return (-0.5 * (distance + log_vars).sum(2)).log_softmax(1)

    def costs(self, q: Posterior, z: Tensor, w: Tensor) -> dict[str, Tensor]:
        """Return what the latents of each image cost, in nats: (B,) by name.

        Args:
            q: of the images.
            z: (B, D, h, w), drawn from it or its mean.
            w: likewise.
        """
        means, log_vars = self.mixture(w)
        log_share = self.shares(z, means, log_vars)
        spread = q.log_var_z.exp()[:, None] + (q.mu_z[:, None] - means).square()
        ratio = log_vars - q.log_var_z[:, None]
        to_cluster = 0.5 * (spread * (-log_vars).exp() + ratio - 1).sum(2)  # (B, K, h, w)
        share = log_share.exp()
        choice = (share * (log_share + math.log(self.settings.clusters))).sum(1)
        return {
            "conditional": (share * to_cluster).flatten(1).sum(1),
            "prior": gaussian_kl(q.mu_w, q.log_var_w).flatten(1).sum(1),
            "clusters": choice.clamp(min=self.settings.free_nats).flatten(1).sum(1),
        }

    def kl(self, x: Tensor) -> Tensor:
        """Return what each image's latents cost at their means, per value of the image: (B,)."""
        q = self.posterior(x)
        total: Tensor = sum(self.costs(q, q.mu_z, q.mu_w).values(), torch.zeros(()))
        return total / x[0].numel()

    def negative_elbo(self, x: Tensor) -> Tensor:
        """Return E of each image at the posterior's means: (B,)."""
        errors = (self(x).float() - x).square().flatten(1).sum(1)
        weight: float = self.settings.beta * x[0].numel()
        bound: Tensor = errors + weight * self.kl(x)
        return bound

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the noise of both latent maps, (B, D, h, w) each."""
        side = self.settings.image_size // _STRIDE
        shape = (len(x), self.settings.latent_dim, side, side)
        return {name: torch.randn(shape, generator=generator) for name in ("noise_z", "noise_w")}

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error and what the latents cost, weighted, over the values."""
        q = self.posterior(x)
        z = q.mu_z + (q.log_var_z / 2).exp() * draws["noise_z"]
        w = q.mu_w + (q.log_var_w / 2).exp() * draws["noise_w"]
        weight = self.settings.beta / x[0].numel()
        costs = {name: weight * cost.mean() for name, cost in self.costs(q, z, w).items()}
        error = (self.decoder(z).float() - x).square().mean()
        return {"reconstruction": error, **costs}
