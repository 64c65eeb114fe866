"""The autoencoder that also predicts how well each pixel can be rebuilt.

    (x_hat, log_var) = decode(encode(x))
    loss = mean [exp(-log_var) (x_hat - x)² + log_var],    map = exp(-log_var) (x_hat - x)²

The loss is twice the negative logarithm of a Gaussian's density, up to a constant; at its minimum
exp(log_var) is the variance of the pixel. The decoder's last layer has one more output per channel.

Deviation: log_var has a soft floor at log((2 / 255)² / 12) = -12.2, the variance of rounding to 8
bits, ``floor + softplus(raw - floor)``. Without it a pixel that never varies (the background of an
MR slice) drives log_var down without end, and one image with something there dominates a batch.
A hard clip would have no gradient below the floor. The authors' code bounds nothing.

Reference: Mao et al., "Abnormality detection in chest X-ray images using uncertainty prediction
autoencoders", MICCAI 2020.

Use: first choice for radiographs: edges, which are hard for every image, stop counting as lesions.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from normalis.models.backbone import Decoder, Encoder
from normalis.models.base import Autoencoder, ModelSettings

__all__ = ["AEU", "FLOOR"]

#: Least log-variance: that of rounding to 256 levels on [-1, 1].
FLOOR = math.log((2 / 255) ** 2 / 12)


class AEU(Autoencoder):
    """Autoencoder with predicted pixel variance."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.encoder = Encoder.of(settings)
        self.decoder = Decoder.of(settings, channels=2 * settings.channels)

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, H, W) -> (B, latent_dim)."""
        z: Tensor = self.encoder(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild the image without its variance: (B, latent_dim) -> (B, C, H, W)."""
        return self.decode_both(z)[0]

    def decode_both(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_hat and log_var, (B, C, H, W) each, float32."""
        x_hat, raw = self.decoder(z).float().chunk(2, 1)
        return x_hat, FLOOR + F.softplus(raw - FLOOR)

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the error in units of its predicted variance, and the log-variance."""
        x_hat, log_var = self.decode_both(self.encode(x))
        error = (-log_var).exp() * (x_hat - x).square()
        return {"reconstruction": error.mean(), "log_var": log_var.mean()}

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the squared error over the predicted variance (B, H, W)."""
        x_hat, log_var = self.decode_both(self.encode(x))
        return ((-log_var).exp() * (x - x_hat).square()).mean(1)
