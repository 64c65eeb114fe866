"""MorphAEus: a deep autoencoder whose image a smooth deformation moves onto the one that it sees.

    prior = decode(encode(x)),    v = deform(features),    x_hat = warp(prior, exp(v))
    loss = ¼ mean (prior - x)² + w [1 - ½ LNCC(x, x_hat) - ½ LNCC(prior, warp(x, exp(-v)))]
           + β mean |∇v|²
    map = |x - x_hat|

The bottleneck is 1 x 1 pixels, so that the prior is a plausible image as a whole, if not a sharp
one; the deformation then moves its edges to where the image has them, and what is left is what no
smooth movement explains. The deformer reads features of encoder and decoder at the three finest
levels below the image's own. It joins after `deform_from` of the steps; β rises to `smoothness`
over `rising` of them.

Deviations, and why:

* Size. 64 x 64 images halve six times, with 8 to 128 channels; theirs are 128 x 128 with 16 to 256.
* No perceptual loss, which needs VGG19's weights.
* Images lie in [-1, 1], so that the squared error is divided by 4 to weigh what it does in [0, 1],
  and the output is a tanh in place of a sigmoid.
* The networks start their Adam anew when the deformer joins.
* The velocity lies at half the image's size, where it is integrated in 5 doublings, as VoxelMorph
  offers; theirs at full size in 7.
* Where a window of both images is flat it counts as alike, instead of as unlike.

A strong deformer can hide lesions as well: `measure` says which share of the residual it removes on
held-out normal images, and which of a planted disc's.

Reference: Bercea, Rueckert and Schnabel, "What do AEs learn? Challenging common assumptions in
unsupervised anomaly detection", MICCAI 2023.

Use: radiographs and other images whose normal anatomy varies in position and shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.base import Autoencoder, ModelSettings, Phase, check_at_least
from normalis.models.deform import folded_share, integrate, likeness, roughness, warp

__all__ = ["MorphAEus", "MorphAEusSettings"]

_LEVELS = 3  # that the deformer reads
_HIDDEN = 32  # its channels
_DOUBLINGS = 5  # of a velocity of a few pixels, until it is a displacement
_ROUGH_AT_FIRST = 1e-3  # β when it joins
_LESION = 0.5  # added to the planted disc of `measure`, of the range [-1, 1]


@dataclass(frozen=True, kw_only=True)
class MorphAEusSettings(ModelSettings):
    """Settings of MorphAEus; ``hidden_dim`` means nothing to it.

    Args:
        latent_dim: channels of the 1 x 1 bottleneck.
        width: channels of the finest level; each below has twice those above, 128 at most.
        smoothness: β at its full height.
        rising: share of the steps over which β rises to it.
        morph_weight: w of the local correlation and β.
        deform_from: share of the steps after which the deformer joins.
    """

    latent_dim: int = 128
    width: int = 8
    smoothness: float = 3.0
    rising: float = 0.4
    morph_weight: float = 1.0
    deform_from: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, width=self.width)
        check_at_least(0, smoothness=self.smoothness, morph_weight=self.morph_weight)
        for name in ("rising", "deform_from"):
            if not 0 < getattr(self, name) < 1:
                raise SettingsError(f"{name} must be in (0, 1), got {getattr(self, name)!r}")


def _block(c_in: int, c_out: int, *, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out), nn.SiLU())


class _Deformer(nn.Module):
    """Features of encoder and decoder, finest first -> a velocity at the finest's size."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        above = [0, *[_HIDDEN] * (len(widths) - 1)]
        inputs = [2 * w + more for w, more in zip(widths[::-1], above, strict=True)]
        self.blocks = nn.ModuleList(_block(c, _HIDDEN) for c in inputs)
        self.output = nn.Conv2d(_HIDDEN, 2, 3, padding=1)
        nn.init.normal_(self.output.weight, std=1e-5)  # it begins with no movement
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(self, seen: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
        """Return the velocity (B, 2, S / 2, S / 2) in its pixels, float32."""
        y: Tensor | None = None
        for block, a, b in zip(self.blocks, seen[::-1], rebuilt[::-1], strict=True):
            if y is not None:
                y = F.interpolate(y, size=a.shape[2:], mode="bilinear", align_corners=False)
            y = block(torch.cat([a, b] if y is None else [a, b, y], 1))
        velocity: Tensor = self.output(y)
        return velocity.float()


class MorphAEus(Autoencoder):
    """A deep autoencoder and a deformer."""

    Settings: ClassVar[Any] = MorphAEusSettings
    map_weight = 1.0

    def __init__(self, settings: MorphAEusSettings) -> None:
        super().__init__(settings)
        depth = math.ceil(math.log2(settings.image_size))
        widths = [min(128, settings.width * 2**i) for i in range(depth - 1)]
        sides = [-(-settings.image_size // 2**i) for i in range(depth)]
        self._sides = sides[::-1]  # of the decoder's levels, coarsest first
        down = [settings.channels, *widths, settings.latent_dim]
        self.encoder = nn.ModuleList(_block(a, b, stride=2) for a, b in pairwise(down[:-1]))
        self.latent = nn.Conv2d(down[-2], down[-1], 3, stride=2, padding=1)
        up = [settings.latent_dim, *widths[::-1], settings.width]
        self.decoder = nn.ModuleList(_block(a, b) for a, b in pairwise(up))
        self.output = nn.Conv2d(settings.width, settings.channels, 1)
        self.deformer = _Deformer(widths[:_LEVELS])

    # --- the prior ---

    def _descend(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features of each level, finest first, and the code."""
        levels: list[Tensor] = []
        for block in self.encoder:
            levels.append(block(levels[-1] if levels else x))
        return levels, self.latent(levels[-1]).flatten(1)

    def _ascend(self, z: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features of each level below the image's own, finest first, and the image."""
        levels: list[Tensor] = []
        y = z[:, :, None, None]
        for block, side in zip(self.decoder, self._sides, strict=True):
            y = F.interpolate(y, size=(side, side), mode="bilinear", align_corners=False)
            y = block(y)
            levels.append(y)
        prior: Tensor = torch.tanh(self.output(y).float())
        return levels[-2::-1], prior

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, H, W) -> (B, latent_dim)."""
        return self._descend(x)[1]

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild the prior: (B, latent_dim) -> (B, C, H, W)."""
        return self._ascend(z)[1]

    # --- the deformation ---

    def prior_and_velocity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prior (B, C, S, S) and the velocity at half its size, (B, 2, S / 2, S / 2)."""
        seen, z = self._descend(x)
        rebuilt, prior = self._ascend(z)
        return prior, self.deformer(seen[:_LEVELS], rebuilt[:_LEVELS])

    def flow(self, velocity: Tensor) -> Tensor:
        """Return the displacement (B, 2, S, S) in pixels of a velocity at half the size."""
        side = self.settings.image_size
        small = integrate(velocity, _DOUBLINGS)
        large = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
        moved: Tensor = large * (side / small.shape[-1])
        return moved

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the prior, moved onto x."""
        prior, velocity = self.prior_and_velocity(x)
        return warp(prior, self.flow(velocity))

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the absolute difference that no smooth movement explains (B, H, W)."""
        return (x - self.reconstruct(x)).abs().mean(1)

    # --- training ---

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the squared error of the prior, as in [0, 1]."""
        return {"reconstruction": (self(x).float() - x).square().mean() / 4}

    def deformed_losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the error of the prior, how unlike it is once moved, and how rough movement is."""
        prior, velocity = self.prior_and_velocity(x)
        there = likeness(x, warp(prior, self.flow(velocity))).mean()
        back = likeness(prior, warp(x, self.flow(-velocity))).mean()
        weight = self.settings.morph_weight
        return {
            "reconstruction": (prior - x).square().mean() / 4,
            "unlike": weight * (1 - (there + back) / 2),
            "roughness": weight * self._smoothness() * roughness(velocity),
        }

    def _smoothness(self) -> float:
        """Return β at this step; it rises linearly."""
        full = self.settings.smoothness
        share = min(1.0, self.trained_share / self.settings.rising)
        now: float = min(full, _ROUGH_AT_FIRST + share * full)
        return now

    def phases(self) -> list[Phase]:
        """Train the autoencoder alone, then with the deformer."""
        start = self.settings.deform_from
        prior = [p for n, p in self.named_parameters() if not n.startswith("deformer.")]
        return [
            Phase("", prior, self.losses, span=(0.0, start)),
            Phase("", list(self.parameters()), self.deformed_losses, span=(start, 1.0)),
        ]

    # --- what the deformer hides ---

    @torch.no_grad()
    def measure(self, held: Tensor, groups: Sequence[Any] | None = None) -> dict[str, float]:
        """Return shares: of the residual that deforming removes, of pixels that fold over.

        Args:
            held: (N, C, H, W) normal images in [-1, 1].
            groups: not needed.
        """
        line = torch.linspace(-1, 1, held.shape[-1], device=held.device)
        disc = (line[:, None].square() + line.square() < (1 / 8) ** 2).float()
        plain = self._removed(held, torch.ones_like(disc))
        lesion = self._removed((held + _LESION * disc).clamp(-1, 1), disc)
        flows = [self.flow(self.prior_and_velocity(x)[1]) for x in held.split(64)]
        return {
            "removed of normal residual": plain,
            "removed of a disc": lesion,
            "folded": float(torch.cat([folded_share(flow) for flow in flows]).mean()),
        }

    def _removed(self, images: Tensor, where: Tensor) -> float:
        """Return the share of the prior's absolute error in a region that deforming removes."""
        before = after = 0.0
        for x in images.split(64):
            prior, velocity = self.prior_and_velocity(x)
            moved = warp(prior, self.flow(velocity))
            before += float(((x - prior).abs() * where).sum())
            after += float(((x - moved).abs() * where).sum())
        return 1 - after / before if before else 0.0
