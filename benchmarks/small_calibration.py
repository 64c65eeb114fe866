"""Which calibration is best with few normal images? Repeated draws from real data sets tell.

    python benchmarks/small_calibration.py DATA_FOLDER [--repeats 60] [--sets kermany_cxr]
    python benchmarks/small_calibration.py DATA_FOLDER --method ae-u --repeats 3
    python benchmarks/small_calibration.py --table

In each repeat 30, 60, 120 or 240 units of normal images (patients; on brain_tumor groups of near
duplicates) are drawn. Each way to calibrate gets all of them, fits and calibrates, and meets the
normal images of other units and the anomalous ones. Then one of the units is replaced by one
anomalous image, as if somebody had taken it for normal, and all is done again: that is the odd
normal image that can silence all others.

The cheap methods compute on 32 x 32 pixels, so that they can be refitted thousands of times:
``pca`` is the mean of the largest 2 % of squared residuals outside 16 components, ``knn`` the mean
squared distance from the nearest training image. ``ae-u`` is what `fit` does with the recipe fast.

Every repeat is one block of lines of ``results/small_calibration.csv`` and is not done again; the
table of them is docs/reference/small_calibration.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normalis.calibration.conformal import calibrate
from normalis.duplicates import likeness_groups
from normalis.metrics import auroc

RECORDS = Path(__file__).resolve().parents[1] / "results" / "small_calibration.csv"
SETS = ("kermany_cxr", "lgg_flair", "brain_tumor")
UNITS = (30, 60, 120, 240)
RATES = (0.05, 0.1)
SPLITS = (0.2, 0.3, 0.5)
FOLDS = (5, 10)
COLUMNS = (
    "dataset", "method", "units", "repeat", "calibration", "rate", "auroc",
    "false_positive_rate", "sensitivity", "false_positive_rate_odd", "sensitivity_odd",
)  # fmt: skip
_MOST = 200  # images of a class that are tested, at most

Scores = Callable[[Any, Any], Any]  # (training images, images) -> scores of the images


@dataclass(frozen=True)
class Pool:
    """Normal images with their units, and anomalous images of other units where they are known."""

    name: str
    normal: Any
    unit: Any
    anomalous: Any
    anomalous_unit: Any


def read(folder: Path, name: str, *, size: int) -> Pool:
    """Read a data set; images of one patient, or near duplicates, have one unit."""
    with np.load(folder / name / "arrays_64.npz") as z:
        label = np.append(np.zeros(len(z["train"]), bool), z["test_label"].astype(bool))
        images = np.append(z["train"], z["test"], axis=0)
        if "train_patient" in z:
            unit = np.append(z["train_patient"], z["test_patient"])
        else:
            unit = likeness_groups(images[:, None]).astype(str)
    step = images.shape[1] // size
    small = images.reshape(len(images), size, step, size, step).mean((2, 4)).astype(np.uint8)
    return Pool(name, small[~label], unit[~label], small[label], unit[label])


def pca(train: Any, x: Any) -> Any:
    """Mean of the largest 2 % of squared residuals outside 16 principal directions."""
    rows = train.reshape(len(train), -1) / np.float32(255)
    mean = rows.mean(0)
    _, vectors = np.linalg.eigh((rows - mean) @ (rows - mean).T)
    base = np.linalg.qr((rows - mean).T @ vectors[:, -16:])[0]
    centred = x.reshape(len(x), -1) / np.float32(255) - mean
    residual = np.square(centred - centred @ base @ base.T)
    few = residual.shape[1] // 50
    return np.partition(residual, -few, axis=1)[:, -few:].mean(1)


def knn(train: Any, x: Any) -> Any:
    """Mean squared distance from the nearest training image."""
    a, b = (part.reshape(len(part), -1) / np.float32(255) for part in (x, train))
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.maximum(squares.min(1), 0) / a.shape[1]


def ae_u(train: Any, x: Any) -> Any:
    """What `fit --recipe fast` makes of the training images."""
    from normalis import AnomalyDetector

    fitted = AnomalyDetector(method="ae-u", recipe="fast", calibration="none", device="cpu")
    return fitted.fit(train).anomaly_score(x)


METHODS: dict[str, Scores] = {"pca": pca, "knn": knn, "ae-u": ae_u}


def draw(pool: Pool, count: int, seed: int) -> tuple[Any, Any, Any, Any, Any]:
    """Return known images and units, new normal and anomalous images, and the odd image."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.unique(pool.unit))
    ours = np.isin(pool.unit, order[:count])
    free = np.flatnonzero(~np.isin(pool.anomalous_unit, order[:count]))
    free = rng.permutation(free)[: _MOST + 1]
    rest = rng.permutation(np.flatnonzero(~ours))[:_MOST]
    odd, others = pool.anomalous[free[0]], pool.anomalous[free[1:]]
    return pool.normal[ours], pool.unit[ours], pool.normal[rest], others, odd


def ways(count: int, schemes: Any, seed: int) -> Iterator[tuple[str, Any]]:
    """Yield each way to calibrate and the fold (units,) of each unit; -1 is never held out."""
    order = np.random.default_rng(seed).permutation(count)
    for scheme in schemes:
        kind, value = scheme
        if kind == "split":
            fold = np.where(order < min(max(1, round(value * count)), count - 2), 0, -1)
            yield f"split {value:g}", fold
        else:
            yield f"cv+ {value}", order % value


def calibrated(method: Scores, known: Any, member: Any, fold: Any, new: Any) -> tuple[Any, Any]:
    """Return the calibration of one way, and the new images' scores (folds, M)."""
    of_image, own, theirs = fold[member], np.full(len(known), np.nan), []
    for k in range(fold.max() + 1):
        held = of_image == k
        found = method(known[~held], np.concatenate([known[held], new]))
        own[held] = found[: held.sum()]
        theirs.append(found[held.sum() :])
    kept = of_image >= 0
    plus = {"kind": "cv+", "fold": of_image[kept]} if fold.max() else {}
    result = calibrate(own[kept], patients=member[kept], **plus)  # type: ignore[arg-type]
    return result, np.stack(theirs) if fold.max() else theirs[0]


def one_repeat(
    pool: Pool, method: Scores, count: int, seed: int, schemes: Any
) -> Iterator[tuple[Any, ...]]:
    """Yield the records of one draw of normal units, without the first four columns."""
    known, unit, fresh, others, odd = draw(pool, count, seed)
    names, member = np.unique(unit, return_inverse=True)
    new = np.concatenate([fresh, others])
    is_anomalous = np.arange(len(new)) >= len(fresh)
    first = np.random.default_rng(seed).integers(names.size)
    keep = member != first
    spoilt = np.concatenate([known[keep], odd[None]]), np.append(member[keep], first)
    for way, fold in ways(names.size, schemes, seed):
        both = [calibrated(method, *given, fold, new) for given in ((known, member), spoilt)]
        mean = both[0][1].mean(0) if both[0][1].ndim == 2 else both[0][1]
        for rate in RATES:
            if rate < both[0][0].smallest_rate - 1e-9:
                continue  # too few: nothing can be flagged
            row: list[Any] = [way, rate, auroc(mean, is_anomalous)]
            for calibration, scores in both:
                flags = calibration.flags(calibration.p_values(scores), rate)
                row += [flags[~is_anomalous].mean(), flags[is_anomalous].mean()]
            yield tuple(row)


def done() -> set[tuple[str, str, int, int]]:
    """Return which repeats are recorded."""
    if not RECORDS.exists():
        return set()
    with RECORDS.open(newline="") as file:
        rows = csv.DictReader(file)
        return {(r["dataset"], r["method"], int(r["units"]), int(r["repeat"])) for r in rows}


def record(name: str, method: str, pool: Pool, repeats: int, schemes: Any, sizes: Any) -> None:
    """Do what is missing and append it, a block of lines per repeat."""
    known, most = done(), np.unique(pool.unit).size
    for count, seed in itertools.product(sizes, range(repeats)):
        if (name, method, count, seed) in known or count > most * 0.7:
            continue
        rows = list(one_repeat(pool, METHODS[method], count, seed, schemes))
        new = not RECORDS.exists()
        RECORDS.parent.mkdir(exist_ok=True)
        with RECORDS.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(COLUMNS)
            for row in rows:
                cells = [f"{v:.3f}" if isinstance(v, float) else v for v in row]
                writer.writerow([name, method, count, seed, *cells])


def table() -> None:
    """Print the means over repeats, and how often one odd normal image silences the rest."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    with RECORDS.open(newline="") as file:
        for row in csv.DictReader(file):
            key = row["dataset"], row["method"], row["units"], row["rate"], row["calibration"]
            found[key].append(row)
    head = (
        "data", "method", "units", "rate", "calibration", "repeats", "AUROC", "realised rate",
        "of 95 % of repeats", "anomalies flagged", "with one odd normal", "nearly none flagged",
        "nearly none with one odd normal",
    )  # fmt: skip
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for key, rows in sorted(found.items(), key=_order):
        value = {c: np.array([float(r[c]) for r in rows]) for c in COLUMNS[6:]}
        rate, hit, odd = (
            100 * value[c] for c in ("false_positive_rate", "sensitivity", "sensitivity_odd")
        )
        low, high = np.quantile(rate, [0.025, 0.975])
        few = 0.25 * hit.mean()
        cells = (
            *key, len(rows), f"{100 * value['auroc'].mean():.1f}",
            f"{rate.mean():.1f} %", f"{low:.1f} to {high:.1f} %", f"{hit.mean():.1f} %",
            f"{odd.mean():.1f} %", f"{100 * np.mean(hit < few):.0f} %",
            f"{100 * np.mean(odd < few):.0f} %",
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def _order(item: tuple[tuple[str, ...], Any]) -> tuple[Any, ...]:
    name, method, units, rate, way = item[0]
    return SETS.index(name), method, float(rate), int(units), way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--method", nargs="+", default=["pca", "knn"], choices=METHODS)
    parser.add_argument("--units", nargs="+", type=int, default=UNITS)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--table", action="store_true", help="print the table of the records")
    args = parser.parse_args()
    if args.table:
        return table()
    if args.folder is None:
        parser.error("name the folder that holds the data sets, or give --table")
    for name, method in itertools.product(args.sets, args.method):
        costly = method == "ae-u"
        schemes = [("split", s) for s in ((0.2, 0.5) if costly else SPLITS)]
        schemes += [("cv+", f) for f in (FOLDS[:1] if costly else FOLDS)]
        pool = read(args.folder, name, size=64 if costly else 32)
        record(name, method, pool, args.repeats, schemes, args.units)
    return None


if __name__ == "__main__":
    main()
