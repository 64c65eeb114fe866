"""How unlikely a whole image is: the negative evidence lower bound, per pixel.

    score = -ELBO(x) / P,    map = the method's own

with errors summed over the P pixels and the latent at its posterior's mean; for `vae` this is
``mean (x_hat - x)² + beta KL``, the loss that it was trained on. It judges the image, and has no
place of its own.

Reference: Zimmerer et al., "Context-encoding variational autoencoder for unsupervised anomaly
detection", 2018, arXiv:1812.05941.

Use: where whole images are ranked as `vae` and `cevae` were published to.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from normalis.models.base import AnomalyModel
from normalis.scorers.base import Scorer, evaluating, why_no_elbo

__all__ = ["ELBO"]


class ELBO(Scorer):
    """Negative evidence lower bound of the image; the reduction does not apply."""

    def supports(self, model: AnomalyModel) -> str | None:
        """Say what is missing: a likelihood."""
        return why_no_elbo(model)

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the method's own map (B, H, W)."""
        self.check(model)
        with evaluating(model):
            return model.anomaly_map(x)

    def anomaly_score(self, model: Any, x: Tensor) -> Tensor:
        """Return the negative bound per pixel (B,)."""
        self.check(model)
        with evaluating(model):
            found: Tensor = model.negative_elbo(x).float() / x[0].numel()
            return found
