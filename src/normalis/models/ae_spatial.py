"""The autoencoder whose bottleneck keeps the image's layout: 1 x 1 convolutions, no flattening.

    z = W2 relu(norm(W1 features(x))),    z of shape (d, S / 16, S / 16),    map = (x_hat - x)²

``latent_dim`` is a number of channels: at 64 x 64 pixels 16 means 16 x 4 x 4 = 256 numbers, so
that it must not be compared with the same ``latent_dim`` of another method. `encode` returns them
flattened, (B, d (S / 16)²). As in the authors' code the 1 x 1 convolutions have no bias.

Reference: Baur et al., "Autoencoders for unsupervised anomaly segmentation in brain MR images: A
comparative study", Medical Image Analysis 69 (2021); Cai et al., "MedIAnomaly: A comparative study
of anomaly detection in medical images" (2024).

Use: to see what a bottleneck without a global view lets through.
"""

from __future__ import annotations

from torch import Tensor, nn

from normalis.models.backbone import ENCODER_CHANNELS, doublings, halvings
from normalis.models.base import Autoencoder, ModelSettings

__all__ = ["SpatialAE"]


def _pointwise(c_in: int, c_hidden: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_hidden, 1, bias=False),
        nn.BatchNorm2d(c_hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_hidden, c_out, 1, bias=False),
    )


class SpatialAE(Autoencoder):
    """Autoencoder with a spatial bottleneck, trained on the squared error."""

    stackable = "any width"

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        d, hidden, width = settings.latent_dim, settings.hidden_dim, ENCODER_CHANNELS[-1]
        side = settings.image_size // 16
        self.encoder = nn.Sequential(halvings(settings.channels), _pointwise(width, hidden, d))
        self.unflatten = nn.Unflatten(1, (d, side, side))
        self.decoder = nn.Sequential(_pointwise(d, hidden, width), *doublings(settings.channels))

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, S, S) -> (B, latent_dim (S / 16)²)."""
        z: Tensor = self.encoder(x).flatten(1)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim (S / 16)²) -> (B, C, S, S)."""
        x_hat: Tensor = self.decoder(self.unflatten(z))
        return x_hat

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error."""
        return {"reconstruction": (self(x).float() - x).square().mean()}
