"""The gradient of the loss at the input: which pixels would have to change for a lower loss.

::

    rec, loss   |dL/dx|                 L = mean of the model's own map
    kl          |dKL/dx|                KL of the posterior to the prior
    elbo        |d(L + beta KL)/dx|     beta as in training
    combi       map * |dKL/dx|
    cevae       map * |d(L + beta KL)/dx|

averaged over channels. ``loss`` is the benchmark's AE-Grad; the others are its VAE-Grad and need a
method with a KL. As there, L is one image's loss averaged over its pixels, so that an image's
gradient does not depend on the images beside it. The publication smooths slopes before the product,
by a Gaussian of 3 pixels in 64, ``smoothing=0.047``; by default they stay as they are. It also
divides them by their range in a batch or in the test set, which nothing here does.

Reference: Zimmerer et al., "Unsupervised anomaly localization using variational auto-encoders",
MICCAI 2019 (VAE); Zimmerer et al., "Context-encoding variational autoencoder for
unsupervised anomaly detection", 2018, as Baur et al., Medical Image Analysis 69 (2021), read it
(cevae); Cai et al., "MedIAnomaly: A comparative study of anomaly detection in medical
images", 2024 (AE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.base import AnomalyModel, check_one_of
from normalis.scorers.base import Scorer, ScorerSettings, evaluating

__all__ = ["Gradient", "GradientSettings"]


@dataclass(frozen=True, kw_only=True)
class GradientSettings(ScorerSettings):
    """Settings of the gradient scorer.

    Args:
        form: ``loss``, ``rec`` (the same), ``kl``, ``elbo``, ``combi`` or ``cevae``.
        smoothing: standard deviation of a Gaussian over the slopes, as a share of the image's side;
            0 for none.
    """

    form: str = "loss"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(("loss", "rec", "kl", "elbo", "combi", "cevae"), form=self.form)
        if not 0 <= self.smoothing <= 0.2:
            raise SettingsError(f"smoothing must be in [0, 0.2], got {self.smoothing!r}")


class Gradient(Scorer):
    """Absolute gradient of a model's loss at the input."""

    Settings: ClassVar[type[ScorerSettings]] = GradientSettings
    needs_gradients = True

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
        gradient = _smoothed(gradient, self.settings.smoothing * gradient.shape[-1])
        if self.settings.form in ("combi", "cevae") and own_map is not None:
            gradient = gradient * own_map
        return gradient.detach()

    def _per_image(self, model: Any, x: Tensor, own_map: Tensor | None) -> Tensor:
        """Return what each image's gradient is taken of, (B,)."""
        if own_map is None or self.settings.form == "combi":
            kl: Tensor = model.kl(x)
            return kl
        loss = own_map.flatten(1).mean(1)
        bound = self.settings.form in ("elbo", "cevae")
        return loss + model.settings.beta * model.kl(x) if bound else loss


def _smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Return maps (B, H, W) after a Gaussian, cut off at one standard deviation, borders mirrored.

    Args:
        maps: at least two pixels more a side than the Gaussian reaches.
        sigma: in pixels; 0 leaves them as they are. 3 makes a window of 7, as published.
    """
    reach = math.floor(sigma)
    if not reach:
        return maps
    line = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-(line / sigma).square() / 2).exp()
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]
