"""Baseline: the distance from the mean of the normal images.

    map = (x - m)²,    m = mean of the training images

Pixel by pixel; all that it learns is where images are bright on average.

Reference: none needed; it is `pca` with no component.

Use: as a floor. A network that does not beat it has learned nothing that matters.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor

from normalis.models.base import DirectModel

__all__ = ["MeanImage"]


class MeanImage(DirectModel):
    """Squared distance from the mean image."""

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Take the mean of normal images (N, C, H, W)."""
        self.arrays = {"mean": x.mean(0)}
        return self

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean image, whatever x is."""
        return self.fitted("mean").expand_as(x)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the squared distance per pixel (B, H, W)."""
        return (x - self.reconstruct(x)).square().mean(1)
