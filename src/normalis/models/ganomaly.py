"""GANomaly: an adversary, and a second encoder that reads the reconstruction.

    z = encode(x),    x_hat = decode(z),    z_hat = encode2(x_hat)
    generator      50 mean (x_hat - x)² + mean (f(x_hat) - f(x))² + mean (z_hat - z)²
    adversary      ½ [BCE(D(x), 1) + BCE(D(x_hat), 0)],    f = the layer before D's output
    score = mean (z_hat - z)²,    map = (x_hat - x)²

Fully connected layers have no batch normalisation. When the adversary's loss falls below 1e-5 its
convolutions and normalisations are drawn anew from N(0, 0.02²) and N(1, 0.02²), as in the authors'
code, or the generator would have no gradient left to follow.

Deviations: the paper has no map, and the reconstruction error is offered as one. The authors' code
scores with the batch statistics of the single test image; here the running ones are used, so that
an image's score stands by itself. The adversary is judged after every step, where theirs is by the
mean of an epoch, and it learns from the generator as it is after its step.

Reference: Akcay, Atapour-Abarghouei and Breckon, "GANomaly: Semi-supervised anomaly detection via
adversarial training", ACCV 2018.

Use: for comparison; training is unsteady, so fit several seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.models.backbone import Encoder, EncoderDecoder
from normalis.models.base import ModelSettings, Phase, check_at_least

__all__ = ["GANomaly", "GANomalySettings"]

_VANISHED = 1e-5  # adversary's loss below which it is drawn anew, from the authors' code
_DEVIATION = 0.02  # of redrawn weights, from the same


@dataclass(frozen=True, kw_only=True)
class GANomalySettings(ModelSettings):
    """Settings of GANomaly; the weights are the paper's.

    Args:
        reconstruction_weight: of the squared error of the image.
        adversarial_weight: of the squared distance of the adversary's features.
        latent_weight: of the squared distance of the two codes.
    """

    reconstruction_weight: float = 50.0
    adversarial_weight: float = 1.0
    latent_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(
            0,
            reconstruction_weight=self.reconstruction_weight,
            adversarial_weight=self.adversarial_weight,
            latent_weight=self.latent_weight,
        )


class GANomaly(EncoderDecoder):
    """Encoder, decoder, encoder, and an adversary."""

    Settings: ClassVar[Any] = GANomalySettings

    def __init__(self, settings: GANomalySettings) -> None:
        super().__init__(settings, normalise=False)
        self.second_encoder = Encoder.of(settings, normalise=False)
        self.adversary = Encoder.of(settings, outputs=1, normalise=False)
        self._redraw_seed = torch.zeros(1, dtype=torch.int64)

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the adversary's features (B, hidden_dim) and logits (B,), float32."""
        features = self.adversary.hidden(self.adversary.features(x).flatten(1))
        return features.float(), self.adversary.latent(features).float().squeeze(1)

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the seed of the adversary's new weights, should its loss vanish in this step."""
        return {"redraw_seed": torch.randint(2**31, (1,), generator=generator)}

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the generator's three losses."""
        s = self.settings
        z = self.encode(x)
        x_hat = self.decode(z)
        z_hat = self.second_encoder(x_hat)
        with torch.no_grad():  # nothing of the generator is in it
            real = self.judge(x)[0]
        likeness = (self.judge(x_hat)[0] - real).square().mean()
        return {
            "reconstruction": s.reconstruction_weight * (x_hat.float() - x).square().mean(),
            "adversarial": s.adversarial_weight * likeness,
            "latent": s.latent_weight * (z_hat.float() - z.float()).square().mean(),
        }

    def adversary_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the adversary's loss; the generator gets no gradient from it."""
        self._redraw_seed = draws["redraw_seed"]
        with torch.no_grad():
            x_hat = self(x)
        real, fake = self.judge(x)[1], self.judge(x_hat)[1]
        # softplus(-l) and softplus(l) are the cross-entropies with targets 1 and 0.
        return {"loss": 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())}

    def phases(self) -> list[Phase]:
        """Train the generator, then the adversary."""
        generator = [*self.encoder.parameters(), *self.decoder.parameters()]
        generator += self.second_encoder.parameters()
        adversary = list(self.adversary.parameters())
        return [
            Phase("", generator, self.losses),
            Phase("adversary ", adversary, self.adversary_losses, self._redraw_if_vanished),
        ]

    def _redraw_if_vanished(self, losses: dict[str, float]) -> None:
        if losses["adversary loss"] >= _VANISHED:
            return
        source = torch.Generator().manual_seed(int(self._redraw_seed))
        for layer in self.adversary.modules():
            if isinstance(layer, nn.Conv2d):
                _redraw(layer.weight, 0.0, source)
            elif isinstance(layer, nn.BatchNorm2d):
                _redraw(layer.weight, 1.0, source)
                nn.init.zeros_(layer.bias)

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the squared distance of the two codes (B,)."""
        z = self.encode(x)
        z_hat: Tensor = self.second_encoder(self.decode(z))
        return (z_hat - z).square().mean(1)


@torch.no_grad()
def _redraw(weight: Tensor, mean: float, source: torch.Generator) -> None:
    # Drawn on the CPU, so that the same seed gives the same weights on every device.
    fresh = torch.randn(weight.shape, generator=source) * _DEVIATION + mean
    weight.copy_(fresh)
