"""Structural dissimilarity of image and reconstruction: map = 1 - SSIM.

Window, constants and resizing as in `normalis.models.ssim`.
"""

from __future__ import annotations

from torch import Tensor

from normalis.models.base import AnomalyModel
from normalis.models.ssim import dissimilarity
from normalis.scorers.base import Scorer, reconstruction, why_no_reconstruction

__all__ = ["SSIM"]


class SSIM(Scorer):
    """Structural dissimilarity, whatever loss the model was trained on."""

    def supports(self, model: AnomalyModel) -> str | None:
        """Say what is missing: a reconstruction."""
        return why_no_reconstruction(model)

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return 1 - SSIM per pixel, averaged over channels (B, H, W)."""
        self.check(model)
        return dissimilarity(x, reconstruction(model, x)).mean(1)
