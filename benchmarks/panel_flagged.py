"""How many images are flagged at a certified 5 % by the panel, and by each of its readings alone?

    python benchmarks/panel_flagged.py PANEL.csv READINGS_FOLDER

Both are what ``benchmarks/panel.py --out PANEL.csv --readings READINGS_FOLDER`` wrote. Each reading
alone is calibrated on the same held-out images as the panel, so that the column of ``ae-u`` is what
`fit --members ae-u` would flag with them. Prints a table in Markdown: share of anomalous images
flagged, and in brackets of normal ones.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from normalis.calibration.panel import Readings, panel_p_values

RATE = 0.05


def p_values(
    new: np.ndarray, held: np.ndarray, unit: np.ndarray, readings: Readings | None
) -> np.ndarray:
    """Return p-values of new images by held-out ones: of all readings, or of a single one (n,)."""
    if readings is not None:
        return panel_p_values(new, held, unit, readings)
    share = 1.0 / np.bincount(unit)[unit]
    order = np.argsort(held)
    above = np.append(np.cumsum(share[order][::-1])[::-1], 0.0)
    return (1 + above[np.searchsorted(held[order], new)]) / (len(np.unique(unit)) + 1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("panel", type=Path)
    parser.add_argument("readings", type=Path)
    given = parser.parse_args()
    with given.panel.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["reading"] == "panel"]
    lines: list[list[str]] = []
    names: list[str] = []
    for row in rows:
        stored = np.load(given.readings / f"{row['data']} {row['seed']}.npz")
        n = int(row["n_held"])
        x, anomalous, unit = stored["readings"], stored["anomalous"][n:], stored["unit"][:n]
        names = ["panel", *stored["names"]]
        kinds = Readings(names=tuple(stored["names"]), kinds=tuple(stored["kinds"]))
        cells = []
        for name in names:
            at = names.index(name) - 1
            of = (x[:, n:], x[:, :n]) if at < 0 else (x[at, n:], x[at, :n])
            flagged = p_values(*of, unit, kinds if at < 0 else None) <= RATE
            cells.append(
                f"{100 * flagged[anomalous].mean():.1f} ({100 * flagged[~anomalous].mean():.1f})"
            )
        lines.append([row["data"], row["seed"], row["n_units"], *cells])
    head = ["data", "seed", "units", *names]
    for line in [head, ["---"] * len(head), *lines]:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
