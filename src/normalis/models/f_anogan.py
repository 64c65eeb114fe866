"""f-AnoGAN: a generator of normal images first, then an encoder that finds its way back.

    stage 1, 60 %   generator    - mean D(G(z)),    z ~ N(0, I)
                    critic       mean D(G(z)) - mean D(x) + 10 mean (|grad D(x')| - 1)²
    stage 2, 40 %   encoder      mean (x - x_hat)² + kappa mean (f(x) - f(x_hat))²
                    x_hat = G(E(x)),    f = the layer before D's output,    G and D held still
    score = mean (x - x_hat)² + kappa mean (f(x) - f(x_hat))²,    map = |x - x_hat|

The critic steps three times with every batch (the publication: five). The encoder ends in tanh, as
published, and so reaches (-1, 1)^d of what the generator was taught on N(0, I): a part of normality
cannot be rebuilt. ``bound="none"`` takes the tanh away.

Deviations: encoder and generator are the networks that all methods here share (residual networks of
64 channels in the publication), the generator with a tanh behind it; the critic is a small
convolutional network normalised within each image; the penalty is taken on a quarter of the batch;
z has 64 numbers, not 128. The rates are tenths of the recipe's with betas (0, 0.9) in stage 1, and
the recipe's own in stage 2, whose RMSProp of 50,000 steps is an Adam of a few hundred. With a
thousand images and the recipe ``fast`` the generator takes 800 steps: by far too few to draw any
normal image, enough for its average shape.

Reference: Schlegl et al., "f-AnoGAN: Fast unsupervised anomaly detection with generative
adversarial networks", Medical Image Analysis 54, 2019.

Use: for comparison with what is cited; its training is unsteady, and what it cannot draw it takes
for anomalous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from normalis.errors import SettingsError
from normalis.models.adversarial import Critic, frozen, gradient_penalty, unrecorded
from normalis.models.backbone import Decoder, Encoder
from normalis.models.base import Autoencoder, ModelSettings, Phase, check_at_least, check_one_of

__all__ = ["FAnoGAN", "FAnoGANSettings"]

_STAGE_1 = 0.6  # share of the training that is the generator's
_BETAS = (0.0, 0.9)  # of Adam in stage 1, the publication's
_PENALISED = 4  # the penalty is taken on one in so many images of a batch


@dataclass(frozen=True, kw_only=True)
class FAnoGANSettings(ModelSettings):
    """Settings of f-AnoGAN.

    Args:
        latent_dim: size of z.
        kappa: weight of the critic's features in the encoder's loss and in the score.
        encoder_loss: ``izi_f`` (the method), ``izi`` without the features, or ``ziz``, which
            needs no image: mean (z - E(G(z)))².
        bound: ``tanh`` behind the encoder, or ``none``.
        output: ``tanh`` behind the generator, or ``linear``: for standardised images, which leave
            [-1, 1].
        critic_steps: with every batch of stage 1.
        critic_width: channels of the critic's first convolution.
        penalty: weight of the gradient penalty.
        adversarial_rate: of generator and critic, as a factor on the learning rate.
    """

    latent_dim: int = 64
    kappa: float = 1.0
    encoder_loss: str = "izi_f"
    bound: str = "tanh"
    output: str = "tanh"
    critic_steps: int = 3
    critic_width: int = 8
    penalty: float = 10.0
    adversarial_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, kappa=self.kappa, penalty=self.penalty)
        if not self.adversarial_rate > 0:
            raise SettingsError(f"adversarial_rate must be above 0, got {self.adversarial_rate!r}")
        check_at_least(1, critic_steps=self.critic_steps, critic_width=self.critic_width)
        check_one_of(("izi_f", "izi", "ziz"), encoder_loss=self.encoder_loss)
        check_one_of(("tanh", "none"), bound=self.bound)
        check_one_of(("tanh", "linear"), output=self.output)


class FAnoGAN(Autoencoder):
    """A Wasserstein generator with its critic, and an encoder that is trained after them."""

    Settings: ClassVar[Any] = FAnoGANSettings

    def __init__(self, settings: FAnoGANSettings) -> None:
        super().__init__(settings)
        self.encoder = Encoder.of(settings)
        self.generator = Decoder.of(settings)
        self.critic = Critic(settings, settings.critic_width)

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, H, W) -> (B, latent_dim)."""
        z: Tensor = self.encoder(x)
        return z.tanh() if self.settings.bound == "tanh" else z

    def decode(self, z: Tensor) -> Tensor:
        """Generate: (B, latent_dim) -> (B, C, H, W)."""
        x_hat: Tensor = self.generator(z)
        return x_hat.tanh() if self.settings.output == "tanh" else x_hat

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what the generator and the critic's images start from, and the penalty's t."""
        shape = (len(x), self.settings.latent_dim)
        return {
            "noise": torch.randn(shape, generator=generator),
            "critic_noise": torch.randn(shape, generator=generator),
            "mix": torch.rand(len(x), generator=generator),
        }

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the encoder's losses; generator and critic hold still."""
        with frozen(self.generator, self.critic):
            if self.settings.encoder_loss == "ziz":
                z = draws["noise"]
                return {"latent": (self.encode(self.decode(z)).float() - z).square().mean()}
            x_hat = self.decode(self.encode(x)).float()
            found = {"reconstruction": (x_hat - x).square().mean()}
            if self.settings.encoder_loss == "izi_f":
                found["features"] = self.settings.kappa * self._feature_error(x, x_hat).mean()
            return found

    def generator_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return how little the critic takes what is generated for normal images."""
        with frozen(self.critic):
            return {"loss": -self.critic(self.decode(draws["noise"])).mean()}

    def critic_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the critic's losses; the generator gets no gradient from them."""
        with torch.no_grad(), unrecorded(self.generator):
            fake = self.decode(draws["critic_noise"])
        some = slice(max(1, len(x) // _PENALISED))
        penalty = gradient_penalty(self.critic, x[some], fake[some], draws["mix"][some])
        return {
            "loss": self.critic(fake).mean() - self.critic(x).mean(),
            "penalty": self.settings.penalty * penalty,
        }

    def phases(self) -> list[Phase]:
        """Train critic and generator, and when they are done the encoder."""
        s = self.settings
        first: dict[str, Any] = {
            "span": (0.0, _STAGE_1), "rate": s.adversarial_rate, "betas": _BETAS,
        }  # fmt: skip
        critic, generator = list(self.critic.parameters()), list(self.generator.parameters())
        return [
            Phase("critic ", critic, self.critic_losses, repeat=s.critic_steps, **first),
            Phase("generator ", generator, self.generator_losses, **first),
            Phase("", list(self.encoder.parameters()), self.losses, span=(_STAGE_1, 1.0)),
        ]

    def _feature_error(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Return the mean squared distance of the critic's features (B,)."""
        real, rebuilt = self.critic.features(x).float(), self.critic.features(x_hat).float()
        return (real - rebuilt).square().mean(1)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the absolute error per pixel, averaged over channels."""
        return (x - self.reconstruct(x)).abs().mean(1)

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the error of the image and of the critic's features (B,)."""
        return self.score_and_map(x)[0]

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `anomaly_score` and `anomaly_map` in one pass."""
        error = x - (x_hat := self.reconstruct(x))
        features = self.settings.kappa * self._feature_error(x, x_hat)
        return error.square().flatten(1).mean(1) + features, error.abs().mean(1)
