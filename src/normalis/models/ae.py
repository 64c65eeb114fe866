"""The plain autoencoder, the paper's baseline and subject.

    x_hat = decode(encode(x)),    loss = E ‖x_hat - x‖² / P,    map = (x_hat - x)²

with P pixels. Cai, Chen and Cheng, "Rethinking Autoencoders for Medical Anomaly Detection from A
Theoretical Perspective", MICCAI 2024, Eq. (1); layers as in `normalis.models.backbone`.
"""

from __future__ import annotations

from torch import Tensor

from normalis.models.backbone import Decoder, Encoder
from normalis.models.base import Autoencoder, ModelSettings

__all__ = ["AE"]


class AE(Autoencoder):
    """Autoencoder with the mean squared error of the pixels."""

    Settings = ModelSettings

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        s = settings
        size = {"latent_dim": s.latent_dim, "hidden_dim": s.hidden_dim}
        self.encoder = Encoder(s.image_size, s.channels, **size)
        self.decoder = Decoder(s.image_size, s.channels, **size)

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, H, W) -> (B, latent_dim)."""
        z: Tensor = self.encoder(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim) -> (B, C, H, W)."""
        x_hat: Tensor = self.decoder(z)
        return x_hat

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error."""
        return {"reconstruction": (self(x).float() - x).square().mean()}
