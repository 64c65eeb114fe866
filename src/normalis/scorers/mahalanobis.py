"""How unusual an image's latent code is among those of normal images.

    score = (z - m)ᵀ S⁻¹ (z - m) / D,    z = encode(x)

with the mean m and the covariance S of normal images' codes, shrunk towards a multiple of the
identity by Ledoit and Wolf's rule, which keeps S invertible with fewer images than dimensions. For
Gaussian codes the score of a normal image is about 1. It is one number per image; the map is the
method's own.

Reference: Mahalanobis (1936); Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
covariance matrices", Journal of Multivariate Analysis 88 (2004).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from normalis.errors import DataError
from normalis.models.base import AnomalyModel
from normalis.scorers.base import Scorer, by_batch, evaluating

__all__ = ["Mahalanobis"]


class Mahalanobis(Scorer):
    """Mahalanobis distance of the latent code; the reduction does not apply."""

    needs_fit = True

    def supports(self, model: AnomalyModel) -> str | None:
        """Say what is missing: a latent code."""
        if model.has_latent and callable(getattr(model, "encode", None)):
            return None
        return f"it needs a method with a latent code, got {type(model).__name__}"

    def fit(self, model: AnomalyModel, x: Tensor) -> Self:
        """Take mean and covariance of the codes of normal images (N, C, H, W)."""
        from sklearn.covariance import LedoitWolf

        self.check_supports(model)
        if len(x) < 2:
            raise DataError(f"a covariance needs at least 2 normal images, got {len(x)}")
        with evaluating(model):
            codes = torch.cat([part.cpu() for part in by_batch(_encode(model), model, x)])
        estimate = LedoitWolf().fit(codes.double().numpy())
        self.arrays = {
            "mean": torch.from_numpy(estimate.location_).float(),
            "precision": torch.from_numpy(estimate.precision_).float(),
        }
        return self

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the method's own map (B, H, W): a code has no place in the image."""
        self.check(model)
        with evaluating(model):
            return model.anomaly_map(x)

    def anomaly_score(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the squared distance per latent dimension (B,)."""
        self.check(model)
        with evaluating(model):
            z = _encode(model)(x) - self.arrays["mean"].to(x.device)
        found: Tensor = ((z @ self.arrays["precision"].to(x.device)) * z).mean(1)
        return found


def _encode(model: Any) -> Any:
    return lambda x: model.encode(x).float()
