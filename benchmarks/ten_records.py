"""Small records of ten kinds, made by one version and compared with another's, bit for bit.

    python benchmarks/ten_records.py make OUT [--command "python -m normalis research sweep"]
    python benchmarks/ten_records.py compare BEFORE AFTER

A change of structure must change no number. `make` draws a small data set with NumPy alone (or
takes the one that ``OUT/data`` holds), writes a plan, and runs it with a command line, which may be
that of another checkout. `compare` says which columns of which records differ, and exits 1 if any
does. Durations, versions, identities and dates are left out; everything else counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from scipy.ndimage import gaussian_filter

PLAN = """
[sweep]
datasets = ["toy"]
methods = ["ae"]
latent_dims = [4]
epochs = 3
images = { image_size = 32 }
"""
BLOCKS = (
    'methods = ["vae"]\noptions = { hidden_dim = 16 }',
    'methods = ["ae-u"]\nseeds = [1]',
    'methods = ["ae-u"]\noptions = { members = 2 }\nscorers = ["ssim"]',
    'methods = ["dae"]\nscorers = ["median"]',
    'methods = ["rate-ae"]\noptions = { rate = 3.0 }\nsubset = { validation_share = 0.3 }\n'
    'scorers = ["combination"]',
    'methods = ["pca"]\nscorers = ["native", "l1"]',
    'methods = ["knn"]\nstandardize = [true]',
    'scorers = ["mahalanobis"]\nsubset = { validation_share = 0.3 }',
    'methods = ["nested-ae"]\nrecipe = "fast"\nscorers = ["normalised"]\n'
    'reductions = ["top:0.05"]\nsubset = { validation_share = 0.2, train_limit = 40 }',
)
#: What a record must share, whatever it is called and however long it took.
COLUMNS = (
    "anomaly_score", "metrics", "history", "path", "split", "is_anomalous", "patient_id",
    "position", "nearest_ncc", "n_train", "n_parameters", "latent_dim", "epochs",
)  # fmt: skip


def write_data(root: Path) -> None:
    """Write 60 normal training images, 20 + 20 test images and masks, of 48 x 48."""
    rng = np.random.default_rng(20261129)

    def images(count: int) -> np.ndarray:
        waves = gaussian_filter(rng.standard_normal((count, 48, 48)), (0, 5, 5))
        levels = (waves - waves.min()) / (waves.max() - waves.min())
        return (30 + 170 * levels).astype(np.uint8)

    def write(folder: Path, drawn: np.ndarray) -> None:
        folder.mkdir(parents=True)
        for i, image in enumerate(drawn):
            Image.fromarray(image).save(folder / f"{i:03d}.png")

    write(root / "train/good", images(60))
    write(root / "test/good", images(20))
    odd, masks = images(20), np.zeros((20, 48, 48), np.uint8)
    for i in range(20):
        y, x = rng.integers(4, 34, 2)
        odd[i, y : y + 9, x : x + 9] += 50
        masks[i, y : y + 9, x : x + 9] = 255
    write(root / "test/square", odd)
    write(root / "ground_truth/square", masks)


def make(out: Path, command: str) -> None:
    """Draw the data if they are not there, and run the plan."""
    if not (out / "data/toy").exists():
        write_data(out / "data/toy")
    plan = out / "plan.toml"
    plan.write_text(PLAN + "".join(f"\n[[sweep.include]]\n{block}\n" for block in BLOCKS))
    where = ["--data", str(out / "data"), "--out", str(out / "results"), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    asked = [*shlex.split(command), str(plan), *where, "--jobs", "1"]
    subprocess.run(asked, check=True, env=environment)


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a folder by what they are of."""
    found = {}
    for file in sorted((out / "results/records").glob("*.parquet")):
        row = pq.ParquetFile(file).read().to_pylist()[0]
        training = json.loads(row["settings"])["training"]
        name = " ".join((row["method"], row["scorer"], row["reduction"], training["recipe"]))
        found[name + f" seed {row['seed']}"] = {k: row[k] for k in COLUMNS}
    return found


def compare(before: Path, after: Path) -> list[str]:
    """Return what differs, a line each."""
    one, other = records(before), records(after)
    found = [f"only in one of the two: {name}" for name in sorted(one.keys() ^ other.keys())]
    for name in sorted(one.keys() & other.keys()):
        # repr: NaN equals NaN, and a float its own bits.
        changed = [k for k in COLUMNS if repr(one[name][k]) != repr(other[name][k])]
        found += [f"{name}: {', '.join(changed)}"] if changed else []
    print(f"{len(one)} records before, {len(other)} after, {len(found)} differences")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    maker = verbs.add_parser("make")
    maker.add_argument("out", type=Path)
    maker.add_argument("--command", default=f"{sys.executable} -m normalis research sweep")
    comparer = verbs.add_parser("compare")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.verb == "make":
        make(given.out, given.command)
        return
    differences = compare(given.before, given.after)
    print(*differences, sep="\n")
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
