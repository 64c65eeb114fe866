"""HVQ-Trans: a transformer rebuilds features from codes of normal ones, quantised level by level.

    e_0 = linear(f),    e_k = layer_k(e_(k-1)),    q_top = VQ(e_top),    q_k = VQ([e_k, q_top])
    f_hat = decode(q_(top-1), .., q_0),    loss = mean (f_hat - f)² + 0.25 sum mean |z - VQ(z)|²
    OT(z) = sum_m p_m (1 - cos(z, code_m)),    p = softmax(z . code_m / M)
    map = |f_hat - f| / a + ot_weight OT([e_0, q_top]) / b,    score = mean of its highest tenth

f are features of taps a, b and c on one grid, standardised over normal images. The decoder sees
codes alone, so that what no normal image has cannot pass: it starts from a learned query for each
place, looks at the other queries and then at the codes of a level. Codes follow the running mean of
what they stand for (decay 0.99), start where k-means puts them, and are drawn anew from the batch
when nothing is near them any more; otherwise few codes would do all the work. The log has how many
do, as perplexity. The gradient passes a quantisation unchanged.

Deviations from the authors: one class, hence one set of codes instead of one per class, chosen by
its label at test time too; EfficientNet-lite0 instead of b4 and 8 x 8 places instead of 14 x 14; 2
levels of 128 codes instead of 5 of 512, width 64 instead of 256; 1200 steps of 32 images; standard
scores of the channels; no dropout. Their 80 |OT| depends on the scale of the features: here a and b
are the means of either term over training images, and ``ot_weight`` weighs them against each other.
``levels=1`` quantises e_1 alone. Written from the publication: the authors' code has no licence.

Reference: Lu, Wu, Tian, Wang, Chen, Liu and Hu, "Hierarchical vector quantized transformer for
multi-class unsupervised anomaly detection", NeurIPS 2023, arXiv:2310.14228.

Use: beside `uniad`, where that rebuilds the lesions too: codes let nothing through that is not
normal, at the price of detail.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.attention import Attention, FeedForward, Positions
from normalis.models.base import check_at_least
from normalis.models.codebook import Codebook
from normalis.models.feature_rebuilding import STEP, FeatureRebuilder, RebuildSettings

__all__ = ["HVQTrans", "HVQTransSettings", "optimal_transport"]

_log = logging.getLogger("normalis.models")

_COMMITMENT = 0.25
_SEEN = 256  # training images by which the terms of the map are scaled


@dataclass(frozen=True, kw_only=True)
class HVQTransSettings(RebuildSettings):
    """Settings of HVQ-Trans.

    Args:
        taps: whose features are rebuilt; empty for the default network's ``a+b+c`` and for all of
            another.
        levels: that are quantised; the encoder has one layer less, and at least one.
        codes: of each level.
        width: numbers of a place in the encoder, a multiple of 2 and of ``heads``; twice as many in
            the decoder.
        heads: of each attention.
        ot_weight: weight of the transport term of the map against the error; 0 leaves it out.
    """

    stride: int = 16
    steps: int = 1200
    levels: int = 2
    codes: int = 128
    width: int = 64
    heads: int = 4
    ot_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, levels=self.levels, heads=self.heads, width=self.width)
        check_at_least(2, codes=self.codes)
        check_at_least(0, ot_weight=self.ot_weight)
        if self.width % 2 or self.width % self.heads:
            raise SettingsError(
                f"width must be a multiple of 2 and of heads = {self.heads}, got {self.width}"
            )


def optimal_transport(z: Tensor, codes: Tensor) -> Tensor:
    """Return how far vectors point away from codes, 0 to 2, likely codes counting more.

    Args:
        z: (..., width).
        codes: (M, width).

    Returns:
        (...).
    """
    likely = (z @ codes.T / len(codes)).softmax(-1)
    cosine = F.normalize(z, dim=-1) @ F.normalize(codes, dim=-1).T
    return (likely * (1 - cosine)).sum(-1)


class _DecoderLayer(nn.Module):
    """Queries look at each other and then at the codes of a level."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.among, self.across = Attention(width, heads), Attention(width, heads)
        self.forward_part = FeedForward(width, 2 * width)

    def forward(self, y: Tensor, codes: Tensor, positions: Tensor) -> Tensor:
        y = self.across(self.among(y, y, positions), codes, positions)
        found: Tensor = self.forward_part(y)
        return found


class _Network(nn.Module):
    """Features (B, channels, h, w) -> the same shape, by way of codes."""

    scale: Tensor

    def __init__(self, channels: int, settings: HVQTransSettings) -> None:
        super().__init__()
        s, deep = settings, max(1, settings.levels - 1)
        wide = s.width if s.levels == 1 else 2 * s.width
        self.enter, self.leave = nn.Linear(channels, s.width), nn.Linear(wide, channels)
        self.positions, self.decoder_positions = Positions(s.side, s.width), Positions(s.side, wide)
        self.encoder = nn.ModuleList(
            nn.ModuleList([Attention(s.width, s.heads), FeedForward(s.width, 2 * s.width)])
            for _ in range(deep)
        )
        self.top = Codebook(s.codes, s.width)
        self.below = nn.ModuleList(Codebook(s.codes, wide) for _ in range(s.levels - 1))
        self.queries = nn.Parameter(torch.randn(s.side**2, wide))
        self.decoder = nn.ModuleList(_DecoderLayer(wide, s.heads) for _ in range(deep))
        self.register_buffer("scale", torch.ones(2))  # means of error and transport

    @property
    def codebooks(self) -> list[Codebook]:
        """The top one, then those below, deepest first."""
        return [self.top, *cast(list[Codebook], self.below)]

    def encode(self, f: Tensor) -> list[Tensor]:
        """Return e_0 to e_top (B, places, width)."""
        y = self.enter(f.flatten(2).transpose(1, 2))
        levels, positions = [y], self.positions()
        for attention, forward_part in cast(list[list[nn.Module]], self.encoder):
            y = forward_part(attention(y, y, positions))
            levels.append(y)
        return levels

    def inputs(self, f: Tensor, source: torch.Generator | None = None) -> tuple[Tensor, Any]:
        """Return e_top with what it is quantised to, and what the codebooks below are given."""
        levels = self.encode(f)
        top = self.top(levels[-1], source)
        joined = [torch.cat([e, top[0]], 2) for e in levels[-2::-1]][: len(self.below)]
        return levels[-1], (top, joined)

    def quantise(
        self, f: Tensor, source: torch.Generator | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the codes of each level of the decoder, the commitment, and the lowest input."""
        e_top, (top, joined) = self.inputs(f, source)
        if not joined:
            return [top[0]], top[1], e_top
        found = [book(z, source) for book, z in zip(self.codebooks[1:], joined, strict=True)]
        commitment = torch.stack([top[1], *(c for _, c in found)]).sum()
        return [q for q, _ in found], commitment, joined[-1]

    def decode(self, codes: list[Tensor], shape: torch.Size) -> Tensor:
        """Return features of a shape (h, w) from the codes of each level."""
        y = self.queries.expand(len(codes[0]), -1, -1)
        positions = self.decoder_positions()
        for layer, q in zip(self.decoder, codes, strict=True):
            y = layer(y, q, positions)
        f_hat: Tensor = self.leave(y).transpose(1, 2).unflatten(2, shape)
        return f_hat

    def terms(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return error and transport of each place, (B, h, w) each."""
        codes, _, lowest = self.quantise(f)
        error = (self.decode(codes, f.shape[2:]) - f).norm(dim=1)
        return error, optimal_transport(lowest, self.codebooks[-1].codes).reshape(error.shape)


class HVQTrans(FeatureRebuilder):
    """How far features are from what a transformer makes of their codes, and from the codes."""

    Settings: ClassVar[Any] = HVQTransSettings
    name = "hvq-trans"
    usual_taps = ("a", "b", "c")
    clip = 0.1
    weight_decay = 1e-4
    map_weight = 1.0
    network: _Network

    def make_network(self) -> nn.Module:
        """Return the transformer with its codes."""
        return _Network(self.width, self.settings)

    @torch.no_grad()
    def start(self, features: Tensor, source: torch.Generator) -> None:
        """Place the codes of each level, the top one first, by what some images give there."""
        f = features[:STEP].float()
        self.network.top.place(self.network.encode(f)[-1].flatten(0, 1), source)
        _, (_, joined) = self.network.inputs(f)
        for book, z in zip(self.network.codebooks[1:], joined, strict=True):
            book.place(z.flatten(0, 1), source)

    def loss(self, f: Tensor, source: torch.Generator) -> Tensor:
        """Return the error of rebuilding features (B, width, h, w), and the commitment."""
        codes, commitment, _ = self.network.quantise(f, source)
        error = (self.network.decode(codes, f.shape[2:]) - f).square().mean()
        return error + _COMMITMENT * commitment

    @torch.no_grad()
    def finish(self, features: Tensor) -> None:
        """Scale the terms of the map by training images; say how many codes do the work."""
        parts = [self.network.terms(some.float()) for some in features[:_SEEN].split(STEP)]
        means = [torch.cat(term).mean() for term in zip(*parts, strict=True)]
        self.network.scale.copy_(torch.stack(means).clamp_min(1e-6))
        used = ", ".join(f"{book.perplexity:.0f}" for book in self.network.codebooks)
        _log.info("hvq-trans: perplexity %s of %d codes", used, self.settings.codes)

    def cells(self, f: Tensor) -> Tensor:
        """Return the error of each place, and its transport where that counts: (B, h, w)."""
        error, transport = self.network.terms(f)
        if not self.settings.ot_weight:
            return error
        a, b = self.network.scale
        # Rounding may leave a cosine a little above 1.
        both: Tensor = error / a + self.settings.ot_weight * transport.clamp_min(0) / b
        return both
