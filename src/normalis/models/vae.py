"""The variational autoencoder.

    q(z | x) = N(mu, diag exp(log_var)),    z = mu + exp(log_var / 2) n,    n ~ N(0, I)
    loss = mean (x_hat - x)² + beta KL,    KL = reduce_i ½ (mu_i² + exp(log_var_i) - 1 - log_var_i)
    map = (decode(mu) - x)²

As in the authors' code the KL is *averaged* over latent dimensions and beta is 0.005, so that its
strength per dimension falls as 1 / d; ``kl_reduction="sum"`` gives the divergence itself. With the
reconstruction averaged over P values, the evidence lower bound of a unit-variance decoder is
``kl_reduction="sum"``, ``beta = 2 / P``.

Deviation: the authors' code draws one z in evaluation too, so that its scores change from run to
run; here the mean is decoded. ``samples=k`` averages the map over k fixed draws instead, the same
for every image.

Reference: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014; Higgins et al.,
"beta-VAE", ICLR 2017 (beta).

Use: where the latent must be a distribution (`scorer=gradient`, latent distances); its map is
close to that of `ae`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from normalis.models.backbone import Decoder, Encoder
from normalis.models.base import Autoencoder, ModelSettings, check_at_least, check_one_of

__all__ = ["VAE", "VAESettings", "gaussian_kl"]


@dataclass(frozen=True, kw_only=True)
class VAESettings(ModelSettings):
    """Settings of the variational autoencoder.

    Args:
        beta: weight of the KL; 0.005 is the authors'.
        kl_reduction: ``mean`` over latent dimensions (the authors') or ``sum``.
        samples: draws of z that an anomaly map averages over; 0 decodes the mean.
    """

    beta: float = 0.005
    kl_reduction: str = "mean"
    samples: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, beta=self.beta, samples=self.samples)
        check_one_of(("mean", "sum"), kl_reduction=self.kl_reduction)


def gaussian_kl(mu: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mu, exp(log_var)) | N(0, 1)) per dimension, in nats: (B, D) twice -> (B, D)."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var)


class VAE(Autoencoder):
    """Variational autoencoder; its latent is the posterior's mean."""

    Settings: ClassVar[Any] = VAESettings
    stackable: ClassVar[Literal["no", "one width", "any width"]] = (
        "one width"  # its KL is divided by latent_dim, and its noise has that size
    )

    def __init__(self, settings: VAESettings) -> None:
        super().__init__(settings)
        self.encoder = Encoder.of(settings, outputs=2 * settings.latent_dim)
        self.decoder = Decoder.of(settings)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and log_var of q(z | x): (B, C, H, W) -> (B, latent_dim) twice."""
        mu, log_var = self.encoder(x).float().chunk(2, 1)
        return mu, log_var

    def encode(self, x: Tensor) -> Tensor:
        """Return the posterior's mean: (B, C, H, W) -> (B, latent_dim)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim) -> (B, C, H, W)."""
        x_hat: Tensor = self.decoder(z)
        return x_hat

    def kl(self, x: Tensor) -> Tensor:
        """Return the KL of each image's posterior, reduced as in training: (B,)."""
        return self._reduce(gaussian_kl(*self.posterior(x)))

    def _reduce(self, per_dimension: Tensor) -> Tensor:
        sums = self.settings.kl_reduction == "sum"
        return per_dimension.sum(1) if sums else per_dimension.mean(1)

    def negative_elbo(self, x: Tensor) -> Tensor:
        """Return each image's loss times its pixels, at the posterior's mean: (B,)."""
        mu, log_var = self.posterior(x)
        errors = self.error(x, self.decode(mu)).flatten(1).sum(1)
        weight: float = x[0].numel() * self.settings.beta
        return errors + weight * self._reduce(gaussian_kl(mu, log_var))

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the noise of the reparameterised latent, (B, latent_dim)."""
        shape = (len(x), self.settings.latent_dim)
        return {"noise": torch.randn(shape, generator=generator)}

    def error(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Return the squared error of each value, which training and map are made of."""
        return (x_hat.float() - x).square()

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean error and the weighted KL."""
        mu, log_var = self.posterior(x)
        x_hat = self.decode(mu + (log_var / 2).exp() * draws["noise"])
        kl = self._reduce(gaussian_kl(mu, log_var)).mean()
        return {
            "reconstruction": self.error(x, x_hat).mean(),
            "kl": self.settings.beta * kl,
        }

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the error of the mean's reconstruction, or averaged over fixed draws."""
        if not self.settings.samples:
            return self.error(x, self.reconstruct(x)).mean(1)
        mu, log_var = self.posterior(x)
        # One seed for all images: a score must not depend on the images scored before it.
        noise = torch.randn(
            self.settings.samples, mu.shape[1], generator=torch.Generator().manual_seed(0)
        ).to(mu.device)
        z = (mu + (log_var / 2).exp() * n for n in noise)
        maps = [self.error(x, self.decode(sample)).mean(1) for sample in z]
        return torch.stack(maps).mean(0)
