"""The table of every system that the paper cites, drawn from records: entries, Markdown, CSV.

    records -> cited_entries -> write_cited -> CSV -> read_cited -> cited_markdown

A row is a system as it was trained (recipe and epochs). AUROC is the mean over seeds, the interval
the mean of the seeds' 95 % bootstrap intervals over test images, patients drawn whole where they
are known; ± is the deviation over seeds. Published figures stand beside with their source, and say
whether they were read there or are remembered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from normalis.errors import DataError
from normalis.files import read_csv, write_atomically, write_csv
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
    "METRICS",
    "Entry",
    "Figure",
    "cited_csv",
    "cited_entries",
    "cited_markdown",
    "most_trained",
    "read_cited",
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
    "records", "finished",
)  # fmt: skip
_NAME = 12  # first digits of a record's identity


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric in percent.

    Attributes:
        mean: over seeds.
        deviation: over seeds, None for one.
        low: mean of the seeds' lower ends, None where there is no interval.
        high: of their upper ends.
    """

    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A system on a set, as it was trained.

    Attributes:
        name: of the set.
        system: the row.
        recipe: of the training, empty without a network.
        epochs: of the training, None without a network.
        seeds: how many trainings; 0 if it failed.
        figures: a key of `METRICS` -> figure; what the set has.
        fit_s: mean over seeds.
        score_s: mean over seeds.
        n_train: images that it is trained on.
        failed: why, empty if it did not.
        records: the beginnings of the records' identities.
        finished: day of the last one.
    """

    name: str
    system: System
    recipe: str
    epochs: int | None
    seeds: int = 0
    figures: Mapping[str, Figure] = field(default_factory=dict)
    fit_s: float = math.nan
    score_s: float = math.nan
    n_train: int = 0
    failed: str = ""
    records: Sequence[str] = ()
    finished: str = ""


def cited_entries(results: str | Path) -> list[Entry]:
    """Return all entries that a results folder has records or failures of, in the table's order."""
    rows: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in Records(results).table():
        if (key := _key(record["settings"], trained=bool(record["n_parameters"]))) is not None:
            rows.setdefault(key, []).append(record)
    entries = [_entry(key, found) for key, found in rows.items()]
    return sorted(entries + _failed(results, set(rows)), key=_place)


def _entry(key: tuple[Any, ...], records: Sequence[Mapping[str, Any]]) -> Entry:
    name, system, recipe, epochs = key
    figures = {m: found for m in METRICS if (found := _figure(records, m)) is not None}
    fit_s, score_s = (float(np.mean([r[k] for r in records])) for k in ("fit_s", "score_s"))
    return Entry(
        name=name, system=system, recipe=recipe, epochs=epochs, seeds=len(records),
        figures=figures, n_train=records[0]["n_train"], fit_s=fit_s, score_s=score_s,
        records=[r["id"][:_NAME] for r in records],
        finished=max(str(r.get("finished_at") or "")[:10] for r in records),
    )  # fmt: skip


def _figure(records: Sequence[Mapping[str, Any]], metric: str) -> Figure | None:
    """Return a metric over seeds in percent, None where the set has none."""
    values = [100 * r[metric] for r in records if r.get(metric) is not None]
    if not values:
        return None
    ends = [r["metrics"].get(metric, {}) for r in records]
    low, high = (
        float(np.mean([math.nan if e.get(end) is None else 100 * e[end] for e in ends]))
        for end in ("low", "high")
    )
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    known = not math.isnan(low + high)
    return Figure(
        mean=float(np.mean(values)),
        deviation=deviation,
        low=low if known else None,
        high=high if known else None,
    )


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


def most_trained(entries: Sequence[Entry]) -> list[Entry]:
    """Return one entry per set and system: by the paper's recipe if it is there, most epochs."""
    ordered = sorted(entries, key=lambda e: (e.seeds > 0, e.recipe == "paper", e.epochs or 0))
    found = {(e.name, e.system): e for e in ordered}
    return [e for e in entries if found[e.name, e.system] is e]


# --- Markdown and CSV ---


def cited_markdown(entries: Sequence[Entry]) -> str:
    """Return the table over all sets, one table a set, and what a reader must know."""
    if not entries:
        return "No records yet."
    sets = list(dict.fromkeys(e.name for e in entries))
    parts = [_over_sets(entries, sets), *(_of_set(entries, name) for name in sets)]
    return "\n\n".join([*parts, _failures(entries), _published(), _notes(entries)]).strip() + "\n"


def _over_sets(entries: Sequence[Entry], sets: Sequence[str]) -> str:
    """Return AUROC by system and set, each system in its most trained form."""
    groups: dict[System, dict[str, Entry]] = {}
    for entry in most_trained(entries):
        groups.setdefault(entry.system, {})[entry.name] = entry
    ordered = sorted(groups, key=lambda s: (list(GROUPS).index(s.group), SYSTEMS.index(s)))
    rows = []
    for system in ordered:
        mine = groups[system]
        cells = [_short(mine[name]) if name in mine else "" for name in sets]
        rows.append([_name(system), GROUPS[system.group], *cells, _trained(mine.values()),
                     _span([e.fit_s for e in mine.values() if e.seeds])])  # fmt: skip
    return _table(["AUROC", "", *sets, "epochs", "fit, s"], rows)


def _trained(entries: Iterable[Entry]) -> str:
    epochs: dict[str, list[int]] = {}
    for entry in entries:
        if entry.epochs is not None:
            epochs.setdefault(entry.recipe, []).append(entry.epochs)
    return ", ".join(f"{_between(min(n), max(n))} {recipe}" for recipe, n in epochs.items())


def _between(low: Any, high: Any) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _of_set(entries: Sequence[Entry], name: str) -> str:
    mine = [e for e in entries if e.name == name and e.seeds]
    metrics = [m for m in METRICS if any(m in e.figures for e in mine)]
    head = ["system", "seeds", *(METRICS[m] for m in metrics), "epochs", "fit, s", "score, s"]
    rows = [
        [_name(e.system), str(e.seeds), *(_full(e, m) for m in metrics), _trained([e]),
         _seconds(e.fit_s), _seconds(e.score_s)]
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
    found = [
        "In percent. [low, high]: mean over seeds of the 95 % bootstrap interval over test images, "
        "patients drawn whole where they are known; ±: deviation over seeds.",
        "All sets are development sets: they can refute, not confirm.",
        "brain_tumor's official split leaks: most normal test images have a twin among the "
        "training images, which rewards memory; brain_tumor_without_leak is trained without them.",
        "Best Dice chooses its threshold with the labels it is scored on.",
        "Seconds are of the machine as it was, loaded or not.",
    ]
    return " ".join(found + _missing(entries))


def _missing(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence for each set that lacks rows."""
    found = []
    for name in dict.fromkeys([*SETS, *(e.name for e in entries)]):
        there = {e.system for e in entries if e.name == name}
        lacking = [s.name for s in SYSTEMS if s not in there and s.latent_dim(name) is not None]
        if there and lacking:
            found.append(f"No record yet on {name}: {'; '.join(lacking)}.")
    return found


def _name(system: System) -> str:
    return f"{system.name} [{system.cites}]" if system.cites else system.name


def _short(entry: Entry) -> str:
    return "failed" if entry.failed else _shown(entry.figures["auroc"], spread=False)


def _full(entry: Entry, metric: str) -> str:
    return _shown(entry.figures[metric]) if metric in entry.figures else ""


def _shown(figure: Figure, *, spread: bool = True) -> str:
    text = f"{figure.mean:.1f}"
    text += f" ± {figure.deviation:.1f}" if spread and figure.deviation is not None else ""
    return text if figure.low is None else f"{text} [{figure.low:.1f}, {figure.high:.1f}]"


def _span(seconds: Sequence[float]) -> str:
    return _between(_seconds(min(seconds)), _seconds(max(seconds))) if seconds else ""


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)


def cited_csv(entries: Sequence[Entry]) -> list[list[Any]]:
    """Return a row per set, system and metric; see `CSV_COLUMNS`."""
    said: dict[str, list[str]] = {}
    for p in published():
        words = f"{p['metric']} {p['value']} on {p['data']} ({p['source']}; {p['grade']})"
        said.setdefault(p["system"], []).append(words)
    return [
        _csv_row(entry, metric, "; ".join(said.get(entry.system.name, [])))
        for entry in entries
        for metric in entry.figures or ("",)
    ]


def _csv_row(entry: Entry, metric: str, said: str) -> list[Any]:
    s, figure = entry.system, entry.figures.get(metric)
    head = [entry.name, s.group, s.name, s.cites, s.method, s.scorer, entry.recipe, entry.epochs]
    if figure is None:
        return [*head, 0, "", *[None] * 7, entry.failed, said, "", ""]
    numbers = [figure.mean, figure.deviation, figure.low, figure.high]
    rounded = [None if v is None else round(v, 3) for v in numbers]
    times = [round(entry.fit_s, 2), round(entry.score_s, 2)]
    made = [" ".join(entry.records), entry.finished]
    return [*head, entry.seeds, metric, *rounded, *times, entry.n_train, "", said, *made]


def read_cited(file: str | Path) -> list[Entry]:
    """Return the entries of a file that `write_cited` wrote.

    Raises:
        DataError: if a row is of no system.
        ValueError: if it is no such table.
    """
    systems = {s.name: s for s in SYSTEMS}
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in read_csv(Path(file), columns=CSV_COLUMNS):
        if row["system"] not in systems:
            raise DataError(f"{file}: must name systems of the table, got {row['system']!r}")
        key = tuple(row[k] for k in ("set", "system", "recipe", "epochs"))
        groups.setdefault(key, []).append(row)
    return [_read(systems[key[1]], rows) for key, rows in groups.items()]


def _read(system: System, rows: Sequence[Mapping[str, str]]) -> Entry:
    first, numbers = rows[0], ("mean", "deviation", "low", "high")
    figures = {
        row["metric"]: Figure(**{k: float(row[k]) if row[k] else None for k in numbers})  # type: ignore[arg-type]
        for row in rows
        if row["metric"]
    }
    return Entry(
        name=first["set"], system=system, recipe=first["recipe"],
        epochs=int(first["epochs"]) if first["epochs"] else None, seeds=int(first["seeds"]),
        figures=figures, fit_s=float(first["fit_s"] or "nan"),
        score_s=float(first["score_s"] or "nan"), n_train=int(first["n_train"] or 0),
        failed=first["failed"], records=first["records"].split(), finished=first["finished"],
    )  # fmt: skip


def write_cited(results: str | Path) -> list[Path]:
    """Write ``RESULTS/tables/cited.md`` and ``cited.csv``; return the files."""
    base = Path(results) / "tables" / "cited"
    table, markdown = base.with_suffix(".csv"), base.with_suffix(".md")
    write_csv(table, CSV_COLUMNS, cited_csv(cited_entries(results)))
    text = cited_markdown(read_cited(table))  # rounded once, so that both say the same
    write_atomically(markdown, lambda p: p.write_text(text, encoding="utf-8"))
    return [markdown, table]
