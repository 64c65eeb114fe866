"""Baseline: the distance to the nearest normal images, pixel by pixel.

    map = mean_j (x - y_j)²,    y_1 .. y_k the k training images nearest to x

It keeps every training image. A test image that also lies in the training set scores 0, so that
this baseline shows a leak between the splits better than anything else.

Reference: Cover and Hart, "Nearest neighbor pattern classification" (1967); Ramaswamy, Rastogi and
Shim, "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000.

Use: as a floor, and as a test for copies of training images in the test set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from normalis.errors import DataError
from normalis.models.base import DirectModel, ModelSettings, check_at_least

__all__ = ["KNN", "KNNSettings"]


@dataclass(frozen=True, kw_only=True)
class KNNSettings(ModelSettings):
    """Settings of the nearest-image baseline.

    Args:
        neighbours: k, training images that the map averages over.
    """

    neighbours: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, neighbours=self.neighbours)


class KNN(DirectModel):
    """Squared distance to the nearest training images."""

    Settings: ClassVar[Any] = KNNSettings

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Keep normal images (N, C, H, W)."""
        if len(x) < self.settings.neighbours:
            raise DataError(
                f"knn needs at least neighbours = {self.settings.neighbours} images, got {len(x)}"
            )
        self.arrays = {"images": x.contiguous()}
        return self

    def neighbours(self, x: Tensor) -> Tensor:
        """Return the k nearest training images, nearest first: (B, k, C, H, W)."""
        images = self.fitted("images")
        distances = torch.cdist(x.detach().flatten(1), images.flatten(1))
        index = distances.topk(self.settings.neighbours, dim=1, largest=False).indices
        return images[index]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of the nearest training images."""
        return self.neighbours(x).mean(1)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the squared distance per pixel, averaged over the neighbours (B, H, W)."""
        return (x[:, None] - self.neighbours(x)).square().mean((1, 2))
