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
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import DataError, SettingsError
from normalis.models.base import Footprint, check_at_least
from normalis.models.features import BATCH, FeatureModel, FeatureSettings, random_subset, resized

__all__ = ["FeatureAE", "FeatureAESettings", "cell_similarity"]

_WINDOW = 5
_RANGE = 6.0  # of a standardised feature, in standard deviations
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
_FLAT = 1e-6  # added to a spread: a feature that never varies
_STEP = 32  # images of a step


@dataclass(frozen=True, kw_only=True)
class FeatureAESettings(FeatureSettings):
    """Settings of the autoencoder of features.

    Args:
        taps: whose features are rebuilt; empty for the default network's ``a+b`` and for all of
            another.
        bank: normal images that it is trained on at most.
        stride: pixels per cell of the grid.
        code: channels of the bottleneck, on a grid of a quarter of the side.
        steps: of the training, each on 32 images.
        learning_rate: of Adam, falling to 0 along half a cosine.
        share: of the cells, the highest, whose mean is the score.
    """

    bank: int = 3000
    stride: int = 8
    code: int = 32
    steps: int = 800
    learning_rate: float = 1e-3
    share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, stride=self.stride, code=self.code, steps=self.steps)
        if not self.learning_rate > 0:
            raise SettingsError(f"learning_rate must be above 0, got {self.learning_rate!r}")
        if not 0 < self.share <= 1:
            raise SettingsError(f"share must be in (0, 1], got {self.share!r}")
        if self.image_size < self.stride:
            raise SettingsError(
                f"stride must be at most image_size = {self.image_size}, got {self.stride}"
            )


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


class FeatureAE(FeatureModel):
    """Structural dissimilarity of frozen features and what an autoencoder makes of them."""

    Settings: ClassVar[Any] = FeatureAESettings

    def __init__(self, settings: FeatureAESettings) -> None:
        super().__init__(settings)
        self.network = _Network(self.width, self.settings.code)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def taps(self) -> list[str]:
        """Names of the taps that are rebuilt."""
        if not self.settings.taps and self.settings.backbone == FeatureAESettings.backbone:
            return ["a", "b"]
        return super().taps

    @property
    def _side(self) -> int:
        return int(-(-self.settings.image_size // self.settings.stride))

    def footprint(self, images: int) -> Footprint:
        """Return what the network takes, and the features that it is trained on."""
        kept = min(images, self.settings.bank)
        numbers = sum(p.numel() for p in self.network.parameters())
        cells = self.width * self._side**2
        fit = 2 * kept * cells + 16 * numbers + 4 * 20 * _STEP * cells
        return Footprint(run=4 * (numbers + 2 * self.width), fit=fit, kept=0)

    def _grid(self, x: Tensor) -> Tensor:
        """Return the features on the grid (B, C, h, w), as the network gives them."""
        parts = []
        for m in self.maps(x).values():
            finer = m.shape[2] > self._side
            parts.append(F.adaptive_avg_pool2d(m, self._side) if finer else resized(m, self._side))
        return torch.cat(parts, 1)

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Train on the features of normal images (N, C, S, S)."""
        if len(x) < 2:
            raise DataError(f"feature-ae needs at least 2 images, got {len(x)}")
        kept = random_subset(len(x), max(2, self.settings.bank), seed)
        raw = torch.cat([self._grid(x[some]) for some in kept.split(BATCH)])
        mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3)) + _FLAT
        self.arrays = {"mean": mean, "std": std}
        features = self._standard(raw).half()
        self.network.to(x.device)
        with torch.inference_mode(False), torch.enable_grad():
            self._train(features.clone(), seed)
        return self

    def _train(self, features: Tensor, seed: int) -> None:
        s, source = self.settings, torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(self.network.train().parameters(), lr=s.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, s.steps)
        for _ in range(s.steps):
            chosen = torch.randint(len(features), (min(_STEP, len(features)),), generator=source)
            f = features[chosen.to(features.device)].float()
            loss = (1 - cell_similarity(f, self.network(f))).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        self.network.eval()

    def _standard(self, raw: Tensor) -> Tensor:
        mean, std = (self.fitted(name).view(-1, 1, 1) for name in ("mean", "std"))
        return (raw - mean) / std

    def _cells(self, x: Tensor) -> Tensor:
        """Return the dissimilarity of each cell (B, h, w), from 0 to 2."""
        f = self._standard(self._grid(x)).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return (1 - cell_similarity(f, self.network(f)).mean(1)).clamp_min(0)

    def _read(self, cells: Tensor) -> Tensor:
        flat = cells.flatten(1)
        count = max(1, round(self.settings.share * flat.shape[1]))
        return flat.topk(count, dim=1).values.mean(1)

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the mean of the highest cells (B,)."""
        return self._read(self._cells(x))

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the dissimilarity at each place (B, S, S), resized from the grid."""
        return resized(self._cells(x), x.shape[2])

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, S, S) of one pass."""
        cells = self._cells(x)
        return self._read(cells), resized(cells, x.shape[2])

    def state(self) -> dict[str, Tensor]:
        """Return the network's parameters and what features are standardised with."""
        network = {f"network.{k}": v.contiguous() for k, v in self.network.state_dict().items()}
        return {**self.arrays, **network}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the arrays of `state`."""
        own = {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}
        self.arrays = {k: v for k, v in state.items() if not k.startswith("network.")}
        self.network.load_state_dict(own)
        device = next(iter(self.arrays.values())).device
        self.network.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def to(self, device: torch.device | str) -> Self:
        """Move the network and the arrays to a device; return self."""
        self.network.to(device)
        return super().to(device)
