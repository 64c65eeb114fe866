"""Several scorers in one: a weighted sum of standardised log scores.

    score = Σ_k w_k (log s_k - m_k) / σ_k,    map = Σ_k w_k map_k / c_k

m_k and σ_k are mean and deviation of log s_k over normal images, c_k the mean of map_k over them.
Scores are positive and skewed; their logarithms are nearly Gaussian, so that one unit means the
same in each part. Weights are shares of 1. Parts that need normal images get the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from normalis.errors import DataError, SettingsError
from normalis.models.base import AnomalyModel
from normalis.scorers import build
from normalis.scorers.base import Scorer, ScorerSettings, by_batch

__all__ = ["Combination", "CombinationSettings"]

_TINY = 1e-12


def _split(value: str | Sequence[Any]) -> tuple[Any, ...]:
    """Read ``"l2, ssim"`` as well as a sequence."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(p.strip() if isinstance(p, str) else p for p in parts if p != "")


@dataclass(frozen=True, kw_only=True)
class CombinationSettings(ScorerSettings):
    """Settings of the combination; lists may be written with commas.

    Args:
        parts: names of at least two other scorers; all get the same ``reduction``.
        weights: one per part, above 0; equal where none are given.
    """

    parts: str | Sequence[str] = ("native", "ssim")
    weights: str | Sequence[float] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = _split(self.parts)
        try:
            weights = tuple(float(w) for w in _split(self.weights)) or (1.0,) * len(parts)
        except ValueError as error:
            raise SettingsError(f"weights must be numbers, got {self.weights!r}") from error
        if len(parts) < 2 or "combination" in parts or len(set(parts)) < len(parts):
            raise SettingsError(
                f"parts must be at least two different scorers other than combination, got {parts}"
            )
        if len(weights) != len(parts) or not all(w > 0 for w in weights):
            raise SettingsError(
                f"weights must be {len(parts)} numbers above 0, one for each of {parts}, "
                f"got {weights}"
            )
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "weights", tuple(w / sum(weights) for w in weights))


class Combination(Scorer):
    """Weighted sum of the standardised log scores of other scorers."""

    Settings: ClassVar[type[ScorerSettings]] = CombinationSettings
    needs_fit = True

    def __init__(self, settings: ScorerSettings | None = None) -> None:
        super().__init__(settings)
        s = self.settings
        self.parts = {name: build(name, reduction=s.reduction) for name in s.parts}
        self.needs_gradients = any(part.needs_gradients for part in self.parts.values())

    def supports(self, model: AnomalyModel) -> str | None:
        """Say which part cannot read the model, and why."""
        reasons = {name: part.supports(model) for name, part in self.parts.items()}
        return next((f"part {name}: {reason}" for name, reason in reasons.items() if reason), None)

    def fit(self, model: AnomalyModel, x: Tensor) -> Self:
        """Fit the parts and take mean and deviation of their log scores on normal images."""
        self.check_supports(model)
        if len(x) < 2:
            raise DataError(f"a deviation needs at least 2 normal images, got {len(x)}")
        for part in self.parts.values():
            part.fit(model, x)
        logs = torch.cat(list(by_batch(lambda b: self._logs(model, b), model, x)))
        levels = torch.cat(list(by_batch(lambda b: self._levels(model, b), model, x)))
        # A part that says the same of every normal image has no unit of its own.
        deviation = logs.std(0)
        self.arrays = {
            "mean": logs.mean(0),
            "deviation": torch.where(deviation > 0, deviation, 1.0),
            "level": levels.mean(0).clamp_min(_TINY),
        }
        return self

    def _logs(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the parts' log scores, (B, K)."""
        scores = [part.anomaly_score(model, x) for part in self.parts.values()]
        return torch.stack(scores, 1).clamp_min(_TINY).log()

    def _levels(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the means of the parts' maps, (B, K)."""
        maps = [part.anomaly_map(model, x) for part in self.parts.values()]
        return torch.stack([m.flatten(1).mean(1) for m in maps], 1)

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the weighted sum of the maps in units of their normal level (B, H, W)."""
        self.check(model)
        maps = torch.stack([part.anomaly_map(model, x) for part in self.parts.values()], -1)
        weights = torch.tensor(self.settings.weights, device=x.device)
        return (maps * (weights / self.arrays["level"].to(x.device))).sum(-1)

    def anomaly_score(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the weighted sum of the standardised log scores (B,)."""
        self.check(model)
        z = self._logs(model, x) - self.arrays["mean"].to(x.device)
        weights = torch.tensor(self.settings.weights, device=x.device)
        return (z / self.arrays["deviation"].to(x.device)) @ weights

    def state(self) -> dict[str, Tensor]:
        """Return the fitted arrays, those of the parts under their names."""
        nested = {f"{n}.{k}": v for n, p in self.parts.items() for k, v in p.state().items()}
        return self.arrays | nested

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the arrays of `state`."""
        self.arrays = {k: v for k, v in state.items() if "." not in k}
        for name, part in self.parts.items():
            prefix = f"{name}."
            part.load_state(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
