"""The gradient of the loss at the input: which pixels would have to change for a lower loss.

::

    rec, loss   |dL/dx|                 L = mean of the model's own map
    kl          |dKL/dx|                KL of the posterior to the prior
    elbo        |d(L + beta KL)/dx|     beta as in training
    combi       map * |dKL/dx|

averaged over channels. ``loss`` is the benchmark's AE-Grad; the others are its VAE-Grad and need a
method with a KL. As there, L is one image's loss averaged over its pixels, so that an image's
gradient does not depend on the images beside it.

Reference: Zimmerer et al., "Unsupervised anomaly localization using variational auto-encoders",
MICCAI 2019 (VAE); Cai et al., "MedIAnomaly: A comparative study of anomaly detection in medical
images", 2024 (AE).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from normalis.models.base import AnomalyModel, check_one_of
from normalis.scorers.base import Scorer, ScorerSettings, evaluating

__all__ = ["Gradient", "GradientSettings"]


@dataclass(frozen=True, kw_only=True)
class GradientSettings(ScorerSettings):
    """Settings of the gradient scorer.

    Args:
        form: ``loss``, ``rec`` (the same), ``kl``, ``elbo`` or ``combi``; see the module.
    """

    form: str = "loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(("loss", "rec", "kl", "elbo", "combi"), form=self.form)


class Gradient(Scorer):
    """Absolute gradient of a model's loss at the input."""

    Settings: ClassVar[type[ScorerSettings]] = GradientSettings

    def supports(self, model: AnomalyModel) -> str | None:
        """Say what is missing: a KL, for the forms that need one."""
        form = self.settings.form
        if form in ("loss", "rec") or callable(getattr(model, "kl", None)):
            return None
        return f"form {form} needs a method with a KL (vae), got {type(model).__name__}: form=loss"

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the absolute gradient per pixel (B, H, W)."""
        self.check(model)
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            own_map = None if self.settings.form == "kl" else model.anomaly_map(x)
            total = self._per_image(model, x, own_map).sum()
            gradient = torch.autograd.grad(total, x)[0].abs().mean(1)
        if self.settings.form == "combi" and own_map is not None:
            gradient = gradient * own_map
        return gradient.detach()

    def _per_image(self, model: Any, x: Tensor, own_map: Tensor | None) -> Tensor:
        """Return what each image's gradient is taken of, (B,)."""
        if own_map is None or self.settings.form == "combi":
            kl: Tensor = model.kl(x)
            return kl
        loss = own_map.flatten(1).mean(1)
        return loss + model.settings.beta * model.kl(x) if self.settings.form == "elbo" else loss
