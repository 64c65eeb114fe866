"""The method's own map and score, as its paper reads it."""

from __future__ import annotations

from torch import Tensor

from normalis.models.base import AnomalyModel
from normalis.scorers.base import Scorer, evaluating, reduce_map

__all__ = ["Native"]


class Native(Scorer):
    """The map and the score that the method itself defines.

    The reduction ``mean`` stands for the method's own score: the mean of its map unless the method
    says otherwise (GANomaly compares latents). The other reductions reduce the map.
    """

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the method's own map (B, H, W)."""
        with evaluating(model):
            return model.anomaly_map(x)

    def reduces(self, model: AnomalyModel) -> bool:
        """Return whether the score is the reduced map; a method may have a score of its own."""
        own = type(model).anomaly_score is not AnomalyModel.anomaly_score
        return self.settings.reduction != "mean" or not own

    def anomaly_score(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the method's own score (B,), or its map reduced as asked."""
        if self.settings.reduction != "mean":
            return reduce_map(self.anomaly_map(model, x), self.settings.reduction)
        with evaluating(model):
            return model.anomaly_score(x)

    def read(
        self, model: AnomalyModel, x: Tensor, *, maps: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return scores (B,) and, if asked for, maps (B, H, W), in one pass where a method can."""
        if not maps or self.reduces(model):
            return super().read(model, x, maps=maps)
        with evaluating(model):
            return model.score_and_map(x)
