"""The constrained adversarial autoencoder: consistent codes that follow the prior.

    autoencoder   mean_b ½ |x_hat - x|₂ + w mean_b |encode(x_hat) - encode(x)|₂²,    w = 0.5
    critic        mean C(encode(x)) - mean C(z) + 10 penalty,    z ~ N(0, I)
    encoder       - mean C(encode(x)),    x_hat = decode(encode(x)),    map = (x_hat - x)²

With every batch the autoencoder steps once, the critic on codes three times, the encoder once. The
first term is each image's norm, not its square, as published; the half makes it that of grey values
in [0, 1], so that w weighs as there. The penalty is that of a Wasserstein critic
(`normalis.models.adversarial`), between z and codes.

Deviations: networks are those of `ae`; the critic is 100-50-1 and takes 3 steps, not 20 to 200; the
encoder's adversarial step has a tenth of the rate, since a critic that lags behind drives codes
past the prior. Both have the publication's betas (0.5, 0.9). Batch normalisation of the encoder
remembers one pass over the images a step, no reconstructions. The map is the squared error of all
methods here (the publication: absolute). In Baur et al.'s comparison the penalty is taken beyond
the two, by a sign; here between them.

Reference: Chen and Konukoglu, "Unsupervised detection of lesions in brain MRI using constrained
adversarial auto-encoders", MIDL 2018.

Use: where the code is to follow N(0, I), for `scorer=mahalanobis` or comparison; `constrained-ae`
is the half without the adversary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normalis.models.adversarial import frozen, gradient_penalty, unrecorded
from normalis.models.base import Phase, check_at_least
from normalis.models.constrained_ae import ConstrainedAE, ConstrainedAESettings

__all__ = ["ConstrainedAAE", "ConstrainedAAESettings"]

_BETAS = (0.5, 0.9)  # of both adversarial phases, the publication's


@dataclass(frozen=True, kw_only=True)
class ConstrainedAAESettings(ConstrainedAESettings):
    """Settings of the constrained adversarial autoencoder.

    Args:
        latent_weight: weight w of the distance between the two codes.
        adversarial_rate: of the encoder as the critic moves it, as a factor on the learning rate;
            0 leaves both away.
        critic_rate: of the critic, likewise.
        critic_steps: with every batch.
        critic_width: of the critic's first layer; its second is half as wide.
        penalty: weight of the gradient penalty.
    """

    latent_weight: float = 0.5
    adversarial_rate: float = 0.1
    critic_rate: float = 1.0
    critic_steps: int = 3
    critic_width: int = 100
    penalty: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, adversarial_rate=self.adversarial_rate, penalty=self.penalty)
        check_at_least(1, critic_steps=self.critic_steps)
        check_at_least(2, critic_width=self.critic_width)


class ConstrainedAAE(ConstrainedAE):
    """Autoencoder with consistent codes, and a critic that tells codes from the prior."""

    Settings: ClassVar[Any] = ConstrainedAAESettings

    def __init__(self, settings: ConstrainedAAESettings) -> None:
        super().__init__(settings)
        if settings.adversarial_rate:
            self.critic = nn.Sequential(
                nn.Linear(settings.latent_dim, settings.critic_width),
                nn.LeakyReLU(0.2),
                nn.Linear(settings.critic_width, settings.critic_width // 2),
                nn.LeakyReLU(0.2),
                nn.Linear(settings.critic_width // 2, 1),
            )

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return codes of the prior for the critic (B, latent_dim), and the penalty's t (B,)."""
        if not self.settings.adversarial_rate:
            return {}
        shape = (len(x), self.settings.latent_dim)
        return {
            "prior": torch.randn(shape, generator=generator),
            "mix": torch.rand(len(x), generator=generator),
        }

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the norm of the error and the weighted distance of the codes."""
        z = self.encode(x)
        x_hat = self.decode(z)
        with unrecorded(self.encoder):
            z_again = self.encode(x_hat)
        distance = (z_again.float() - z.float()).square().sum(1).mean()
        return {
            "reconstruction": 0.5 * (x_hat.float() - x).flatten(1).norm(dim=1).mean(),
            "latent": self.settings.latent_weight * distance,
        }

    def critic_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the critic's losses; the encoder gets no gradient from them."""
        with torch.no_grad(), unrecorded(self.encoder):
            z = self.encode(x).float()
        prior = draws["prior"]
        penalty = gradient_penalty(self.critic, prior, z, draws["mix"])
        return {
            "loss": self.critic(z).float().mean() - self.critic(prior).float().mean(),
            "penalty": self.settings.penalty * penalty,
        }

    def encoder_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return how little the critic takes codes for draws of the prior."""
        with frozen(self.critic), unrecorded(self.encoder):
            return {"loss": -self.critic(self.encode(x)).float().mean()}

    def phases(self) -> list[Phase]:
        """Train the autoencoder, the critic, and the encoder once more."""
        encoder, rate = list(self.encoder.parameters()), self.settings.adversarial_rate
        own = Phase("", [*encoder, *self.decoder.parameters()], self.losses)
        if not rate:
            return [own]
        s, critic = self.settings, list(self.critic.parameters())
        return [
            own,
            Phase("critic ", critic, self.critic_losses, repeat=s.critic_steps,
                  rate=s.critic_rate, betas=_BETAS),
            Phase("encoder ", encoder, self.encoder_losses, rate=rate, betas=_BETAS),
        ]  # fmt: skip
