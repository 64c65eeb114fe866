"""The table of every system that the paper cites, drawn from records: rows, Markdown, CSV.

A row is a system as it was trained (recipe and epochs). AUROC is the mean over seeds, the interval
the mean of the seeds' 95 % bootstrap intervals over test images, patients drawn whole where they
are known; ± is the deviation over seeds. Published figures stand beside with their source, and say
whether they were read there or are remembered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normalis.files import write_atomically, write_csv
from normalis.research.cited import (
    GROUPS,
    SETS,
    SYSTEMS,
    System,
    failures,
    published,
    set_of,
    system_of,
)
from normalis.research.records import Records

__all__ = [
    "CSV_COLUMNS",
    "Entry",
    "cited_csv",
    "cited_entries",
    "cited_markdown",
    "write_cited",
]

METRICS = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "pixel_average_precision": "pixel AP",
    "best_dice": "best Dice",
}
CSV_COLUMNS = (
    "set", "group", "system", "cites", "method", "scorer", "recipe", "epochs", "seeds", "metric",
    "mean", "deviation", "low", "high", "fit_s", "score_s", "n_train", "failed", "published",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A system on a set, as it was trained.

    Attributes:
        name: of the set.
        system: the row.
        recipe: of the training, empty without a network.
        epochs: of the training, None without a network.
        records: one per seed; none if it failed.
        failed: why, empty if it did not.
    """

    name: str
    system: System
    recipe: str
    epochs: int | None
    records: Sequence[Mapping[str, Any]] = ()
    failed: str = ""

    def values(self, metric: str) -> list[float]:
        """Return a metric in percent, one per seed; empty where the set has none."""
        return [100 * r[metric] for r in self.records if r.get(metric) is not None]

    def interval(self, metric: str) -> tuple[float, float]:
        """Return the mean of the seeds' intervals in percent, NaN where there is none."""
        ends = [r["metrics"].get(metric, {}) for r in self.records]
        low, high = (
            float(np.mean([100 * e.get(end, math.nan) for e in ends])) for end in ("low", "high")
        )
        return low, high

    def seconds(self, key: str) -> float:
        """Return the mean of ``fit_s`` or ``score_s``."""
        return float(np.mean([r[key] for r in self.records]))


def cited_entries(results: str | Path) -> list[Entry]:
    """Return all entries that a results folder has records or failures of, in the table's order."""
    rows: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in Records(results).table():
        if (key := _key(record["settings"], trained=bool(record["n_parameters"]))) is not None:
            rows.setdefault(key, []).append(record)
    entries = [
        Entry(name=name, system=system, recipe=recipe, epochs=epochs, records=found)
        for (name, system, recipe, epochs), found in rows.items()
    ]
    return sorted(entries + _failed(results, set(rows)), key=_place)


def _failed(results: str | Path, known: set[tuple[Any, ...]]) -> list[Entry]:
    found: dict[tuple[Any, ...], Entry] = {}
    for note in failures(results):
        key = _key(note["settings"], trained=True)
        if key is not None and key not in known:
            name, system, recipe, epochs = key
            found[key] = Entry(
                name=name, system=system, recipe=recipe, epochs=epochs, failed=note["message"]
            )
    return list(found.values())


def _key(settings: Mapping[str, Any], *, trained: bool) -> tuple[Any, ...] | None:
    system = system_of(settings)
    if system is None:
        return None
    training = settings["training"]
    how = (training["recipe"], training["epochs"]) if trained or _is_panel(system) else ("", None)
    return (set_of(settings), system, *how)


def _is_panel(system: System) -> bool:
    return system.group == "ours"


def _place(entry: Entry) -> tuple[Any, ...]:
    sets = list(SETS)
    known = sets.index(entry.name) if entry.name in sets else len(sets)
    group = list(GROUPS).index(entry.system.group)
    return known, entry.name, group, SYSTEMS.index(entry.system), entry.recipe, entry.epochs or 0


# --- Markdown and CSV ---


def cited_markdown(results: str | Path) -> str:
    """Return the table over all sets, one table a set, and what a reader must know."""
    entries = cited_entries(results)
    if not entries:
        return "No records yet."
    sets = list(dict.fromkeys(e.name for e in entries))
    parts = [_over_sets(entries, sets), *(_of_set(entries, name) for name in sets)]
    return "\n\n".join([*parts, _failures(entries), _published(), _notes(entries)]).strip() + "\n"


def _over_sets(entries: Sequence[Entry], sets: Sequence[str]) -> str:
    """Return AUROC by system and set, a row per system in its least trained form first."""
    groups: dict[System, dict[str, Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.system, {}).setdefault(entry.name, entry)
    ordered = sorted(groups, key=lambda s: (list(GROUPS).index(s.group), SYSTEMS.index(s)))
    head = ["AUROC", "", *sets, "fit, s"]
    rows = []
    for system in ordered:
        mine = groups[system]
        done = [e.seconds("fit_s") for e in mine.values() if e.records]
        cells = [_short(mine[name]) if name in mine else "" for name in sets]
        rows.append([_name(system), GROUPS[system.group], *cells, _span(done)])
    return _table(head, rows)


def _of_set(entries: Sequence[Entry], name: str) -> str:
    mine = [e for e in entries if e.name == name and e.records]
    metrics = [m for m in METRICS if any(e.values(m) for e in mine)]
    head = ["system", "seeds", *(METRICS[m] for m in metrics), "epochs", "fit, s", "score, s"]
    rows = [
        [
            _name(e.system), str(len(e.records)), *(_full(e, m) for m in metrics),
            "" if e.epochs is None else f"{e.epochs} {e.recipe}",
            _seconds(e.seconds("fit_s")), _seconds(e.seconds("score_s")),
        ]
        for e in mine
    ]  # fmt: skip
    return f"**{name}**\n\n{_table(head, rows)}"


def _failures(entries: Sequence[Entry]) -> str:
    rows = [[e.name, _name(e.system), e.failed] for e in entries if e.failed]
    return f"**Failed**\n\n{_table(['set', 'system', 'why'], rows)}" if rows else ""


def _published() -> str:
    rows = [
        [p["system"], p["data"], p["metric"], p["value"], p["source"],
         "read" if p["grade"] == "read" else "remembered: not checked"]
        for p in published()
    ]  # fmt: skip
    head = ["system", "on", "metric", "published, %", "source", ""]
    return f"**Published**\n\n{_table(head, rows)}"


def _notes(entries: Sequence[Entry]) -> str:
    missing = [s.name for s in SYSTEMS if s not in {e.system for e in entries}]
    found = [
        "In percent. [low, high]: mean over seeds of the 95 % bootstrap interval over test images, "
        "patients drawn whole where they are known; ±: deviation over seeds.",
        "All sets are development sets: they can refute, not confirm.",
        "brain_tumor's official split leaks: most normal test images have a twin among the "
        "training images, which rewards memory; brain_tumor_without_leak is trained without them.",
        "Best Dice chooses its threshold with the labels it is scored on.",
        "Seconds are of the machine as it was, loaded or not.",
    ]
    if missing:
        found.append(f"No record yet: {', '.join(missing)}.")
    return " ".join(found)


def _name(system: System) -> str:
    return f"{system.name} [{system.cites}]" if system.cites else system.name


def _short(entry: Entry) -> str:
    if entry.failed:
        return "failed"
    low, high = entry.interval("auroc")
    mean = f"{np.mean(entry.values('auroc')):.1f}"
    return mean if math.isnan(low) else f"{mean} [{low:.1f}, {high:.1f}]"


def _full(entry: Entry, metric: str) -> str:
    values = entry.values(metric)
    if not values:
        return ""
    low, high = entry.interval(metric)
    text = f"{np.mean(values):.1f}"
    text += f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return text if math.isnan(low) else f"{text} [{low:.1f}, {high:.1f}]"


def _span(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    low, high = _seconds(min(seconds)), _seconds(max(seconds))
    return low if low == high else f"{low} to {high}"


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)


def cited_csv(results: str | Path) -> list[list[Any]]:
    """Return a row per set, system and metric; see `CSV_COLUMNS`."""
    said: dict[str, list[str]] = {}
    for p in published():
        words = f"{p['metric']} {p['value']} on {p['data']} ({p['source']}; {p['grade']})"
        said.setdefault(p["system"], []).append(words)
    rows = []
    for entry in cited_entries(results):
        for metric in METRICS if entry.records else ("",):
            if entry.records and not entry.values(metric):
                continue
            rows.append(_csv_row(entry, metric, "; ".join(said.get(entry.system.name, []))))
    return rows


def _csv_row(entry: Entry, metric: str, said: str) -> list[Any]:
    s, values = entry.system, entry.values(metric)
    head = [entry.name, s.group, s.name, s.cites, s.method, s.scorer, entry.recipe, entry.epochs]
    if not entry.records:
        return [*head, 0, "", *[None] * 7, entry.failed, said]
    low, high = entry.interval(metric)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    numbers = [float(np.mean(values)), deviation, low, high]
    times = [round(entry.seconds(k), 2) for k in ("fit_s", "score_s")]
    rounded = [None if v is None or math.isnan(v) else round(v, 3) for v in numbers]
    n_train = entry.records[0]["n_train"]
    return [*head, len(values), metric, *rounded, *times, n_train, "", said]


def write_cited(results: str | Path) -> list[Path]:
    """Write ``RESULTS/tables/cited.md`` and ``cited.csv``; return the files."""
    base = Path(results) / "tables" / "cited"
    text = cited_markdown(results)
    markdown = base.with_suffix(".md")
    write_atomically(markdown, lambda p: p.write_text(text, encoding="utf-8"))
    write_csv(base.with_suffix(".csv"), CSV_COLUMNS, cited_csv(results))
    return [markdown, base.with_suffix(".csv")]
