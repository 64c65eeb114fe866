"""AUROC, seconds and size of the methods on frozen features, on local development sets.

    python benchmarks/feature_methods.py ROOT [--sets kermany_cxr lgg_flair] [--methods spade padim]

ROOT holds one folder a set, in a layout that normalis knows. Each method is fitted on the normal
training images, by default settings and with a fifth of them held out, and scores the labelled
test images; seconds are of the processor, files already read once. ``brain_tumor`` is taken without
its leak: training images with a near copy in the test, and repetitions in the test, are left out.
Development sets: what was chosen on them was chosen with their labels.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from normalis import AnomalyDetector
from normalis.datasets import (
    Dataset,
    Sample,
    offer_pattern,
    open_dataset,
    patients_from_pattern,
)
from normalis.loading.arrays import ImageSettings, load, load_masks

TWINS = 0.95  # correlation of two images at 64 pixels, from which one is a near copy of the other
VARIANTS: dict[str, dict[str, Any]] = {
    "feature-knn": {},
    "feature-gaussian": {},
    "padim": {},
    "padim share=1": {"share": 1.0},
    "spade": {},
    "spade taps=c+g stride=16 share=1": {"taps": "c+g", "stride": 16, "share": 1.0},
    "feature-ae": {},
    "uniad": {},
    "hvq-trans": {},
}


def without_leak(
    train: Sequence[Sample], test: Sequence[Sample]
) -> tuple[list[Sample], list[Sample]]:
    """Leave out training images with a twin in the test, then the test's own repetitions."""

    def rows(samples: Sequence[Sample]) -> NDArray[np.float32]:
        pixels = load(samples, ImageSettings()).pixels
        flat = pixels.reshape(len(samples), -1).astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    a, b = rows(train), rows(test)
    likeness, kept = b @ b.T, list[int]()
    for i in range(len(b)):
        if not kept or likeness[i, kept].max() < TWINS:
            kept.append(i)
    alone = (a @ b.T).max(1) < TWINS
    return [s for s, k in zip(train, alone, strict=True) if k], [test[i] for i in kept]


def dataset_of(root: Path, name: str) -> tuple[Dataset, list[Sample]]:
    """Return normal training images, by patient where the names tell, and test images."""
    data = open_dataset(root / name)
    if offered := offer_pattern(data):
        data = patients_from_pattern(data, offered[1])
    train = [s for s in data.samples if s.split == "train" and not s.is_anomalous]
    test = [s for s in data.samples if s.split == "test"]
    if name == "brain_tumor":
        train, test = without_leak(train, test)
    return replace(data, samples=train), test


def measure(root: Path, name: str, variant: str, seed: int) -> str:
    train, test = dataset_of(root, name)
    detector = AnomalyDetector(
        method=variant.split()[0], method_options=VARIANTS[variant] or None, random_state=seed,
        calibration_share=0.2, device="cpu",
    )  # fmt: skip
    started = time.process_time()
    fitted = detector.fit(train).fitted_
    fit_s = time.process_time() - started
    started = time.process_time()
    parts = list(fitted.stream(test, maps=False))
    plain = len(test) / (time.process_time() - started)
    started = time.process_time()
    parts = list(fitted.stream(test))
    mapped = len(test) / (time.process_time() - started)
    rows = [row for part in parts for row in part.rows]
    labels = np.array([bool(row.is_anomalous) for row in rows])
    scores = np.concatenate([part.anomaly_score for part in parts])
    figures = [f"{100 * roc_auc_score(labels, scores):.1f}"]
    maps = np.concatenate([part.anomaly_map for part in parts])
    masks = load_masks(rows, image_size=maps.shape[1])
    ap = average_precision_score(masks.ravel()[::7], maps.ravel()[::7]) if masks.any() else None
    figures.append("-" if ap is None else f"{100 * ap:.1f}")
    flagged = fitted.require_calibration().p_values(scores) <= 0.05
    figures.append(f"{100 * flagged[labels].mean():.0f} / {100 * flagged[~labels].mean():.1f}")
    size = sum(v.numel() * v.element_size() for v in fitted.models[0].state().values())
    figures += [f"{fit_s:.0f}", f"{plain:.0f} / {mapped:.0f}", f"{size / 1e6:.1f}"]
    return f"| {name} | {variant} | " + " | ".join(figures) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", nargs="+", default=["kermany_cxr", "brain_tumor", "lgg_flair"])
    parser.add_argument("--methods", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| set | method | AUROC | pixel AP | flagged at 5 %: anomalous / normal, % | fit, s |"
          " images a second a core: scores / and maps | MB |")  # fmt: skip
    print("| --- " * 8 + "|")
    for name in given.sets:
        for variant in given.methods:
            print(measure(given.root, name, variant, given.seed), flush=True)


if __name__ == "__main__":
    main()
