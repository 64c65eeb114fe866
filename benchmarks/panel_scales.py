"""Does the panel find more if readings are measured by other normal images, or by ranks?

    python benchmarks/panel_scales.py DATA_FOLDER PANEL.csv RUNS READINGS LEFT_OUT --out OUT.csv

PANEL.csv, RUNS and READINGS are what ``benchmarks/panel.py --out PANEL.csv --runs RUNS --readings
READINGS`` wrote. The panel
measures each reading by the held-out normal images, of 23 patients on lgg_flair, so that its score
depends on who was drawn. Here the training images' own readings are added: those of the members
that need no training, each image read with the images of its fold of units (about 16 images) left
out of the bank, and the Gaussian fitted without a twentieth of the units; kept in LEFT_OUT.
``ae-u`` has seen its training images, so the joined map's reading of them is too small.

OUT.csv holds AUROCs of the panel by each way to measure: by the draw of the fit, and over draws of
as many units from all normal images that no member was fitted on, the others and all anomalous ones
being scored (mean, standard deviation, 5 % quantile). Calibration is by held-out images in all.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from normalis.calibration.panel import _joined, _measured
from normalis.datasets import Dataset, open_dataset, patients_from_pattern
from normalis.fitted import FittedDetector
from normalis.loading.arrays import Loaded
from normalis.loading.held_out import fingerprint, normal_images, units_of, with_units
from normalis.models.feature_gaussian import whitening
from normalis.models.inputs import to_model_input
from normalis.panel import Panel
from panel import PATIENTS, without_leak

COLUMNS = ("data", "seed", "measured_by", "auroc", "mean", "deviation", "lowest")
FOLD = 16  # images left out of a bank at a time, whole units
PARTS = 20  # of the units, for the Gaussian
FAR = 1e4  # of features that are out of the way
JOINED, KNN, GAUSSIAN = 0, 3, 4  # columns of the default panel's readings
SETS = ("kermany_cxr", "brain_tumor without its leak", "lgg_flair", "fundus", "breast_us_patches")


def opened(folder: Path, name: str) -> Dataset:
    """Return a data set as `benchmarks/panel.py` reads it."""
    first = name.split()[0]
    data = open_dataset(folder / first)
    if first in PATIENTS:
        data = patients_from_pattern(data, PATIENTS[first])
    return without_leak(data) if first == "brain_tumor" else data


def trained_on(fitted: FittedDetector, data: Dataset, seed: int) -> Loaded:
    """Return the images that a detector was fitted on."""
    train = normal_images(
        data,
        fitted.image_settings,
        hold_out=fitted.params["calibration_share"],
        seed=seed,
        rule=fitted.rule,
        fit_rule=fitted.rule is None,
    ).train
    if fingerprint(train.pixels) != fitted.info["data"]["fingerprint"]:
        raise SystemExit("the data set holds other images than this run was fitted on")
    return with_units(train)


def folds(unit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the fold (n,) of each image: whole units, about `FOLD` images each."""
    sizes, fold, filled, number = np.bincount(unit), np.empty(unit.max() + 1, int), 0, 0
    for one in generator.permutation(len(sizes)):
        if filled and filled + sizes[one] > FOLD:
            number, filled = number + 1, 0
        fold[one], filled = number, filled + sizes[one]
    found: np.ndarray = fold[unit]
    return found


@torch.no_grad()
def left_out_readings(fitted: FittedDetector, train: Loaded) -> np.ndarray:
    """Return readings (V, n) of training images, the banks without each image's fold."""
    panel = fitted.models[0]
    assert isinstance(panel, Panel)
    unit = np.unique(units_of(train).member, return_inverse=True)[1]
    x = to_model_input(torch.from_numpy(train.pixels), standardize=fitted.standardize)
    fold, found = folds(unit, np.random.default_rng(0)), np.empty((5, len(x)))
    parts = panel.parts()
    for number in range(fold.max() + 1):
        mine, kept = np.flatnonzero(fold == number), []
        for name in ("feature-knn", "spade"):
            arrays = parts[name].state()
            out = torch.from_numpy(np.isin(arrays["rows"].numpy(), mine))
            kept.append((arrays["bank"], out, arrays["bank"][out].clone()))
            arrays["bank"][out] = FAR
        found[:, mine] = panel.read(x[mine])[0].numpy()
        for bank, out, old in kept:
            bank[out] = old
    gaussian = parts["feature-gaussian"]
    seen = panel.seen_by_part("feature-gaussian", x)
    pooled = torch.cat([gaussian.pooled(some) for some in seen.split(64)])  # type: ignore[attr-defined]
    part = (np.random.default_rng(1).permutation(unit.max() + 1) % PARTS)[unit]
    for number in range(PARTS):
        mine = torch.from_numpy(part == number)
        mean, w = whitening(pooled[~mine])
        found[GAUSSIAN, part == number] = ((pooled[mine] - mean) @ w.T).square().sum(1).numpy()
    return found


Scale = Callable[[np.ndarray, np.ndarray], np.ndarray]


def spread(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return values by median and upper spread, as the panel does."""
    return _measured(values, by)


def ranks(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return normal scores of ranks; beyond the largest and smallest by the spread."""
    ranked = np.sort(by)
    scores = norm.ppf((np.arange(len(by)) + 0.5) / len(by))
    beyond = spread(values, by) - spread(np.clip(values, ranked[0], ranked[-1]), by)
    return np.interp(values, ranked, scores) + beyond


def score(
    new: np.ndarray, place: np.ndarray, whole: np.ndarray, of: Scale, of_whole: Scale
) -> np.ndarray:
    """Return the panel's score of logarithms (V, M), each kind measured by images of its own."""
    columns = (KNN, GAUSSIAN)
    mean = np.mean([of_whole(new[c], whole[c]) for c in columns], 0)
    theirs = np.mean([of_whole(whole[c], whole[c]) for c in columns], 0)
    return _joined(np.stack([of(new[JOINED], place[JOINED]), of_whole(mean, theirs)]))


def between(new: np.ndarray, held: np.ndarray, train: np.ndarray, both: bool) -> np.ndarray:
    """Return the score with the place's spread between that of held-out and training images."""
    own, seen = (_middle_and_spread(x[JOINED]) for x in (held, train))
    scale = np.sqrt(own[1] * seen[1])
    whole = train if both else held
    return score(new, held, whole, lambda v, _: (v - own[0]) / scale, spread)


def _middle_and_spread(values: np.ndarray) -> tuple[float, float]:
    zero, one = spread(np.array([0.0, 1.0]), values)
    return float(-zero / (one - zero)), float(1 / (one - zero))


def ways(new: np.ndarray, held: np.ndarray, train: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the score of each way to measure logarithms (V, ...)."""
    both = np.concatenate([held, train], 1)
    yield "held-out (the panel)", score(new, held, held, spread, spread)
    yield "whole: training", score(new, held, train, spread, spread)
    yield "whole: both", score(new, held, both, spread, spread)
    yield "all: training", score(new, train, train, spread, spread)
    yield "all: both", score(new, both, both, spread, spread)
    yield "place between", between(new, held, train, both=False)
    yield "place between, whole: training", between(new, held, train, both=True)
    yield "whole: ranks of training", score(new, held, train, spread, ranks)
    yield "ranks, whole: training", score(new, held, train, ranks, ranks)
    yield "ranks of held-out", score(new, held, held, ranks, ranks)


def over_draws(
    x: np.ndarray, unit: np.ndarray, anomalous: np.ndarray, train: np.ndarray, n: int, draws: int
) -> dict[str, list[float]]:
    """Return AUROCs by way over draws of n units from the normal images (V, N)."""
    names, found = np.unique(unit[~anomalous]), dict[str, list[float]]()
    for seed in range(draws):
        drawn = np.random.default_rng(seed).permutation(names)[: min(n, len(names) - 10)]
        held = np.isin(unit, drawn) & ~anomalous
        for way, values in ways(x[:, ~held], x[:, held], train):
            found.setdefault(way, []).append(100 * roc_auc_score(anomalous[~held], values))
    return found


def left_out(folder: Path, data: Path, runs: Path, name: str, seed: int) -> np.ndarray:
    """Return the logarithms of left-out readings, made once and kept."""
    file = folder / f"{name} {seed}.npy"
    if not file.exists():
        fitted = FittedDetector.load(runs / f"{name} {seed}")
        found = left_out_readings(fitted, trained_on(fitted, opened(data, name), seed))
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file, found)
    return np.log(np.load(file))


def main() -> None:
    """Write a row a set, seed and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "panel", "runs", "readings", "left_out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--draws", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with given.panel.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["reading"] == "panel"]
    held = {(r["data"], r["seed"]): (int(r["n_units"]), int(r["n_held"])) for r in rows}
    with given.out.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name in given.sets:
            for seed in given.seeds:
                train = left_out(given.left_out, given.data, given.runs, name, seed)
                stored = np.load(given.readings / f"{name} {seed}.npz")
                x, unit, bad = np.log(stored["readings"]), stored["unit"], stored["anomalous"]
                n, images = held[name, str(seed)]
                drawn = over_draws(x, unit, bad, train, n, given.draws)
                for way, values in ways(x[:, images:], x[:, :images], train):
                    here, q = 100 * roc_auc_score(bad[images:], values), np.array(drawn[way])
                    found = (here, q.mean(), q.std(), np.quantile(q, 0.05))
                    writer.writerow([name, seed, way, *(f"{v:.2f}" for v in found)])
                    stream.flush()


if __name__ == "__main__":
    main()
