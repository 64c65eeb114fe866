"""Score the rules of `normalis.selection` on trained networks; rewrite the study in the docs.

    normalis sweep examples/selection_study.toml --data ROOT --out results
    python benchmarks/selection_study.py --data ROOT     # evidence of what is there, and tables
    python benchmarks/selection_study.py --tables        # tables from the committed evidence

    python benchmarks/selection_study.py --phantoms ROOT      # write the phantom data sets
    normalis sweep examples/selection_study_phantoms.toml --data ROOT --out RUNS
    python benchmarks/selection_study.py --results RUNS --data ROOT

Evidence lies in ``results/evidence`` (see `selection_evidence`): rules read ``normals``, which
hold no label; regret is computed from ``outcomes``. Any subset of the trainings will do.

**Regret** of a choice is the AUROC of the best candidate in hindsight minus that of the choice,
and cross-fitted, since the largest of many noisy numbers flatters itself: the best candidate is
named on one half of the patients (and on the other seeds, where there are), both are scored on the
other half. It can therefore be negative. Halves are drawn anew many times; the interval is that of
the bootstrap of patients within halves.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from normalis.datasets.phantom import PhantomSettings, add_lesions, generate
from normalis.errors import SettingsError
from normalis.experiments import expand, read_plan
from normalis.selection import RULES, Evidence, select_capacity
from normalis.synthetic import SYNTHETIC
from selection_evidence import gather, read
from theory import ROOT, number, table

PAGE = ROOT / "docs" / "selection.md"
PLANS = ("selection_study.toml", "selection_study_phantoms.toml")
GRIDS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "d 1-128": ("ae", lambda c: True),
    "d 1-16": ("ae", lambda c: c <= 16),
    "d 8-128": ("ae", lambda c: c >= 8),
    "rate 4-64": ("rate-ae", lambda c: True),
}
WHOLE = "d 1-128"
#: name, kind, radius as a share of the side, contrast; factors, noise and seed of the images
PHANTOMS = (
    ("focal", "bright", 1 / 32, 0.3, 8, 0.03, 7),
    ("diffuse", "diffuse", 1 / 4, 0.08, 8, 0.03, 7),
    ("dark", "dark", 1 / 16, 0.1, 12, 0.01, 19),
    ("texture", "texture", 1 / 6, 0.12, 12, 0.01, 19),
)
LEAST = 3  # candidates that make a choice


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """One data set as one grid of candidates saw it; S seeds, C candidates, N test images.

    Attributes:
        name: data set, and whether images were standardised.
        capacities: (C,) rising.
        normals: [seed][candidate] rows without labels.
        outcomes: [seed][candidate] rows with labels.
        seeds: S.
    """

    name: str
    grid: str
    capacities: tuple[float, ...]
    normals: list[list[dict]]
    outcomes: list[list[dict]]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Fared:
    """How a rule fared; AUROC points with 95 % intervals, (value, low, high)."""

    choices: tuple[str, ...]
    regret: tuple[float, float, float]
    over_16: tuple[float, float, float]
    over_8: tuple[float, float, float]
    pixel_ap_over_16: float


def settings_of(normals: Sequence[dict], outcomes: Sequence[dict], grid: str) -> list[Setting]:
    """Arrange evidence by data set; the seeds and candidates that all share are taken."""
    method, within = GRIDS[grid]
    labelled = {row["identity"]: row for row in outcomes}
    cells: dict[str, dict[int, dict[float, dict]]] = {}
    for row in normals:
        if row["method"] == method and within(row["capacity"]) and row["identity"] in labelled:
            name = row["dataset"] + (", standardised" if row["standardize"] else "")
            cells.setdefault(name, {}).setdefault(row["seed"], {})[row["capacity"]] = row
    found = []
    for name, by_seed in sorted(cells.items()):
        most = max(len(c) for c in by_seed.values())
        seeds = tuple(sorted(s for s, c in by_seed.items() if 2 * len(c) > most))
        common = sorted(set.intersection(*(set(by_seed[s]) for s in seeds)))
        if len(common) < LEAST:
            continue
        rows = [[by_seed[s][c] for c in common] for s in seeds]
        told = [[labelled[r["identity"]] for r in row] for row in rows]
        found.append(
            Setting(
                name=name,
                grid=grid,
                capacities=tuple(common),
                normals=rows,
                outcomes=told,
                seeds=seeds,
            )
        )
    return found


def evidence_of(rows: Sequence[dict]) -> Evidence:
    """Make what a rule reads of the unlabelled rows of one seed, candidates in rising order."""
    prior = [row.get("lesion_prior") for row in rows]
    dimension = rows[0].get("intrinsic_dimension")
    return Evidence(
        candidates=tuple(f"{row['capacity']:g}" for row in rows),
        latent_dims=tuple(row["capacity"] for row in rows),
        validation_scores=np.array([row["validation_scores"] for row in rows], np.float64),
        synthetic_scores={
            family: np.array([row["synthetic"][family] for row in rows], np.float64)
            for family in rows[0]["synthetic"]
        },
        validation_errors=np.array([row["validation_error"] for row in rows]),
        training_errors=np.array([row["training_error"] for row in rows]),
        lesion_prior={size: np.array([p[size] for p in prior]) for size in prior[0]}
        if all(prior)
        else {},
        intrinsic_dimension=dimension,
        groups=np.array(rows[0]["groups"]),
    )


def choose(setting: Setting) -> dict[str, list]:
    """Apply every rule to every seed: rule -> a `Selection` for each; no label is read.

    A rule that lacks what it needs (a spectrum on a grid of rates) is left out.
    """
    chosen: dict[str, list] = {}
    for rule in RULES:
        try:
            chosen[rule] = [
                select_capacity(evidence_of(rows), rule, repeats=0) for rows in setting.normals
            ]
        except SettingsError:
            continue
    return chosen


def scores_of(selection, scores: np.ndarray) -> np.ndarray:
    """Return the (N,) scores that a selection gives from those of all candidates, (C, N)."""
    if selection.combiner is not None:
        return selection.combiner(scores)
    return scores[selection.candidates.index(selection.choice)]


def aurocs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the AUROC of each row of scores (..., N)."""
    ranks = rankdata(scores, axis=-1)
    m = int(labels.sum())
    n = len(labels) - m
    return (ranks[..., labels].sum(axis=-1) - m * (m + 1) / 2) / (n * m)


def fare(setting: Setting, chosen: dict[str, list], *, repeats: int = 200) -> dict[str, Fared]:
    """Compute regret and differences of every rule on the labelled test images."""
    scores = np.array([[o["scores"] for o in row] for row in setting.outcomes], np.float64)
    labels = np.array(setting.outcomes[0][0]["is_anomalous"], bool)
    groups = np.array(setting.outcomes[0][0]["groups"])
    rules = list(chosen)
    by_rule = np.array(
        [[scores_of(s, scores[i]) for s in [chosen[r][i] for r in rules]]
         for i in range(len(scores))]
    )  # fmt: skip
    found = cross_fitted(scores, by_rule, labels, groups, repeats=repeats)
    compared = {
        b: differences(by_rule, rules.index(b), labels, groups, repeats=repeats)
        for b in ("always-16", "always-8")
    }
    return {
        rule: Fared(
            choices=tuple(s.choice or "all" for s in chosen[rule]),
            regret=found[i],
            over_16=compared["always-16"][i],
            over_8=compared["always-8"][i],
            pixel_ap_over_16=pixel_difference(setting, chosen[rule], chosen["always-16"]),
        )
        for i, rule in enumerate(rules)
    }


def cross_fitted(
    scores: np.ndarray,
    by_rule: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    repeats: int = 200,
    seed: int = 0,
) -> list[tuple[float, float, float]]:
    """Compute the cross-fitted regret of each rule, in AUROC points.

    Args:
        scores: (S, C, N) of every candidate.
        by_rule: (S, R, N) of what each rule answers.
        labels: (N,) bool.
        groups: (N,) patients.
        repeats: halvings for the value, and again with the bootstrap for the interval.
        seed: of both.
    """
    rng, count = np.random.default_rng(seed), scores.shape[1]
    both = np.concatenate([scores, by_rule], axis=1)
    plain, drawn = [], []
    for into, bootstrap in ((plain, False), (drawn, True)):
        while len(into) < repeats:
            halves = [_rows(h, groups, rng, bootstrap) for h in _halves(groups, rng)]
            if any(len(np.unique(labels[h])) < 2 for h in halves):
                continue  # a half without one of the classes has no AUROC
            found = [aurocs(both[..., h], labels[h]) for h in halves]
            into.append(_regret(found, count))
    value = 100 * np.mean(plain, axis=0)
    low, high = 100 * np.percentile(drawn, [2.5, 97.5], axis=0)
    return list(zip(value.tolist(), low.tolist(), high.tolist(), strict=True))


def _regret(found: list[np.ndarray], count: int) -> np.ndarray:
    """Average over halves and seeds; (S, C + R) AUROC of either half, the first C candidates."""
    lost = []
    for named, judged in (found, found[::-1]):
        for s in range(len(judged)):
            others = [i for i in range(len(judged)) if i != s] or [s]
            best = int(np.argmax(named[others, :count].mean(axis=0)))
            lost.append(judged[s, best] - judged[s, count:])
    return np.mean(lost, axis=0)


def _halves(groups: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    names = rng.permutation(np.unique(groups))
    return [names[: len(names) // 2], names[len(names) // 2 :]]


def _rows(
    names: np.ndarray, groups: np.ndarray, rng: np.random.Generator, bootstrap: bool
) -> np.ndarray:
    if not bootstrap:
        return np.flatnonzero(np.isin(groups, names))
    drawn = rng.choice(names, len(names))
    return np.concatenate([np.flatnonzero(groups == g) for g in drawn])


def differences(
    by_rule: np.ndarray,
    baseline: int,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    repeats: int = 200,
    seed: int = 0,
) -> list[tuple[float, float, float]]:
    """Compute AUROC of each rule minus that of one of them, in points, patients drawn whole."""
    rng, names = np.random.default_rng(seed), np.unique(groups)

    def above(rows: np.ndarray) -> np.ndarray:
        found = aurocs(by_rule[..., rows], labels[rows]).mean(axis=0)
        return found - found[baseline]

    drawn = []
    while len(drawn) < repeats:
        rows = _rows(names, groups, rng, bootstrap=True)
        if len(np.unique(labels[rows])) == 2:
            drawn.append(above(rows))
    value = 100 * above(np.arange(len(labels)))
    low, high = 100 * np.percentile(drawn, [2.5, 97.5], axis=0)
    return list(zip(value.tolist(), low.tolist(), high.tolist(), strict=True))


def pixel_difference(setting: Setting, mine: list, baseline: list) -> float:
    """Return points of pixel AP above the baseline's; NaN without masks or a single choice."""

    def value(row: list[dict], selection) -> float:
        if selection.choice is None:
            return math.nan
        found = row[selection.candidates.index(selection.choice)]["pixel_average_precision"]
        return math.nan if found is None else 100 * found

    pairs = zip(setting.outcomes, mine, baseline, strict=True)
    return float(np.mean([value(o, m) - value(o, b) for o, m, b in pairs]))


def missing(normals: Sequence[dict]) -> list[str]:
    """Say which trainings of the plans have no evidence, by data set."""
    there = {
        (r["dataset"], r["method"], r["capacity"], r["standardize"], r["seed"]) for r in normals
    }
    said = []
    for name in PLANS:
        cells = expand(read_plan(ROOT / "examples" / name))
        wanted = [
            (
                c["dataset"],
                c["method"],
                float(c["options"]["rate"] if c["method"] == "rate-ae" else c["latent_dim"]),
                c["standardize"],
                c["seed"],
            )
            for c in cells
        ]
        for dataset in dict.fromkeys(w[0] for w in wanted):
            mine = [w for w in wanted if w[0] == dataset]
            gone = [w for w in mine if w not in there]
            said.append(f"{dataset}: {len(mine) - len(gone)} of {len(mine)} trainings")
    return said


def study(normals: Sequence[dict], outcomes: Sequence[dict], *, repeats: int = 200) -> dict:
    """Return (grid, setting) -> rule -> `Fared`, for all that there is."""
    return {
        (grid, s.name): (s, fare(s, choose(s), repeats=repeats))
        for grid in GRIDS
        for s in settings_of(normals, outcomes, grid)
    }


def interval(value: tuple[float, float, float]) -> str:
    return f"{value[0]:.1f} [{value[1]:.1f}, {value[2]:.1f}]"


def summary_table(found: dict) -> list[str]:
    """Return mean and worst regret of each rule on each grid, over data sets."""
    rows = []
    for rule in RULES:
        row = [rule]
        for grid in GRIDS:
            fared = [
                f[rule].regret[0] for (g, _), (_, f) in found.items() if g == grid and rule in f
            ]
            row.append(f"{np.mean(fared):.1f} / {max(fared):.1f}" if fared else "")
        rows.append(row)
    counts = {g: sum(1 for k, _ in found if k == g) for g in GRIDS}
    head = ["rule", *(f"{g} ({counts[g]} settings)" for g in GRIDS)]
    return table(head, rows)


def setting_tables(found: dict) -> list[str]:
    lines = []
    for (grid, name), (setting, fared) in found.items():
        if grid not in (WHOLE, "rate 4-64"):
            continue
        first = setting.outcomes[0][0]
        odd, n = sum(first["is_anomalous"]), len(first["is_anomalous"])
        own = [
            f"{c:g}: {100 * np.mean([_own(row[i]) for row in setting.outcomes]):.1f}"
            for i, c in enumerate(setting.capacities)
        ]
        lines += [
            f"**{name}, {grid}**: {len(setting.seeds)} seeds, {n - odd} normal and {odd} anomalous "
            f"test images, {len(setting.normals[0][0]['validation_scores'])} held-out normals. "
            f"AUROC by capacity: {', '.join(own)}.",
            "",
        ]
        rows = [
            [rule, ", ".join(f.choices), interval(f.regret), interval(f.over_16),
             interval(f.over_8), number(f.pixel_ap_over_16).replace("NaN", "")]
            for rule, f in fared.items()
        ]  # fmt: skip
        head = ["rule", "choice by seed", "regret", "over always-16", "over always-8",
                "pixel AP over always-16"]  # fmt: skip
        lines += [*table(head, rows), ""]
    return lines


def _own(outcome: dict) -> float:
    scores, labels = np.array([outcome["scores"]]), np.array(outcome["is_anomalous"], bool)
    return float(aurocs(scores, labels)[0])


def page(normals: Sequence[dict], outcomes: Sequence[dict], *, repeats: int = 200) -> list[str]:
    found = study(normals, outcomes, repeats=repeats)
    lines = [f"Trainings there: {'; '.join(missing(normals))}.", ""]
    lines += [
        f"{len(RULES)} rules on {len(SYNTHETIC)} families were tried. Mean and worst regret over "
        "the settings, in AUROC points:",
        "",
        *summary_table(found),
        "",
    ]
    return [*lines, *setting_tables(found)] if found else lines[:1]


def write_phantoms(root: Path, *, size: int = 32, train: int = 300, test: int = 150) -> None:
    """Write two pairs of data sets; a pair shares its normal images and differs in lesions."""
    for name, kind, radius, contrast, factors, noise, seed in PHANTOMS:
        settings = PhantomSettings(image_size=size, factors=factors, noise=noise, seed=seed)
        images = generate(train + 2 * test, settings).images
        drawn, masks = add_lesions(
            images[train + test :], kind=kind, scale_px=radius * size, contrast=contrast, seed=11
        )
        folder = root / f"phantom_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / f"arrays_{size}.npz",
            train=_bytes(images[:train]),
            test=_bytes(np.concatenate([images[train : train + test], drawn])),
            test_label=np.arange(2 * test) >= test,
            test_mask=np.concatenate([np.zeros_like(masks), masks]),
            train_patient=[f"a{i}" for i in range(train)],
            test_patient=[f"b{i}" for i in range(2 * test)],
        )


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.rint(255 * images.clip(0, 1)).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--evidence", type=Path, default=ROOT / "results" / "evidence")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--phantoms", type=Path)
    given = parser.parse_args()
    if given.phantoms:
        write_phantoms(given.phantoms)
        return
    if not given.tables:
        for title in gather(given.results, given.evidence, given.data):
            print(f"no model of {title}")
    lines = page(read(given.evidence / "normals"), read(given.evidence / "outcomes"))
    print("\n".join(lines))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- study -->\n")
    _, mark, after = rest.partition("<!-- end -->")
    if not mark:
        raise SystemExit(f"{PAGE.name} has no place for the study")
    body = "\n".join(lines).rstrip("\n")
    PAGE.write_text(f"{before}<!-- study -->\n\n{body}\n\n{mark}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
