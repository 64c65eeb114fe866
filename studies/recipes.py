"""Does the recipe ``fast`` reach the recipe ``paper``'s error on held-out normals in fewer steps?

    normalis research sweep examples/recipes.toml --data ROOT --out results
    normalis research sweep examples/default.toml --data ROOT --out results
    python studies/recipes.py [--results results]

Reads the records of these plans and rewrites their tables in docs/reference/performance.md. For
each data set and setting of the fast recipe: optimiser steps as a share of the paper recipe's, the
mean error of the held-out normal images over that of the paper recipe (below 1 is better), by
seed, and AUROC beside it. The setting is chosen by the first figure alone, over all data sets: the
one whose worst ratio is least. A second table has what the chosen setting does to the default of
`fit`, an AE-U with its usual options, in either reading.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normalis.models.ae_u import AEU
from normalis.research.experiments import expand, read_plan
from normalis.research.records import Records
from normalis.scorers import default_reduction
from pages import fill

READINGS = ("native", "median")
ROOT = Path(__file__).resolve().parents[1]
PLAN = ROOT / "examples" / "recipes.toml"
PAGE = ROOT / "docs" / "reference" / "performance.md"


def held_out_error(record: Mapping[str, Any]) -> float:
    """Return the mean score of the normal images held out of the training."""
    scores, split = np.array(record["anomaly_score"]), np.array(record["split"])
    return float(scores[split == "validation"].mean())


def read(results: Path) -> dict[tuple[str, str], dict[tuple[str, float], dict[int, Any]]]:
    """Return (data set, subset) -> (recipe, learning rate) -> seed -> record."""
    wanted = {
        (cell["dataset"], str(sorted(cell["subset"].items()))) for cell in expand(read_plan(PLAN))
    }
    found: dict[tuple[str, str], dict[tuple[str, float], dict[int, Any]]]
    found = defaultdict(lambda: defaultdict(dict))
    store = Records(results)
    for row in store.table():
        settings = row["settings"]
        subset = {k: v for k, v in settings["subset"].items() if v}
        name = row["dataset"], str(sorted(subset.items()))
        plain = not settings["options"] and not settings["training"]["standardize"]
        of_ae = row["method"] == "ae" and row["latent_dim"] == 16 and row["scorer"] == "native"
        if name in wanted and plain and of_ae:
            training = settings["training"]
            full = store.read(row["id"])
            setting = training["recipe"], training["learning_rate"]
            found[name][setting][row["seed"]] = full
    return found


def of_the_default(results: Path) -> list[str]:
    """Return AUROC and pixel AP of the default by either recipe, means over seeds."""
    found: dict[tuple[str, str], dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row in Records(results).table():
        settings = row["settings"]
        if row["method"] != "ae-u" or row["latent_dim"] != 16:
            continue
        if settings["options"] != AEU.default_options:
            continue
        usual = row["reduction"] == default_reduction(row["scorer"])
        twins = settings["subset"]["drop_train_twins"] is None
        if settings["subset"]["validation_share"] or settings["training"]["standardize"]:
            continue
        if usual and row["scorer"] in READINGS and twins == (row["dataset"] != "brain_tumor"):
            found[row["dataset"], row["scorer"]][settings["training"]["recipe"]].append(row)
    head = ("data set", "reading", "AUROC", "paper's", "pixel AP", "paper's", "seeds, paper's")
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---:|---:|"]
    for (dataset, scorer), by_recipe in sorted(found.items()):
        fast, paper = by_recipe["fast"], by_recipe["paper"]
        if fast and paper:
            cells = [dataset, scorer]
            for metric in ("auroc", "pixel_average_precision"):
                cells += [_percent(rows, metric) for rows in (fast, paper)]
            lines.append(f"| {' | '.join([*cells, f'{len(fast)}, {len(paper)}'])} |")
    return lines


def _percent(rows: list[Any], metric: str) -> str:
    values = [row.get(metric) for row in rows]
    return "" if None in values else f"{100 * np.mean(values):.1f}"


def against_paper(results: Path) -> tuple[list[str], str]:
    """Return the table of held-out errors, and what it chooses."""
    head = ("data set", "peak of the rate", "steps", "held-out error / paper's", "AUROC", "paper's")
    lines = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---:|"]
    worst: dict[float, list[float]] = defaultdict(list)
    for (dataset, _), settings in sorted(read(results).items()):
        paper = settings.pop(("paper", 1e-3), {})
        for (recipe, rate), runs in sorted(settings.items()):
            seeds = sorted(runs.keys() & paper.keys())
            if recipe != "fast" or not seeds:
                continue
            steps = [runs[s]["epochs"] / paper[s]["epochs"] for s in seeds]
            errors = [held_out_error(runs[s]) / held_out_error(paper[s]) for s in seeds]
            worst[rate] += errors
            cells = (
                f"{rate:g}",
                f"{100 * np.mean(steps):.0f} %",
                ", ".join(f"{e:.3f}" for e in errors),
                ", ".join(f"{100 * runs[s]['auroc']:.1f}" for s in seeds),
                ", ".join(f"{100 * paper[s]['auroc']:.1f}" for s in seeds),
            )
            lines.append(f"| {dataset} | {' | '.join(cells)} |")
    if not worst:
        return lines, "no training of either recipe is there"
    chosen = min(worst, key=lambda rate: max(worst[rate], default=math.inf))
    return lines, f"chosen by held-out error: {chosen:g}, worst ratio {max(worst[chosen]):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    given = parser.parse_args()
    errors, chosen = against_paper(given.results)
    both = {"recipes": [*errors, "", chosen], "default recipe": of_the_default(given.results)}
    fill(PAGE, {name: "\n".join(lines) for name, lines in both.items()})


if __name__ == "__main__":
    main()
