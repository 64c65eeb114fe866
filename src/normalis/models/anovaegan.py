"""AnoVAEGAN: a variational autoencoder whose decoder must also please a critic.

    encoder, decoder   mean |x_hat - x| + beta KL,    beta = 2 / 64²,    map = |x - x_hat|
    critic             mean D(x_hat) - mean D(x) + 10 mean (|grad D(x')| - 1)²
    decoder            - mean D(x_hat),    x_hat = decode(z),    z ~ q(z | x)

The critic sees reconstructions, no draws of the prior. The KL is summed over the latent; beta is
the publication's 1 against a sum of absolute errors of grey values in [0, 1], at 64 x 64.

The decoder's adversarial step has an Adam of its own, whose steps do not depend on how a loss is
weighed: what counts is its rate, a tenth of the recipe's, and 0 is a `vae` with the absolute error.

Deviations: networks are those of `vae`, with a dense latent (the publication's is a map of 16 x 16
vectors for slices of 256 x 256); critic and adversarial step join for the last 40 % of the
training, with two critic steps a batch (the publication: five, from the start), and have its betas
(0.5, 0.9); the penalty is taken on a quarter of the batch. In the reference code the gradient's
norm is a sum over one axis, which is no norm of an image; here it is over all pixels.

Reference: Baur, Wiestler, Albarqouni and Navab, "Deep autoencoding models for unsupervised anomaly
segmentation in brain MR images", BrainLes 2018.

Use: for comparison with what is cited; like `vae`, somewhat sharper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from normalis.models.adversarial import Critic, frozen, gradient_penalty, unrecorded
from normalis.models.base import Phase, check_at_least
from normalis.models.vae import VAE, VAESettings

__all__ = ["AnoVAEGAN", "AnoVAEGANSettings"]

_BETAS = (0.5, 0.9)  # of both adversarial phases, the publication's
_JOINS = 0.6  # share of the training after which they begin
_PENALISED = 4  # the penalty is taken on one in so many images of a batch


@dataclass(frozen=True, kw_only=True)
class AnoVAEGANSettings(VAESettings):
    """Settings of AnoVAEGAN.

    Args:
        beta: weight of the KL.
        kl_reduction: ``sum`` over latent dimensions or ``mean``.
        adversarial_rate: of the critic and of the decoder's adversarial step, as a factor on the
            learning rate; 0 leaves both away.
        critic_steps: with every batch.
        critic_width: channels of the critic's first convolution.
        penalty: weight of the gradient penalty.
    """

    beta: float = 2 / 64**2
    kl_reduction: str = "sum"
    adversarial_rate: float = 0.1
    critic_steps: int = 2
    critic_width: int = 8
    penalty: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, adversarial_rate=self.adversarial_rate, penalty=self.penalty)
        check_at_least(1, critic_steps=self.critic_steps, critic_width=self.critic_width)


class AnoVAEGAN(VAE):
    """Variational autoencoder of absolute errors, with a critic of its reconstructions."""

    Settings: ClassVar[Any] = AnoVAEGANSettings
    stackable: ClassVar[Literal["no", "one width", "any width"]] = "no"

    def __init__(self, settings: AnoVAEGANSettings) -> None:
        super().__init__(settings)
        if settings.adversarial_rate:
            self.critic = Critic(settings, settings.critic_width)

    def error(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Return the absolute error of each value."""
        return (x_hat.float() - x).abs()

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the latent's noise (B, latent_dim), and the penalty's t (B,)."""
        drawn = super().draw(x, generator)
        if self.settings.adversarial_rate:
            drawn["mix"] = torch.rand(len(x), generator=generator)
        return drawn

    def critic_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the critic's losses; the autoencoder gets no gradient from them."""
        with torch.no_grad(), unrecorded(self.encoder, self.decoder):
            fake = self.decode(self._sample(x, draws["noise"])).float()
        some = slice(max(1, len(x) // _PENALISED))
        penalty = gradient_penalty(self.critic, x[some], fake[some], draws["mix"][some])
        return {
            "loss": self.critic(fake).mean() - self.critic(x).mean(),
            "penalty": self.settings.penalty * penalty,
        }

    def decoder_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return how little the critic takes reconstructions for images; the encoder stays."""
        with frozen(self.critic), unrecorded(self.encoder, self.decoder):
            with torch.no_grad():
                z = self._sample(x, draws["noise"])
            return {"loss": -self.critic(self.decode(z)).mean()}

    def phases(self) -> list[Phase]:
        """Train the autoencoder, and later the critic and the decoder once more."""
        s = self.settings
        decoder = list(self.decoder.parameters())
        own = Phase("", [*self.encoder.parameters(), *decoder], self.losses)
        if not s.adversarial_rate:
            return [own]
        later: dict[str, Any] = {
            "rate": s.adversarial_rate, "betas": _BETAS, "span": (_JOINS, 1.0),
        }  # fmt: skip
        critic = list(self.critic.parameters())
        return [
            own,
            Phase("critic ", critic, self.critic_losses, repeat=s.critic_steps, **later),
            Phase("decoder ", decoder, self.decoder_losses, **later),
        ]

    def _sample(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return a draw of each image's posterior (B, latent_dim)."""
        mu, log_var = self.posterior(x)
        return mu + (log_var / 2).exp() * noise
