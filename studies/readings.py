"""What a fitted network says depends on how its map is read; rewrite the tables of that section.

    python studies/readings.py [--data ROOT] [--results results] [--draw-only]

For each leak-free set: the default of ``fit`` (ae-u with its usual options, d = 16, read by median)
against the loss of its authors, the paper's autoencoder at the latent dimension that is best in
hindsight and the best method without a network, paired by patient, and the AUROC by latent
dimension, all from records. With data, also every combination of map filter and reduction that was
tried before ``median`` was chosen, from the fitted models (of the authors' loss) in the results
folder, into ``results/readings.csv``; ``--draw-only`` takes that file.
"""

import argparse
import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, median_filter

from normalis.metrics import auroc, average_precision
from normalis.metrics.comparison import compare_draws
from normalis.metrics.intervals import Draws, draw_statistics
from normalis.models.inputs import as_tensor, to_model_input
from normalis.research.data import Store
from normalis.research.experiments import Experiment
from normalis.research.jobs import fitted
from normalis.research.paired import row_of, versus
from normalis.research.records import Records
from normalis.storage import write_csv
from pages import fill

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "selection_study.md"
OUT = ROOT / "results" / "readings.csv"
LEAK_FREE = ", drop_train_twins = 0.95"
SETS = {"kermany_cxr": "", "lgg_flair": "", "brain_tumor": LEAK_FREE}
DEFAULT = "ae-u, d = 16, clip = 1.0, noise = 2.0{}, read by median"
DIMS = (1, 2, 4, 8, 16, 32, 64, 128)

FILTERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda m: m,
    "square root": np.sqrt,
    "Gaussian, 1 pixel": lambda m: gaussian_filter(m, (0, 1, 1)),
    "Gaussian, 2 pixels": lambda m: gaussian_filter(m, (0, 2, 2)),
    "median, 3 x 3": lambda m: median_filter(m, (1, 3, 3)),
    "median, 5 x 5": lambda m: median_filter(m, (1, 5, 5)),
    "median, 7 x 7": lambda m: median_filter(m, (1, 7, 7)),
    "median, 9 x 9": lambda m: median_filter(m, (1, 9, 9)),
}


def top(share: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda m: np.sort(m, 1)[:, -max(1, round(share * m.shape[1])) :].mean(1)


REDUCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda m: m.mean(1),
    "top 20 %": top(0.2),
    "top 5 %": top(0.05),
    "top 2 %": top(0.02),
    "top 1 %": top(0.01),
    "maximum": lambda m: m.max(1),
    "95 % quantile": lambda m: np.quantile(m, 0.95, axis=1),
    "98 % quantile": lambda m: np.quantile(m, 0.98, axis=1),
}


def measure(data: Path, results: Path) -> list[tuple]:
    """Return AUROC and pixel AP of every filter and reduction."""
    store, rows = Store(results, data), []
    for record in Records(results).table():
        method, d, seed = record["method"], record["latent_dim"], record["seed"]
        row = row_of(record).replace(SETS.get(record["dataset"], "?") or "?", "")
        if row not in ("ae-u, d = 16", "ae, d = 16") or seed != 0:
            continue
        if SETS[record["dataset"]] and SETS[record["dataset"]] not in row_of(record):
            continue
        experiment = Experiment.from_settings(record["settings"])
        arrays = store.get(experiment.data)
        model, _ = fitted(experiment, arrays, results, device="cpu")
        chosen = arrays.split == "test"
        label, mask = arrays.is_anomalous[chosen], arrays.masks
        x = to_model_input(as_tensor(arrays.of("test")))
        with torch.no_grad():
            maps = torch.cat([model.anomaly_map(part) for part in x.split(128)]).numpy()
        for name, change in FILTERS.items():
            found = change(maps)
            flat = found.reshape(len(found), -1)
            pixels = ""
            if len(mask):
                pixels = round(average_precision(found.ravel(), mask.ravel()), 4)
            for reduction, reduce in REDUCTIONS.items():
                value = round(auroc(reduce(flat), label), 4)
                rows.append((record["dataset"], method, d, name, reduction, value, pixels))
        print(record["dataset"], method, flush=True)
    return sorted(rows, key=lambda row: row[:3])


def against(results: Path) -> str:
    """Return the table of the default against what it must beat."""
    lines = [
        "| set | against | AUROC of that | AUROC of the default | difference | 95 % |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for dataset, mark in SETS.items():
        default = DEFAULT.format(mark)
        values = values_of(results, dataset)
        paper = [f"ae, d = {d}{mark}" for d in DIMS]
        plain = [r for r, (_, network) in values.items() if not network and (mark in r)]
        rows = {
            "the paper's AE, best d in hindsight": best(paper, values),
            "the same, read by median": best([f"{r}, read by median" for r in paper], values),
            "ae-u as its authors have it": f"ae-u, d = 16{mark}",
            "that, read by median": f"ae-u, d = 16{mark}, read by median",
            "best without a network": best(plain, values),
        }
        for title, row in rows.items():
            if row is None or row not in values or default not in values:
                continue
            only = f"^{re.escape(default)}$"
            _, (one,) = versus(results, dataset=dataset, against=row, rows=only)
            compared = f"{title}: {row.replace(mark, '') if mark else row}"
            lines.append(
                f"| {named(dataset)} | {compared} | {100 * values[row][0]:.1f} "
                f"| {100 * values[default][0]:.1f} | {100 * one.difference:+.1f} "
                f"| {100 * one.low:+.1f} to {100 * one.high:+.1f} |"
            )
    return "\n".join(lines)


def middle(results: Path) -> str:
    """Return the table of the slices of the middle of the head, where position says little."""
    paper = [f"ae, d = {d}" for d in DIMS]
    rows = [DEFAULT.format(""), "intensity", *paper]
    store, found = Records(results), {}
    for record in store.table():
        if record["dataset"] != "lgg_flair" or row_of(record) not in rows:
            continue
        part = store.read(record["id"])
        position = np.array(part["position"], float)
        keep = (np.array(part["split"]) == "test") & (position > 0.4) & (position < 0.85)
        labels = np.array(part["is_anomalous"], bool)[keep]
        patients = np.array(part["patient_id"])[keep]
        found.setdefault(row_of(record), []).append(np.array(part["anomaly_score"], float)[keep])
        found["slice position"] = [-np.abs(position[keep] - 0.6)]
    units = Draws.of(patients, len(labels), n=2000)

    def drawn(row: str) -> tuple[float, np.ndarray]:
        each = [draw_statistics(auroc, scores, labels, units=units)[0] for scores in found[row]]
        return float(np.mean([auroc(s, labels) for s in found[row]])), np.mean(each, 0)

    default = drawn(rows[0])
    best_paper = max((row for row in paper if row in found), key=lambda row: drawn(row)[0])
    lines = [
        "| against | AUROC of that | AUROC of the default | difference | 95 % |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for title, row in (
        (f"the paper's AE, best d in hindsight: {best_paper}", best_paper),
        ("intensity", "intensity"),
        ("slice position, distance from 0.6", "slice position"),
    ):
        other = drawn(row)
        one = compare_draws(default[0] - other[0], default[1] - other[1], units=units)
        lines.append(
            f"| {title} | {100 * other[0]:.1f} | {100 * default[0]:.1f} "
            f"| {100 * one.difference:+.1f} | {100 * one.low:+.1f} to {100 * one.high:+.1f} |"
        )
    return "\n".join(lines)


def ensembles(results: Path) -> str:
    """Return what the mean over latent dimensions gives, against one of them and the best of them.

    Members' log scores are standardised by their training images, so that none outweighs another.
    """
    lines = [
        "| set | method | reading | members, d | best of them | d = 16 | together | over d = 16 "
        "| 95 % |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    store = Records(results)
    for dataset, mark in SETS.items():
        for method in ("ae", "ae-u"):
            for title, reading in (("its own", ""), ("median", ", read by median")):
                rows = {f"{method}, d = {d}{mark}{reading}": d for d in DIMS}
                found = {}
                for record in store.table():
                    d = rows.get(row_of(record)) if record["dataset"] == dataset else None
                    if d is not None and record["seed"] == 0:
                        found[d] = store.read(record["id"])
                if len(found) < 3 or 16 not in found:
                    continue
                cells = [named(dataset), method, title, *together(found)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def together(found: dict[int, dict]) -> list[str]:
    """Return the cells of one ensemble: members, best, d = 16, all, difference, interval."""
    tests, standard = {}, []
    for d, record in sorted(found.items()):
        split, log = np.array(record["split"]), np.log(np.array(record["anomaly_score"], float))
        train, test = log[split == "train"], log[split == "test"]
        tests[d] = test
        standard.append((test - train.mean()) / train.std())
    chosen = np.array(found[16]["split"]) == "test"
    labels = np.array(found[16]["is_anomalous"], bool)[chosen]
    patients = np.array(found[16]["patient_id"])[chosen]
    names = np.where(patients == "", np.array(found[16]["path"])[chosen], patients)
    units = Draws.of(names, len(labels), n=2000)
    mean, one = np.mean(standard, axis=0), tests[16]
    drawn = [draw_statistics(auroc, s, labels, units=units)[0] for s in (mean, one)]
    gain = compare_draws(auroc(mean, labels) - auroc(one, labels), drawn[0] - drawn[1], units=units)
    best_one = max(auroc(s, labels) for s in tests.values())
    return [
        ", ".join(map(str, sorted(found))),
        *(f"{100 * v:.1f}" for v in (best_one, auroc(one, labels), auroc(mean, labels))),
        f"{100 * gain.difference:+.1f}",
        f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}",
    ]


def values_of(results: Path, dataset: str) -> dict[str, tuple[float, bool]]:
    """Return (AUROC, whether it is a network) of each row, means over seeds."""
    rows: dict[str, list[dict]] = {}
    for record in Records(results).table():
        if record["dataset"] == dataset:
            rows.setdefault(row_of(record), []).append(record)
    return {
        row: (float(np.mean([r["auroc"] for r in group])), bool(group[0]["n_parameters"]))
        for row, group in rows.items()
    }


def best(rows: list[str], values: dict[str, tuple[float, bool]]) -> str | None:
    return max((r for r in rows if r in values), key=lambda r: values[r][0], default=None)


def by_dimension(results: Path) -> str:
    """Return AUROC by latent dimension for both methods and readings."""
    lines = [
        f"| set | method | reading | {' | '.join(str(d) for d in DIMS)} | spread |",
        f"| --- | --- | --- | {'---: | ' * len(DIMS)}---: |",
    ]
    for dataset, mark in SETS.items():
        values = values_of(results, dataset)
        for method in ("ae", "ae-u"):
            for title, reading in (("its own", ""), ("median", ", read by median")):
                rows = [f"{method}, d = {d}{mark}{reading}" for d in DIMS]
                cells = [f"{100 * values[r][0]:.1f}" if r in values else "" for r in rows]
                known = [
                    values[rows[DIMS.index(d)]][0] for d in (8, 16, 64) if cells[DIMS.index(d)]
                ]
                spread = f"{100 * np.ptp(known):.1f}" if len(known) == 3 else ""
                lines.append(
                    f"| {named(dataset)} | {method} | {title} | {' | '.join(cells)} | {spread} |"
                )
    return "\n".join(lines)


def named(dataset: str) -> str:
    return dataset + (", no leak" if SETS[dataset] else "")


def tried(rows: list[dict]) -> str:
    """Return the AUROC of AE-U by filter and reduction, a table per set, and pixel AP."""
    parts = []
    for dataset in SETS:
        part = [r for r in rows if (r["dataset"], r["method"]) == (dataset, "ae-u")]
        if not part:
            continue
        found = {(r["filter"], r["reduction"]): r for r in part}
        pixels = bool(part[0]["pixel_ap"])
        lines = [
            f"*{named(dataset)}*",
            "",
            f"| filter of the map | {' | '.join(REDUCTIONS)} |{' pixel AP |' if pixels else ''}",
            f"| --- | {'---: | ' * (len(REDUCTIONS) + pixels)}",
        ]
        for name in FILTERS:
            cells = [f"{100 * float(found[name, r]['auroc']):.1f}" for r in REDUCTIONS]
            cells += [f"{100 * float(found[name, 'mean']['pixel_ap']):.1f}"] if pixels else []
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--draw-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.draw_only:
        head = ("dataset", "method", "latent_dim", "filter", "reduction", "auroc", "pixel_ap")
        write_csv(OUT, head, measure(arguments.data, arguments.results))
    parts = {
        "default": against(arguments.results),
        "middle": middle(arguments.results),
        "dimensions": by_dimension(arguments.results),
        "ensembles": ensembles(arguments.results),
        "filters": tried(list(csv.DictReader(OUT.open(encoding="utf-8")))),
    }
    fill(PAGE, parts)


if __name__ == "__main__":
    main()
