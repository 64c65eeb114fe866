"""Which epoch's model is kept: the last one, or the best by normal images alone.

::

    value of an epoch = AUROC of A(pseudo(x)) above A(x),    x normal images not trained on
    pseudo(x) = x changed inside a soft random shape on its foreground: a patch of another normal
                image, a change of brightness, blur, or a local deformation

A is the method's own score. No label is used, and no image that is calibrated on. Some methods are
best long before their last epoch, those that are trained on synthetic anomalies most of all, and
their loss does not say when. What is asked here is whether a model tells a normal image from one
that looks normal but for one place, which is a guess of what anomalies are: it flatters a method
that is trained on changes of the same kind, and cannot see what is not like them.

The idea is that of AUCp, which takes unlabelled images in place of pseudo anomalies. Images are
looked at `LOOKS` times over a training, from where the last phase of a method begins.

Reference: Siddiquee, Rafsani, Shah et al., "AUCp: Pseudo-AUC for inference model selection with
unlabeled validation data in abnormality detection", 2026, arXiv:2606.08742.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normalis.models.base import AnomalyModel
from normalis.models.deform import integrate, warp

__all__ = ["LOOKS", "Best", "is_looked_at", "pseudo_anomalies", "pseudo_auroc", "watched"]

LOOKS = 25  # over a whole training, about
_MOST = 256  # images that are looked at, evenly spread over those there are
_SEED = 2026  # of the changes, which are the same for all epochs and methods
_GRID = 8  # points of the noise that shapes are cut from
_BRIGHTER = 0.5  # of the range [-1, 1]
_BLUR = 5  # pixels of a 64 x 64 image
_MOVED = 4.0  # pixels, of the same


def is_looked_at(epoch: int, epochs: int, begins: float) -> bool:
    """Return whether a model is looked at after an epoch, counted from 1.

    Args:
        epoch: that is over.
        epochs: in all.
        begins: share of the training at which the method's last phase begins.
    """
    every = max(1, epochs // LOOKS)
    return epoch == epochs or (epoch / epochs > begins and (epochs - epoch) % every == 0)


def watched(held: Tensor) -> Tensor:
    """Return at most `_MOST` of some images, evenly spread."""
    return held[:: -(-len(held) // _MOST)]


def pseudo_anomalies(x: Tensor) -> Tensor:
    """Return normal images (B, C, S, S) in [-1, 1] with a change each, the same in every call.

    Image i has the change i modulo 4: foreign patch, brightness, blur, deformation.
    """
    n, side = len(x), x.shape[-1]
    source = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(n, 3, _GRID, _GRID, generator=source).to(x.device)
    sign = (2 * (torch.rand(n, 1, 1, 1, generator=source) < 0.5) - 1).to(x.device)
    fields = F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=True)
    foreground = (x > x.amin((2, 3), keepdim=True)).any(1, keepdim=True)
    shape = _shape(fields[:, :1], foreground)
    reach = 2 * round(_BLUR * side / 128) + 1
    blurred = F.avg_pool2d(x, reach, 1, reach // 2, count_include_pad=False)
    bent = warp(x, integrate(_MOVED * side / 64 * fields[:, 1:]))
    kinds = [x.roll(1, 0), x + _BRIGHTER * sign, blurred, bent]
    which = torch.arange(n, device=x.device) % len(kinds)
    changed = torch.stack(kinds)[which, torch.arange(n, device=x.device)]
    return (x + shape * (changed - x)).clamp(-1, 1)


def _shape(field: Tensor, foreground: Tensor) -> Tensor:
    """Return soft shapes (B, 1, S, S) in [0, 1]: the highest sixth of a field on the foreground."""
    on_it = torch.where(foreground, field, -torch.inf).flatten(2)
    count = foreground.flatten(2).sum(2, keepdim=True)
    order = on_it.sort(2, descending=True).values
    level = order.gather(2, (count // 6).clamp_max(order.shape[2] - 1))[..., None]
    level = torch.where(torch.isfinite(level), level, field.amax((2, 3), keepdim=True))
    return torch.sigmoid(8 * (field - level)) * foreground


@torch.no_grad()
def pseudo_auroc(model: AnomalyModel, normal: Tensor, odd: Tensor, *, batch_size: int) -> float:
    """Return the AUROC of images above others by a model's own score, ties counting half.

    Args:
        model: in evaluation mode.
        normal: (N, C, S, S) in [-1, 1].
        odd: (M, C, S, S).
        batch_size: of images scored at once.

    Returns:
        In [0, 1]; 0 if a score is not finite.
    """
    low, high = (
        torch.cat([model.anomaly_score(x).double() for x in part.split(batch_size)])
        for part in (normal, odd)
    )
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        return 0.0
    above = high[:, None] - low[None]
    return float(((above > 0).double() + 0.5 * (above == 0)).mean())


@dataclass
class Best:
    """The best state of a model so far.

    Attributes:
        value: of it; below 0 before the first look.
        epoch: after which it was.
        state: parameters and buffers.
    """

    value: float = -1.0
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, value: float, epoch: int, state: dict[str, Tensor]) -> None:
        """Take over a state that is better; of equal ones the later."""
        if not math.isnan(value) and value >= self.value:
            self.value, self.epoch = value, epoch
            self.state = {k: v.detach().clone() for k, v in state.items()}

    def progress(self) -> dict[str, Any]:
        """Return the plain part."""
        return {"value": self.value, "epoch": self.epoch}
