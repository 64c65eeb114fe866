"""The autoencoder of the comparison on brain MR: a dense or a spatial bottleneck.

    x_hat = decode(drop(encode(x))),    loss = mean |x_hat - x|,    map = |x_hat - x|
    dense:    features (r x r) - 1 x 1, an eighth of the channels - flattened - z - back
    spatial:  features (r x r) - 1 x 1, latent_dim / r² channels = z - 1 x 1 - back

Convolutions of 5 x 5 and stride 2 halve the image three or four times, to r = 8 at 64 and 128
pixels, without batch normalisation, each followed by a leaky ReLU of slope 0.3. Both bottlenecks
hold ``latent_dim`` numbers, so that they can be compared: at r = 8 a spatial one of 128 is two
channels.

Read as published by ``scorer=postprocessed``, for lesions that are bright.

Deviations: half the channels, 16-32-64 at 64 pixels; the mean of the error where theirs is the
sum, which Adam cannot tell; the training of all other methods, at a quarter of its learning rate,
instead of 1e-4 until the error on held-out images has not fallen for five epochs. In the authors'
code batch normalisation is on unless told otherwise; their results are without, as they say. It is
``normalise=True`` here.

Reference: Baur, Denner, Wiestler, Navab and Albarqouni, "Autoencoders for unsupervised anomaly
segmentation in brain MR images: A comparative study", Medical Image Analysis 69 (2021),
arXiv:2004.03271.

Use: to compare bottlenecks as the study did; `ae` and `ae-spatial` are the MICCAI paper's pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normalis.errors import SettingsError
from normalis.models.ae import error_map
from normalis.models.base import Autoencoder, ModelSettings, Phase, check_at_least, check_one_of

__all__ = ["BaurAE", "BaurAESettings"]

_SLOPE = 0.3  # of the leaky ReLU
_SQUEEZE = 8  # channels of the features over those that are flattened
_WIDEST = 4  # channels of the deepest features over those of the first


@dataclass(frozen=True, kw_only=True)
class BaurAESettings(ModelSettings):
    """Settings of the comparison's autoencoder; ``hidden_dim`` means nothing.

    Args:
        latent_dim: numbers in the bottleneck, dense or spatial.
        bottleneck: ``dense`` or ``spatial``.
        width: channels after the first convolution; 32 in the publication.
        dropout: share of a dense bottleneck that a training step leaves out.
        normalise: whether convolutions have batch normalisation.
    """

    latent_dim: int = 128
    bottleneck: str = "dense"
    width: int = 16
    dropout: float = 0.2
    normalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(("dense", "spatial"), bottleneck=self.bottleneck)
        check_at_least(2, width=self.width)
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout must be in [0, 1), got {self.dropout!r}")
        places = self.side**2
        if self.bottleneck == "spatial" and self.latent_dim % places:
            raise SettingsError(
                f"latent_dim must be a multiple of {places}, the places of a spatial bottleneck at "
                f"image_size = {self.image_size}, got {self.latent_dim}"
            )

    @property
    def halvings(self) -> int:
        """Return how many times the image is halved: to 8 pixels or a little more."""
        return max(1, min(4, int(math.log2(self.image_size / 8))))

    @property
    def side(self) -> int:
        """Return r, the side of the deepest features."""
        return int(self.image_size // 2**self.halvings)


class BaurAE(Autoencoder):
    """Autoencoder with a dense or a spatial bottleneck, trained on the absolute error."""

    Settings: ClassVar[Any] = BaurAESettings

    def __init__(self, settings: BaurAESettings) -> None:
        super().__init__(settings)
        s = settings
        widths = [s.width * min(_WIDEST, 2**i) for i in range(s.halvings)]
        down = zip([s.channels, *widths[:-1]], widths, strict=True)
        up = zip([widths[-1], *widths[::-1]], widths[::-1], strict=False)
        to_code, from_code = _bottleneck(s, widths[-1])
        self.encoder = nn.Sequential(*(_halve(i, o, s.normalise) for i, o in down), *to_code)
        self.decoder = nn.Sequential(
            *from_code,
            nn.ReLU(),
            *(_double(i, o, s.normalise) for i, o in up),
            nn.Conv2d(widths[0], s.channels, 1),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, S, S) -> (B, latent_dim)."""
        z: Tensor = self.encoder(x).flatten(1)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim) -> (B, C, S, S)."""
        x_hat: Tensor = self.decoder(z)
        return x_hat

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what a step keeps of the bottleneck, (B, latent_dim), scaled to keep its size."""
        share = 1 - (self.settings.dropout if self.settings.bottleneck == "dense" else 0)
        kept = torch.rand(len(x), self.settings.latent_dim, generator=generator) < share
        return {"kept": kept / share}

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean absolute error."""
        x_hat = self.decode(self.encode(x) * draws["kept"])
        return {"reconstruction": (x_hat.float() - x).abs().mean()}

    def phases(self) -> list[Phase]:
        """Train at a quarter of the learning rate: nothing normalises what the layers pass on."""
        rate = 1.0 if self.settings.normalise else 0.25
        return [Phase("", list(self.parameters()), self.losses, rate=rate)]

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the absolute error per pixel, averaged over channels (B, H, W)."""
        return error_map(x, self.reconstruct(x), "l1")


def _halve(c_in: int, c_out: int, normalise: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, 5, stride=2, padding=2)]
    return nn.Sequential(*layers, *_after(c_out, normalise))


def _double(c_in: int, c_out: int, normalise: bool) -> nn.Sequential:
    layer = nn.ConvTranspose2d(c_in, c_out, 5, stride=2, padding=2, output_padding=1)
    return nn.Sequential(layer, *_after(c_out, normalise))


def _after(channels: int, normalise: bool) -> list[nn.Module]:
    norm: list[nn.Module] = [nn.BatchNorm2d(channels)] if normalise else []
    return [*norm, nn.LeakyReLU(_SLOPE)]


def _bottleneck(s: BaurAESettings, width: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers from the features to the code, and back."""
    if s.bottleneck == "spatial":
        channels = s.latent_dim // s.side**2
        unflatten = nn.Unflatten(1, (channels, s.side, s.side))
        return [nn.Conv2d(width, channels, 1)], [unflatten, nn.Conv2d(channels, width, 1)]
    channels = max(1, width // _SQUEEZE)
    flat = channels * s.side**2
    into = [nn.Conv2d(width, channels, 1), nn.Flatten(), nn.Linear(flat, s.latent_dim)]
    unflatten = nn.Unflatten(1, (channels, s.side, s.side))
    return into, [nn.Linear(s.latent_dim, flat), unflatten, nn.Conv2d(channels, width, 1)]
