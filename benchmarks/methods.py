"""Every method alone, and the panel, on the development sets: one table with intervals.

    python benchmarks/methods.py DATA_FOLDER --out docs/data/methods --methods spade padim

One row a set, seed and method, added to OUT.csv as they are measured; what it holds already is left
out. A method is fitted on one thread by the defaults of ``fit --method``. ``panel``, and members
asked for as ``panel:MEMBER``, are taken from RUNS; with ``--readings READINGS`` all members are
taken from there, without pixel metrics. ``benchmarks/panel.py --runs RUNS --readings READINGS``
wrote both; methods alone are fitted on the same images. Sets and patients are its own, brain_tumor
without its leak. Intervals are of 95 %, bootstrap over patients (images where none are known).

OUT_lesions.csv holds, where there are masks, how often the highest place of an image lies in its
lesion, and which lesions are coloured at the level that 1 in 20 normal images reaches, by size in
pixels of 64 x 64; OUT_baselines.csv the scores without a model, and the panel minus each, paired.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normalis import AnomalyDetector
from normalis.baselines import pixel_scores
from normalis.calibration.panel import JOINED
from normalis.datasets import Dataset, open_dataset, patients_from_pattern
from normalis.evaluation import Evaluation, Subset, evaluate
from normalis.evaluation.parts import highest_in_lesion, lesions_found
from normalis.fitted import FittedDetector
from normalis.fitting import calibrate_on
from normalis.loading.arrays import Loaded, load, load_masks, to_unit
from normalis.loading.held_out import normal_images, units_of
from normalis.panel import Panel
from normalis.scoring import score_loaded
from panel import PATIENTS, SETS, without_leak
from panel_flagged import RATE, p_values

SHOWN = ("auroc", "average_precision", "pixel_auroc", "pixel_average_precision", "best_dice")
SIDE = 64  # of the images on which lesions are counted by their pixels
KEYS = ("data", "seed", "method")
COLUMNS = (
    *KEYS, *(f"{name}{end}" for name in SHOWN for end in ("", "_low", "_high")),
    "flagged_normal", "flagged_anomalous", "n_train", "n_normal", "n_anomalous", "n_units",
    "fit_s", "fit_clock", "images_s", "kept_mb",
)  # fmt: skip
LESIONS = (*KEYS, "figure", "from_px", "to_px", "n", "value", "low", "high")
BASELINES = (*KEYS, "baseline", "auroc", "low", "high", "difference", "diff_low", "diff_high", "p")


def opened(folder: Path, name: str) -> Dataset:
    """Return a data set as `benchmarks/panel.py` reads it."""
    data = open_dataset(folder / name)
    if name in PATIENTS:
        data = patients_from_pattern(data, PATIENTS[name])
    if name == "brain_tumor":
        return replace(without_leak(data), name="brain_tumor without its leak")
    return data


def fitted_run(data: Dataset, method: str, seed: int, runs: Path | None) -> FittedDetector:
    """Return a fitted detector: of a saved run, or fitted now."""
    if runs is None:
        raise SystemExit("name the panels' --runs, which say what is held out")
    fitted = FittedDetector.load(runs / f"{data.name} {seed}")
    if not method.startswith("panel"):
        share = fitted.params["calibration_share"]
        alone = AnomalyDetector(
            method=method, random_state=seed, calibration="split", calibration_share=share,
            device="cpu",
        )  # fmt: skip
        return alone.fit(data).fitted_
    member = method.partition(":")[2]
    return _alone(fitted, member, data, seed) if member else fitted


def _alone(fitted: FittedDetector, member: str, data: Dataset, seed: int) -> FittedDetector:
    """Return a panel's member as a detector of its own, calibrated on the same images."""
    panel = fitted.models[0]
    assert isinstance(panel, Panel)
    model, scorer = panel._members[member]
    side = model.settings.image_size
    settings = replace(fitted.image_settings, image_size=side)
    share = fitted.params["calibration_share"]
    held = normal_images(data, settings, hold_out=share, seed=seed).held
    params = dict(fitted.params) | {"method": member, "image_size": side}
    alone = replace(
        fitted, params=params, models=(model,), scorers=(scorer,), image_settings=settings,
        calibration=None,
    )  # fmt: skip
    return replace(alone, **vars(calibrate_on(alone, None, held)))


def measured(fitted: FittedDetector, data: Dataset) -> tuple[Evaluation, float]:
    """Return the evaluation on the test images, and images scored a second, maps included."""
    given: dict[str, Any] = {"rule": fitted.rule, "fit_rule": False, "cache": True}
    test = load(data.split("test"), fitted.image_settings, **given)
    started = time.process_time()
    parts = list(score_loaded(fitted, test))
    speed = len(test.rows) / (time.process_time() - started)
    calibration = fitted.require_calibration()
    scores = np.concatenate([part.anomaly_score for part in parts])
    read = scores[None]
    if all(part.readings is not None for part in parts):
        read = np.concatenate([part.readings for part in parts], axis=1)  # type: ignore[misc]
    rate = max(0.05, calibration.smallest_rate)
    p = calibration.p_values(read if calibration.readings else scores)
    maps = np.concatenate([part.anomaly_map for part in parts])  # type: ignore[misc]
    shown = fitted.map_scale.apply(maps) if fitted.map_scale else maps
    found = evaluate(
        scores,
        np.array([bool(row.is_anomalous) for row in test.rows]),
        groups=units_of(test).member,
        flagged=calibration.flags(p, rate),
        rate=rate,
        baselines=_trivial(data, test, fitted) if isinstance(fitted.models[0], Panel) else None,
        maps=maps if data.has_masks else None,
        masks=load_masks(test.rows, image_size=maps.shape[-1]) if data.has_masks else None,
    )
    if data.has_masks:
        found = replace(found, **_by_size(test, shown, fitted.colour_scale.quiet))
    return found, speed


def _by_size(test: Loaded, shown: np.ndarray, level: float) -> dict[str, Any]:
    """Return what is found by size of the lesion, at one size of image for all methods."""
    step = shown.shape[-1] // SIDE
    coarse = shown.reshape(len(shown), SIDE, step, SIDE, step).max((2, 4))
    masks, unit = load_masks(test.rows, image_size=SIDE), units_of(test).member
    return {
        "highest": highest_in_lesion(coarse, masks, unit),
        "lesions": lesions_found(coarse, masks, level, unit),
    }


def _trivial(data: Dataset, test: Loaded, fitted: FittedDetector) -> Mapping[str, Any]:
    train = load(data.to_train_on(), fitted.image_settings, rule=fitted.rule, fit_rule=False)
    return pixel_scores(to_unit(test.pixels), to_unit(train.pixels))


def rows_of(
    key: Mapping[str, Any], fitted: FittedDetector, found: Evaluation
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the row of a method, those of its lesions and those of baselines, in percent."""
    row = figures(key, found.subsets[0])
    row |= {
        "n_train": fitted.info["data"]["train_images"],
        "kept_mb": round(_bytes(fitted) / 1e6, 1),
    }
    return row, list(_lesions(key, found)), list(_baselines(key, found.subsets[0].baselines))


def figures(key: Mapping[str, Any], whole: Subset) -> dict[str, Any]:
    """Return the figures of a row, in percent with intervals."""
    row = dict(key)
    for name, one in (whole.ranking | whole.oracle).items():
        if name in SHOWN:
            ends = {"": one.value, "_low": one.low, "_high": one.high}
            row |= {f"{name}{end}": _percent(value) for end, value in ends.items()}
    for name, of in (("sensitivity", "anomalous"), ("false_positive_rate", "normal")):
        row[f"flagged_{of}"] = _percent(whole.deployable[name].value)
    sizes = ("n_normal", "n_anomalous", "n_units")
    return row | {size: getattr(whole, size) for size in sizes}


def _lesions(key: Mapping[str, Any], found: Evaluation) -> Iterator[dict[str, Any]]:
    for figure, rows in (("highest", found.highest), ("coloured", found.lesions)):
        for one in rows:
            value = one["value" if figure == "highest" else "sensitivity"]
            ends = {"value": _percent(value)} | {k: _percent(one[k]) for k in ("low", "high")}
            sizes = {"from_px": one["min_size"], "to_px": one["max_size"], "n": one["n"]}
            yield dict(key) | {"figure": figure} | sizes | ends


def _baselines(key: Mapping[str, Any], baselines: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for one in baselines:
        versus = one.comparison
        yield dict(key) | {
            "baseline": one.name,
            "auroc": _percent(one.auroc.value),
            "low": _percent(one.auroc.low),
            "high": _percent(one.auroc.high),
            "difference": _percent(versus.difference),
            "diff_low": _percent(versus.low),
            "diff_high": _percent(versus.high),
            "p": f"{one.adjusted_p:.2g}",
        }


def members_of(file: Path, panel: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per member of the readings of a panel, whose sizes are in PANEL.csv."""
    name, _, seed = file.stem.rpartition(" ")
    with panel.open(newline="") as stream:
        (fit,) = [
            row for row in csv.DictReader(stream)
            if (row["data"], row["seed"], row["reading"]) == (name, seed, "panel")
        ]  # fmt: skip
    stored, held = np.load(file), int(fit["n_held"])
    unit, label = stored["unit"], stored["anomalous"][held:]
    for member, values in zip(stored["names"], stored["readings"], strict=True):
        if member == JOINED:
            continue
        new = values[held:]
        p = p_values(new, values[:held], unit[:held], None)
        found = evaluate(new, label, groups=unit[held:], flagged=p <= RATE, rate=RATE).subsets[0]
        key = {"data": name, "seed": int(seed), "method": str(member)}
        yield figures(key, found) | {"n_train": int(fit["n_train"])}


def _percent(share: float) -> float:
    return round(100 * float(share), 2)


def _bytes(fitted: FittedDetector) -> int:
    return sum(v.numel() * v.element_size() for v in fitted.models[0].state().values())


def done(file: Path) -> set[tuple[str, ...]]:
    """Return the keys that a file holds."""
    if not file.exists():
        return set()
    with file.open(newline="") as stream:
        return {tuple(row[k] for k in KEYS) for row in csv.DictReader(stream)}


def add(file: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Add rows to a file."""
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Measure what the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="beginning of the files' names")
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--runs", type=Path, help="saved panels")
    parser.add_argument("--readings", type=Path, help="readings of panels")
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = [given.out.with_name(f"{given.out.name}{end}.csv") for end in ("", "_lesions",
             "_baselines")]  # fmt: skip
    if given.readings is not None:
        for file in sorted(given.readings.glob("*.npz")):
            rows = members_of(file, given.out.with_name("panel.csv"))
            known = done(files[0])
            add(files[0], COLUMNS, [r for r in rows if tuple(str(r[k]) for k in KEYS) not in known])
        return
    for name in given.sets:
        data = opened(given.data, name)
        for seed, method in ((s, m) for s in given.seeds for m in given.methods):
            named = method.removeprefix("panel:")
            if (data.name, str(seed), named) in done(files[0]):
                continue
            started = time.process_time()
            fitted = fitted_run(data, method, seed, given.runs)
            seconds = time.process_time() - started
            found, speed = measured(fitted, data)
            key = {"data": data.name, "seed": seed, "method": named}
            row, lesions, baselines = rows_of(key, fitted, found)
            if not method.startswith("panel"):
                row |= {"fit_s": round(seconds, 1), "fit_clock": "processor"}
            elif method == "panel":
                row |= {"fit_s": round(fitted.info["fit_s"], 1), "fit_clock": "wall"}
            add(files[0], COLUMNS, [row | {"images_s": round(speed, 1)}])
            add(files[1], LESIONS, lesions)
            add(files[2], BASELINES, baselines)
            print(*(f"{k}={row.get(k, '')}" for k in (*KEYS, *SHOWN[:4:1], "fit_s")), flush=True)


if __name__ == "__main__":
    main()
