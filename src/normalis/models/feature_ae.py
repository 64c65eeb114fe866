"""An autoencoder of frozen features that is trained on, and read by, structural similarity.

    f(x) = features of taps a and b on one grid, each channel standardised over normal images
    loss = mean map,    map_p = 1 - mean over channels of SSIM_p(f, f_hat),
    score = mean of the highest tenth of the map

SSIM compares means, variances and the covariance of 5 x 5 cells, channel by channel, with constants
for a range of six standard deviations. The features are computed once and kept while the network is
trained: that takes a fixed number of steps, in one go, with no held-out images to watch.

Deviations from the authors: EfficientNet-lite0 instead of ResNet18, a smaller network, 800 steps
instead of 10 000, no dropout, no equalisation of histograms.

Reference: Meissen, Paetzold, Kaissis and Rueckert, "Unsupervised anomaly localization with
structural feature-autoencoders", BrainLes 2022, arXiv:2208.10992.

Use: as an alternative to `padim` and `spade` for maps, where lesions change texture rather than
brightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.models.base import check_at_least
from normalis.models.feature_rebuilding import FeatureRebuilder, RebuildSettings

__all__ = ["FeatureAE", "FeatureAESettings", "cell_similarity"]

_WINDOW = 5
_RANGE = 6.0  # of a standardised feature, in standard deviations
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2


@dataclass(frozen=True, kw_only=True)
class FeatureAESettings(RebuildSettings):
    """Settings of the autoencoder of features.

    Args:
        taps: whose features are rebuilt; empty for the default network's ``a+b`` and for all of
            another.
        code: channels of the bottleneck, on a grid of a quarter of the side.
    """

    code: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, code=self.code)


def cell_similarity(f: Tensor, g: Tensor) -> Tensor:
    """Return SSIM of every cell and channel (B, C, h, w), windows cut at the border.

    Args:
        f: (B, C, h, w) standardised features.
        g: of the same shape.
    """

    def local(v: Tensor) -> Tensor:
        return F.avg_pool2d(v, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)

    mean_f, mean_g = local(f), local(g)
    var_f, var_g = local(f.square()) - mean_f.square(), local(g.square()) - mean_g.square()
    cov = local(f * g) - mean_f * mean_g
    means = (2 * mean_f * mean_g + _C1) / (mean_f.square() + mean_g.square() + _C1)
    # Rounding may leave a variance a little below 0.
    return means * (2 * cov + _C2) / (var_f.clamp_min(0) + var_g.clamp_min(0) + _C2)


class _Network(nn.Module):
    """Two halvings, a narrow code, two doublings."""

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(channels, 48, 3, 2, 1), nn.Conv2d(48, 96, 3, 2, 1)])
        self.code = nn.Conv2d(96, code, 1)
        self.up = nn.ModuleList([nn.Conv2d(code, 96, 3, 1, 1), nn.Conv2d(96, 48, 3, 1, 1)])
        self.output = nn.Conv2d(48, channels, 1)

    def forward(self, f: Tensor) -> Tensor:
        sizes = [f.shape[2:]]
        y = f
        for layer in self.down:
            y = F.silu(layer(y))
            sizes.append(y.shape[2:])
        y = self.code(y)
        for layer, size in zip(self.up, sizes[-2::-1], strict=True):
            y = F.silu(layer(F.interpolate(y, size=size, mode="bilinear", align_corners=False)))
        f_hat: Tensor = self.output(y)
        return f_hat


class FeatureAE(FeatureRebuilder):
    """Structural dissimilarity of frozen features and what an autoencoder makes of them."""

    Settings: ClassVar[Any] = FeatureAESettings
    name = "feature-ae"
    usual_taps = ("a", "b")

    def make_network(self) -> nn.Module:
        """Return the autoencoder."""
        network = _Network(self.width, self.settings.code)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def loss(self, f: Tensor, source: torch.Generator) -> Tensor:
        """Return the mean dissimilarity of features (B, width, h, w)."""
        return (1 - cell_similarity(f, self.network(f))).mean()

    def cells(self, f: Tensor) -> Tensor:
        """Return the dissimilarity of each cell (B, h, w), from 0 to 2."""
        return (1 - cell_similarity(f, self.network(f)).mean(1)).clamp_min(0)
