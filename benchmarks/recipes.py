"""Does the recipe ``fast`` reach the recipe ``paper``'s error on held-out normals in fewer steps?

    normalis sweep examples/recipes.toml --data ROOT --out results
    python benchmarks/recipes.py [--results results]

Reads the records of that plan. For each data set and setting of the fast recipe: optimiser steps as
a share of the paper recipe's, the mean error of the held-out normal images over that of the paper
recipe (below 1 is better), by seed, and AUROC beside it. The setting is chosen by the first figure
alone, over all data sets: the one whose worst ratio is least.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normalis.experiments import expand, read_plan
from normalis.records import Records

PLAN = Path(__file__).parents[1] / "examples" / "recipes.toml"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    head = ("data set", "peak of the rate", "steps", "held-out error / paper's", "AUROC", "paper's")
    print(f"| {' | '.join(head)} |\n|---|---:|---:|---:|---:|---:|")
    worst: dict[float, list[float]] = defaultdict(list)
    for (dataset, _), settings in sorted(read(given.results).items()):
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
            print(f"| {dataset} | {' | '.join(cells)} |")
    if worst:
        chosen = min(worst, key=lambda rate: max(worst[rate], default=math.inf))
        print(f"\nchosen by held-out error: {chosen:g}, worst ratio {max(worst[chosen]):.3f}")


if __name__ == "__main__":
    main()
