"""The rules, each a small pure function of the evidence; fixed before they were run, but one.

Their definitions in words, and how many there are, stand in `docs/reference/selection_study.md`.
Add none after looking at its results without saying so there: of many rules on few sets, one is
lucky.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError, SettingsError
from normalis.research.selection.evidence import Evidence, family_auroc
from normalis.research.selection.outcome import Combiner, Selection
from normalis.research.selection.prior import lesion_prior

__all__ = ["READS_SCORES", "RULES"]

_T = TypeVar("_T")


def _always(latent_dim: float) -> Callable[[Evidence], Selection]:
    def rule(evidence: Evidence) -> Selection:
        reason = f"the candidate nearest to {latent_dim:g}, whatever the images"
        return _picked(evidence, f"always-{latent_dim:g}", _nearest(evidence, latent_dim), reason)

    return rule


def _minimax(name: str, *, chance: float) -> Callable[[Evidence], Selection]:
    """Minimise the largest regret over families, AUROC below ``chance`` counting as that."""

    def rule(evidence: Evidence) -> Selection:
        auroc = np.maximum(family_auroc(evidence), chance)
        regret = 100 * (auroc.max(axis=1, keepdims=True) - auroc)
        worst = regret.max(axis=0)
        chosen = int(np.argmin(worst))
        families = list(evidence.synthetic_scores)
        table = {family: tuple(row) for family, row in zip(families, regret, strict=True)}
        table["worst regret"] = tuple(worst)
        critical = families[int(np.argmax(regret[:, chosen]))]
        reasons = [
            "regret is AUROC points lost against the best candidate for each synthetic family",
            f"at worst {worst[chosen]:.1f} points are lost, on {critical!r}",
            *_without_each(evidence, regret, chosen),
        ]
        return _picked(evidence, name, chosen, *reasons, table=table)

    return rule


def _mean_auroc(evidence: Evidence) -> Selection:
    auroc = 100 * family_auroc(evidence)
    table = {n: tuple(r) for n, r in zip(evidence.synthetic_scores, auroc, strict=True)}
    table["mean"] = tuple(auroc.mean(axis=0))
    reason = "largest mean AUROC over families; the kind with most families decides"
    chosen = int(np.argmax(auroc.mean(axis=0)))
    return _picked(evidence, "mean-auroc", chosen, reason, table=table)


def _lesion_scale_prior(evidence: Evidence) -> Selection:
    """Minimise the largest regret of the closed form over lesion sizes, at rank = latent_dim."""
    auroc = evidence.lesion_prior or lesion_prior(
        _needed(evidence.normal, "normal"),
        _needed(evidence.normal_energies, "normal_energies"),
        _needed(evidence.normal_outside, "normal_outside"),
        latent_dims=_dims(evidence),
    )
    table = {name: tuple(100 * (row.max() - row)) for name, row in auroc.items()}
    worst = np.max([*table.values()], axis=0)
    table["worst regret"] = tuple(worst)
    chosen = int(np.argmin(worst))
    reason = "closed form for linear encoders: AUROC points lost for bright or dark blobs by size"
    return _picked(evidence, "lesion-scale-prior", chosen, reason, table=table)


def _elbow(evidence: Evidence) -> Selection:
    """Take the point furthest below the chord of error against log capacity (Satopää 2011)."""
    error, dims = _needed(evidence.validation_errors, "validation_errors"), _dims(evidence)
    x, y = _to_unit(np.log(dims)), _to_unit(error)
    left, right = int(np.argmin(x)), int(np.argmax(x))
    below = y[left] + (y[right] - y[left]) * x - y
    table = {"validation error": tuple(error), "below the chord": tuple(below)}
    reason = "furthest below the chord of validation error against log capacity"
    return _picked(evidence, "elbow", int(np.argmax(below)), reason, table=table)


def _smallest_validation_error(evidence: Evidence) -> Selection:
    error = _needed(evidence.validation_errors, "validation_errors")
    table = {"validation error": tuple(error)}
    reason = "rebuilds held-out normals best; says nothing of anomalies"
    return _picked(
        evidence, "smallest-validation-error", int(np.argmin(error)), reason, table=table
    )


def _generalisation_gap(evidence: Evidence) -> Selection:
    """Minimise held-out error plus its excess over training error: the optimism counted twice."""
    held = _needed(evidence.validation_errors, "validation_errors")
    seen = _needed(evidence.training_errors, "training_errors")
    penalised = 2 * np.asarray(held) - np.asarray(seen)
    table = {"validation error": tuple(held), "gap": tuple(np.asarray(held) - np.asarray(seen))}
    reason = "least held-out error plus its gap to training"
    return _picked(evidence, "generalisation-gap", int(np.argmin(penalised)), reason, table=table)


def _intrinsic_dimension(evidence: Evidence) -> Selection:
    dimension = _needed(evidence.intrinsic_dimension, "intrinsic_dimension")
    if not math.isfinite(dimension):
        reason = "intrinsic_dimension must be a number, got NaN: near copies or too few images"
        raise SettingsError(f"{reason}; use a rule that does not need it")
    reason = f"nearest to the intrinsic dimension of the normal images, {dimension:.1f} (TwoNN)"
    return _picked(evidence, "intrinsic-dimension", _nearest(evidence, dimension), reason)


def _ensemble(kind: Literal["mean", "max"]) -> Callable[[Evidence], Selection]:
    def rule(evidence: Evidence) -> Selection:
        scores = np.asarray(_needed(evidence.validation_scores, "validation_scores"))
        if not (scores > 0).all():
            raise DataError(f"an ensemble of log scores needs scores above 0, got {scores.min()}")
        log = np.log(scores)
        combiner = Combiner(
            kind=kind, centre=log.mean(axis=1), scale=log.std(axis=1).clip(min=1e-12)
        )
        return Selection(
            rule=f"ensemble-{kind}",
            candidates=evidence.candidates,
            choice=None,
            reasons=(f"no choice: {kind} of log scores standardised by held-out normals",),
            combiner=combiner,
        )

    return rule


#: rule -> function; all but the last fixed in docs/reference/selection_study.md before any was run
RULES: dict[str, Callable[[Evidence], Selection]] = {
    "minimax-regret": _minimax("minimax-regret", chance=0.0),
    "mean-auroc": _mean_auroc,
    "lesion-scale-prior": _lesion_scale_prior,
    "always-16": _always(16),
    "always-8": _always(8),
    "elbow": _elbow,
    "smallest-validation-error": _smallest_validation_error,
    "generalisation-gap": _generalisation_gap,
    "intrinsic-dimension": _intrinsic_dimension,
    "ensemble-mean": _ensemble("mean"),
    "ensemble-max": _ensemble("max"),
    # Added after the phantoms of docs/reference/selection_study.md had been looked at, before any
    # real images.
    "minimax-above-chance": _minimax("minimax-above-chance", chance=0.5),
}


#: rules that resampling of held-out images can change
READS_SCORES = frozenset({"minimax-regret", "mean-auroc", "minimax-above-chance"})


def _picked(
    evidence: Evidence,
    rule: str,
    index: int,
    *reasons: str,
    table: Mapping[str, tuple[float, ...]] | None = None,
) -> Selection:
    dims = evidence.latent_dims
    return Selection(
        rule=rule,
        candidates=evidence.candidates,
        choice=evidence.candidates[index],
        latent_dim=None if dims is None else dims[index],
        table=table or {},
        reasons=reasons,
    )


def _without_each(evidence: Evidence, regret: NDArray[np.float64], chosen: int) -> list[str]:
    """Say which single family the choice hangs on."""
    names, said = list(evidence.synthetic_scores), []
    for i, name in enumerate(names if len(names) > 1 else []):
        other = int(np.argmin(np.delete(regret, i, axis=0).max(axis=0)))
        if other != chosen:
            said.append(f"without {name!r} the choice would be {evidence.candidates[other]}")
    return said or ["the choice does not hang on any single family"]


def _needed(value: _T | None, name: str) -> _T:
    if value is None:
        raise SettingsError(f"this rule needs {name}, which the evidence lacks; see Evidence")
    return value


def _dims(evidence: Evidence) -> NDArray[np.float64]:
    dims = np.asarray(_needed(evidence.latent_dims, "latent_dims"), dtype=np.float64)
    if not (dims > 0).all():
        raise DataError(f"latent_dims must be above 0, got {dims}")
    return dims


def _nearest(evidence: Evidence, capacity: float) -> int:
    """Return the candidate nearest on a log scale; of two, the smaller capacity."""
    dims = _dims(evidence)
    away = np.abs(np.log(dims / capacity))
    tied = np.flatnonzero(away <= away.min() + 1e-12)
    return int(tied[np.argmin(dims[tied])])


def _to_unit(values: NDArray[np.floating]) -> NDArray[np.float64]:
    low, high = float(np.min(values)), float(np.max(values))
    return (np.asarray(values, dtype=np.float64) - low) / ((high - low) or 1.0)
