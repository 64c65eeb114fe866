"""The squared error of the reconstruction: map = (x_hat - x)², averaged over channels."""

from __future__ import annotations

from torch import Tensor

from normalis.models.base import AnomalyModel
from normalis.scorers.base import Scorer, reconstruction, why_no_reconstruction

__all__ = ["L2"]


class L2(Scorer):
    """The squared residual of any model that reconstructs."""

    def supports(self, model: AnomalyModel) -> str | None:
        """Say what is missing: a reconstruction."""
        return why_no_reconstruction(model)

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the squared error per pixel (B, H, W)."""
        self.check(model)
        return (x - reconstruction(model, x)).square().mean(1)
