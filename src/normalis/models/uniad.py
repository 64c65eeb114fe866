"""UniAD: a transformer rebuilds each place's features from all but those near it.

    f(x) = features of taps a, b and c on one grid, each channel standardised over normal images
    f_hat = decode(encode(f + jitter)),    jitter ~ N(0, (20 |f| / C)²) at each place
    loss = mean (f_hat - f)²,    map_p = |f_hat_p - f_p|,    score = mean of its highest tenth

Three things keep the network from copying what it sees. *Neighbour-masked attention*: a place may
not look at the window around itself, in the encoder and in both attentions of the decoder. *Queries
of each layer*: every layer of the decoder starts from a learned query for each place, which looks
at the encoder's output and then at what the layer before has made. *Jitter*: in training the
features are disturbed and the undisturbed ones are to be rebuilt. Sums around each attention still
carry what is near past the mask, so that the mask makes copying hard and does not prevent it.

Deviations from the authors: EfficientNet-lite0 instead of b4, its three taps of strides 4, 8 and
16 (176 channels) instead of four (272); images of 128 pixels, hence 8 x 8 places instead of 14 x 14
and a window of 3 x 3 instead of 7 x 7, which would hide nearly all of 8 x 8; half the layers, half
the width; 800 steps of 32 images at a rate that falls along a cosine from 1e-3, where the authors
take 1000 epochs at 1e-4; standard scores of the channels; no dropout. Their image score is the
largest mean of a window of the map, or the map's mean: ``share`` lies between. With
``image_size=224, window=7`` the grid is the authors', at five times the time.

Reference: You, Cui, Shen, Yang, Lu, Zheng and Le, "A unified model for multi-class anomaly
detection", NeurIPS 2022, arXiv:2206.03687.

Use: as an alternative to `feature-ae` and `padim`, where what is normal in one place depends on the
rest of the image; its map is coarse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from normalis.errors import SettingsError
from normalis.models.attention import Attention, FeedForward, Positions, neighbour_mask
from normalis.models.base import check_at_least
from normalis.models.feature_rebuilding import FeatureRebuilder, RebuildSettings

__all__ = ["UniAD", "UniADSettings", "UniADTransformer", "jitter"]


@dataclass(frozen=True, kw_only=True)
class UniADSettings(RebuildSettings):
    """Settings of UniAD.

    Args:
        taps: whose features are rebuilt; empty for the default network's ``a+b+c`` and for all of
            another.
        window: places along a side of the square that a place does not see; odd, 0 for none.
        width: numbers of a place in the transformer, a multiple of 2 and of ``heads``.
        heads: of each attention.
        encoder_layers: of the encoder.
        decoder_layers: of the decoder.
        jitter: strength of the disturbance in training, the authors' alpha; 0 for none.
    """

    stride: int = 16
    window: int = 3
    width: int = 128
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    jitter: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, window=self.window, jitter=self.jitter)
        check_at_least(0, encoder_layers=self.encoder_layers)
        check_at_least(1, decoder_layers=self.decoder_layers, heads=self.heads, width=self.width)
        if self.width % 2 or self.width % self.heads:
            raise SettingsError(
                f"width must be a multiple of 2 and of heads = {self.heads}, got {self.width}"
            )
        if self.window and self.window % 2 == 0:
            raise SettingsError(f"window must be odd, or 0 for none, got {self.window}")
        if self.window and self.window // 2 >= self.side // 2:
            raise SettingsError(
                f"window = {self.window} would hide all {self.side} x {self.side} places from the "
                "one in the middle: take a smaller window, a smaller stride or larger images"
            )


class _DecoderLayer(nn.Module):
    """A learned query for each place looks at the encoder's output, then at the layer before."""

    def __init__(self, places: int, width: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(places, width))
        self.first, self.second = Attention(width, heads), Attention(width, heads)
        self.forward_part = FeedForward(width, 2 * width)

    def forward(self, before: Tensor, memory: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        queries = self.queries.expand(len(memory), -1, -1)
        found = self.first(queries, memory, positions, mask)
        found = self.second(found, before, positions, mask)
        said: Tensor = self.forward_part(found)
        return said


class UniADTransformer(nn.Module):
    """The network: features (B, channels, h, w) -> the same shape.

    Args:
        channels: of the features.
        settings: of the method.
    """

    def __init__(self, channels: int, settings: UniADSettings) -> None:
        super().__init__()
        s, places = settings, settings.side**2
        self.enter, self.leave = nn.Linear(channels, s.width), nn.Linear(s.width, channels)
        self.positions = Positions(s.side, s.width)
        self.encoder = nn.ModuleList(
            nn.ModuleList([Attention(s.width, s.heads), FeedForward(s.width, 2 * s.width)])
            for _ in range(s.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            _DecoderLayer(places, s.width, s.heads) for _ in range(s.decoder_layers)
        )
        self.register_buffer("mask", neighbour_mask(s.side, s.window), persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        """Rebuild the features."""
        mask, positions = cast(Tensor, self.mask), self.positions()
        y = self.enter(f.flatten(2).transpose(1, 2))
        for attention, forward_part in cast(list[list[nn.Module]], self.encoder):
            y = forward_part(attention(y, y, positions, mask))
        memory, found = y, y
        for layer in self.decoder:
            found = layer(found, memory, positions, mask)
        f_hat: Tensor = self.leave(found).transpose(1, 2).unflatten(2, f.shape[2:])
        return f_hat


def jitter(f: Tensor, strength: float, source: torch.Generator) -> Tensor:
    """Return noise for features (B, C, h, w), whose size follows that of each place's features.

    Its expected squared norm at a place is ``(strength |f|)² / C``.

    Args:
        f: the features.
        strength: the authors' alpha.
        source: of the draws, on the processor.
    """
    drawn = torch.randn(f.shape, generator=source).to(f.device)
    noise: Tensor = drawn * f.norm(dim=1, keepdim=True) * strength / f.shape[1]
    return noise


class UniAD(FeatureRebuilder):
    """How far features are from what a transformer makes of those further away."""

    Settings: ClassVar[Any] = UniADSettings
    name = "uniad"
    usual_taps = ("a", "b", "c")
    clip = 0.1
    weight_decay = 1e-4
    map_weight = 1.0

    def make_network(self) -> nn.Module:
        """Return the transformer."""
        return UniADTransformer(self.width, self.settings)

    def loss(self, f: Tensor, source: torch.Generator) -> Tensor:
        """Return the mean squared error of rebuilding features (B, width, h, w) disturbed."""
        seen = f
        if self.settings.jitter:
            seen = f + jitter(f, self.settings.jitter, source)
        error: Tensor = (self.network(seen) - f).square().mean()
        return error

    def cells(self, f: Tensor) -> Tensor:
        """Return the distance of each place's features from the rebuilt ones (B, h, w)."""
        found: Tensor = (self.network(f) - f).norm(dim=1)
        return found
