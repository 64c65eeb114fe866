"""Kill a sweep with -9 at random moments and see that no record is lost, changed or made twice.

    python benchmarks/kill.py --kills 20

A sweep of small trainings runs in worker processes. Each time either the whole command or one
worker is killed, a random moment after it began to train; then the same command runs again. After
every kill each record that was there must be there with the same bytes; in the end there must be
exactly one per experiment.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from normalis.research.records import Records

PLAN = """
[sweep]
datasets = ["toy"]
latent_dims = [{dims}]
seeds = [{seeds}]
epochs = {epochs}
batch_size = 8
options = {{ hidden_dim = 8 }}
images = {{ image_size = 16 }}
"""


def write_toy(root: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 200, (2, 32, 16, 16), dtype=np.uint8)
    label = np.arange(32) % 2
    (root / "toy").mkdir(parents=True)
    np.savez(root / "toy/arrays_16.npz", train=train, test=test, test_label=label)


def digests(folder: Path) -> dict[str, str]:
    files = folder.glob("*.parquet")
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in path.read_text().split()] if path.exists() else []


def wait_for_training(process: subprocess.Popen[bytes], out: Path, before: set[str]) -> bool:
    """Wait until a claim or record appears that was not there; False if the command ends first."""
    while process.poll() is None:
        now = {p.name for folder in (".claims", "models") for p in (out / folder).glob("*")}
        if now - before or any((out / "models").glob("*/checkpoint.safetensors")):
            return True
        time.sleep(0.02)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trainings", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2, help="1 needs less time to start")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), given)


def run(folder: Path, given: argparse.Namespace) -> None:
    root, out, plan = folder / "data", folder / "results", folder / "plan.toml"
    write_toy(root)
    seeds = ", ".join(map(str, range(given.trainings // 4)))
    plan.write_text(PLAN.format(dims="1, 2, 3, 4", seeds=seeds, epochs=given.epochs))
    command = [
        sys.executable, "-m", "normalis", "research", "sweep", str(plan),
        "--data", str(root), "--out", str(out), "--jobs", str(given.jobs), "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills, workers_killed, before = 0, 0, digests(out / "records")
    while True:
        seen = {p.name for f in (".claims", "models") for p in (out / f).glob("*")}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        if kills < given.kills and wait_for_training(process, out, seen):
            time.sleep(random.uniform(0, 1.5))
            workers = children(process.pid)
            if workers and random.random() < 0.4:
                target = random.choice(workers)
                workers_killed += 1
            else:
                target = process.pid
            if process.poll() is None:
                os.kill(target, signal.SIGKILL)
                kills += 1
        process.wait()
        now = digests(out / "records")
        lost = [name for name, digest in before.items() if now.get(name) != digest]
        if lost:
            raise SystemExit(f"lost or changed after kill {kills}: {lost}")
        before = now
        print(f"kill {kills}: {len(now)} records", flush=True)
        if process.returncode == 0 and len(now) == 4 * (given.trainings // 4):
            break
    check(out, 4 * (given.trainings // 4))
    print(f"{kills} kills ({workers_killed} of a worker): no record lost, changed or doubled")


def check(out: Path, expected: int) -> None:
    rows = Records(out).table()
    keys = {(r["latent_dim"], r["seed"]) for r in rows}
    if not len(rows) == len(keys) == expected:
        raise SystemExit(f"{expected} experiments, {len(rows)} records, {len(keys)} distinct")


if __name__ == "__main__":
    main()
