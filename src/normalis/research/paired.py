"""Records of the same test images -> is one method better than another, on these patients?

Two methods that are scored on the same images are compared draw by draw: patients (images, where
no patient is known) are drawn with replacement, both methods are measured on the same draw, and
what counts is the difference. Intervals of each method alone say much less, since a draw that is
hard for one is mostly hard for the other. With many methods p-values are corrected (Holm).

Of several seeds the mean is compared. That speaks of these trainings on new patients; whether new
trainings would agree is another question, which takes several seeds and Welch's test
(`normalis.metrics.welch`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError, SettingsError
from normalis.metrics import auroc, average_precision, holm
from normalis.metrics.comparison import compare_draws
from normalis.metrics.intervals import Draws, Metric, draw_statistics
from normalis.research.records import Records
from normalis.research.reproduce import reference
from normalis.scorers import default_reduction
from normalis.training.settings import TrainingSettings

__all__ = ["METRICS", "Versus", "row_of", "versus"]

METRICS: dict[str, Metric] = {"auroc": auroc, "average_precision": average_precision}
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Versus:
    """One row against the reference; both numbers are means over seeds.

    Attributes:
        row: what was done, as `row_of` names it.
        n_seeds: records behind it.
        value: of the metric.
        difference: minus the reference's.
        low: lower end of the difference's 95 % interval.
        high: its upper end.
        p_value: two-sided, of no difference.
        adjusted_p: the same, corrected for the number of rows.
        n_units: patients, or images where no patient is known.
    """

    row: str
    n_seeds: int
    value: float
    difference: float
    low: float
    high: float
    p_value: float
    adjusted_p: float
    n_units: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``undecided`` at 5 % after the correction."""
        if not self.adjusted_p < 0.05:
            return "undecided"
        return "better" if self.difference > 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, eq=False)
class _Row:
    scores: list[NDArray[np.float64]]  # one (N,) per seed
    is_network: bool


def row_of(record: Mapping[str, Any]) -> str:
    """Return what a record did, in one line: everything but the data set and the seed."""
    settings = record["settings"]
    usual_epochs = reference()["epochs"].get(record["dataset"], 250)
    latent = None if record["latent_dim"] is None else f"d = {record['latent_dim']}"
    options = {**settings["options"], **(settings.get("scorer_options") or {})}
    changed = [f"{k} = {v}" for k, v in options.items()]
    changed += [f"{k} = {v}" for k, v in settings["subset"].items() if v]
    training = settings["training"]
    epochs, recipe, precision = training["epochs"], training["recipe"], training["precision"]
    changed += [f"{epochs} epochs"] if epochs != usual_epochs and record["n_parameters"] else []
    changed += [f"recipe {recipe}"] if recipe != "paper" else []
    changed += [f"precision {precision}"] if precision != "auto" else []
    rate = training["learning_rate"]
    changed += [f"learning_rate = {rate:g}"] if rate != TrainingSettings().learning_rate else []
    changed += ["standardize"] if training["standardize"] else []
    reading = [f"read by {record['scorer']}"] if record["scorer"] != "native" else []
    usual = record["reduction"] == default_reduction(record["scorer"])
    reduction = [] if usual else [f"{record['reduction']} of the map"]
    parts = [record["method"], latent, *changed, *reading, *reduction]
    return ", ".join(part for part in parts if part)


def versus(
    results: str | Path,
    *,
    dataset: str,
    against: str | None = None,
    metric: str = "auroc",
    rows: str | None = None,
) -> tuple[str, list[Versus]]:
    """Compare all records of a data set with one row of them.

    Args:
        results: the results folder.
        dataset: name of the data set.
        against: the row to compare with, as `row_of` names it; None takes the best of those without
            a network, which a method must beat to have shown anything.
        metric: a key of `METRICS`.
        rows: regular expression that a row must contain to take part; None for all. p-values are
            corrected for the rows that take part, so fix it before looking.

    Returns:
        The reference's row and the others, best first. Records whose test images are not the
        reference's are left out.

    Raises:
        SettingsError: if the metric is unknown or the expression is none.
        DataError: if there is no such data set or row.
    """
    if metric not in METRICS:
        raise SettingsError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    measure = METRICS[metric]
    by_test = _rows(results, dataset, _chooser(rows, against))
    reference, mine, test = _reference(by_test, against, measure)
    units = Draws.of(test.groups, len(test.labels), n=_DRAWS)
    drawn = {name: _drawn(row, test.labels, measure, units) for name, row in mine.items()}
    values = {name: _value(row, test.labels, measure) for name, row in mine.items()}
    found = []
    for name in mine:
        if name != reference:
            one = compare_draws(
                values[name] - values[reference], drawn[name] - drawn[reference], units=units
            )
            found.append(
                Versus(
                    row=name,
                    n_seeds=len(mine[name].scores),
                    value=values[name],
                    difference=one.difference,
                    low=one.low,
                    high=one.high,
                    p_value=one.p_value,
                    adjusted_p=one.p_value,
                    n_units=units.n_units,
                )
            )
    adjusted = holm([one.p_value for one in found])
    found = [replace(one, adjusted_p=float(p)) for one, p in zip(found, adjusted, strict=True)]
    return reference, sorted(found, key=lambda one: -one.value)


@dataclass(frozen=True, eq=False)
class _Test:
    paths: tuple[str, ...]
    labels: NDArray[np.bool_]
    groups: NDArray[Any] | None


def _chooser(rows: str | None, against: str | None) -> Callable[[str], bool]:
    """Return whether a row takes part; what all are compared with always does."""
    try:
        pattern = re.compile(rows or "")
    except re.error as error:
        raise SettingsError(f"rows must be a regular expression, got {rows!r}: {error}") from error
    return lambda name: name == against or pattern.search(name) is not None


def _rows(
    results: str | Path, dataset: str, takes_part: Callable[[str], bool]
) -> list[tuple[_Test, dict[str, _Row]]]:
    """Return the rows of a data set, apart for each set of test images, the most rows first."""
    found: dict[tuple[str, ...], tuple[_Test, dict[str, _Row]]] = {}
    store = Records(results)
    chosen = [r for r in store.table() if r["dataset"] == dataset]
    if not chosen:
        there = ", ".join(sorted({r["dataset"] for r in store.table()})) or "none"
        raise DataError(f"{results}: has no record of {dataset!r}; data sets there: {there}")
    chosen = [r for r in chosen if takes_part(row_of(r))]
    if not chosen:
        raise DataError(f"{results}: no row of {dataset!r} matches; leave rows out to see them all")
    for brief in sorted(chosen, key=lambda r: (row_of(r), r["seed"])):
        record = store.read(brief["id"])
        kept = np.array(record["split"]) == "test"
        paths = tuple(np.array(record["path"])[kept])
        patients = np.array([p or "" for p in record["patient_id"]])[kept]
        labels = np.array(record["is_anomalous"], bool)[kept]
        test = _Test(paths, labels, None if (patients == "").any() else patients)
        rows = found.setdefault(paths, (test, {}))[1]
        row = rows.setdefault(row_of(brief), _Row([], bool(brief["n_parameters"])))
        row.scores.append(np.array(record["anomaly_score"], float)[kept])
    return sorted(found.values(), key=lambda one: -len(one[1]))


def _reference(
    by_test: Sequence[tuple[_Test, dict[str, _Row]]], against: str | None, measure: Metric
) -> tuple[str, dict[str, _Row], _Test]:
    if against is None:
        test, rows = by_test[0]
        plain = {k: _value(r, test.labels, measure) for k, r in rows.items() if not r.is_network}
        if not plain:
            raise DataError(
                "no record of a method without a network to compare with; name a row, one of: "
                + "; ".join(rows)
            )
        return max(plain, key=lambda name: plain[name]), rows, test
    for test, rows in by_test:
        if against in rows:
            return against, rows, test
    known = "; ".join(dict.fromkeys(name for _, rows in by_test for name in rows))
    raise DataError(f"no record of {against!r}; rows there: {known}")


def _value(row: _Row, labels: NDArray[np.bool_], measure: Metric) -> float:
    return float(np.mean([measure(scores, labels) for scores in row.scores]))


def _drawn(
    row: _Row, labels: NDArray[np.bool_], measure: Metric, units: Draws
) -> NDArray[np.float64]:
    """Return the metric on each draw, averaged over seeds."""
    each = [draw_statistics(measure, scores, labels, units=units)[0] for scores in row.scores]
    return np.asarray(np.mean(each, axis=0))
