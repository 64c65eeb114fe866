"""What a rule answers: one candidate, or a way to combine them all, with the reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError

__all__ = ["Combiner", "Selection"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Combiner:
    """One score from the scores of all candidates: no choice at all.

    Each candidate's log score is standardised by held-out normals, then averaged or maximised.

    Attributes:
        kind: "mean" or "max".
        centre: (C,) mean log score of held-out normal images.
        scale: (C,) standard deviation of the same.
    """

    kind: Literal["mean", "max"]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]

    def __call__(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Combine (C, N) scores above zero into (N,)."""
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim != 2 or len(scores) != len(self.centre) or not (scores > 0).all():
            raise DataError(
                f"an ensemble needs ({len(self.centre)}, N) scores above 0, got shape "
                f"{scores.shape}, smallest {scores.min(initial=math.inf):.3g}"
            )
        standard = (np.log(scores) - self.centre[:, None]) / self.scale[:, None]
        return np.asarray(standard.mean(axis=0) if self.kind == "mean" else standard.max(axis=0))


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """What was chosen, and why; print it to read it.

    Attributes:
        rule: name of the rule.
        candidates: all of them.
        choice: the candidate chosen; None where the rule combines them all.
        latent_dim: capacity of the choice, if it has one.
        table: row name -> a value for each candidate; what the rule looked at.
        reasons: sentences for a person who may overrule it.
        stability: candidate -> share of resampled held-out sets in which it is chosen.
        combiner: for an ensemble, the function of all candidates' scores.
    """

    rule: str
    candidates: tuple[str, ...]
    choice: str | None
    latent_dim: float | None = None
    table: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    stability: Mapping[str, float] = field(default_factory=dict)
    combiner: Combiner | None = None

    def __str__(self) -> str:
        head = f"{self.rule}: {self.choice or 'all candidates together'}"
        width = max([len(name) for name in self.table], default=0)
        columns = [max(len(c), 7) for c in self.candidates]
        lines = [head]
        if self.table:
            marks = [f"{c}*" if c == self.choice else c for c in self.candidates]
            cells = [m.rjust(w + 1) for m, w in zip(marks, columns, strict=True)]
            lines.append(" " * width + " ".join(cells))
        for name, values in self.table.items():
            cells = [f"{v:.3g}".rjust(w + 1) for v, w in zip(values, columns, strict=True)]
            lines.append(name.ljust(width) + " ".join(cells))
        return "\n".join([*lines, *(f"- {reason}" for reason in self.reasons)])

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` returned."""
        combiner = kept["combiner"]
        if combiner is not None:
            arrays = {k: np.array(combiner[k]) for k in ("centre", "scale")}
            combiner = Combiner(kind=combiner["kind"], **arrays)
        return cls(
            rule=kept["rule"],
            candidates=tuple(kept["candidates"]),
            choice=kept["choice"],
            latent_dim=kept["latent_dim"],
            table={name: tuple(values) for name, values in kept["table"].items()},
            reasons=tuple(kept["reasons"]),
            stability=dict(kept["stability"]),
            combiner=combiner,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, to be kept beside a fitted model."""
        return {
            "rule": self.rule,
            "choice": self.choice,
            "latent_dim": self.latent_dim,
            "candidates": list(self.candidates),
            "table": {name: [float(v) for v in values] for name, values in self.table.items()},
            "reasons": list(self.reasons),
            "stability": {name: float(share) for name, share in self.stability.items()},
            "combiner": None
            if self.combiner is None
            else {
                "kind": self.combiner.kind,
                "centre": self.combiner.centre.tolist(),
                "scale": self.combiner.scale.tolist(),
            },
        }
