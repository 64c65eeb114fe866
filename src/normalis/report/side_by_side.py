"""Two runs, or two scored folders, side by side.

Runs are compared by what `evaluate` wrote into them, scored folders by the images that both hold:
how far the orders agree, which images either flags, and where labels are known the difference in
AUROC, patient by patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError, SettingsError
from normalis.metrics.auroc import auroc
from normalis.metrics.comparison import paired_bootstrap
from normalis.report.sources import Cases, detect, read_run, read_scores

__all__ = ["SideBySide", "compare"]

_FEWEST = 10  # images of each class for a comparison of AUROC
#: part of an evaluation's subset -> what its figures are
_PARTS = ("ranking", "deployable")


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """A table of two.

    Attributes:
        title: of what.
        columns: heads of the columns.
        rows: figure, first, second, and where it can be said the difference.
        notes: what a reader must know, one sentence each.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()


def compare(first: str | Path, second: str | Path, *, fpr: float = 0.05) -> list[SideBySide]:
    """Compare two runs by their evaluations, or two scored folders by their images.

    Args:
        first: a folder that ``fit`` or ``score`` wrote.
        second: another of the same kind.
        fpr: p-value at and below which an image counts as flagged.

    Raises:
        SettingsError: if one is a run and the other is not.
        DataError: if they have nothing in common.
        RunError: if a folder is neither, or damaged.
    """
    one, two = Path(first), Path(second)
    kinds = detect(one), detect(two)
    if kinds[0] != kinds[1]:
        raise SettingsError(
            f"both must be runs, or both outputs of `normalis score`: {one} is of "
            f"{_command(kinds[0])}, {two} of {_command(kinds[1])}"
        )
    if kinds[0] == "run":
        return _runs(one, two)
    return [_scored(one, two, fpr)]


def _command(kind: str) -> str:
    return "`fit`" if kind == "run" else "`score`"


def _runs(one: Path, two: Path) -> list[SideBySide]:
    known = [
        {e["data"]: e for e in read_run(path).evaluations if "data" in e} for path in (one, two)
    ]
    common = [name for name in known[0] if name in known[1]]
    if not common:
        said = [f"{p}: {', '.join(k) or 'none'}" for p, k in zip((one, two), known, strict=True)]
        raise DataError(
            f"the runs have no evaluation of the same data ({'; '.join(said)}): run `normalis "
            "evaluate RUN DATA` for both with the same DATA"
        )
    return [_evaluations(name, one, two, known[0][name], known[1][name]) for name in common]


def _evaluations(
    name: str, one: Path, two: Path, first: Mapping[str, Any], second: Mapping[str, Any]
) -> SideBySide:
    theirs = {subset["name"]: subset for subset in second["subsets"]}
    rows, notes = [], []
    for subset in first["subsets"]:
        other = theirs.get(subset["name"])
        if other is None:
            continue
        if subset["n_images"] != other["n_images"]:
            notes.append(
                f"{subset['name']}: {subset['n_images']} and {other['n_images']} images, so that "
                "the figures are of different tests"
            )
        rows += _figures(subset, other)
    notes.append("intervals are of each alone; score both and compare the outputs for a paired one")
    head = ["figure", _named(one, first), _named(two, second)]
    return SideBySide(title=f"Evaluations: {name}", columns=head, rows=rows, notes=tuple(notes))


def _named(path: Path, evaluation: Mapping[str, Any]) -> str:
    return f"{path.name} ({evaluation.get('method', '?')})"


def _figures(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[list[str]]:
    return [
        [f"{name}, {first['name']}", _interval(value), _interval(second[part].get(name))]
        for part in _PARTS
        for name, value in first[part].items()
    ]


def _interval(found: Mapping[str, Any] | None) -> str:
    if not found or found.get("value") is None:
        return ""
    if found.get("low") is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


# -- scored folders -------------------------------------------------------------------------------


def _scored(one: Path, two: Path, fpr: float) -> SideBySide:
    first, second = (_by_image(path) for path in (one, two))
    common = [key for key in first if key in second]
    if len(common) < 2:
        raise DataError(
            f"{one} and {two} have {len(common)} images in common, by path and slice; score the "
            "same images by both runs"
        )
    ours, theirs = ([found[key] for key in common] for found in (first, second))
    scores = [np.array([row.score for row in rows]) for rows in (ours, theirs)]
    rows = [
        ["images in common", str(len(common)), str(len(common)), ""],
        ["images in all", str(len(first)), str(len(second)), ""],
        ["rank correlation (Spearman)", "", "", f"{_spearman(*scores):.3f}"],
        _flagged(ours, theirs, fpr),
    ]
    notes = []
    labels = [row.is_anomalous for row in ours]
    known = np.array([label is not None for label in labels])
    truth = np.array([label is True for label in labels])
    if min((truth & known).sum(), (~truth & known).sum()) >= _FEWEST:
        groups = [row.patient for row in ours]
        rows.append(_ranking([s[known] for s in scores], truth[known], _kept(groups, known)))
        if not all(groups):
            notes.append("no patient ids: images were taken as independent")
    else:
        notes.append(f"fewer than {_FEWEST} labelled images of each class: no AUROC")
    return SideBySide(
        title="Scores", columns=["figure", one.name, two.name, "between them"], rows=rows,
        notes=tuple(notes),
    )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    score: float
    p_value: float
    patient: str
    is_anomalous: bool | None


def _by_image(path: Path) -> dict[tuple[str, str], _Row]:
    cases: Cases | None = read_scores(path).cases
    if cases is None:
        raise DataError(f"{path}: holds no scored image")
    columns = (cases.anomaly_score, cases.p_value, cases.patient_id, cases.is_anomalous)
    keys = zip(cases.path, cases.place, strict=True)
    return {key: _Row(*row) for key, row in zip(keys, zip(*columns, strict=True), strict=True)}


def _kept(groups: list[str], known: NDArray[np.bool_]) -> NDArray[Any] | None:
    return np.array(groups)[known] if all(groups) else None


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(first), rankdata(second)
    if min(r.std() for r in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _flagged(ours: list[_Row], theirs: list[_Row], fpr: float) -> list[str]:
    flags = [np.array([row.p_value <= fpr for row in rows]) for rows in (ours, theirs)]
    both = int((flags[0] & flags[1]).sum())
    return [f"flagged, p <= {fpr:g}", *(str(int(f.sum())) for f in flags), f"{both} by both"]


def _ranking(
    scores: list[NDArray[np.float64]], truth: NDArray[np.bool_], groups: NDArray[Any] | None
) -> list[str]:
    found = paired_bootstrap(auroc, scores[0], scores[1], truth, groups=groups)
    values = [f"{auroc(s, truth):.3f}" for s in scores]
    between = f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    return ["AUROC, labelled images", *values, between]
