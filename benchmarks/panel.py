"""The default panel on the development sets: fitted, scored and judged as a user's would be.

    python benchmarks/panel.py DATA_FOLDER --out docs/data/panel.csv [--sets ...] [--seeds 0 1]

DATA_FOLDER holds kermany_cxr, brain_tumor, lgg_flair, fundus and breast_us_patches. brain_tumor is
read without its leak: trained on the normal images that no test image resembles (normalised
cross-correlation below 0.95 at 64 x 64), tested without repetitions. One row a set, seed and
reading: the panel's score, and each reading that it is made of. Rows are added to the file as they
are measured; a set and seed that it holds already are left out.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from normalis import AnomalyDetector
from normalis.datasets import Dataset, open_dataset, patients_from_pattern
from normalis.duplicates import unit_rows
from normalis.fitted import FittedDetector
from normalis.loading.arrays import ImageSettings, Loaded, load, load_masks
from normalis.loading.held_out import units_of
from normalis.scoring import joined_scores

SETS = ("kermany_cxr", "brain_tumor", "lgg_flair", "fundus", "breast_us_patches")
#: Where file names hold the patient; `normalis fit --patient-pattern` takes the same.
PATIENTS = {
    "kermany_cxr": r"((?:IM|NORMAL2-IM|person)-?\d+)",
    "lgg_flair": r"(TCGA_[A-Z]{2}_[0-9A-Z]{4})",
    "fundus": r"_(\d+)_",
}
TWIN = 0.95
COLUMNS = (
    "data", "seed", "reading", "auroc", "ap", "pixel_ap", "rate", "flagged_normal",
    "flagged_anomalous", "n_train", "n_held", "n_units", "fit_s", "score_s", "scored", "threads",
)  # fmt: skip


def without_leak(data: Dataset) -> Dataset:
    """Leave out training images that resemble a test image, and repetitions in the test."""
    settings = ImageSettings(image_size=64)
    train, test = (load(data.split(split), settings) for split in ("train", "test"))
    a, b = unit_rows(train.pixels), unit_rows(test.pixels)
    keep = {
        id(r.sample) for r, near in zip(train.rows, (a @ b.T).max(1), strict=True) if near < TWIN
    }
    alike, kept = b @ b.T, []
    for i, row in enumerate(test.rows):
        if not kept or alike[i, kept].max() < TWIN:
            kept.append(i)
            keep.add(id(row.sample))
    return replace(data, samples=tuple(s for s in data.samples if id(s) in keep))


def measure(
    data: Dataset,
    seed: int,
    readings: Path | None = None,
    runs: Path | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Fit on a data set's normal images, score its test; return one row per reading.

    Args:
        data: with patients where they are known.
        seed: of everything random.
        readings: folder to keep the readings of unseen images in.
        runs: folder to save the fitted detector in.
        settings: of the detector.
    """
    detector = AnomalyDetector(random_state=seed, **settings)
    detector.fit(data)
    if runs is not None:
        detector.save(runs / f"{data.name} {seed}")
    fitted, calibration = detector.fitted_, detector.calibration_
    started = time.perf_counter()
    parts = list(fitted.stream(data.split("test")))
    score_s = time.perf_counter() - started
    rows = [row for part in parts for row in part.rows]
    label = np.array([bool(row.is_anomalous) for row in rows])
    maps = np.concatenate([part.anomaly_map for part in parts])
    common = {
        "data": data.name,
        "seed": seed,
        "n_train": detector.info_["data"]["train_images"],
        "n_held": calibration.n_images,
        "n_units": calibration.n_units,
        "fit_s": round(detector.info_["fit_s"], 1),
        "score_s": round(score_s, 2),
        "scored": len(rows),
        "threads": torch.get_num_threads(),
    }
    if readings is not None:
        own = units_of(rows_of(fitted, data)).member + calibration.n_units
        readings.mkdir(parents=True, exist_ok=True)
        np.savez(
            readings / f"{data.name} {seed}.npz",
            readings=np.concatenate([calibration.held_readings, joined_scores(parts)], axis=1),
            unit=np.concatenate([calibration.unit, own]),
            anomalous=np.concatenate([np.zeros(calibration.n_images, bool), label]),
            names=calibration.readings.names,
            kinds=calibration.readings.kinds,
        )
    p = calibration.p_values(joined_scores(parts))
    rate = max(0.05, calibration.smallest_rate)
    flagged = calibration.flags(p, rate)
    whole = {
        "reading": "panel" if parts[0].readings is not None else detector.method,
        "rate": round(rate, 4),
        "flagged_normal": _percent(flagged[~label].mean()),
        "flagged_anomalous": _percent(flagged[label].mean()),
    }
    if data.has_masks:
        masks = load_masks(rows, image_size=maps.shape[-1])
        whole["pixel_ap"] = _percent(average_precision_score(masks.ravel(), maps.ravel()))
    found = [common | whole | _ranks(label, np.concatenate([q.anomaly_score for q in parts]))]
    if parts[0].readings is not None:
        for name, kind, values in zip(
            calibration.readings.names,
            calibration.readings.kinds,
            joined_scores(parts),
            strict=True,
        ):
            found.append(
                common | {"reading": name if kind else f"({name})"} | _ranks(label, values)
            )
    return found


def rows_of(fitted: FittedDetector, data: Dataset) -> Loaded:
    """Return the test images as the detector reads them, with their patients."""
    given: dict[str, Any] = {"rule": fitted.rule, "fit_rule": False, "cache": True}
    return load(data.split("test"), fitted.image_settings, **given)


def _ranks(label: np.ndarray, score: np.ndarray) -> dict[str, float]:
    return {
        "auroc": _percent(roc_auc_score(label, score)),
        "ap": _percent(average_precision_score(label, score)),
    }


def _percent(share: float) -> float:
    return round(100 * float(share), 2)


def table(file: Path) -> str:
    """Return the rows of a file as a table in Markdown: sets down, readings across."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    readings = list(dict.fromkeys(row["reading"] for row in rows))
    head = ["data", "seed", *readings, "pixel AP", "flagged: normal, anomalous", "fit, s"]
    lines = [head, ["---"] * len(head)]
    for data, seed in dict.fromkeys((row["data"], row["seed"]) for row in rows):
        mine = {r["reading"]: r for r in rows if (r["data"], r["seed"]) == (data, seed)}
        whole = mine["panel"]
        flagged = (
            f"{whole['flagged_normal']}, {whole['flagged_anomalous']} at "
            f"{100 * float(whole['rate']):.3g} % ({whole['n_units']} units)"
        )
        values = [mine[name]["auroc"] if name in mine else "" for name in readings]
        lines.append([data, seed, *values, whole["pixel_ap"], flagged, whole["fit_s"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure what the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--readings", type=Path, help="folder for readings of unseen images")
    parser.add_argument("--runs", type=Path, help="folder to save the fitted detectors in")
    parser.add_argument("--members", nargs="*", help="of the panel; the default ones if not given")
    parser.add_argument("--table", action="store_true", help="print the file's rows and stop")
    given = parser.parse_args()
    if given.table:
        print(table(given.out))
        return
    settings = {"members": given.members} if given.members else {}
    done: set[tuple[str, str]] = set()
    if given.out.exists():
        with given.out.open(newline="") as stream:
            done = {(row["data"], row["seed"]) for row in csv.DictReader(stream)}
    for name in given.sets:
        data = open_dataset(given.data / name)
        if name in PATIENTS:
            data = patients_from_pattern(data, PATIENTS[name])
        if name == "brain_tumor":
            data = replace(without_leak(data), name="brain_tumor without its leak")
        for seed in given.seeds:
            if (data.name, str(seed)) in done:
                continue
            rows = measure(data, seed, given.readings, given.runs, method="panel", **settings)
            new = not given.out.exists()
            with given.out.open("a", newline="") as stream:
                writer = csv.DictWriter(stream, COLUMNS, restval="")
                if new:
                    writer.writeheader()
                writer.writerows(rows)
            print(*(f"{k}={v}" for k, v in rows[0].items()), flush=True)


if __name__ == "__main__":
    main()
