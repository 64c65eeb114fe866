"""The autoencoder whose reconstruction must have the code of the image.

    loss = mean (x_hat - x)² + w mean (encode(x_hat) - encode(x))²,    w = 1,    map = (x_hat - x)²

As in the authors' code the gradient flows through both codes, and the encoder's batch
normalisation sees the reconstructions as a batch of their own.

Reference: Chen and Konukoglu, "Unsupervised detection of lesions in brain MRI using constrained
adversarial auto-encoders", MIDL 2018, without its adversary.

Use: where codes are compared (`scorer=mahalanobis`), since it keeps them consistent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from normalis.models.backbone import EncoderDecoder
from normalis.models.base import ModelSettings, check_at_least

__all__ = ["ConstrainedAE", "ConstrainedAESettings"]


@dataclass(frozen=True, kw_only=True)
class ConstrainedAESettings(ModelSettings):
    """Settings of the constrained autoencoder.

    Args:
        latent_weight: weight w of the distance between the two codes.
    """

    latent_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, latent_weight=self.latent_weight)


class ConstrainedAE(EncoderDecoder):
    """Autoencoder with consistent codes."""

    Settings: ClassVar[Any] = ConstrainedAESettings

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error and the weighted distance of the codes."""
        z = self.encode(x)
        x_hat = self.decode(z)
        z_again = self.encode(x_hat)
        return {
            "reconstruction": (x_hat.float() - x).square().mean(),
            "latent": self.settings.latent_weight * (z_again.float() - z.float()).square().mean(),
        }
