"""One fit is one draw: how far fits of the default lie apart that differ in their seeds alone.

    python studies/seeds.py --data ROOT [--results results] [--models FOLDER] [--draw-only]

A user's `fit --recipe fast`, ae-u at d = 16, for two seeds of the network, on lgg_flair for two
draws of the images held out, and each setting that was tried; scored on all test images, and on
those that count: of brain_tumor without a training twin, of lgg_flair from the middle of the head.
Four minutes a fit on one core. A line of ``results/seeds.csv`` is a fit, and no line is measured
twice; with ``--models`` fitted networks are kept there. Rewrites the table of
docs/reference/selection_study.md.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from normalis import models, scorers
from normalis.fitting import train_models
from normalis.loading.arrays import ImageSettings
from normalis.loading.held_out import normal_images
from normalis.metrics import auroc, average_precision
from normalis.models.base import Autoencoder
from normalis.models.inputs import as_tensor, to_model_input
from normalis.research.data import Arrays, Store
from normalis.research.experiments import Subset
from normalis.storage import write_csv
from normalis.training.settings import settings_for
from pages import fill

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "selection_study.md"
COLUMNS = (
    "dataset", "options", "draw", "seed", "auroc", "auroc_part", "native", "pixel_ap", "jumps",
)  # fmt: skip
#: What was tried -> draws of the held-out images, by data set.
TRIED: dict[str, dict[str, float]] = {
    "": {},
    "beta=0.5": {"beta": 0.5},
    "noise=2": {"noise": 2.0},
    "noise=2, clip=1": {"noise": 2.0, "clip": 1.0},
}
DRAWS = {"kermany_cxr": (0,), "lgg_flair": (0, 1), "brain_tumor": (0,)}
SEEDS = (0, 1)
JUMP = 0.3  # of the training loss from one epoch to the next, nats per pixel


def source(data: Path, dataset: str) -> Path:
    listed = data / dataset / "data.json"
    return listed if listed.exists() else data / dataset


def trained(
    data: Path, dataset: str, options: str, draw: int, seed: int, kept: Path | None
) -> tuple[Autoencoder, list[dict[str, float]]]:
    """Return a network and its losses by epoch, from the folder if it is there."""
    model = models.build("ae-u", seed=seed, latent_dim=16, **TRIED[options])
    assert isinstance(model, Autoencoder)
    file = kept / f"{dataset}-{options or 'plain'}-{draw}-{seed}.safetensors" if kept else None
    if file and file.exists():
        with safe_open(file, "pt") as opened:
            model.load_state({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
            return model.eval(), json.loads(opened.metadata()["history"])
    normals = normal_images(source(data, dataset), ImageSettings(), hold_out=0.2, seed=draw).train
    history = train_models(
        [model],
        torch.from_numpy(normals.pixels),
        settings=settings_for("fast", n_images=len(normals.rows)),
        device=torch.device("cpu"),
        seed=seed,
    ).history
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state(), file, {"history": json.dumps(history)})
    return model.eval(), history


def measured(model: Autoencoder, history: list[dict[str, float]], test: Arrays) -> dict[str, float]:
    """Return AUROC by median on all images and on the part that counts, and what is beside it."""
    x, label, position = to_model_input(as_tensor(test.pixels)), test.is_anomalous, test.position
    part = label | ~(test.nearest_ncc > 0.95)
    if np.isfinite(position).any():
        part = (position > 0.4) & (position < 0.85)
    found = {}
    for name in ("median", "native"):
        scorer = scorers.build(name)
        with torch.inference_mode():
            read = [scorer.read(model, some, maps=True) for some in x.split(64)]
        found[name] = torch.cat([scores for scores, _ in read]).numpy()
        if name == "median":
            maps = torch.cat([shown for _, shown in read if shown is not None]).numpy()
    losses = np.array([sum(epoch.values()) for epoch in history])
    pixels = average_precision(maps.ravel(), test.masks.ravel()) if len(test.masks) else np.nan
    return {
        "auroc": auroc(found["median"], label),
        "auroc_part": auroc(found["median"][part], label[part]),
        "native": auroc(found["native"][part], label[part]),
        "pixel_ap": pixels,
        "jumps": int((np.diff(losses) > JUMP).sum()),
    }


def measure(data: Path, out: Path, kept: Path | None) -> None:
    """Fit and score what is not in the file yet, line by line."""
    rows = read(out)
    done = {tuple(row[c] for c in COLUMNS[:4]) for row in rows}
    for dataset, draws in DRAWS.items():
        store = Store(out.parent, data)
        arrays = store.get(store.fingerprints(dataset, {}, Subset())[0])
        test = arrays.take(arrays.split == "test")
        cells = [(o, d, s) for o in TRIED for d in draws for s in SEEDS]
        for options, draw, seed in cells:
            key = (dataset, options, str(draw), str(seed))
            if key in done:
                continue
            found = measured(*trained(data, dataset, options, draw, seed, kept), test)
            shown = {k: "" if np.isnan(v) else f"{v:.4g}" for k, v in found.items()}
            rows.append(dict(zip(COLUMNS, key, strict=False)) | shown)
            write_csv(out, COLUMNS, [tuple(row[c] for c in COLUMNS) for row in rows])
            print(*rows[-1].values(), flush=True)


def read(out: Path) -> list[dict[str, str]]:
    if not out.exists():
        return []
    with out.open(newline="") as lines:
        return list(csv.DictReader(lines))


def table(rows: list[dict[str, str]]) -> str:
    """Return mean, least and most of the fits of each setting."""
    lines = [
        "| set | setting | fits | AUROC, all images | where it counts | there, its own reading "
        "| pixel AP | jumps of the loss |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["dataset"], row["options"]].append(row)
    for (dataset, options), fits in groups.items():
        cells = [_spread(fits, c) for c in ("auroc", "auroc_part", "native", "pixel_ap")]
        jumps = f"{np.mean([int(fit['jumps']) for fit in fits]):.1f}"
        named = [dataset, f"`{options}`" if options else "the authors' loss", str(len(fits))]
        lines.append(f"| {' | '.join([*named, *cells, jumps])} |")
    return "\n".join(lines)


def _spread(fits: list[dict[str, str]], column: str) -> str:
    if not fits[0][column]:
        return ""
    values = 100 * np.array([float(fit[column]) for fit in fits])
    return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--models", type=Path, help="keep fitted networks here")
    parser.add_argument("--draw-only", action="store_true")
    given = parser.parse_args()
    out = given.results / "seeds.csv"
    if not given.draw_only:
        if given.data is None:
            parser.error("needs --data, or --draw-only")
        torch.set_num_threads(1)
        measure(given.data, out, given.models)
    fill(PAGE, {"seeds": table(read(out))})


if __name__ == "__main__":
    main()
