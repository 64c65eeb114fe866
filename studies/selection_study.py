"""Score the rules of `research.selection` on trained networks; rewrite the study in the docs.

    normalis research sweep examples/selection_study.toml --data ROOT --out results
    python studies/selection_study.py --data ROOT     # evidence of what is there, and tables
    python studies/selection_study.py --tables        # tables from the committed evidence

    python studies/selection_study.py --phantoms ROOT      # write the phantom data sets
    normalis research sweep examples/selection_study_phantoms.toml --data ROOT --out RUNS
    python studies/selection_study.py --results RUNS --data ROOT

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from normalis.datasets.phantom import PhantomSettings, add_lesions, generate
from normalis.errors import SettingsError
from normalis.research.experiments import expand, read_plan
from normalis.research.selection import RULES, Evidence, Selection, select_capacity
from normalis.research.synthetic import SYNTHETIC
from pages import fill, folded
from selection_evidence import gather, read, variant
from selection_pictures import draw_curves, draw_regret
from theory import ROOT, number, table

PAGE = ROOT / "docs" / "reference" / "selection_study.md"
IMAGES = ROOT / "docs" / "images"
PLANS = ("selection_study.toml", "selection_study_phantoms.toml")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which candidates a choice is made of.

    Attributes:
        methods: whose trainings they are.
        readings: in which they are read.
        within: which capacities.
        baselines: two candidates or rules that every rule is compared with.
        capacity: whether candidates differ in capacity alone.
    """

    methods: tuple[str, ...] = ("ae",)
    readings: tuple[str, ...] = ("native",)
    within: tuple[float, float] = (0.0, math.inf)
    baselines: tuple[str, str] = ("always-16", "always-8")
    capacity: bool = True

    def takes(self, row: dict) -> bool:
        """Return whether a row of evidence is a candidate."""
        low, high = self.within
        if not self.capacity and row["method"] in _FIXED:
            low = high = _FIXED[row["method"]]
        mine = row["method"] in self.methods and reading_of(row) in self.readings
        return mine and low <= row["capacity"] <= high

    def name_of(self, row: dict) -> str:
        """Name a candidate."""
        if self.capacity:
            return f"{row['capacity']:g}"
        return row["method"] + (", median" if reading_of(row) == "median" else "")


#: capacity at which a method stands in the grid of methods, where it has one
USUAL = "ae-u, floored, clipped"  # the method of `fit`
_FIXED = dict.fromkeys(("ae", "ae-u", USUAL, "vae", "memae", "ceae", "constrained-ae"), 16.0)
_MEDIAN = ("median",)
DEFAULT = f"{USUAL}, median"  # as `fit` reads it
RATE = "rate-ae, held out, damped"
GRIDS = {
    "d 1-128": Grid(),
    "d 1-16": Grid(within=(0, 16)),
    "d 8-128": Grid(within=(8, math.inf)),
    "d 1-128, median": Grid(readings=_MEDIAN),
    "nested 1-128": Grid(methods=("nested-ae, balanced",)),
    "rate 4-64": Grid(methods=(RATE,)),
    "rate 4-64, median": Grid(methods=(RATE,), readings=_MEDIAN),
    "rate 4-64, undamped": Grid(methods=("rate-ae, held out",)),
    "rate 4-64 of training": Grid(methods=("rate-ae",)),
    "methods": Grid(
        methods=(*_FIXED, "dae"),
        readings=("native", "median"),
        baselines=(DEFAULT, "ae"),
        capacity=False,
    ),
}
WHOLE = "d 1-128"
SHOWN = ("d 1-128", "d 1-128, median", "rate 4-64", "methods")  # with a table for each set


def reading_of(row: dict) -> str:
    """Return the reading of a row; the first evidence had one alone and did not name it."""
    return row.get("reading") or "native"


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
        name: data set, and how images and trainings differ from the usual.
        grid: key of `GRIDS`.
        candidates: (C,) names, capacities rising.
        normals: [seed][candidate] rows without labels.
        outcomes: [seed][candidate] rows with labels.
        seeds: S.
    """

    name: str
    grid: str
    candidates: tuple[str, ...]
    normals: list[list[dict]]
    outcomes: list[list[dict]]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Fared:
    """How a rule fared; AUROC points with 95 % intervals, (value, low, high).

    ``over_first`` and ``over_second`` are differences from the grid's two baselines.
    """

    choices: tuple[str, ...]
    regret: tuple[float, float, float]
    over_first: tuple[float, float, float]
    over_second: tuple[float, float, float]
    pixel_ap_over_first: float


def key_of(row: dict) -> tuple:
    """Return what names one view of one training on both sides of the evidence."""
    return row["identity"], reading_of(row), row["capacity"]


def settings_of(normals: Sequence[dict], outcomes: Sequence[dict], grid: str) -> list[Setting]:
    """Arrange evidence by data set; the seeds and candidates that all share are taken."""
    taken = GRIDS[grid]
    labelled = {key_of(row): row for row in outcomes}
    cells: dict[str, dict[int, dict[tuple, dict]]] = {}
    for row in normals:
        if taken.takes(row) and key_of(row) in labelled:
            name = row["dataset"] + (", standardised" if row["standardize"] else "")
            place = row["capacity"], taken.name_of(row)
            mine = cells.setdefault(name, {}).setdefault(row["seed"], {})
            # Of two trainings that differ in length alone, the cheaper.
            if place not in mine or row["epochs"] < mine[place]["epochs"]:
                mine[place] = row
    found = []
    for name, by_seed in sorted(cells.items()):
        most = max(len(c) for c in by_seed.values())
        seeds = tuple(sorted(s for s, c in by_seed.items() if 2 * len(c) > most))
        common = sorted(set.intersection(*(set(by_seed[s]) for s in seeds)))
        if len(common) < LEAST:
            continue
        rows = [[by_seed[s][c] for c in common] for s in seeds]
        told = [[labelled[key_of(r)] for r in row] for row in rows]
        found.append(
            Setting(
                name=name,
                grid=grid,
                candidates=tuple(taken.name_of(row) for row in rows[0]),
                normals=rows,
                outcomes=told,
                seeds=seeds,
            )
        )
    return found


def evidence_of(rows: Sequence[dict], grid: str = WHOLE) -> Evidence:
    """Make what a rule reads of the unlabelled rows of one seed, candidates in rising order.

    Methods have neither a capacity nor an error in common, so rules that need one say so.
    """
    taken = GRIDS[grid]
    prior = [row.get("lesion_prior") for row in rows]
    by_capacity: dict = {}
    if taken.capacity:
        by_capacity = {
            "latent_dims": tuple(row["capacity"] for row in rows),
            "validation_errors": np.array([row["validation_error"] for row in rows]),
            "training_errors": np.array([row["training_error"] for row in rows]),
            "lesion_prior": {size: np.array([p[size] for p in prior]) for size in prior[0]}
            if all(prior)
            else {},
            "intrinsic_dimension": rows[0].get("intrinsic_dimension"),
        }
    return Evidence(
        candidates=tuple(taken.name_of(row) for row in rows),
        validation_scores=np.array([row["validation_scores"] for row in rows], np.float64),
        synthetic_scores={
            family: np.array([row["synthetic"][family] for row in rows], np.float64)
            for family in rows[0]["synthetic"]
        },
        groups=np.array(rows[0]["groups"]),
        **by_capacity,
    )


def choose(setting: Setting) -> dict[str, list]:
    """Apply every rule to every seed: rule -> a `Selection` for each; no label is read.

    A rule that lacks what it needs (a spectrum on a grid of rates) is left out. Baselines that are
    candidates and no rules stand beside them as rules that choose always that.
    """
    chosen: dict[str, list] = {}
    for rule in RULES:
        try:
            chosen[rule] = [
                select_capacity(evidence_of(rows, setting.grid), rule, repeats=0)
                for rows in setting.normals
            ]
        except SettingsError:
            continue
    for name in GRIDS[setting.grid].baselines:
        if name in setting.candidates:
            one = Selection(rule=f"always {name}", candidates=setting.candidates, choice=name)
            chosen[name] = [one] * len(setting.normals)
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
    rules, baselines = list(chosen), GRIDS[setting.grid].baselines
    by_rule = np.array(
        [[scores_of(s, scores[i]) for s in [chosen[r][i] for r in rules]]
         for i in range(len(scores))]
    )  # fmt: skip
    found = cross_fitted(scores, by_rule, labels, groups, repeats=repeats)
    compared = {
        b: differences(by_rule, rules.index(b), labels, groups, repeats=repeats)
        for b in GRIDS[setting.grid].baselines
        if b in rules
    }
    first, second = (compared.get(b, [(math.nan,) * 3] * len(rules)) for b in baselines)
    return {
        rule: Fared(
            choices=tuple(s.choice or "all" for s in chosen[rule]),
            regret=found[i],
            over_first=first[i],
            over_second=second[i],
            pixel_ap_over_first=pixel_difference(setting, chosen[rule], chosen.get(baselines[0])),
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


def pixel_difference(setting: Setting, mine: list, baseline: list | None) -> float:
    """Return points of pixel AP above the baseline's; NaN without masks or a single choice."""
    if baseline is None:
        return math.nan

    def value(row: list[dict], selection) -> float:
        if selection.choice is None:
            return math.nan
        found = row[selection.candidates.index(selection.choice)]["pixel_average_precision"]
        return math.nan if found is None else 100 * found

    pairs = zip(setting.outcomes, mine, baseline, strict=True)
    return float(np.mean([value(o, m) - value(o, b) for o, m, b in pairs]))


def training_of(row: dict) -> tuple:
    """Return what names a training of the plans, from a row of evidence."""
    return (
        row["dataset"],
        row["method"],
        row["standardize"],
        row["seed"],
        row["epochs"],
        row.get("recipe") or "paper",
        row.get("learning_rate") or 1e-3,
    )


def planned() -> dict[tuple, set[float]]:
    """Return the trainings that the plans name, with the capacities of each."""
    found: dict[tuple, set[float]] = {}
    for name in PLANS:
        for c in expand(read_plan(ROOT / "examples" / name)):
            of_rate = c["method"] == "rate-ae"
            capacity = c["options"]["rate"] if of_rate else c["latent_dim"]
            usual = {"recipe": "paper", "learning_rate": 1e-3}
            named = {"method": variant(c["method"], c["options"])}
            found.setdefault(training_of(usual | c | named), set()).add(float(capacity))
    return found


def of_plans(rows: Sequence[dict]) -> list[dict]:
    """Return the rows of trainings that the plans name."""
    wanted = planned()
    return [row for row in rows if training_of(row) in wanted]


def missing(normals: Sequence[dict]) -> list[str]:
    """Say how many trainings of the plans have evidence, by data set."""
    there: dict[tuple, set[str]] = {}
    for row in normals:
        there.setdefault(training_of(row), set()).add(row["identity"])
    wanted = planned()
    said = []
    for dataset in dict.fromkeys(key[0] for key in wanted):
        mine = {key: len(c) for key, c in wanted.items() if key[0] == dataset}
        done = sum(min(n, len(there.get(key, ()))) for key, n in mine.items())
        said.append(f"{dataset}: {done} of {sum(mine.values())} trainings")
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


def is_phantom(name: str) -> bool:
    return name.startswith("phantom_")


def summary_table(found: dict) -> list[str]:
    """Return mean and worst regret of each rule on each grid, over data sets."""
    counts = {g: sum(1 for k, _ in found if k == g) for g in GRIDS}
    grids = [g for g, n in counts.items() if n]
    rows = []
    for rule in dict.fromkeys(rule for _, fared in found.values() for rule in fared):
        row = [rule]
        for grid in grids:
            fared = [
                f[rule].regret[0] for (g, _), (_, f) in found.items() if g == grid and rule in f
            ]
            row.append(f"{np.mean(fared):.1f} / {max(fared):.1f}" if fared else "")
        rows.append(row)
    return table(["rule", *(f"{g} ({counts[g]})" for g in grids)], rows)


def setting_tables(found: dict) -> list[str]:
    lines = []
    for (grid, name), (setting, fared) in found.items():
        if grid not in SHOWN or (is_phantom(name) and grid != WHOLE):
            continue
        first = setting.outcomes[0][0]
        odd, n = sum(first["is_anomalous"]), len(first["is_anomalous"])
        own = [
            f"{c}: {100 * np.mean([_own(row[i]) for row in setting.outcomes]):.1f}"
            for i, c in enumerate(setting.candidates)
        ]
        lines += [
            f"**{name}, {grid}**: {len(setting.seeds)} seeds, {n - odd} normal and {odd} anomalous "
            f"test images, {len(setting.normals[0][0]['validation_scores'])} held-out normals. "
            f"AUROC by candidate: {', '.join(own)}.",
            "",
        ]
        rows = [
            [rule, " / ".join(f.choices), interval(f.regret), interval(f.over_first),
             interval(f.over_second), number(f.pixel_ap_over_first).replace("NaN", "")]
            for rule, f in fared.items()
        ]  # fmt: skip
        one, other = GRIDS[grid].baselines
        head = ["rule", "choice by seed", "regret", f"over {one}", f"over {other}",
                f"pixel AP over {one}"]  # fmt: skip
        lines += [*table(head, rows), ""]
    return lines


def _own(outcome: dict) -> float:
    scores, labels = np.array([outcome["scores"]]), np.array(outcome["is_anomalous"], bool)
    return float(aurocs(scores, labels)[0])


def page(found: dict, there: Sequence[str]) -> list[str]:
    """Return the tables of a `study`, and of the trainings that are there."""
    lines = [f"Trainings there: {'; '.join(there)}.", ""]
    lines += [
        f"{len(RULES)} rules on {len(SYNTHETIC)} families were tried. Mean and worst regret over "
        "the data sets, whose number is in brackets, in AUROC points:",
        "",
    ]
    for phantoms, title in ((False, "Real images"), (True, "Phantoms")):
        part = {key: f for key, f in found.items() if is_phantom(key[1]) == phantoms}
        lines += [f"*{title}*", "", *summary_table(part), ""] if part else []
    if not found:
        return lines[:1]
    return lines + folded(
        "What each rule chose on each set, and what it lost", setting_tables(found)
    )


def draw(found: dict, folder: Path) -> None:
    """Draw the curves and regrets of real images, of rules that all settings allow."""
    grids = {WHOLE: "its own error", f"{WHOLE}, median": "median"}
    real = {key: value for key, value in found.items() if not is_phantom(key[1])}
    curves = {
        (name, grids[grid]): (
            [float(c) for c in setting.candidates],
            100 * np.array([[_own(row) for row in rows] for rows in setting.outcomes]),
        )
        for (grid, name), (setting, _) in real.items()
        if grid in grids
    }
    usual = {
        name: 100 * float(np.mean([_own(rows[setting.candidates.index(DEFAULT)])
                                   for rows in setting.outcomes]))
        for (grid, name), (setting, _) in real.items()
        if grid == "methods" and DEFAULT in setting.candidates
    }  # fmt: skip
    if not curves:
        return
    allowed = [f for (g, _), (_, f) in real.items() if g in grids]
    rules = [rule for rule in RULES if all(rule in fared for fared in allowed)]  # in one order
    regrets = {
        f"read by {reading}": {
            rule: {n: f[rule].regret[0] for (g, n), (_, f) in real.items() if g == grid}
            for rule in rules
        }
        for grid, reading in grids.items()
        if any(g == grid for g, _ in real)
    }
    draw_curves(curves, usual, folder / "selection_curves.png")
    draw_regret(regrets, folder / "selection_regret.png")


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
    normals, outcomes = (of_plans(read(given.evidence / side)) for side in ("normals", "outcomes"))
    found = study(normals, outcomes)
    fill(PAGE, {"study": "\n".join(page(found, missing(normals))).rstrip("\n")})
    draw(found, IMAGES)


if __name__ == "__main__":
    main()
