"""A method's map after a median filter: areas stay, thin structures go.

    map'(x) = median over a window of w x w pixels of map(x),    w about 5 of 64

Networks rebuild edges badly in every image, normal or not: a skull or a rib that lies half a pixel
off leaves a thin bright line in the residual, which says nothing about disease. A lesion is an
area. A median over a window leaves what fills more than half of it and drops lines and single
pixels, where a mean would only spread them. The score is then the mean of the highest 2 % of the
pixels, since after the filter what is high is where something is.

Maps of more than 64 pixels are averaged to 64 first and the result is brought back to their size:
the window is a share of the image, and so is the work.

Median filtering of residuals is common for brain MR: Baur et al., "Autoencoders for unsupervised
anomaly segmentation in brain MR images: a comparative study", Medical Image Analysis 2021. What it
does here: docs/explanation/selection.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.base import AnomalyModel
from normalis.scorers import build
from normalis.scorers.base import Scorer, ScorerSettings

__all__ = ["Median", "MedianSettings", "median_filter"]

_GRID = 64  # pixels of a side that the filter works on at most
_CACHED = 8  # maps at a time on a CPU, whose cache they fit into: nearly twice as fast


@dataclass(frozen=True, kw_only=True)
class MedianSettings(ScorerSettings):
    """Settings of the median scorer.

    Args:
        reduction: how a map becomes one number.
        part: the scorer whose map is filtered.
        share: side of the window as a share of the image's, in (0, 0.2]; 0.08 makes 5 of 64.
    """

    reduction: str = "top:0.02"
    part: str = "native"
    share: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 0.2:
            raise SettingsError(f"share must be in (0, 0.2], got {self.share}")
        if self.part in ("median", "combination"):
            raise SettingsError(f"part must be a scorer with a map of its own, got {self.part!r}")


class Median(Scorer):
    """Another scorer's map after a median filter."""

    Settings: ClassVar[type[ScorerSettings]] = MedianSettings

    def __init__(self, settings: ScorerSettings | None = None) -> None:
        super().__init__(settings)
        self.part = build(self.settings.part)
        self.needs_fit = self.part.needs_fit
        self.needs_gradients = self.part.needs_gradients

    def supports(self, model: AnomalyModel) -> str | None:
        """Say what its part lacks."""
        return self.part.supports(model)

    def fit(self, model: AnomalyModel, x: Tensor) -> Self:
        """Fit the part, if it learns anything."""
        self.part.fit(model, x)
        return self

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the part's map after the filter (B, H, W)."""
        self.part.check(model)
        anomaly_map = self.part.anomaly_map(model, x)
        side = anomaly_map.shape[-1]
        if side <= _GRID:
            return median_filter(anomaly_map, _window(self.settings.share, side))
        small = F.interpolate(anomaly_map[:, None], size=(_GRID, _GRID), mode="area")[:, 0]
        small = median_filter(small, _window(self.settings.share, _GRID))
        return F.interpolate(small[:, None], size=anomaly_map.shape[1:], mode="bilinear")[:, 0]

    def reference(self, model: AnomalyModel, x: Tensor) -> Tensor | None:
        """Return what the part compares images with."""
        return self.part.reference(model, x)

    def state(self) -> dict[str, Tensor]:
        """Return the part's fitted arrays."""
        return self.part.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Hand the arrays of `state` to the part."""
        self.part.load_state(state)


def _window(share: float, side: int) -> int:
    """Return the odd number of pixels nearest to a share of a side."""
    return 2 * int(share * side / 2) + 1


def median_filter(maps: Tensor, window: int) -> Tensor:
    """Return the median over each pixel's window: (B, H, W) -> (B, H, W), borders mirrored.

    Forgetful selection: more than half of the window's values include the median neither as their
    least nor as their greatest, so these two can be dropped and two more values taken in, until one
    is left. Each comparison is made for all pixels at once, which is several times as fast as
    sorting each window, equals it exactly, and has no branch for an exporter to stumble over.

    Args:
        maps: at least ``window // 2 + 1`` pixels a side.
        window: odd number of pixels, at least 1.
    """
    if maps.device.type == "cpu" and not torch.compiler.is_exporting():
        return torch.cat([_filtered(part, window) for part in maps.split(_CACHED)])
    return _filtered(maps, window)


def _filtered(maps: Tensor, window: int) -> Tensor:
    """Filter maps (B, H, W) together."""
    height, width = maps.shape[1:]
    padded = F.pad(maps[:, None], (window // 2,) * 4, mode="reflect")[:, 0]
    waiting = [
        padded[:, i : i + height, j : j + width] for i, j in product(range(window), repeat=2)
    ]
    half = len(waiting) // 2 + 2
    held, waiting = waiting[:half], waiting[half:]
    while len(held) > 1:
        held = _without_extremes(held)
        if waiting:
            held.append(waiting.pop())
    return held[0]


def _without_extremes(values: list[Tensor]) -> list[Tensor]:
    """Drop the least and the greatest of at least two values, pixel by pixel."""
    values, last = list(values), len(values) - 1

    def order(i: int, j: int) -> None:
        low, high = torch.minimum(values[i], values[j]), torch.maximum(values[i], values[j])
        values[i], values[j] = low, high

    for i in range(len(values) // 2):
        order(i, last - i)
    for i in range(1, (last + 2) // 2):
        order(0, i)
    for i in range(len(values) // 2, last):
        order(i, last)
    return values[1:-1]
