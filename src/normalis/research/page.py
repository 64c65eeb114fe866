"""Records of a sweep -> one page: a row per experiment, its seeds together, and a figure by d.

Nothing is ranked as best: choosing a row by these figures would use the labels of the test images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normalis.errors import RunError
from normalis.report import charts, write_page
from normalis.report.page import render
from normalis.report.sections import Chart
from normalis.research.records import Records

__all__ = ["METRICS", "Row", "latent_dim_charts", "read_records", "rows_of", "write_results"]

#: metric -> title of its column; best Dice chooses its threshold with labels and says so
METRICS = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_average_precision": "pixel AP",
    "best_dice": "best Dice (label-tuned)",
}
_LINES = 10  # more lines in one figure cannot be told apart
_PLAIN_SCORERS = (("model", "mean"), ("native", "mean"))


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A metric over seeds.

    Attributes:
        mean: over seeds.
        low: lower end of the 95 % interval over images, averaged over seeds; None if unknown.
        high: its upper end.
        sd: standard deviation over seeds, None for one; read by the page's template.
        least: smallest over seeds.
        most: largest over seeds.
    """

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """Experiments that differ in their seed only.

    Attributes:
        dataset: name of the data.
        method: name of the method.
        variant: settings other than the defaults, in words.
        latent_dim: None for a method without one.
        epochs: passes over the training images.
        scorer: how maps were read.
        seeds: number of seeds.
        fit_s: mean seconds of training, None if not recorded.
        values: metric -> value.
    """

    dataset: str
    method: str
    variant: str
    latent_dim: int | None
    epochs: int | None
    scorer: str
    seeds: int
    fit_s: float | None
    values: Mapping[str, _Value]

    @property
    def title(self) -> str:
        """Name of the row's line in a figure."""
        more = [self.variant, "" if self.scorer == "own" else self.scorer]
        return ", ".join([self.method, *(part for part in more if part)])


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return one row per experiment, sorted by data set, method and latent dimension."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(_key(record), []).append(record)
    rows = [_row(group) for group in groups.values()]
    return sorted(rows, key=lambda r: (r.dataset, r.method, r.variant, r.scorer, r.latent_dim or 0))


def _key(record: Mapping[str, Any]) -> str:
    settings = dict(record.get("settings") or {})
    settings.pop("seed", None)
    named = {k: record.get(k) for k in ("dataset", "method", "latent_dim", "scorer", "reduction")}
    return json.dumps([settings, named], sort_keys=True, default=str)


def _row(group: Sequence[Mapping[str, Any]]) -> Row:
    first = group[0]
    scorer, reduction = first.get("scorer") or "model", first.get("reduction") or "mean"
    times = [r["fit_s"] for r in group if isinstance(r.get("fit_s"), int | float)]
    return Row(
        dataset=str(first.get("dataset", "")),
        method=str(first.get("method", "")),
        variant=_variant(first.get("settings") or {}),
        latent_dim=first.get("latent_dim"),
        epochs=first.get("epochs"),
        scorer="own" if (scorer, reduction) in _PLAIN_SCORERS else f"{scorer}, {reduction}",
        seeds=len(group),
        fit_s=float(np.mean(times)) if times else None,
        values={k: v for k in METRICS if (v := _value(group, k)) is not None},
    )


def _value(group: Sequence[Mapping[str, Any]], metric: str) -> _Value | None:
    values = [r[metric] for r in group if isinstance(r.get(metric), int | float)]
    if not values:
        return None
    details = [(r.get("metrics") or {}).get(metric) or {} for r in group]
    ends = [(d["low"], d["high"]) for d in details if d.get("low") is not None and d.get("high")]
    low, high = np.mean(ends, axis=0).tolist() if ends else (None, None)
    return _Value(
        mean=float(np.mean(values)),
        low=low,
        high=high,
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        least=min(values),
        most=max(values),
    )


def _variant(settings: Mapping[str, Any]) -> str:
    """Return options of the method, the subset of the images and so on, where they are set."""
    training, size = settings.get("training") or {}, settings.get("image_size")
    parts = [_pair(k, v) for k, v in (settings.get("options") or {}).items()]
    parts += [_pair(k, v) for k, v in (settings.get("subset") or {}).items() if v]
    parts += ["standardize"] if training.get("standardize") else []
    parts += ["fast recipe"] if training.get("recipe") == "fast" else []
    parts += [f"{size} pixels"] if size not in (None, 64) else []
    return ", ".join(parts)


def _pair(name: str, value: Any) -> str:
    return name if value is True else f"{name} {value}"


def latent_dim_charts(rows: Sequence[Row], metric: str = "auroc") -> list[Chart]:
    """Return a figure of the metric by latent dimension for each data set that has several."""
    found = []
    for number, dataset in enumerate(dict.fromkeys(row.dataset for row in rows)):
        mine = [row for row in rows if row.dataset == dataset and metric in row.values]
        lines = _lines(mine, metric)
        if len({d for points in lines.values() for d, *_ in points if not np.isnan(d)}) < 2:
            continue
        shown = dict(sorted(lines.items(), key=lambda item: -len(item[1]))[:_LINES])
        left = len(lines) - len(shown)
        found.append(
            Chart(
                title=dataset,
                wide=True,
                svg=charts.latent_dims(shown, name=f"latent-{number}", metric=METRICS[metric]),
                alt=f"{METRICS[metric]} by latent dimension on {dataset}, {len(shown)} methods; "
                "the table below has the figures.",
                caption="Means over seeds; band: smallest to largest seed. Level lines: methods "
                "without a latent vector."
                + (f" {left} more variants are in the table only." if left else ""),
            )
        )
    return found


def _lines(rows: Sequence[Row], metric: str) -> dict[str, list[tuple[float, float, float, float]]]:
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in sorted(rows, key=lambda r: r.latent_dim or 0):
        value, d = row.values[metric], float(row.latent_dim or "nan")
        lines.setdefault(row.title, []).append((d, value.mean, value.least, value.most))
    return lines


def write_results(path: str | Path, out: str | Path) -> Path:
    """Write the page of a sweep's results.

    Args:
        path: the results folder.
        out: the HTML file. An older page of ours is replaced, any other file is not.

    Raises:
        RunError: if there are no records, or ``out`` cannot be written.
    """
    return write_page(_page(Path(path)), Path(out))


def _page(folder: Path) -> str:
    records = read_records(folder)
    if not records:
        raise RunError(f"{folder}: must hold records of experiments, holds none")
    rows = rows_of(records)
    context: dict[str, Any] = {
        "name": folder.resolve().name,
        "rows": rows,
        "records": len(records),
        "metrics": {k: v for k, v in METRICS.items() if any(k in row.values for row in rows)},
        "datasets": sorted({row.dataset for row in rows}),
        "methods": sorted({row.method for row in rows}),
        "charts": latent_dim_charts(rows),
        "has_variants": any(row.variant for row in rows),
        "has_scorers": any(row.scorer != "own" for row in rows),
    }
    return render("results.html.j2", context)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return all experiment records of a results folder, JSON columns decoded."""
    return [{k: _decoded(v) for k, v in row.items()} for row in Records(path).all()]


def _decoded(value: Any) -> Any:
    """Turn a column that holds a JSON object back into one."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
