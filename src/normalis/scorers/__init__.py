"""Scorers: ways to read a fitted model, one file each, listed by name and imported on use.

How a model was trained and how its failure is read are two choices. Every scorer applies to every
model that has what it needs; `Scorer.supports` says what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from normalis.shelf import Shelf

if TYPE_CHECKING:
    from normalis.models.base import AnomalyModel
    from normalis.scorers.base import Scorer

__all__ = [
    "SCORERS",
    "build",
    "build_with",
    "default_reduction",
    "default_scorer",
    "scorer_class",
    "scorer_names",
]  # fmt: skip

#: scorer -> "module:Class"
SCORERS = Shelf(
    "scorer",
    {
        "native": "normalis.scorers.native:Native",
        "l2": "normalis.scorers.l2:L2",
        "l1": "normalis.scorers.l1:L1",
        "ssim": "normalis.scorers.ssim:SSIM",
        "gradient": "normalis.scorers.gradient:Gradient",
        "normalised": "normalis.scorers.normalised:Normalised",
        "elbo": "normalis.scorers.elbo:ELBO",
        "restoration": "normalis.scorers.restoration:Restoration",
        "mahalanobis": "normalis.scorers.mahalanobis:Mahalanobis",
        "median": "normalis.scorers.median:Median",
        "postprocessed": "normalis.scorers.postprocessed:PostProcessed",
        "combination": "normalis.scorers.combination:Combination",
    },
)

#: Reductions of scorers other than the mean, for those who read records and load no scorer.
_REDUCTIONS = {"median": "top:0.02"}


def scorer_names() -> list[str]:
    """Return the names of all scorers."""
    return list(SCORERS)


def scorer_class(scorer: str | type[Scorer]) -> type[Scorer]:
    """Return the class of a scorer.

    Args:
        scorer: a name of `scorer_names`, ``"module:Class"``, or the class itself.

    Raises:
        SettingsError: if there is no such scorer; names the nearest one.
        UntrustedError: if a file that is being loaded names a class of its own.
    """
    if not isinstance(scorer, str):
        return scorer
    found: type[Scorer] = SCORERS.load(scorer)
    return found


def build(scorer: str | type[Scorer] = "native", **options: Any) -> Scorer:
    """Return a new scorer.

    Args:
        scorer: as in `scorer_class`; ``native`` is the method's own map and score.
        **options: fields of the scorer's ``Settings``, for instance ``reduction="top:0.01"``.
    """
    cls = scorer_class(scorer)
    return cls(cls.Settings.from_mapping(options))


def build_with(scorer: str, reduction: str | None, options: Mapping[str, Any] | None) -> Scorer:
    """Return a new scorer of settings as detectors have them.

    Args:
        scorer: a name of `scorer_names`, or ``"module:Class"``.
        reduction: counts before one among the options; None for theirs, else the scorer's own.
        options: further fields of the scorer's ``Settings``.
    """
    chosen = {} if reduction is None else {"reduction": reduction}
    return build(scorer, **{**(options or {}), **chosen})


def default_reduction(scorer: str) -> str:
    """Return the reduction that a scorer of `SCORERS` has where none is asked for."""
    return _REDUCTIONS.get(scorer, "mean")


def default_scorer(method: type[AnomalyModel]) -> str:
    """Return the scorer that is used where none is named.

    ``median`` where a method's score is the mean of its map (docs/explanation/selection.md says
    why), and ``native`` where a method has a score of its own, such as a distance of latents.
    """
    from normalis.models.base import AnomalyModel

    return "median" if method.anomaly_score is AnomalyModel.anomaly_score else "native"
