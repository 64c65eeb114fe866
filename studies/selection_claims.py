"""Do rates hold what they promise, and does one nested latent stand for every width?

    python studies/selection_claims.py

Reads the evidence of `selection_study` (AUROC in percent, test images of the study) and rewrites
two tables of docs/reference/selection_study.md. *Rates*: nats asked for, of training images or of
held-out ones; held by the training images, by held-out ones (and how far the worst seed is off),
by test normals and by anomalous images; AUROC scored without noise, with it, and by median.
*Nested*: AUROC of the nested latent at each width minus that of an autoencoder trained at that
width, with the 95 % interval of a paired bootstrap of patients; beside it how far apart two
autoencoders of that width are that differ in their seed alone.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pages import fill, folded
from selection_evidence import read
from selection_study import ROOT, aurocs, of_plans, reading_of
from theory import number, table

PAGE = ROOT / "docs" / "reference" / "selection_study.md"
EVIDENCE = ROOT / "results" / "evidence"
DRAWS = 500
#: method -> whose rate is meant
RATES = {
    "rate-ae": "training",
    "rate-ae, held out": "held out",
    "rate-ae, held out, damped": "held out, damped",
}


def auroc_of(row: dict) -> float:
    labels = np.array(row["is_anomalous"], bool)
    return 100 * float(aurocs(np.array([row["scores"]]), labels)[0])


def named(row: dict) -> str:
    return row["dataset"] + (", standardised" if row["standardize"] else "")


def mean(rows: Sequence[dict], key: str) -> float:
    return float(np.mean([np.nan if r[key] is None else r[key] for r in rows]))


def furthest(rows: Sequence[dict], asked: float) -> float:
    """Return by how many percent the rate of held-out images is off, of the worst seed."""
    found = [np.nan if r["rate_validation"] is None else r["rate_validation"] for r in rows]
    return 100 * float(max(np.abs(np.array(found) / asked - 1)))


def rates(normals: Sequence[dict], outcomes: Sequence[dict]) -> list[str]:
    """Return the table of rates, means over seeds."""
    cells: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in outcomes:
        if row["method"] in RATES:
            cells[named(row), RATES[row["method"]], row["capacity"]][reading_of(row)].append(row)
    for row in normals:
        if row["method"] in RATES and reading_of(row) == "native":
            cells[named(row), RATES[row["method"]], row["capacity"]]["normals"].append(row)
    lines = []
    for (name, whose, asked), found in sorted(cells.items()):
        told = found["native"]
        if not told or told[0].get("rate_normal", None) is None:
            continue  # of the first phantoms no rate was kept
        lines.append(
            [
                name,
                whose,
                f"{asked:g}",
                str(len(told)),
                number(mean(found["normals"], "rate_training")),
                number(mean(found["normals"], "rate_validation")),
                number(furthest(found["normals"], asked)),
                number(mean(told, "rate_normal")),
                number(mean(told, "rate_anomalous")),
                *(
                    number(float(np.mean([auroc_of(r) for r in found[k]]))) if found[k] else ""
                    for k in ("native", "noise", "median")
                ),
            ]
        )
    head = [
        "set", "asked of", "nats asked", "seeds", "training", "held out",
        "furthest, %", "test normals", "anomalous", "AUROC", "with noise", "by median",
    ]  # fmt: skip
    return table(head, lines)


def nested(outcomes: Sequence[dict]) -> list[str]:
    """Return tables of the nested latent against separate trainings, of the seeds of both."""
    cells: dict[tuple, dict[str, dict[int, list[dict]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in outcomes:
        place = cells[named(row), reading_of(row), row["capacity"]]
        place[row["method"]][row["seed"]].append(row)
    lines: list[list[str]] = []
    gaps: dict[tuple, list[tuple[float, float, float]]] = defaultdict(list)
    for (name, reading, width), found in sorted(cells.items()):
        alone = {seed: rows[0] for seed, rows in found["ae"].items()}
        together: dict[float, dict[int, dict]] = defaultdict(dict)
        for seed, rows in found["nested-ae, balanced"].items():
            for row in rows:
                if seed in alone:
                    together[row["epochs"] / alone[seed]["epochs"]][seed] = row
        for times, mine in sorted(together.items()):
            seeds = sorted(mine)
            one, other = ([rows[s] for s in seeds] for rows in (mine, alone))
            value, low, high = difference(one, other)
            apart = spread([auroc_of(row) for row in alone.values()])
            gaps[name, reading, times, len(seeds)].append((value, width, apart))
            lines.append(
                [
                    name,
                    reading,
                    f"{times:.1f} x",
                    str(len(seeds)),
                    f"{width:g}",
                    number(float(np.mean([auroc_of(r) for r in other]))),
                    number(float(np.mean([auroc_of(r) for r in one]))),
                    f"{value:+.1f}",
                    f"{low:+.1f} to {high:+.1f}",
                    number(apart),
                ]
            )
    head = ["set", "reading", "epochs", "seeds", "d", "trained at d", "nested, read at d",
            "difference", "95 %", "seeds apart"]  # fmt: skip
    return [*summary(gaps), "", *folded("At each width", table(head, lines))]


def summary(gaps: Mapping[tuple, Sequence[tuple[float, float, float]]]) -> list[str]:
    """Return the table of the mean and the worst difference over widths.

    Args:
        gaps: (set, reading, epochs, seeds) -> (difference, width, seeds apart) of each width.
    """
    lines = []
    for (name, reading, times, seeds), found in gaps.items():
        value, width, _ = min(found)
        mean_gap, mean_apart = (float(np.mean([f[i] for f in found])) for i in (0, 2))
        most = max(f[2] for f in found)
        told = f"{mean_gap:+.1f}", f"{value:+.1f}, d = {width:g}", f"{mean_apart:.1f} / {most:.1f}"
        lines.append([name, reading, f"{times:.1f} x", str(seeds), *told])
    head = ["set", "reading", "epochs", "seeds", "mean difference", "worst",
            "seeds apart, mean / most"]  # fmt: skip
    return table(head, sorted(lines))


def spread(values: Sequence[float]) -> float:
    """Return the range of values; NaN of a single one."""
    return max(values) - min(values) if len(values) > 1 else float("nan")


def difference(one: Sequence[dict], other: Sequence[dict]) -> tuple[float, float, float]:
    """Return AUROC of the first minus that of the second in points, patients drawn whole."""
    labels = np.array(one[0]["is_anomalous"], bool)
    groups = np.array(one[0]["groups"])
    scores = np.array([[r["scores"] for r in rows] for rows in (one, other)])
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    rng, drawn = np.random.default_rng(0), []

    def gap(rows: np.ndarray) -> float:
        found = aurocs(scores[..., rows], labels[rows]).mean(axis=1)
        return 100 * float(found[0] - found[1])

    while len(drawn) < DRAWS:
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if len(np.unique(labels[rows])) == 2:
            drawn.append(gap(rows))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return gap(np.arange(len(labels))), float(low), float(high)


def main() -> None:
    normals, outcomes = (of_plans(read(EVIDENCE / side)) for side in ("normals", "outcomes"))
    both = {"rates": rates(normals, outcomes), "nested": nested(outcomes)}
    fill(PAGE, {name: "\n".join(lines) for name, lines in both.items()})


if __name__ == "__main__":
    main()
