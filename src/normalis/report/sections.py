"""What a page says about a run or a scoring, as plain values that the template lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from normalis.calibration.conformal import Calibration
from normalis.errors import SettingsError
from normalis.report.figures import Chart, draw_charts
from normalis.report.sources import Source
from normalis.report.tiles import Tile, percent, seconds, tiles
from normalis.report.triage import level_thresholds

__all__ = [
    "Chart",
    "Evaluation",
    "Table",
    "Tile",
    "audit_tables",
    "calibration_table",
    "display_name",
    "draw_charts",
    "evaluation_part",
    "fact_tables",
    "findings",
    "tiles",
]

_TITLES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "pixel_auroc": "AUROC of pixels",
    "pixel_average_precision": "average precision of pixels",
    "false_positive_rate": "false-positive rate",
    "best_dice": "best Dice",
    "sensitivity_at_5_percent_fpr": "sensitivity at 5 % of the test's own normals",
}
_SECTIONS = (
    ("ranking", "Ranking", "Needs no threshold."),
    (
        "deployable",
        "At the operating point",
        "Its threshold was fixed on normal images.",
    ),
    ("by_kind", "AUROC by kind of anomaly", "Each kind against all normal images."),
    ("oracle", "Label-tuned", "Something was chosen with these very labels: not for comparison."),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text; ``numeric`` are the columns that are right-aligned."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    numeric: tuple[int, ...] = ()
    marked: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What ``evaluate`` found on one data set; ``more`` are tables of secondary interest."""

    title: str
    verdict: bool | None
    tables: list[Table]
    more: list[Table]
    findings: list[dict[str, str]]
    notes: list[str]


# --- tiles ---


# --- charts ---


# --- tables ---


def calibration_table(source: Source) -> Table | None:
    """Return which levels can be certified and what they flag."""
    calibration = source.calibration
    if calibration is None:
        return None
    title = "What the calibration certifies"
    columns = ["false-positive rate", "flag above the score"]
    cases = source.cases
    counted: dict[str, Any] = {}
    if cases is not None:
        groups = {
            "images flagged": np.ones(len(cases.p_value), bool),
            "labelled normals flagged": cases.labelled & ~cases.anomalous,
            "labelled anomalies found": cases.anomalous,
        }
        counted = {name: chosen for name, chosen in groups.items() if chosen.any()}
        columns += counted
    rows = []
    for rate, threshold in level_thresholds(source):
        certified = calibration.certifies_rate(rate)
        shown = f"{threshold:.5g}" if threshold is not None else "by p-value"
        row = [percent(rate), shown if certified else "cannot be certified"]
        if cases is not None:
            flags = cases.p_value <= rate
            row += [_share(flags, chosen) if certified else "" for chosen in counted.values()]
        rows.append(row)
    note = _certified_note(calibration, source.grouped_by)
    return Table(title=title, columns=columns, rows=rows, note=note, numeric=(1, 2, 3, 4))


def _certified_note(calibration: Calibration, grouped_by: str) -> str:
    n, unit = calibration.n_units, f"{calibration.level}s"
    if grouped_by:
        return (
            f"{n:,} independent {unit} were held out. Each {grouped_by} is compared with its own: "
            "one with K of them certifies rates from 1/(K + 1), and has a threshold of its own."
        )
    return (
        f"{n:,} independent {unit} were held out: the smallest rate that they can certify is "
        f"1/{n + 1:,} = {percent(calibration.smallest_rate)}. At 5 %: {_statement(calibration)}"
    )


def _statement(calibration: Calibration) -> str:
    try:
        calibration.check_rate(0.05)
        return calibration.statement(0.05)
    except SettingsError as error:
        return f"{error}."


def _share(flags: Any, chosen: Any) -> str:
    total = int(chosen.sum())
    hits = int((flags & chosen).sum())
    return f"{hits:,} of {total:,} ({percent(hits / total)})"


def fact_tables(source: Source) -> list[Table]:
    """Return settings, data and versions, as they were written."""
    details = source.details
    info = details.get("info") or {}
    data = dict(info.get("data") or {})
    times = {k: seconds(info[k]) for k in ("load_s", "fit_s") if k in info}
    rest = {k: info[k] for k in ("finished", "device", "threads") if k in info}
    if str(rest.get("finished", "")).endswith("+00:00"):
        rest["finished"] = f"{str(rest['finished'])[:16].replace('T', ' ')} UTC"
    params = dict(details.get("params") or {}) | {"members": info.get("members")}
    groups = [
        ("Data", {"folder": source.folder.name, **data}),
        ("Training", {**{_words(k): v for k, v in times.items()}, **rest}),
        ("Settings", {k: v for k, v in params.items() if v not in (None, [], {})}),
        ("Versions", info.get("versions") or {}),
    ]
    return [
        Table(title=title, columns=[], rows=[[_words(k), _text(v)] for k, v in body.items()])
        for title, body in groups
        if body
    ]


def _words(name: str) -> str:
    return {"load_s": "reading took", "fit_s": "fitting took"}.get(name, name.replace("_", " "))


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{k} = {_text(v)}" for k, v in value.items()) or "none"
    return str(value)


def findings(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the sentences of an audit, or those that an evaluation repeats."""
    return [
        {"severity": _text(f.get("severity", "note")), "text": _text(f.get("text", ""))}
        for f in body.get("findings") or []
    ]


def audit_tables(audit: Mapping[str, Any]) -> list[Table]:
    """Return the audit's tables other than its findings."""
    return [
        Table(
            title=_text(t.get("title", "")),
            columns=[_text(c) for c in t.get("columns") or []],
            rows=[[_text(cell) for cell in row] for row in t.get("rows") or []],
        )
        for t in audit.get("tables") or []
        if t.get("title") != "Findings"
    ]


def evaluation_part(evaluation: Mapping[str, Any]) -> Evaluation:
    """Return what ``evaluate`` found: operating point, baselines, what is label-tuned apart."""
    subsets = evaluation.get("subsets") or []
    baselines = [t for t in map(_baseline_table, subsets) if t is not None]
    return Evaluation(
        title=_text(evaluation.get("data") or ""),
        verdict=evaluation.get("beats_baselines"),
        tables=[
            t
            for t in (
                *(_figures(subsets, *s) for s in _SECTIONS),
                _group_table(evaluation),
                _lesion_table(evaluation),
                *baselines[:1],
            )
            if t.rows
        ],
        more=baselines[1:],
        findings=findings(evaluation),
        notes=[_text(note) for note in evaluation.get("notes") or []],
    )


def _figures(subsets: Sequence[Mapping[str, Any]], section: str, title: str, note: str) -> Table:
    rows = [
        [_TITLES.get(name, name), subset["name"], *_figure(one), _size(subset)]
        for subset in subsets
        for name, one in (subset.get(section) or {}).items()
    ]
    columns = ["figure", "images", "value", "95 % interval", "normal + anomalous"]
    return Table(title=title, columns=columns, rows=rows, note=note, numeric=(2, 3, 4))


def _group_table(evaluation: Mapping[str, Any]) -> Table:
    sizes = evaluation.get("group_sizes") or {}
    rows = [
        [_text(column), _text(value), *_figure(one), _text((sizes.get(column) or {}).get(value))]
        for column, values in (evaluation.get("groups") or {}).items()
        for value, one in values.items()
    ]
    return Table(
        title="False-positive rate by group",
        columns=["column", "group", "rate", "95 % interval", "normal images"],
        rows=rows,
        note="Share of normal images flagged at the threshold fixed on normal images. Groups that "
        "differ are not served equally.",
        numeric=(2, 3, 4),
    )


def _lesion_table(evaluation: Mapping[str, Any]) -> Table:
    rows = []
    count: Mapping[str, Any] = next(iter(evaluation.get("subsets") or []), {})
    for kind, one in (evaluation.get("coloured") or {}).items():
        rows.append([f"{kind} images coloured", *_figure(one), _text(count.get(f"n_{kind}"))])
    for lesion in evaluation.get("lesions") or []:
        found = _figure({**lesion, "value": lesion.get("sensitivity")})
        rows.append([f"lesions of {_pixels(lesion)} coloured", *found, f"{lesion['n']:.0f}"])
    for images in evaluation.get("highest") or []:
        name = f"highest place in the lesion, {_pixels(images)}"
        rows.append([name, *_figure(images), f"{images['n']:.0f}"])
    return Table(
        title="What maps show",
        columns=["pixels at the model's size", "share", "95 % interval", "of"],
        rows=rows,
        note="An image or a lesion is coloured if the map exceeds, anywhere in it, the level that "
        "the stated share of normal images exceed somewhere.",
        numeric=(1, 2, 3),
    )


def _pixels(row: Mapping[str, Any]) -> str:
    """Name a class of sizes."""
    low, high = row["min_size"], row.get("max_size")
    return f"{low:.0f} or more px" if high is None else f"{low:.0f} to {high - 1:.0f} px"


def _figure(one: Mapping[str, Any]) -> list[str]:
    value, low, high = (one.get(k) for k in ("value", "low", "high"))
    shown = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return ["" if value is None else f"{value:.3f}", shown]


def _size(subset: Mapping[str, Any]) -> str:
    return f"{subset['n_normal']} + {subset['n_anomalous']}"


def _baseline_table(subset: Mapping[str, Any]) -> Table | None:
    baselines = subset.get("baselines") or []
    if not baselines:
        return None
    rows = [
        [_text(b["name"]).replace("_", " "), *_figure(b["auroc"]), *_difference(b),
         "beaten" if b.get("beaten") else "not beaten"]
        for b in baselines
    ]  # fmt: skip
    own = (subset.get("ranking") or {}).get("auroc")
    if own:
        rows.insert(0, ["this method", *_figure(own), "", "", ""])
    note = (
        "A method that does not beat what knows nothing of medicine has shown nothing. Difference: "
        "method minus baseline; p of a paired comparison, corrected for the number of baselines."
    )
    return Table(
        title=f"Baselines, {subset['name']} images",
        columns=["score", "AUROC", "95 % interval", "difference", "p", "verdict"],
        rows=rows,
        note=note,
        numeric=(1, 2, 3, 4),
        marked=[b["name"].replace("_", " ") for b in baselines if not b.get("beaten")],
    )


def _difference(baseline: Mapping[str, Any]) -> list[str]:
    versus, p = baseline.get("comparison") or {}, baseline.get("adjusted_p")
    difference = versus.get("difference")
    return [
        "" if difference is None else f"{difference:+.3f}",
        "" if p is None else f"{p:.2g}",
    ]


def display_name(source: Source) -> str:
    """Return what the page is called: the images that were scored, or the data of the fit.

    Where neither is known, or a scoring was asked to name no folder, it is the page's own folder.
    """
    if source.kind == "scores":
        root = source.details.get("root")
        scored = root[0] if isinstance(root, list) and root and isinstance(root[0], str) else ""
        return PurePath(scored).name or PurePath(source.folder).name
    name = ((source.details.get("info") or {}).get("data") or {}).get("name")
    return str(name) if name else PurePath(source.folder).name
