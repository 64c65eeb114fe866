"""How often is the highest place of a map in the outer 5 % of the image, step by step?

    python benchmarks/panel_border.py DATA_FOLDER RUNS_FOLDER --out docs/data/panel_border.csv

RUNS_FOLDER is one that ``benchmarks/panel.py --runs RUNS_FOLDER`` wrote. One row a step: the maps
of the members as their networks give them, the joined map, what the panel reads of it (smoothed,
less at the border), and the calibrated map that a user sees. Share of the test's normal and
anomalous images in percent; evenly drawn places lie there in 19 %. ``spade, mirrored`` is that
member with images continued by their mirror image beyond the edge in place of the network's zeros.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from normalis.calibration.findings import highest_at_border
from normalis.datasets import Dataset, open_dataset, patients_from_pattern
from normalis.fitted import FittedDetector
from normalis.loading.arrays import load
from normalis.loading.held_out import normal_images
from normalis.models.inputs import to_model_input
from normalis.models.spade import SPADE
from normalis.panel import Panel, _read_of
from normalis.scorers.base import reduce_map
from panel import PATIENTS, without_leak

COLUMNS = ("data", "seed", "map", "normal", "anomalous", "auroc")
MIRRORED = 16  # pixels beyond each edge: two cells of the coarsest tap that is compared


class Mirrored(SPADE):
    """SPADE whose network sees the mirror image beyond the edge."""

    def maps(self, x: Tensor, taps: list[str] | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the features of the inside."""
        wide = super().maps(F.pad(x, (MIRRORED,) * 4, mode="reflect"), taps)
        share = MIRRORED / (x.shape[-1] + 2 * MIRRORED)
        return {name: _inside(m, share) for name, m in wide.items()}


def _inside(maps: Tensor, share: float) -> Tensor:
    cut = round(share * maps.shape[-1])
    return maps[..., cut : maps.shape[-1] - cut, cut : maps.shape[-1] - cut]


def steps(fitted: FittedDetector, x: Tensor, mirrored: Mirrored) -> Iterator[tuple[str, Tensor]]:
    """Yield the maps (B, h, w) of images (B, C, S, S) at each step."""
    panel = fitted.models[0]
    assert isinstance(panel, Panel)
    for name, (model, scorer) in panel._members.items():
        if model.judges_whole:
            continue
        seen = panel.seen_by_part(name, x)
        yield name, model.anomaly_map(seen)
        if name != "spade":
            shown = scorer.read(model, seen, maps=True)[1]
            assert shown is not None
            yield f"{name}, median filter", shown
    yield "spade, mirrored", mirrored.anomaly_map(panel.seen_by_part("spade", x))
    joined = panel.read(x)[1]
    yield "joined map", joined
    yield "joined map as the panel reads it", _read_of(joined)
    assert fitted.map_scale is not None
    yield "calibrated map", torch.from_numpy(fitted.map_scale.apply(joined.numpy()))


def opened(folder: Path, name: str) -> Dataset:
    """Return a data set as `benchmarks/panel.py` reads it."""
    data = open_dataset(folder / name)
    if name in PATIENTS:
        data = patients_from_pattern(data, PATIENTS[name])
    return without_leak(data) if name == "brain_tumor" else data


def _mirrored(fitted: FittedDetector, data: Dataset, seed: int) -> Mirrored:
    """Return SPADE fitted with mirrored edges on the images that the run was fitted on."""
    share = fitted.params["calibration_share"]
    given = {"rule": fitted.rule, "fit_rule": fitted.rule is None}
    train = normal_images(data, fitted.image_settings, hold_out=share, seed=seed, **given).train
    panel = fitted.models[0]
    assert isinstance(panel, Panel)
    x = to_model_input(torch.from_numpy(train.pixels), standardize=fitted.standardize)
    settings = panel._members["spade"][0].settings
    return Mirrored(settings).fit(panel.seen_by_part("spade", x), seed=seed)  # type: ignore[arg-type]


def rows_of(
    folder: Path, run: Path, name: str, seed: int
) -> Iterator[tuple[str | int | float, ...]]:
    """Yield the rows of a run."""
    fitted, data = FittedDetector.load(run), opened(folder, name)
    with torch.no_grad():
        mirrored = _mirrored(fitted, data, seed)
        found: dict[str, list[np.ndarray]] = {}
        score: dict[str, list[np.ndarray]] = {}
        given = {"rule": fitted.rule, "fit_rule": False, "cache": True}
        test = load(data.split("test"), fitted.image_settings, **given)  # type: ignore[arg-type]
        label = np.array([bool(row.is_anomalous) for row in test.rows])
        for start in range(0, len(label), 64):
            pixels = torch.from_numpy(test.pixels[start : start + 64])
            x = to_model_input(pixels, standardize=fitted.standardize)
            for step, maps in steps(fitted, x, mirrored):
                found.setdefault(step, []).append(highest_at_border(maps.numpy()))
                score.setdefault(step, []).append(reduce_map(maps, "top:0.02").numpy())
    anomalous = label
    for step, parts in found.items():
        at, auroc = np.concatenate(parts), roc_auc_score(anomalous, np.concatenate(score[step]))
        shares = (round(100 * float(at[chosen].mean()), 1) for chosen in (~anomalous, anomalous))
        yield (name, seed, step, *shares, round(100 * float(auroc), 1))


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=["kermany_cxr"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    given = parser.parse_args()
    with given.out.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name in given.sets:
            for seed in given.seeds:
                run = given.runs / f"{name} {seed}"
                writer.writerows(rows_of(given.data, run, name, seed))


if __name__ == "__main__":
    main()
