"""Whether new images could contain the same kind of normal ones as those that calibrated.

New images may be anomalous, so a plain two-sample test would warn of what the tool is for. Tested
is what a share of at most ``max_anomalous`` anomalies *cannot* do, at the 10 %, 25 % and 50 %
quantiles of the calibration:

* raise the share of scores below a quantile, since anomalies score higher;
* empty the part below it under ``1 - max_anomalous`` of its due. Image statistics (brightness),
  which anomalies may move either way, are tested against emptying on both sides.

The number of n new values below the r-th smallest of K old ones is beta-binomial (n, r, K + 1 - r)
whatever the distribution; if only a share of the new ones is normal, binomial with that share of
the beta variable (summed at 256 of its quantiles). Bonferroni's correction over all tests bounds
the chance of a false alarm, as long as no more than ``max_anomalous`` of the new images are
anomalous; beyond that a warning may mean just that. One unit is a patient (the median of its
images) where patients are known.

The same tests turned round say how many new units *must* be anomalous if nothing has drifted
(`least_anomalous`): a reader who knows that fewer are has found drift that the cap would hide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normalis.errors import SettingsError

__all__ = ["SCORE", "Drift", "find_drift", "least_anomalous", "unit_medians"]

Floats = NDArray[np.float64]

SCORE = "anomaly score"
_QUANTILES = (0.1, 0.25, 0.5)
_SHARES = np.arange(0, 100, 5) / 100  # of anomalous units, tried by `least_anomalous`


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Whether new images look like the calibration's normal ones.

    Attributes:
        p_value: adjusted for all tests made; at most the false-alarm rate's share of undrifted
            batches fall below it.
        drifted: whether it is below the false-alarm rate.
        reasons: one sentence for each test that alone would warn.
        n_units: new independent units (patients or images).
        least_anomalous: share of the new units that must be anomalous unless there is drift.
    """

    p_value: float
    drifted: bool
    reasons: tuple[str, ...]
    n_units: int
    least_anomalous: float = 0.0


def find_drift(
    pairs: Mapping[str, tuple[Floats, Floats]],
    *,
    max_anomalous: float = 0.5,
    false_alarm: float = 0.01,
) -> Drift:
    """Test all quantities together.

    Args:
        pairs: name -> (old, new) values, one per unit; `SCORE` is the one that anomalies raise.
        max_anomalous: largest share of anomalous units that is not drift.
        false_alarm: chance of a warning without drift.

    Raises:
        SettingsError: if a share is out of range.
    """
    if not (0.0 <= max_anomalous < 1.0 and 0.0 < false_alarm < 1.0):
        raise SettingsError(
            "max_anomalous must be in [0, 1) and false_alarm in (0, 1), "
            f"got {max_anomalous} and {false_alarm}"
        )
    n_new = max((new.size for _, new in pairs.values()), default=0)
    if not n_new:
        return Drift(p_value=1.0, drifted=False, reasons=(), n_units=0)
    found = [
        test for name, (old, new) in pairs.items() for test in _tests(name, old, new, max_anomalous)
    ]
    p_value = min(1.0, min(p for p, _ in found) * len(found))
    return Drift(
        p_value=p_value,
        drifted=p_value <= false_alarm,
        reasons=tuple(text for p, text in found if p * len(found) <= false_alarm),
        n_units=n_new,
        least_anomalous=least_anomalous(pairs, false_alarm=false_alarm),
    )


def least_anomalous(
    pairs: Mapping[str, tuple[Floats, Floats]], *, false_alarm: float = 0.01
) -> float:
    """Return a lower bound of the share of anomalous new units, if nothing has drifted.

    The smallest share, in steps of 5 %, at which no test warns: the confidence set of a share is
    what a test of it does not reject.

    Args:
        pairs: as in `find_drift`.
        false_alarm: chance that the bound is too high without drift.

    Returns:
        0 if the new units may all be normal; 1 if no share explains them.
    """
    for share in _SHARES:
        found = [p for name, (old, new) in pairs.items() for p, _ in _tests(name, old, new, share)]
        if min(found, default=1.0) * len(found) > false_alarm or not found:
            return float(share)
    return 1.0


def unit_medians(values: Floats, member: NDArray[np.int64]) -> Floats:
    """Return each unit's median, (n,) values of (n,) units -> (n_units,)."""
    order = np.lexsort((values, member))
    parts = np.split(values[order], np.flatnonzero(np.diff(member[order])) + 1)
    return np.array([np.median(part) for part in parts if part.size])


def _emptied(seen: int, n_new: int, rank: int, n_old: int, share: float) -> float:
    """P(at most ``seen`` of n_new fall below the rank-th of n_old, if ``share`` are normal)."""
    from scipy.stats import beta, binom

    u = beta.ppf((np.arange(256) + 0.5) / 256, rank, n_old + 1 - rank)
    return float(np.mean(binom.cdf(seen, n_new, share * u)))


def _tests(name: str, old: Floats, new: Floats, max_anomalous: float) -> list[tuple[float, str]]:
    """Return (p-value, sentence) of each test of one quantity."""
    from scipy.stats import betabinom

    found = []
    for quantile in _QUANTILES:
        rank = max(1, int(np.floor(quantile * (old.size + 1))))
        low, high = np.sort(old)[[rank - 1, old.size - rank]]
        due = 100 * rank / (old.size + 1)
        tests = [("below", int((new <= low).sum()), low)]
        if name == SCORE:
            beneath = int((new < low).sum())
            p = float(betabinom.sf(beneath - 1, new.size, rank, old.size + 1 - rank))
            text = f"more than the {due:.0f} % expected"
            found.append((p, _sentence(name, beneath, new.size, "below", low, text)))
        else:
            tests.append(("above", int((new >= high).sum()), high))
        for side, seen, edge in tests:
            p = _emptied(seen, new.size, rank, old.size, 1.0 - max_anomalous)
            text = (
                f"where {due:.0f} % of normal ones are; {100 * max_anomalous:.0f} % anomalies "
                "would not explain that"
            )
            found.append((p, _sentence(name, seen, new.size, side, edge, text)))
    return found


def _sentence(name: str, seen: int, total: int, side: str, edge: float, text: str) -> str:
    share = 100 * seen / max(1, total)
    return f"{name}: {share:.0f} % of the new ones are {side} {edge:.4g}, {text}"
