"""Do the panel's p-values keep their promise on real normal images?

    python benchmarks/panel_exactness.py READINGS.npz [...]

READINGS.npz is one that ``benchmarks/panel.py --readings FOLDER`` wrote: the readings of images
that no member was fitted on, the held-out ones and the test's, with their patients. 200 times the
normal ones are split at random by patient: one half calibrates, the other shows the realised rate.
Beside it the interval that 95 % of the splits should lie in (beta-binomial, of as many patients
with one image each), and what anomalies among the calibrating images do: 1, 5 and 10 % of them are
replaced by anomalous ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from normalis.calibration.conformal import realised_rate_interval
from normalis.calibration.panel import Readings, panel_p_values

RATES = (0.2, 0.1, 0.05, 0.02, 0.01)
REPEATS = 200


def split(unit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return which images are of the half of the units that calibrates."""
    names = np.unique(unit)
    return np.isin(unit, generator.permutation(names)[: len(names) // 2])


def realised(x: np.ndarray, unit: np.ndarray, readings: Readings, spoilt: np.ndarray) -> np.ndarray:
    """Return the share flagged (repeats, rates), each new patient weighing the same.

    Args:
        x: (V, n) readings of normal images.
        unit: (n,) of each.
        readings: what the columns are.
        spoilt: (V, m) readings of anomalous images that take the place of calibrating ones, the
            share of them in the last entry of its shape being chosen by the caller.
    """
    found = np.empty((REPEATS, len(RATES)))
    for repeat in range(REPEATS):
        generator = np.random.default_rng(repeat)
        mine = split(unit, generator)
        held = x[:, mine].copy()
        if spoilt.shape[1]:
            where = generator.choice(held.shape[1], spoilt.shape[1], replace=False)
            held[:, where] = spoilt
        own = np.unique(unit[mine], return_inverse=True)[1]
        p = panel_p_values(x[:, ~mine], held, own, readings)
        theirs = np.unique(unit[~mine], return_inverse=True)[1]
        weight = 1 / np.bincount(theirs)[theirs] / (theirs.max() + 1)
        found[repeat] = [(weight * (p <= rate + 1e-9)).sum() for rate in RATES]
    return found


def report(file: Path) -> None:
    """Print the tables of one data set."""
    stored = np.load(file)
    readings = Readings(
        names=tuple(map(str, stored["names"])), kinds=tuple(map(str, stored["kinds"]))
    )
    normal = ~stored["anomalous"]
    x, unit = stored["readings"][:, normal], stored["unit"][normal]
    units = len(np.unique(unit))
    half = units // 2
    print(f"\n**{file.stem}**: {normal.sum()} normal images of {units} units\n")
    print("| nominal | mean realised | 2.5 % to 97.5 % of splits | theory, 95 % | inside |")
    print("|---|---|---|---|---|")
    found = realised(x, unit, readings, np.empty((len(x), 0)))
    for i, rate in enumerate(RATES):
        if rate < 1 / (half + 1):
            print(f"| {rate:.0%} | {half} units certify no rate so small | | | |")
            continue
        low, high = realised_rate_interval(half, units - half, rate)
        inside = np.mean((found[:, i] >= low - 1e-9) & (found[:, i] <= high + 1e-9))
        q = np.quantile(found[:, i], [0.025, 0.975])
        print(
            f"| {rate:.0%} | {found[:, i].mean():.2%} | {q[0]:.1%} to {q[1]:.1%} "
            f"| {low:.1%} to {high:.1%} | {inside:.0%} |"
        )
    anomalous = stored["readings"][:, ~normal]
    print("\n| anomalous among the calibrating | realised at 20, 10, 5, 2, 1 % |\n|---|---|")
    for share in (0.01, 0.05, 0.1):
        count = max(1, round(share * x.shape[1] / 2))
        drawn = np.random.default_rng(0).choice(anomalous.shape[1], count)
        mean = realised(x, unit, readings, anomalous[:, drawn]).mean(0)
        print(f"| {share:.0%} | {', '.join(f'{value:.2%}' for value in mean)} |")


def main() -> None:
    """Print the tables of each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readings", type=Path, nargs="+")
    for file in parser.parse_args().readings:
        report(file)


if __name__ == "__main__":
    main()
