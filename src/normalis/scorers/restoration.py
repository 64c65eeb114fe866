"""The change that makes an image as likely as a model of normal images wants it.

    X = argmin_X  E(X) + tv TV(X - Y),    map = |X - Y|,    E = -ELBO, errors summed over pixels

Y is the image that was given, X what it would be without its lesion: the most likely explanation
of Y by a normal image and a change that is constant over areas. TV is the total variation of the
change, the sum of its absolute differences between neighbours below and to the right. Found by

    D <- prox(D - a clip(dE(Y + D)/dX)),    D = X - Y, 0 at first

where prox is the step against ``a tv TV``, whose dual takes ten steps from where it was. A step
that lands above the parabola which it relies on is not taken, and the image's next ones are half
as long: networks differ in how steep they are. Each image is restored by itself, nothing is drawn,
and the method's latent is its posterior's mean: an image has the same map in any batch. It takes
``steps`` passes forwards and backwards, which no ONNX file can hold.

``tv = 0`` has it chosen by normal images: the least of a grid that takes away ``less`` of what
restoration changes in them without it.

Deviations. The publication takes plain gradient steps against the total variation too, 500 of
them, of 0.005 and then 0.002; a pixel then jitters by its step times tv. It takes the weight from
0, 0.1 .. 1.9 that changes normal images least, which with proximal steps is always the largest.
Adam would turn rounding into changes, since its first steps have one size whatever the gradient
is. The mask of the brain is left out: what lies outside is restored as well.

Reference: Chen, You, Tezcan and Konukoglu, "Unsupervised lesion detection via image restoration
with a normative prior", Medical Image Analysis 64 (2020), arXiv:2005.00031; the step against the
total variation after Chambolle, "An algorithm for total variation minimization and applications",
Journal of Mathematical Imaging and Vision 20 (2004).

Use: where lesions are areas and a map is wanted without the edges that a residual has; some eighty
times slower than a residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from normalis.errors import SettingsError
from normalis.models.base import AnomalyModel, check_at_least
from normalis.scorers.base import Scorer, ScorerSettings, by_batch, evaluating, why_no_elbo

__all__ = ["Restoration", "RestorationSettings", "total_variation_step"]

_GRID = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # weights that are tried on normal images
_MOST = 64  # normal images that they are tried on
_ROUNDING = 1e-4  # of E, by which a step may miss
_INNER = 10  # steps in the dual of the total variation for each step of the image


@dataclass(frozen=True, kw_only=True)
class RestorationSettings(ScorerSettings):
    """Settings of the restoration.

    Args:
        steps: that the image takes.
        step_size: of the first step, on images in [-1, 1] and errors summed over pixels.
        clip: largest change of E by a pixel, in absolute value, that a step follows.
        tv: weight of the total variation; 0 has it chosen by normal images.
        less: share of the change in normal images that the chosen weight takes away. 0.7 was taken
            after a look at lesions of two development sets; the weight itself sees none.
    """

    steps: int = 30
    step_size: float = 0.05
    clip: float = 50.0
    tv: float = 0.0
    less: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, steps=self.steps)
        check_at_least(0, tv=self.tv)
        for name in ("step_size", "clip"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if not 0 <= self.less < 1:
            raise SettingsError(f"less must be in [0, 1), got {self.less!r}")


class Restoration(Scorer):
    """Absolute change between an image and its restoration."""

    Settings: ClassVar[type[ScorerSettings]] = RestorationSettings
    needs_fit = True
    needs_gradients = True

    def supports(self, model: AnomalyModel) -> str | None:
        """Say what is missing: a likelihood."""
        return why_no_elbo(model)

    def fit(self, model: AnomalyModel, x: Tensor) -> Self:
        """Choose the weight of the total variation by normal images (N, C, H, W)."""
        self.check_supports(model)
        if self.settings.tv:
            self.arrays = {"tv": torch.tensor(float(self.settings.tv))}
            return self
        some = x[torch.linspace(0, len(x) - 1, min(len(x), _MOST)).long()]
        most = (1 - self.settings.less) * self._change(model, some, 0.0)
        chosen = next((tv for tv in _GRID if self._change(model, some, tv) <= most), _GRID[-1])
        self.arrays = {"tv": torch.tensor(chosen)}
        return self

    def _change(self, model: AnomalyModel, x: Tensor, tv: float) -> float:
        """Return the mean absolute change of images by restoration."""
        parts = by_batch(lambda part: self.changes(model, part, tv).abs().sum(), model, x)
        return float(sum(parts)) / x.numel()

    def restore(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return images without what a model of normal images finds unlikely, (B, C, H, W)."""
        self.check(model)
        return x + self.changes(model, x, float(self.arrays["tv"]))

    def reference(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return what the image is compared with: its restoration."""
        return self.restore(model, x)

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the absolute change per pixel, averaged over channels (B, H, W)."""
        self.check(model)
        return self.changes(model, x, float(self.arrays["tv"])).abs().mean(1)

    def changes(self, model: AnomalyModel, x: Tensor, tv: float) -> Tensor:
        """Return X - Y of images (B, C, H, W).

        Args:
            model: one with ``negative_elbo``.
            x: images as they were given.
            tv: weight of the total variation.
        """
        s = self.settings
        with evaluating(model), torch.inference_mode(False):
            x = x.detach().clone()
            at = _Point.of(model, x, torch.zeros_like(x), s.clip)
            step, dual = torch.full_like(at.energy, s.step_size), _at_rest(x)
            for _ in range(s.steps):
                change = at.change - step * at.slope
                if tv:
                    change, dual = total_variation_step(change, step * tv, dual)
                new = _Point.of(model, x, change, s.clip)
                good = new.is_below(at, step)
                at, step = new.where(good, at), torch.where(good, step, step / 2)
        return at.change


@dataclass(frozen=True)
class _Point:
    """Where a restoration is: X - Y (B, C, H, W), E (B, 1, 1, 1) there, and its clipped slope."""

    change: Tensor
    energy: Tensor
    slope: Tensor

    @classmethod
    def of(cls, model: Any, x: Tensor, change: Tensor, clip: float) -> _Point:
        """Evaluate a model's bound at changed images."""
        with torch.enable_grad():
            restored = (x + change).requires_grad_()
            energy = model.negative_elbo(restored)
            slope = torch.autograd.grad(energy.sum(), restored)[0]
        return cls(change, energy.detach().view(-1, 1, 1, 1), slope.clamp(-clip, clip))

    def is_below(self, start: _Point, step: Tensor) -> Tensor:
        """Return whether E is below the parabola that a step from another point relies on."""
        moved = self.change - start.change
        rise = start.slope * moved + moved.square() / (2 * step)
        bound = start.energy + rise.sum((1, 2, 3), keepdim=True)
        return self.energy <= bound + _ROUNDING * start.energy.abs()

    def where(self, good: Tensor, other: _Point) -> _Point:
        """Return this point for some images (B, 1, 1, 1), another one for the rest."""
        return _Point(
            torch.where(good, self.change, other.change),
            torch.where(good, self.energy, other.energy),
            torch.where(good, self.slope, other.slope),
        )


Dual = tuple[Tensor, Tensor]


def _at_rest(x: Tensor) -> Dual:
    return torch.zeros_like(x[..., 1:, :]), torch.zeros_like(x[..., :, 1:])


def total_variation_step(
    y: Tensor, weight: Tensor | float, dual: Dual | None = None, *, steps: int = _INNER
) -> tuple[Tensor, Dual]:
    """Return argmin_d ½ |d - y|² + weight TV(d), and the dual that it follows from.

    Args:
        y: (B, C, H, W).
        weight: of the total variation; one number, or (B, 1, 1, 1).
        dual: of a similar problem, which is a good start.
        steps: of the projected gradient in the dual.
    """
    down, right = dual or _at_rest(y)
    most = torch.as_tensor(weight, dtype=y.dtype, device=y.device)
    for _ in range(steps):
        d = _without(y, down, right)
        # 1/8 is one over the squared norm of the differences, the longest step that converges.
        down = (down + d.diff(dim=-2) / 8).clamp(-most, most)
        right = (right + d.diff(dim=-1) / 8).clamp(-most, most)
    return _without(y, down, right), (down, right)


def _without(y: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return y less the transposed differences of a dual."""
    d = y.clone()
    d[..., 1:, :] -= down
    d[..., :-1, :] += down
    d[..., :, 1:] -= right
    d[..., :, :-1] += right
    return d
