"""What methods on the features of a frozen network share; no method by itself.

::

    maps     {tap: (B, channels, h, w)} of `normalis.backbones`, images at image_size, each place's
             features scaled to length 1
    pooled   (B, D): the mean over places of each feature of each tap

Images are looked at with `FeatureSettings.image_size` pixels, 128 unless told otherwise, whatever
other methods look at. The network is named in the settings with the SHA-256 of its weights: a run
holds neither, and refuses other weights when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from normalis.backbones import check_backbone, open_backbone
from normalis.backbones.base import Backbone
from normalis.errors import SettingsError
from normalis.models.base import DirectModel, ModelSettings, check_at_least

__all__ = ["BATCH", "FeatureModel", "FeatureSettings", "random_subset", "resized"]

#: Images per pass of the network when a method is fitted; bounds memory, changes no result.
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(ModelSettings):
    """Settings of every method on features.

    Args:
        image_size: side S of the images that the network sees.
        backbone: a network of `normalis.backbones.BACKBONES`, or the path of one's own file.
        backbone_sha256: of its weights; empty takes what is there, and a fitted model holds it.
        taps: whose features are read, joined by ``+``, for instance ``b+c``; empty for all.
        bank: normal images that are kept at most; of more, a random subset drawn by the seed.
        unit: whether the features of each place and tap are scaled to length 1, so that what a
            place looks like counts and not how strongly.
    """

    image_size: int = 128
    backbone: str = "efficientnet-lite0"
    backbone_sha256: str = ""
    taps: str = ""
    bank: int = 5000
    unit: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backbone(self.backbone)
        check_at_least(1, bank=self.bank)


class FeatureModel(DirectModel):
    """A method whose images are the features of a frozen network."""

    Settings: ClassVar[Any] = FeatureSettings

    def __init__(self, settings: FeatureSettings) -> None:
        network = open_backbone(settings.backbone, sha256=settings.backbone_sha256)
        super().__init__(replace(settings, backbone_sha256=network.sha256))
        for name in self.taps:
            network.tap(name)

    @property
    def taps(self) -> list[str]:
        """Names of the taps that are read, shallow first."""
        network = self.backbone()
        if not self.settings.taps:
            return [tap.name for tap in network.taps]
        names = self.settings.taps.split("+")
        if len(set(names)) < len(names):
            raise SettingsError(f"taps must differ, got {self.settings.taps!r}")
        return list(names)

    @classmethod
    def default_image_size(cls, options: Mapping[str, Any] | None = None) -> int:
        """Return the side that the network sees best, rounded up to a multiple of 16."""
        named = (options or {}).get("backbone", cls.Settings.backbone)
        return int(-(-open_backbone(named).input_size // 16) * 16)

    def backbone(self, device: torch.device | str = "cpu") -> Backbone:
        """Return the network on a device."""
        s = self.settings
        return open_backbone(s.backbone, sha256=s.backbone_sha256, device=device)

    @property
    def width(self) -> int:
        """Number of features of all taps that are read."""
        network = self.backbone()
        return sum(network.tap(name).channels for name in self.taps)

    def maps(self, x: Tensor, taps: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the features of images (B, C, S, S) by tap, (B, channels, h, w) float32."""
        found = self.backbone(x.device).maps(x, self.taps if taps is None else taps)
        if not self.settings.unit:
            return found
        return {name: F.normalize(m, dim=1) for name, m in found.items()}

    def pooled(self, x: Tensor, taps: Sequence[str] | None = None) -> Tensor:
        """Return each feature's mean over places: (B, D) float32."""
        maps = self.maps(x, taps)
        return torch.cat([m.mean((2, 3)) for m in maps.values()], 1)


def random_subset(n: int, most: int, seed: int) -> Tensor:
    """Return the numbers, in order, of at most ``most`` of n images, drawn by the seed."""
    if n <= most:
        return torch.arange(n)
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most]
    return drawn.sort().values


def resized(maps: Tensor, side: int) -> Tensor:
    """Bring maps (B, h, w) or (B, C, h, w) to a side, bilinearly."""
    flat = maps[:, None] if maps.dim() == 3 else maps
    out = F.interpolate(flat, size=(side, side), mode="bilinear", align_corners=False)
    return out[:, 0] if maps.dim() == 3 else out
