"""The networks that every method of the paper shares.

From the paper's supplement B and the authors' public code. For a 64 x 64 image::

    (C, 64, 64) -16-32-64-64-> (64, 4, 4) -> 1024-D-d-D-1024 -> -64-32-16-C-> (C, 64, 64)
                 4 conv k4 s2            fully connected         4 transposed conv k4 s2

Every layer is followed by batch normalisation and ReLU, except the output. The text says no more;
the authors' code also leaves the latent and the last fully connected layer linear, and has no bias
in the convolutions. This follows the code. Weights start as PyTorch's layers do.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ENCODER_CHANNELS", "Decoder", "Encoder", "hidden_to", "to_hidden"]

ENCODER_CHANNELS = (16, 32, 64, 64)


def _halve(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


def _double(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


def to_hidden(features: int, hidden_dim: int) -> nn.Sequential:
    """Return a fully connected layer with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Linear(features, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)
    )


def hidden_to(hidden_dim: int, features: int) -> nn.Linear:
    """Return a linear layer without activation: to the latent, or to the feature map."""
    return nn.Linear(hidden_dim, features)


class Encoder(nn.Module):
    """Convolutions and two fully connected layers: (B, C, S, S) -> (B, latent_dim).

    Args:
        image_size: side S, a multiple of 16.
        channels: C.
        latent_dim: size of the bottleneck.
        hidden_dim: width of the layer before it.
    """

    def __init__(self, image_size: int, channels: int, *, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        widths = (channels, *ENCODER_CHANNELS)
        self.features = nn.Sequential(*map(_halve, widths[:-1], widths[1:]))
        self.hidden = to_hidden(ENCODER_CHANNELS[-1] * (image_size // 16) ** 2, hidden_dim)
        self.latent = hidden_to(hidden_dim, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Compress images to latent vectors."""
        z: Tensor = self.latent(self.hidden(self.features(x).flatten(1)))
        return z


class Decoder(nn.Module):
    """Two fully connected layers and transposed convolutions: (B, latent_dim) -> (B, C, S, S).

    Args:
        image_size: side S, a multiple of 16.
        channels: C of the output.
        latent_dim: size of the bottleneck.
        hidden_dim: width of the layer after it.
    """

    def __init__(self, image_size: int, channels: int, *, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        side, width = image_size // 16, ENCODER_CHANNELS[-1]
        self.hidden = to_hidden(latent_dim, hidden_dim)
        self.flat = hidden_to(hidden_dim, width * side**2)
        self.unflatten = nn.Unflatten(1, (width, side, side))
        widths = (width, *ENCODER_CHANNELS[::-1][1:])
        self.features = nn.Sequential(*map(_double, widths[:-1], widths[1:]))
        self.output = nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """Rebuild images from latent vectors."""
        x_hat: Tensor = self.output(self.features(self.unflatten(self.flat(self.hidden(z)))))
        return x_hat
