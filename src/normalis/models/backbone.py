"""The networks that every method of the paper shares.

From the paper's supplement B and the authors' public code. For a 64 x 64 image::

    (C, 64, 64) -16-32-64-64-> (64, 4, 4) -> 1024-D-d-D-1024 -> -64-32-16-C-> (C, 64, 64)
                 4 conv k4 s2            fully connected         4 transposed conv k4 s2

Every layer is followed by batch normalisation and ReLU, except the output. The text says no more;
the authors' code also leaves the latent and the last fully connected layer linear, and has no bias
in the convolutions. This follows the code. Weights start as PyTorch's layers do.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.models.base import Autoencoder, ModelSettings

__all__ = [
    "ENCODER_CHANNELS",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "doublings",
    "halvings",
    "hidden_to",
    "to_hidden",
]

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


class _Output(nn.ConvTranspose2d):
    """The last transposed convolution, which scoring on a CPU computes as a plain one.

    Each pixel of a doubled image is one of four phases (a, b), and in each the kernel's 4 x 4 taps
    meet the input as 2 x 2: four plain convolutions, whose results are shuffled together. The sums
    are the same up to rounding. With few output channels PyTorch's own kernel for transposed
    convolutions takes a quarter of the network's time and this one a twelfth; its gradient is no
    faster, and onnxruntime needs neither (docs/reference/performance.md).
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(x, output_size)
        taps = self.weight.flip(2, 3)  # (C_in, C_out, 4, 4)
        phases = [
            F.pad(taps[:, :, a::2, b::2], (b, 1 - b, a, 1 - a)) for a in (0, 1) for b in (0, 1)
        ]
        kernel = torch.stack(phases, 2).flatten(1, 2).transpose(0, 1)  # (4 C_out, C_in, 3, 3)
        return F.pixel_shuffle(F.conv2d(x, kernel, padding=1), 2)


def halvings(channels: int) -> nn.Sequential:
    """Return the encoder's convolutions: (B, C, S, S) -> (B, 64, S / 16, S / 16)."""
    widths = (channels, *ENCODER_CHANNELS)
    return nn.Sequential(*map(_halve, widths[:-1], widths[1:]))


def doublings(channels: int) -> tuple[nn.Sequential, nn.ConvTranspose2d]:
    """Return the decoder's convolutions: (B, 64, S / 16, S / 16) -> (B, C, S, S), in two parts."""
    widths = ENCODER_CHANNELS[-1:] + ENCODER_CHANNELS[::-1][1:]
    features = nn.Sequential(*map(_double, widths[:-1], widths[1:]))
    output = _Output(widths[-1], channels, 4, stride=2, padding=1, bias=False)
    return features, output


def to_hidden(features: int, hidden_dim: int, *, normalise: bool = True) -> nn.Sequential:
    """Return a fully connected layer with batch normalisation (unless told not to) and ReLU."""
    norm = [nn.BatchNorm1d(hidden_dim)] if normalise else []
    return nn.Sequential(nn.Linear(features, hidden_dim), *norm, nn.ReLU(inplace=True))


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
        normalise: whether that layer has batch normalisation; all methods but GANomaly do.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        *,
        latent_dim: int,
        hidden_dim: int,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.features = halvings(channels)
        flat = ENCODER_CHANNELS[-1] * (image_size // 16) ** 2
        self.hidden = to_hidden(flat, hidden_dim, normalise=normalise)
        self.latent = hidden_to(hidden_dim, latent_dim)

    @classmethod
    def of(
        cls, settings: ModelSettings, *, outputs: int | None = None, normalise: bool = True
    ) -> Self:
        """Return the encoder that a method's settings describe.

        Args:
            settings: of the method.
            outputs: size of what comes out, ``latent_dim`` unless the method needs more.
            normalise: as above.
        """
        return cls(
            settings.image_size,
            settings.channels,
            latent_dim=outputs or settings.latent_dim,
            hidden_dim=settings.hidden_dim,
            normalise=normalise,
        )

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
        normalise: whether that layer has batch normalisation; all methods but GANomaly do.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        *,
        latent_dim: int,
        hidden_dim: int,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        side, width = image_size // 16, ENCODER_CHANNELS[-1]
        self.hidden = to_hidden(latent_dim, hidden_dim, normalise=normalise)
        self.flat = hidden_to(hidden_dim, width * side**2)
        self.unflatten = nn.Unflatten(1, (width, side, side))
        self.features, self.output = doublings(channels)

    @classmethod
    def of(
        cls, settings: ModelSettings, *, channels: int | None = None, normalise: bool = True
    ) -> Self:
        """Return the decoder that a method's settings describe.

        Args:
            settings: of the method.
            channels: of the output, those of the image unless the method needs more.
            normalise: as above.
        """
        return cls(
            settings.image_size,
            channels or settings.channels,
            latent_dim=settings.latent_dim,
            hidden_dim=settings.hidden_dim,
            normalise=normalise,
        )

    def forward(self, z: Tensor) -> Tensor:
        """Rebuild images from latent vectors."""
        x_hat: Tensor = self.output(self.features(self.unflatten(self.flat(self.hidden(z)))))
        return x_hat


class EncoderDecoder(Autoencoder):
    """A method whose code and reconstruction are those of the two networks above, no more.

    Args:
        settings: of the method.
        normalise: as of `Encoder`.
    """

    def __init__(self, settings: ModelSettings, *, normalise: bool = True) -> None:
        super().__init__(settings)
        self.encoder = Encoder.of(settings, normalise=normalise)
        self.decoder = Decoder.of(settings, normalise=normalise)

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, H, W) -> (B, latent_dim)."""
        z: Tensor = self.encoder(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim) -> (B, C, H, W)."""
        x_hat: Tensor = self.decoder(z)
        return x_hat
