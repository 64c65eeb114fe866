"""How many normal images there are -> which calibration, and how many of them it holds out.

A threshold at rate alpha of a split calibration on K units lies below the floor(alpha (K + 1))
highest of them. If that is one or two, a single odd image among the held-out ones decides it, and
may hide every anomaly. Measured on three data sets with 30 to 240 units
(docs/explanation/calibration.md, `benchmarks/small_calibration.py`):

* with six held-out units above the threshold a split calibration is as steady as one on all units;
  with one to three, one calibration set in five flags nearly nothing;
* cv+ rests on all units and is steady from about 60 units at a rate of 5 %, at the price of one fit
  per fold and of a proven rate of twice the nominal one. Its realised rate stayed near the nominal
  one, on average never above it;
* holding out half to reach six cost the ranking about a point of AUROC.

So ``auto`` is ``split`` where a third of the units or less hold six above the threshold, and else
``cv+``. A method that cannot be cross-fitted is split all the same: with the usual fifth, or as
many as leave two above the threshold, and with a third at most. (On 278 brain slices a panel that
held out half ranked 83, one that held out a fifth 89, in one fit each of different seeds.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["ABOVE", "USUAL_RATE", "Choice", "choose", "steady_units"]

#: Held-out units above a threshold from which it is steady.
ABOVE = 6
#: False-positive rate where nobody asks for another.
USUAL_RATE = 0.05
_SHARE = 0.2  # held out where units abound
_LEAST_ABOVE = 2  # where a method cannot be cross-fitted
_EPS = 1e-9


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to calibrate.

    Attributes:
        kind: ``split`` or ``cv+``.
        n_units: independent units that there are.
        held: of them held out by ``split``; 0 for ``cv+``.
        folds: of ``cv+``; 0 for ``split``.
        reason: why, in one sentence.
    """

    kind: Literal["split", "cv+"]
    n_units: int
    held: int = 0
    folds: int = 0
    reason: str = ""

    @property
    def share(self) -> float | None:
        """Share of the units that is held out; None for ``cv+``."""
        return self.held / self.n_units if self.kind == "split" and self.n_units else None

    @property
    def n_calibration(self) -> int:
        """Units K that the p-values rest on."""
        return self.held or self.n_units


def choose(n_units: int, rate: float, *, folds: int = 5, cross_fit: bool = True) -> Choice:
    """Choose a calibration for so many independent normal units.

    Args:
        n_units: patients, files or groups of copies.
        rate: false-positive rate alpha at which images will be flagged, in (0, 1).
        folds: of cv+, at least 2.
        cross_fit: whether the method can be fitted once per fold.
    """
    steady = _needed(ABOVE, rate)
    usual = max(1, round(_SHARE * n_units))
    if steady <= n_units / 3 or usual >= steady:
        held = max(usual, steady)
        reason = f"{held} of {n_units} are held out, enough for a steady threshold at {rate:g}"
        return Choice(kind="split", n_units=n_units, held=held, reason=reason)
    if cross_fit and n_units >= 3:
        count = min(folds, n_units)
        reason = (
            f"{n_units} are too few to hold out the {steady} that a steady threshold at {rate:g} "
            f"takes: {count} models are fitted, and every image is held out of one"
        )
        return Choice(kind="cv+", n_units=n_units, folds=count, reason=reason)
    least = min(_needed(_LEAST_ABOVE, rate), n_units // 3)
    held = max(1, min(max(usual, least), n_units - 2))
    reason = (
        f"{held} of {n_units} are held out, fewer than the {steady} that a steady threshold at "
        f"{rate:g} takes"
    )
    return Choice(kind="split", n_units=n_units, held=held, reason=reason)


def steady_units(rate: float) -> int:
    """Return how many units to hold out for a threshold that rests on several of them."""
    return _needed(ABOVE, rate)


def _needed(above: int, rate: float) -> int:
    """Return the smallest K with floor(rate (K + 1)) >= above."""
    return max(1, math.ceil(above / rate - _EPS) - 1)
