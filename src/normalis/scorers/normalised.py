"""The model's map in units of what it is on normal images, pixel by pixel.

    map'(x) = map(x) / (v + floor * mean v),    v = mean over normal images of map

For a squared error v is the error's variance about zero, so that this is to any method what the
predicted variance is to AE-U: pixels that are hard for every image (edges, the heart's border) stop
counting as lesions. v is one number per pixel and must come from normal images that the model was
not trained on, where its error is not too small. The floor, a share of the mean of v, keeps pixels
that never vary from dividing by nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from normalis.models.base import AnomalyModel, check_at_least
from normalis.scorers.base import Scorer, ScorerSettings, by_batch, evaluating

__all__ = ["Normalised", "NormalisedSettings"]


@dataclass(frozen=True, kw_only=True)
class NormalisedSettings(ScorerSettings):
    """Settings of the normalised scorer.

    Args:
        floor: least divisor, as a share of its mean over the pixels; above 0.
    """

    floor: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1e-6, floor=self.floor)


class Normalised(Scorer):
    """Map divided by its mean over held-out normal images."""

    Settings: ClassVar[type[ScorerSettings]] = NormalisedSettings
    needs_fit = True

    def fit(self, model: AnomalyModel, x: Tensor) -> Self:
        """Average the model's map over normal images (N, C, H, W)."""
        with evaluating(model):
            total = sum(part.sum(0) for part in by_batch(model.anomaly_map, model, x))
        self.arrays = {"mean": torch.as_tensor(total) / len(x)}
        return self

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the map relative to normal (B, H, W)."""
        self.check(model)
        mean = self.arrays["mean"].to(x.device)
        with evaluating(model):
            # A constant image that the model rebuilds exactly leaves nothing to divide by.
            divisor = (mean + self.settings.floor * mean.mean()).clamp_min(1e-12)
            found: Tensor = model.anomaly_map(x) / divisor
            return found
