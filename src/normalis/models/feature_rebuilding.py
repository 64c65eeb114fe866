"""What methods share that rebuild frozen features with a network of their own.

::

    f = (features on one grid - mean) / std      of each channel, over normal images and places
    loss(f)                                      the method's own
    cells (B, h, w)                              the method's own; the map is the cells, resized
    score = mean of the highest share of the cells

The features of the training images are computed once and kept as float16 while the network is
trained on them, for a fixed number of steps of 32 images with a learning rate that falls to 0 along
half a cosine. Without standard scores the deep taps, whose numbers are small, would not count.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import DataError, SettingsError
from normalis.models.base import Footprint, check_at_least
from normalis.models.features import BATCH, FeatureModel, FeatureSettings, random_subset, resized

__all__ = ["STEP", "FeatureRebuilder", "RebuildSettings"]

_FLAT = 1e-6  # added to a spread: a feature that never varies
#: Images of a training step.
STEP = 32


@dataclass(frozen=True, kw_only=True)
class RebuildSettings(FeatureSettings):
    """Settings of every method that rebuilds features.

    Args:
        bank: normal images that it is trained on at most.
        stride: pixels per cell of the grid.
        steps: of the training, each on 32 images.
        learning_rate: of the optimiser, falling to 0 along half a cosine.
        share: of the cells, the highest, whose mean is the score.
    """

    bank: int = 3000
    stride: int = 8
    steps: int = 800
    learning_rate: float = 1e-3
    share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, stride=self.stride, steps=self.steps)
        if not self.learning_rate > 0:
            raise SettingsError(f"learning_rate must be above 0, got {self.learning_rate!r}")
        if not 0 < self.share <= 1:
            raise SettingsError(f"share must be in (0, 1], got {self.share!r}")
        if self.image_size < self.stride:
            raise SettingsError(
                f"stride must be at most image_size = {self.image_size}, got {self.stride}"
            )

    @property
    def side(self) -> int:
        """Cells along a side of the grid."""
        return int(-(-self.image_size // self.stride))


class FeatureRebuilder(FeatureModel):
    """A network that rebuilds standardised features of a frozen one; see the module."""

    Settings: ClassVar[Any] = RebuildSettings
    #: The method's name, for messages.
    name: ClassVar[str]
    #: Taps that are read of the default backbone unless told otherwise.
    usual_taps: ClassVar[tuple[str, ...]]
    #: Largest norm of a step's gradient, and the decay of the optimiser's weights.
    clip: ClassVar[float | None] = None
    weight_decay: ClassVar[float] = 0.0

    def __init__(self, settings: RebuildSettings) -> None:
        super().__init__(settings)
        self.network = self.make_network()

    @abstractmethod
    def make_network(self) -> nn.Module:
        """Return the network that rebuilds features, (B, width, h, w) -> the same shape."""

    @abstractmethod
    def loss(self, f: Tensor, source: torch.Generator) -> Tensor:
        """Return the loss of standardised features (B, width, h, w).

        Args:
            f: the features.
            source: of what is drawn, on the processor.
        """

    @abstractmethod
    def cells(self, f: Tensor) -> Tensor:
        """Return how far each cell of features (B, width, h, w) is from normal: (B, h, w)."""

    def start(self, features: Tensor, source: torch.Generator) -> None:
        """Look at the training features (N, width, h, w) float16 once, before the first step."""

    def finish(self, features: Tensor) -> None:
        """Look at them once more, after the last step."""

    @property
    def taps(self) -> list[str]:
        """Names of the taps that are rebuilt."""
        if not self.settings.taps and self.settings.backbone == FeatureSettings.backbone:
            return list(self.usual_taps)
        return super().taps

    def footprint(self, images: int) -> Footprint:
        """Return what the network takes, and the features that it is trained on."""
        kept = min(images, self.settings.bank)
        numbers = sum(v.numel() for v in self.network.state_dict().values())
        cells = self.width * self.settings.side**2
        fit = 2 * kept * cells + 16 * numbers + 4 * 20 * STEP * cells
        return Footprint(run=4 * (numbers + 2 * self.width), fit=fit, kept=0)

    def grid(self, x: Tensor) -> Tensor:
        """Return the features of images (B, C, S, S) on the grid (B, width, h, w), as they come."""
        side = self.settings.side
        parts = []
        for m in self.maps(x).values():
            finer = m.shape[2] > side
            parts.append(F.adaptive_avg_pool2d(m, side) if finer else resized(m, side))
        return torch.cat(parts, 1)

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Train on the features of normal images (N, C, S, S)."""
        if len(x) < 2:
            raise DataError(f"{self.name} needs at least 2 images, got {len(x)}")
        kept = random_subset(len(x), max(2, self.settings.bank), seed)
        raw = torch.cat([self.grid(x[some]) for some in kept.split(BATCH)])
        mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3)) + _FLAT
        self.arrays = {"mean": mean, "std": std}
        features = self._standard(raw).half()
        self.network.to(x.device)
        with torch.inference_mode(False), torch.enable_grad():
            self._train(features.clone(), seed)
        return self

    def _train(self, features: Tensor, seed: int) -> None:
        s, source = self.settings, torch.Generator().manual_seed(seed)
        self.start(features, source)
        parameters = list(self.network.train().parameters())
        kind = torch.optim.AdamW if self.weight_decay else torch.optim.Adam
        optimiser = kind(parameters, lr=s.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, s.steps)
        for _ in range(s.steps):
            chosen = torch.randint(len(features), (min(STEP, len(features)),), generator=source)
            loss = self.loss(features[chosen.to(features.device)].float(), source)
            optimiser.zero_grad()
            loss.backward()
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip)
            optimiser.step()
            schedule.step()
        self.network.eval()
        with torch.no_grad():
            self.finish(features)

    def _standard(self, raw: Tensor) -> Tensor:
        mean, std = (self.fitted(name).view(-1, 1, 1) for name in ("mean", "std"))
        return (raw - mean) / std

    def cells_of(self, x: Tensor) -> Tensor:
        """Return how far each cell of images (B, C, S, S) is from normal: (B, h, w)."""
        f = self._standard(self.grid(x)).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return self.cells(f)

    def _read(self, cells: Tensor) -> Tensor:
        flat = cells.flatten(1)
        count = max(1, round(self.settings.share * flat.shape[1]))
        return flat.topk(count, dim=1).values.mean(1)

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the mean of the highest cells (B,)."""
        return self._read(self.cells_of(x))

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the cells at each place (B, S, S), resized from the grid."""
        return resized(self.cells_of(x), x.shape[2])

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, S, S) of one pass."""
        cells = self.cells_of(x)
        return self._read(cells), resized(cells, x.shape[2])

    def state(self) -> dict[str, Tensor]:
        """Return what the network holds and what features are standardised with."""
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
