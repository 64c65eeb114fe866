"""Write the tables of docs/data that come from results/, and draw docs/results.md from all of them.

python docs/make_results.py

Long tables are CSVs (`long_tables`); the page holds what fits on a screen and is drawn from them
(`page`), so that a test can compare both within a second. ``docs/data/methods*.csv`` are written by
``benchmarks/methods.py``, apart from ``methods_records.csv``.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from normalis.files import write_csv
from normalis.research.paired import versus
from normalis.research.records import Records
from normalis.research.reproduce import TWIN, compare, figure3
from normalis.research.tables import (
    CSV_COLUMNS,
    FIGURE_COLUMNS,
    csv_rows,
    figure_rows,
    fill_in,
    write_figure,
)

HERE = Path(__file__).parent
RESULTS, DATA = HERE.parent / "results", HERE / "data"
OWN = "^(?!.*(drop_train_twins|validation_share))"  # rows of the page; other studies have theirs
PAPER_SETS = ("kermany_cxr", "lgg_flair", "brain_tumor")
SETS = ("kermany_cxr", "brain_tumor without its leak", "lgg_flair", "fundus", "breast_us_patches")
SHORT = {"brain_tumor without its leak": "brain_tumor, no leak", "breast_us_patches": "breast_us"}
BEST = 6  # rows of a long comparison that the page shows
RUNS = ("run", "images", "figure", "value", "low", "high")
VERSUS = ("data", "against", "units", "row", "seeds", "auroc", "difference", "low", "high",
          "adjusted_p", "verdict")  # fmt: skip
RECORDS = ("data", "seed", "method", "options", "reading", "auroc", "auroc_low", "auroc_high",
           "average_precision", "pixel_average_precision", "best_dice", "n_train", "epochs",
           "fit_s")  # fmt: skip

Row = Mapping[str, str]


# --- long tables, from the records ---


def single_runs(folder: Path) -> Iterator[list[Any]]:
    """Yield a row per figure of what `normalis evaluate --out` wrote into a folder."""
    for file in sorted(folder.glob("*.json")):
        for subset in json.loads(file.read_text(encoding="utf-8"))["subsets"]:
            if subset["name"].startswith("only "):
                continue
            named = f"{subset['name']} ({subset['n_normal']} + {subset['n_anomalous']})"
            figures = subset["ranking"] | {
                f"{k} (oracle)": v for k, v in subset["oracle"].items() if k == "best_dice"
            }
            best = max(subset["baselines"], key=lambda b: b["auroc"]["value"], default=None)
            if best:
                figures[f"best trivial score, {best['name']}: auroc"] = best["auroc"]
            for name, one in figures.items():
                yield [file.stem, named, name, *_ends(one)]


def _ends(one: Mapping[str, Any]) -> list[str]:
    return ["" if one[k] is None else f"{100 * one[k]:.1f}" for k in ("value", "low", "high")]


def comparisons() -> Iterator[list[Any]]:
    """Yield the paired comparisons of each data set, best first."""
    for data in PAPER_SETS:
        reference, found = versus(RESULTS, dataset=data, rows=OWN)
        for one in found:
            shares = (one.value, one.difference, one.low, one.high)
            yield [
                data, reference, one.n_units, one.row, one.n_seeds,
                *(f"{100 * v:.1f}" for v in shares), f"{one.adjusted_p:.1g}", one.verdict,
            ]  # fmt: skip


def recorded() -> Iterator[list[Any]]:
    """Yield methods by the paper's recipe at d = 16, as they are read by default and natively.

    Of brain_tumor those trained on the 278 images that no test image resembles.
    """
    for record in Records(RESULTS).table():
        asked = record["settings"]
        data, drawn = record["dataset"], asked["subset"]
        leak = TWIN if data == "brain_tumor" else None
        others = {k: v for k, v in drawn.items() if k != "drop_train_twins" and v}
        reading = f"{asked['scorer']} {asked['reduction']}"
        if drawn["drop_train_twins"] != leak or others or asked["latent_dim"] not in (16, None):
            continue
        if reading not in ("native mean", "median top:0.02") or not _by_the_paper(asked):
            continue
        figures = [_percent(record[k]) for k in RECORDS[8:11]]
        whole = record["metrics"]["auroc"]
        yield [
            f"{data}, trained without its leak" if leak else data, record["seed"],
            record["method"], ", ".join(f"{k}={v}" for k, v in sorted(asked["options"].items())),
            asked["scorer"], *(_percent(whole[k]) for k in ("value", "low", "high")), *figures,
            record["n_train"], asked["training"]["epochs"] if record["n_parameters"] else "",
            f"{record['fit_s']:.1f}",
        ]  # fmt: skip


def _by_the_paper(asked: Mapping[str, Any]) -> bool:
    training = asked["training"]
    fast = training["recipe"] != "paper" and asked["method"] != "dae"
    return not fast and not training["standardize"] and training["precision"] == "auto"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def long_tables() -> dict[str, tuple[Sequence[str], list[list[Any]]]]:
    """Return the head and the rows of each table of docs/data that comes from results/."""
    return {
        "results_runs": (RUNS, list(single_runs(RESULTS / "evaluations"))),
        "results_methods": (CSV_COLUMNS, csv_rows(compare("methods", RESULTS))),
        "results_versus": (VERSUS, list(comparisons())),
        "results_figure3": (FIGURE_COLUMNS, figure_rows(figure3(RESULTS))),
        "methods_records": (RECORDS, sorted(recorded(), key=lambda row: [str(v) for v in row])),
    }


# --- the page, from the long tables ---


def read(name: str) -> list[Row]:
    """Return the rows of a table of docs/data."""
    with (DATA / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runs_table() -> str:
    """Return a line per run: all test images, and the best score without a model beside."""
    rows = [row for row in read("results_runs") if row["images"].startswith("all ")]
    lines = []
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = {r["figure"]: r for r in rows if r["run"] == run}
        trivial = next(name for name in mine if name.startswith("best trivial score"))
        shown = ("auroc", "average_precision", "pixel_average_precision", "best_dice (oracle)")
        cells = [_cell([mine[name]], "value") if name in mine else "" for name in shown]
        named = trivial.removeprefix("best trivial score, ").removesuffix(": auroc")
        lines.append([run, *cells, f"{named}: {mine[trivial]['value']}"])
    head = ("run", "AUROC", "AP", "pixel AP", "best Dice (oracle)", "best trivial score: AUROC")
    return markdown(head, lines)


def methods_by_set() -> str:
    """Return the AUROC of each method and reading on the paper's three sets."""
    rows = [row for row in read("results_methods") if row["metric"] == "auroc"]
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        mine = {r["dataset"]: r for r in rows if r["row"] == name}
        cells = [_single(mine[data]) if data in mine else "" for data in PAPER_SETS]
        lines.append([name, *cells])
    return markdown(("method", *PAPER_SETS), lines)


def _single(row: Row) -> str:
    value = f"{float(row['mean']):.1f}"
    if row["deviation"]:
        return f"{value} ± {float(row['deviation']):.1f}"
    return f"{value} [{float(row['low']):.1f}, {float(row['high']):.1f}]" if row["low"] else value


def versus_table() -> str:
    """Return the best rows of each comparison, and how many are better, undecided and worse."""
    parts = []
    for data in PAPER_SETS:
        rows = [row for row in read("results_versus") if row["data"] == data]
        count = {v: sum(r["verdict"] == v for r in rows) for v in ("better", "undecided", "worse")}
        said = ", ".join(f"{n} {verdict}" for verdict, n in count.items())
        parts += [f"**{data}**, against {rows[0]['against']}, {rows[0]['units']} patients or "
                  f"images; of {len(rows)} rows {said}. The best {BEST}:", ""]  # fmt: skip
        lines = [
            [r["row"], r["seeds"], r["auroc"], f"{float(r['difference']):+.1f} "
             f"({float(r['low']):+.1f} to {float(r['high']):+.1f})", r["adjusted_p"]]
            for r in rows[:BEST]
        ]  # fmt: skip
        parts += [markdown(("method", "seeds", "AUROC", "difference", "p, corrected"), lines), ""]
    return "\n".join(parts).rstrip()


def all_methods() -> str:
    """Return the AUROC of every method on every set: means over seeds, half of the intervals."""
    rows = [[name, *(_half(_of_set(found, data)) for data in SETS)] for name, found in _named()]
    return markdown(("method", *(SHORT.get(name, name) for name in SETS)), rows)


def all_maps_and_costs() -> str:
    """Return pixel metrics, seconds and memory of every method that has any."""
    rows = []
    for name, found in _named():
        lgg, breast = (_of_set(found, data) for data in ("lgg_flair", "breast_us_patches"))
        pixels = [_mean(x, "pixel_average_precision") for x in (lgg, breast)]
        costs = [_middle(found, column) for column in ("fit_s", "images_s", "kept_mb")]
        if any((*pixels, *costs)):
            rows.append([name, *pixels, _mean(lgg, "best_dice"), *costs])
    head = ("method", "pixel AP, lgg_flair", "pixel AP, breast_us", "best Dice, lgg_flair",
            "fit, s", "images/s", "kept, MB")  # fmt: skip
    return markdown(head, rows)


def _named() -> list[tuple[str, list[Row]]]:
    """Return the rows of each method: fitted here, without a model, from records."""
    measured = [*read("methods"), *_trivial_rows()]
    found: dict[str, list[Row]] = {}
    for row in measured:
        found.setdefault(row["method"], []).append(row)
    recorded_rows = [row for row in read("methods_records") if row["epochs"]]  # networks
    for row in sorted(recorded_rows, key=lambda r: (r["method"], r["options"], r["reading"])):
        reading = "" if row["reading"] == "native" else row["reading"]
        options = row["options"].replace("=", "\u00a0=\u00a0").replace(".0", "")
        name = ", ".join(filter(None, (row["method"], options, reading)))
        found.setdefault(f"*{name}*", []).append(row)
    return list(found.items())


def _of_set(rows: Sequence[Row], data: str) -> list[Row]:
    first = data.split()[0]
    names = {data, f"{first}, trained without its leak"} if data != first else {data}
    return [row for row in rows if row["data"] in names]


def _half(rows: Sequence[Row]) -> str:
    """Return the mean AUROC with half of the mean interval's width."""
    low, high = (_values(rows, f"auroc_{end}") for end in ("low", "high"))
    if not low:
        return ""
    half = (sum(high) - sum(low)) / len(low) / 2
    return f"{_mean(rows, 'auroc')}\u00a0±\u00a0{half:.1f}"


def _middle(rows: Sequence[Row], column: str) -> str:
    values = sorted(_values(rows, column))
    if not values:
        return ""
    middle = values[len(values) // 2]
    return f"{middle:.0f}" if middle >= 10 else f"{middle:.1f}"


def _trivial_rows() -> list[Row]:
    rows = [row for row in read("methods_baselines") if row["seed"] == "0"]
    return [
        {"data": r["data"], "seed": "0", "method": f"({r['baseline'].replace('_', ' ')})",
         "auroc": r["auroc"], "auroc_low": r["low"], "auroc_high": r["high"]}
        for r in rows if "=" not in r["baseline"]
    ]  # fmt: skip


def _values(rows: Sequence[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row.get(column)]


def _mean(rows: Sequence[Row], column: str) -> str:
    values = _values(rows, column)
    return f"{sum(values) / len(values):.1f}" if values else ""


def _cell(rows: Sequence[Row], column: str) -> str:
    """Return the mean with the mean of the intervals' ends."""
    value = _mean(rows, column)
    prefix = "" if column == "value" else f"{column}_"
    low, high = (_mean(rows, f"{prefix}{end}") for end in ("low", "high"))
    return f"{value} [{low}, {high}]" if low and high else value


PARTS: dict[str, Callable[[], str]] = {
    "all methods": all_methods,
    "all maps and costs": all_maps_and_costs,
    "runs": runs_table,
    "methods by set": methods_by_set,
    "versus": versus_table,
}


def page(text: str, parts: Mapping[str, Callable[[], str]] = PARTS) -> str:
    """Return a page with each part drawn anew between its markers."""
    for name, draw in parts.items():
        new = f"<!-- {name} -->\n\n{draw()}\n\n<!-- end of {name} -->"
        pattern = f"<!-- {name} -->.*<!-- end of {name} -->"
        text = re.sub(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Rewrite the tables, the page and the figure."""
    for name, (head, rows) in long_tables().items():
        write_csv(DATA / f"{name}.csv", head, rows)
    file = HERE / "results.md"
    file.write_text(page(fill_in(file.read_text(encoding="utf-8"), RESULTS)), encoding="utf-8")
    curves = [c for c in figure3(RESULTS) if max(c.latent_dims) >= 512]
    if curves:
        write_figure(curves, HERE / "images")


if __name__ == "__main__":
    main()
