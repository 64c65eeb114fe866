"""Folders as `fit`, `score` and `sweep` leave them, made without training anything."""

from pathlib import Path

import numpy as np
from PIL import Image

from normalis.calibration.conformal import calibrate
from normalis.research.records import Records
from normalis.storage import RunFolder, write_csv, write_json

SIDE = 160
COLUMNS = ("path", "slice", "patient_id", "anomaly_score", "p_value", "flagged")
INFO = {
    "data": {"name": "phantoms", "train_images": 300, "calibration_images": 80, "skipped": 1},
    "load_s": 0.4,
    "fit_s": 31.0,
    "finished": "2026-11-23T20:00:00+00:00",
    "device": "cpu",
    "threads": 2,
    "versions": {"python": "3.11.7", "normalis": "0.1.0"},
}
PARAMS = {"method": "ae", "latent_dim": 16, "image_size": 64, "epochs": 20, "window": None}


FINDINGS = (
    "path", "slice", "patient_id", "number", "above", "left", "top", "right", "bottom", "area_px",
    "area_mm2", "peak_x", "peak_y", "at_border", "p_value", "image_height", "image_width",
)  # fmt: skip


def _finding(row: list) -> list:
    """One area of an image of 200 x 100 pixels, above normal images if its score is."""
    path, place, person, score = row[:4]
    above = int(score > 0.05)
    return [path, place, person, 1, above, 50, 120, 70, 160, 610, 152.5, 60, 140, 0, 0.02, 200, 100]


def history(epochs: int = 20) -> list[dict[str, float]]:
    return [{"reconstruction": 0.3 * np.exp(-e / 4) + 0.01} for e in range(epochs)]


def strip(rng: np.random.Generator, *, spot: float, rebuilt: bool = True) -> Image.Image:
    """Image, reconstruction and map level, as `score` draws them; a spot where spot > 0."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    wobble = 0.1 * rng.standard_normal(4)
    radius = np.hypot(x / (0.75 + wobble[0]), y / (0.9 + wobble[1]))
    head = 1 / (1 + np.exp(30 * (radius - 1)))
    ventricles = np.exp(-(((np.abs(x) - 0.16) / 0.08) ** 2) - ((y + 0.05) / 0.3) ** 2)
    smooth = head * (0.55 + 0.25 * radius**2 - 0.4 * ventricles + 0.1 * wobble[2] * x)
    where = np.exp(-(((x - 0.35 + wobble[3]) / 0.16) ** 2) - ((y - 0.3 + wobble[2]) / 0.16) ** 2)
    image = smooth + 0.5 * spot * where + 0.03 * rng.standard_normal(x.shape) * head
    level = np.clip(1.6 * spot * where - 0.25, 0, 1)
    parts = [image, smooth if rebuilt else image, level]
    grey = np.concatenate([np.clip(255 * p, 0, 255) for p in parts], axis=1)
    return Image.fromarray(grey.astype(np.uint8))


def score_folder(
    folder: Path,
    *,
    n: int = 40,
    pictures: int | None = None,
    labels: bool = True,
    patients: bool = True,
    calibrated: bool = True,
    held_out: int = 80,
    names: dict[int, str] | None = None,
    patient_names: dict[int, str] | None = None,
    large: tuple[int, int] | None = None,
    known: dict[str, list[str]] | None = None,
) -> Path:
    """Write an output folder of `score` with a third of the images anomalous.

    Args:
        folder: where.
        n: images.
        pictures: how many of them, the first ones, have a picture; None for all.
        labels, patients, calibrated: whether these are known.
        held_out: normal images of the calibration.
        names: file name of some images.
        patient_names: patient of some images.
        large: height and width of large pictures; None for none.
        known: further columns of scores.csv.
    """
    rng = np.random.default_rng(7)
    anomalous = np.arange(n) % 3 == 0
    scores = np.where(anomalous, rng.normal(0.06, 0.012, n), rng.normal(0.04, 0.006, n))
    held = rng.normal(0.04, 0.006, held_out)
    calibration = calibrate(held) if calibrated else None
    p_values = calibration.p_values(scores) if calibration else [""] * n
    rows = []
    for i in range(n):
        kind = "glioma" if anomalous[i] else "normal"
        name = (names or {}).get(i, f"{kind}/img_{i:04d}.png")
        person = (patient_names or {}).get(i, f"P{i // 2:03d}" if patients else "")
        flag = int(p_values[i] <= 0.05) if calibration else ""
        more = [values[i] for values in (known or {}).values()]
        rows.append(
            [f"/data/phantoms/test/{name}", "", person, scores[i], p_values[i], flag, *more]
        )
        if pictures is None or i < pictures:
            end = "" if name.endswith(".png") else ".png"
            file = folder / "thumbnails" / "test" / f"{name}{end}"
            file.parent.mkdir(parents=True, exist_ok=True)
            spot = max(0.0, (scores[i] - 0.042) / 0.03)
            drawn = strip(rng, spot=float(spot) if anomalous[i] else 0.0)
            drawn.save(file)
            if large:
                _large(folder / "pictures" / "test" / f"{name}.webp", drawn, large)
    write_csv(folder / "scores.csv", (*COLUMNS, *(known or {})), rows)
    write_csv(folder / "findings.csv", FINDINGS, [_finding(row) for row in rows])
    write_csv(folder / "skipped.csv", ("path", "reason"), [["/data/broken.dcm", "no pixel data"]])
    write_json(
        folder / "score.json",
        {
            "params": PARAMS,
            "info": INFO,
            "history": history(),
            "colour_scale": {"quiet": 0.1, "full": 0.3, "rate": 0.05},
            "calibration": calibration.to_dict() if calibration else None,
            "decision_scores": held,
            "fpr": 0.05,
            "is_anomalous": [bool(a) if labels else None for a in anomalous],
            "kind": [("glioma", "meningioma")[i % 2] if a and labels else None
                     for i, a in enumerate(anomalous)],
        },
    )  # fmt: skip
    return folder


def _large(file: Path, strip: Image.Image, shape: tuple[int, int]) -> None:
    """A large picture, and the map on its own scale, as `score` draws them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = strip.crop((0, 0, SIDE, SIDE)).resize(shape[::-1], Image.Resampling.BICUBIC)
    picture.save(file, quality=80)
    y, x = np.mgrid[0:1:64j, 0:1:64j]
    own = 255 * np.exp(-((x - 0.6) ** 2 + (y - 0.7) ** 2) / 0.02)
    name = file.name.removesuffix(".webp") + ".map.png"
    Image.fromarray(own.astype(np.uint8)).save(file.with_name(name))


def run_folder(folder: Path, *, calibrated: bool = True) -> Path:
    """Write a run folder as `fit` leaves it."""
    held = np.random.default_rng(3).normal(0.04, 0.006, 80)
    RunFolder(folder).write(
        {"decision_scores": held},
        {
            "params": PARAMS | {"latent_dim": "auto"},
            "model_settings": {"latent_dim": 16},
            "colour_scale": {"quiet": 0.1, "full": 0.3, "rate": 0.05},
            "calibration": calibrate(held).to_dict() if calibrated else None,
            "history": history(),
            "info": INFO,
        },
    )
    write_csv(folder / "skipped.csv", ("path", "reason"), [])
    return folder


def audit() -> dict[str, object]:
    """Return an audit as `check` writes it."""
    return {
        "images": 400,
        "findings": [
            {
                "severity": "leak",
                "text": "12 of 100 test images are training images.",
            },
            {"severity": "confound", "text": "File size alone has AUROC 0.946."},
        ],
        "tables": [
            {"title": "Findings", "columns": ["severity", "finding"], "rows": [["leak", "12"]]},
            {
                "title": "What a trivial score separates",
                "columns": ["score", "AUROC", "95 % interval"],
                "rows": [["mean intensity", "0.620", "0.58 to 0.66"]],
            },
        ],
    }


def evaluation() -> dict[str, object]:
    """Return an evaluation as `evaluate` writes it."""

    def figure(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.03, "high": value + 0.03, "n_units": 100}

    def baseline(name: str, value: float, difference: float, beaten: bool) -> dict[str, object]:
        versus = {"difference": difference, "low": None, "high": None}
        return {"name": name, "auroc": figure(value), "comparison": versus, "adjusted_p": 0.003,
                "beaten": beaten}  # fmt: skip

    subset = {
        "name": "all",
        "n_images": 100,
        "n_normal": 60,
        "n_anomalous": 40,
        "n_units": 50,
        "ranking": {"auroc": figure(0.87), "average_precision": figure(0.81)},
        "deployable": {"sensitivity": figure(0.45), "false_positive_rate": figure(0.05)},
        "oracle": {"best_dice": figure(0.31)},
        "by_kind": {},
        "baselines": [
            baseline("file_512", 0.946, -0.076, False),
            baseline("mean_intensity", 0.62, 0.25, True),
        ],
    }
    return {"subsets": [subset], "unit": "group", "rate": 0.05, "beats_baselines": False,
            "groups": {"sex": {"F": figure(0.04), "M": figure(0.09)}},
            "group_sizes": {"sex": {"F": 28, "M": 32}},
            "lesions": [
                {"min_size": 1, "max_size": 17, "n": 12, "sensitivity": 0.25, "low": 0.05,
                 "high": 0.5, "n_units": 9},
                {"min_size": 17, "max_size": None, "n": 7, "sensitivity": 0.71, "low": 0.4,
                 "high": 1.0, "n_units": 6},
            ],
            "notes": ["2 anomalous images have an empty mask."]}  # fmt: skip


def results_folder(folder: Path) -> Path:
    """Write records as `sweep` does: two data sets, two methods, four d, two seeds, and PCA."""
    rng = np.random.default_rng(5)
    records = Records(folder)
    cells = [
        (data, method, d, seed)
        for data in ("brain_tumor", "kermany_cxr")
        for method, dims in (("ae", (4, 8, 16, 32)), ("vae", (4, 8, 16, 32)), ("pca", (None,)))
        for d in dims
        for seed in (0, 1)
    ]
    for i, (data, method, d, seed) in enumerate(cells):
        value = 0.7 + 0.03 * np.log2(d or 2) + 0.01 * rng.standard_normal()
        metric = {"value": value, "low": value - 0.02, "high": value + 0.02, "n_units": 100}
        settings = {
            "dataset": data,
            "method": method,
            "latent_dim": d,
            "seed": seed,
            "options": {},
            "subset": {"drop_train_twins": None, "validation_share": 0.0},
            "training": {"epochs": 250, "standardize": method == "vae", "recipe": "paper"},
            "image_size": 64,
        }
        records.append(
            f"{i:064x}",
            {
                "dataset": data,
                "method": method,
                "latent_dim": d,
                "seed": seed,
                "epochs": 250,
                "scorer": "model",
                "reduction": "mean",
                "auroc": value,
                "average_precision": value - 0.05,
                "settings": settings,
                "metrics": {"auroc": metric, "average_precision": metric},
                "fit_s": 100.0 + i,
                "anomaly_score": rng.random(5),
            },
        )
    return folder
