"""What Ray adds to the scoring of an archive: tasks, as normalis has them, and Ray Data.

    python benchmarks/ray_scoring.py [--images 4000] [--repeats 3] [--size 224]

Each way scores so many images and three times as many, without maps or pictures; the difference is
what 1,000 images more take, and the rest is the start (Ray's processes, PyTorch in every worker,
the model). Ways are timed in turns: one process with as many threads as cores
(``normalis score``), Ray's tasks with one core each (``--engine ray``), and Ray Data: the same work
as an actor of ``map_batches``, batches as large as the tasks, as many actors as cores. Ray Data
needs pandas besides the extra ``ray``; without it that line is left out. Ray listens on the
network: run this where nobody else can reach it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metrics import machine
from normalis import AnomalyDetector, open_dataset
from normalis.datasets import Sample
from normalis.engines.cluster import Cluster
from normalis.engines.ray_scoring import PART
from normalis.loading.held_out import samples_to_score
from normalis.output.folder import ScoreOptions
from scoring import BARE, fitted, score, write_images


class Actor:
    """One worker of Ray Data."""

    def __init__(self, model: str) -> None:
        import torch

        torch.set_num_threads(1)
        self.detector = AnomalyDetector.load(model, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score a batch of paths."""
        samples = [Sample(path=Path(path), split="test") for path in batch["item"]]
        parts = self.detector.fitted_.stream(samples, maps=False, workers=1)
        paths, scores = [], []
        for part in parts:
            paths += [str(row.path) for row in part.rows]
            scores.append(part.anomaly_score)
        return {"path": np.array(paths), "anomaly_score": np.concatenate(scores)}


def by_ray_data(model: Path, samples: Sequence[Sample], cores: int) -> None:
    import ray

    with Cluster().joined():
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        data = ray.data.from_items([str(s.path) for s in samples])
        scored = data.map_batches(
            Actor,
            fn_constructor_args=(str(model),),
            batch_size=PART,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=cores),
        )
        found = sum(len(block["path"]) for block in scored.iter_batches(batch_size=None))
    if found != len(samples):
        raise RuntimeError(f"Ray Data scored {found} of {len(samples)} images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(machine())
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        write_images(folder, 3 * given.images, given.size)
        samples = samples_to_score(open_dataset(folder))
        detector = fitted(calibration="none", method="ae", scorer="native")
        model = detector.save(Path(work) / "run")
        on_ray = ScoreOptions(maps=False, overlays=False, engine="ray")
        ways: dict[str, Callable[[Sequence[Sample]], None]] = {
            "one process": lambda some: score(detector, some, folder, BARE),
            "Ray, tasks": lambda some: score(detector, some, folder, on_ray),
        }
        if importlib.util.find_spec("pandas"):
            ways["Ray Data"] = lambda some: by_ray_data(model, some, cores)
        took = {name: np.zeros((given.repeats, 2)) for name in ways}
        for repeat in range(given.repeats):
            for name, way in ways.items():
                for i, count in enumerate((given.images, len(samples))):
                    started = time.perf_counter()
                    way(samples[:count])
                    took[name][repeat, i] = time.perf_counter() - started
                print(f"repeat {repeat + 1}: {name} {took[name][repeat].round(1)} s", flush=True)
    print("\n| | s for 1,000 images more | images/s | start, s |\n|---|---:|---:|---:|")
    for name, (less, more) in ((n, t.T) for n, t in took.items()):
        each = 1e3 * (more - less) / (2 * given.images)
        start = less - each * given.images / 1e3
        cells = (f"{v.min():.1f} / {np.median(v):.1f} / {v.max():.1f}" for v in (each, start))
        per, begin = cells
        print(f"| {name} | {per} | {1e3 / np.median(each):.0f} | {begin} |")


if __name__ == "__main__":
    main()
