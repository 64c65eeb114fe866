"""What one competing process costs a fit, a scoring and a check.

    python benchmarks/load.py [--epochs 10] [--repeats 3] [--method ae-u]

Each command runs alone, and then beside one process that keeps one core busy: as it is by default;
with as many spinning threads as there are cores, which is what PyTorch does when nobody chooses;
and with one thread. Wall and processor seconds are of the command alone. Ratios are formed within
one repeat. The images are generated; a first run of every command warms the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from normalis.datasets.phantom import write_demo

#: How a command is run -> what its environment says.
WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "spinning": {
        "NORMALIS_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "ACTIVE",
        "GOMP_SPINCOUNT": "infinite",
    },
    "one thread": {"OMP_NUM_THREADS": "1", "NORMALIS_THREADS": "1"},
}  # fmt: skip


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep cores busy with so many processes."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run(arguments: list[str], environment: dict[str, str], limit_s: float) -> tuple[float, float]:
    """Return wall and processor seconds of a command; infinity where it did not end in time."""
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "NORMALIS_THREADS"))}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-m", "normalis", *arguments],
            env=bare | environment, check=True, capture_output=True, timeout=limit_s,
        )  # fmt: skip
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return wall, used
    return float("inf"), float("inf")


def commands(folder: Path, given: argparse.Namespace) -> dict[str, list[str]]:
    """Return the commands that are timed, by name."""
    data, run_folder = str(folder / "data"), str(folder / "run")
    return {
        "fit": [
            "fit", data, "--out", run_folder, "--method", given.method,
            "--epochs", str(given.epochs), "--overwrite",
        ],
        "score": ["score", run_folder, data, "--no-overlays", "--out"],
        "check": ["check", data],
    }  # fmt: skip


def measured(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per command, way, load and repeat."""
    rows, number = [], 0
    for name, arguments in commands(folder, given).items():
        for repeat in range(-1, given.repeats):  # the first one warms up
            for load in (0, 1):
                for way, environment in WAYS.items():
                    number += 1
                    out = [str(folder / f"out{number}")] if arguments[-1] == "--out" else []
                    with busy(load):
                        wall, used = run([*arguments, *out], environment, given.limit)
                    row = {"command": name, "way": way, "load": load, "repeat": repeat}
                    rows.append(row | {"wall_s": round(wall, 2), "cpu_s": round(used, 2)})
                    print(json.dumps(rows[-1]), flush=True)
                if repeat < 0:
                    break
    return [row for row in rows if row["repeat"] >= 0]


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return by command and way how many times as long it takes beside the load as by default."""
    found = []
    for name in dict.fromkeys(row["command"] for row in rows):
        for way in WAYS:
            chosen = [r for r in rows if r["command"] == name]
            alone = {r["repeat"]: r for r in chosen if r["way"] == "default" and not r["load"]}
            for load in (0, 1):
                mine = [r for r in chosen if r["way"] == way and r["load"] == load]
                for figure in ("wall_s", "cpu_s"):
                    shares = [r[figure] / alone[r["repeat"]][figure] for r in mine]
                    found.append(
                        {"command": name, "way": way, "load": load, "figure": figure,
                         "ratio": [round(v, 2) for v in (min(shares), median(shares), max(shares))]}
                    )  # fmt: skip
    return found


def main() -> None:
    """Measure and print rows, then ratios to the default without load (min, median, max)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", default="ae-u")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a command may take")
    given = parser.parse_args()
    print(json.dumps({"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}))
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder) / "data")
        for row in ratios(measured(Path(folder), given)):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
