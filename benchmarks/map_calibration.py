"""How often calibrated maps colour normal images they were not set on, over random splits.

    python benchmarks/map_calibration.py DATA_FOLDER [--repeats 200]

A PCA of 16 components is fitted once, on half of the normal training images by patient. The other
normal images (of training and test) are split at random by patient, again and again: one part sets
the level of calibrated maps, the other says how many images have a place above it. The interval is
the beta-binomial one of `normalis.calibration.conformal`; it holds where a unit is one image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from normalis import AnomalyDetector
from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import realised_rate_interval
from normalis.calibration.maps import fit_map_scale

RATES = (0.2, 0.1, 0.05, 0.02)


def main() -> None:
    """Print the table of one data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args()
    maps, unit = unseen_maps(given.data)
    count = int(unit.max()) + 1
    rng = np.random.default_rng(0)
    rates: dict[float, list[float]] = {rate: [] for rate in RATES}
    sizes = []
    for _ in range(given.repeats):
        chosen = np.isin(unit, rng.permutation(count)[: count // 2])
        scale, own = fit_map_scale(maps[chosen], unit[chosen])
        new = scale.apply(maps[~chosen]).max(axis=(1, 2))
        sizes.append(int((~chosen).sum()))
        for rate, found in rates.items():
            level = ColourScale.from_calibrated(own, rate, unit=unit[chosen]).quiet
            found.append(float((new > level).mean()))
    print(f"{len(maps)} images of {count} units, half of them calibrate, {given.repeats} repeats")
    for rate, found in rates.items():
        if rate * (count // 2 + 1) < 1:
            print(f"{rate:.0%}: {count // 2} units cannot certify it")
            continue
        low, high = realised_rate_interval(count // 2, round(np.mean(sizes)), rate)
        inside = np.mean([low <= one <= high for one in found])
        a, b = np.quantile(found, [0.025, 0.975])
        print(
            f"{rate:.0%}: mean {np.mean(found):.2%}, {a:.1%} to {b:.1%}; "
            f"theory {low:.1%} to {high:.1%}, inside {inside:.0%}"
        )


def unseen_maps(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (n, 64, 64) of normal images that a PCA has not seen, and their patients."""
    stored = np.load(next(data.glob("arrays_64.npz")), allow_pickle=True)
    images, patient = stored["train"], stored["train_patient"]
    names = np.unique(patient)
    seen = np.isin(patient, np.random.default_rng(0).permutation(names)[: len(names) // 2])
    normal = ~stored["test_label"].astype(bool)
    detector = AnomalyDetector(method="pca", latent_dim=16, calibration="none", scorer="median")
    detector.fit(images[seen])
    x = np.concatenate([images[~seen], stored["test"][normal]])
    who = np.concatenate([patient[~seen], stored["test_patient"][normal]]).astype(str)
    return detector.anomaly_map(x), np.unique(who, return_inverse=True)[1]


if __name__ == "__main__":
    main()
