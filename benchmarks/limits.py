"""How far each part is from what the machine could do at best.

    python benchmarks/limits.py [--repeats 5]

First the machine, on one thread: multiply-adds a second of large matrix products in float32 and
bfloat16, bytes a second of copies larger than any cache. Then for each part what it must do at
least, that over the machine's rate, the time it takes, and the share. All times are the least
processor time of the repeats, on one thread, so that other work on the machine matters little.
Multiply-adds are counted by PyTorch (``FlopCounterMode``), bytes from the arrays' sizes. A limit is
a bound and not a promise: small layers never reach the rate of large matrix products.

Last the growth with the number of models that one training holds.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from metrics import machine, make, ours, streaming
from normalis import duplicates, models, scorers
from normalis.datasets import open_dataset
from normalis.engines.onnx import OnnxScorer
from normalis.loading.arrays import stream
from normalis.models.inputs import to_model_input
from normalis.output.overlays import resize_map
from normalis.training.loop import Training
from normalis.training.settings import TrainingSettings
from scoring import fitted, write_images

BATCH = 64


def least(function: Callable[[], Any], repeats: int) -> float:
    """Return the least processor time of some calls, in seconds, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times[1:])


def multiply_adds(function: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2


class Limits:
    """Measures the machine, then parts against it."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.rate = {t: self._matrix_rate(t) for t in (torch.float32, torch.bfloat16)}
        self.bytes_rate = self._copy_rate()
        print("| the machine, one thread | |\n|---|---:|")
        for kind, rate in self.rate.items():
            name = str(kind).removeprefix("torch.")
            print(f"| multiply-adds a second, {name} | {rate / 1e9:.0f} billion |")
        print(f"| bytes a second, copied | {self.bytes_rate / 1e9:.1f} billion |")
        print("\n| part | at least | limit, ms | takes, ms | share |\n|---|---|---:|---:|---:|")

    def _matrix_rate(self, kind: torch.dtype) -> float:
        a, b = (torch.randn(2048, 2048).to(kind) for _ in range(2))
        return 2048**3 / least(lambda: a @ b, self.repeats)

    def _copy_rate(self) -> float:
        source, target = (torch.ones(2**26) for _ in range(2))
        return 2 * source.nbytes / least(lambda: target.copy_(source), self.repeats)

    def show(self, name: str, what: str, limit_s: float, takes_s: float) -> None:
        """Print a line: least time and time taken, in seconds."""
        share = f"{100 * limit_s / takes_s:.0f} %"
        print(f"| {name} | {what} | {1e3 * limit_s:.3g} | {1e3 * takes_s:.3g} | {share} |")

    def arithmetic(self, name: str, count: float, kind: torch.dtype, takes_s: float) -> None:
        """Print a part that so many multiply-adds bound."""
        what = f"{count / 1e9:.2g} billion multiply-adds, {str(kind).removeprefix('torch.')}"
        self.show(name, what, count / self.rate[kind], takes_s)

    def traffic(self, name: str, count: float, takes_s: float) -> None:
        """Print a part that so many bytes bound."""
        self.show(name, f"{count / 1e6:.0f} MB read", count / self.bytes_rate, takes_s)


def networks(limits: Limits) -> None:
    """A training step and a scored batch of the paper's network."""
    pixels = torch.randint(0, 256, (BATCH, 1, 64, 64), dtype=torch.uint8)
    training = Training(
        [models.build("ae")],
        pixels,
        settings=TrainingSettings(epochs=1000),
        seeds=[0],
        device="cpu",
        stacked=False,
    )
    member = training.members[0]
    member.model.train()
    x = to_model_input(pixels).contiguous(memory_format=torch.channels_last)
    count = multiply_adds(lambda: member.step(x))
    takes = least(lambda: member.step(x), 4 * limits.repeats)
    limits.arithmetic("training, a step of 64", count, torch.bfloat16, takes)
    model = member.model.eval()
    native = scorers.build("native")
    with torch.inference_mode():
        count = multiply_adds(lambda: model(x))
        takes = least(lambda: native.read(model, x, maps=False), 4 * limits.repeats)
        limits.arithmetic("scoring, a batch of 64", count, torch.float32, takes)
        onnx = OnnxScorer(model, native)
        takes = least(lambda: onnx.read(model, x, maps=False), 4 * limits.repeats)
        limits.arithmetic("the same, onnxruntime", count, torch.float32, takes)
        median = scorers.build("median")
        takes = least(lambda: median.read(model, x, maps=False), 4 * limits.repeats)
        limits.arithmetic("the same, read by median", count, torch.float32, takes)


def images(limits: Limits) -> None:
    """Reading files, against Pillow alone; writing maps, against writing their bytes."""
    detector = fitted(calibration="none", method="ae", scorer="native")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        write_images(folder, 200, 224)
        samples = open_dataset(folder).samples
        kept = [sample.path.read_bytes() for sample in samples]

        def pillow() -> None:
            for data in kept:
                with Image.open(io.BytesIO(data)) as image:
                    np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BILINEAR))

        def read() -> None:
            for _ in stream(samples, detector.image_settings, rule=detector.rule_, workers=1):
                pass

        each = len(samples)
        limit = least(pillow, limits.repeats) / each
        takes = least(read, limits.repeats) / each
        limits.show("reading a JPEG of 224 x 224", "decoded by Pillow from memory", limit, takes)
        small, whole = np.ones((64, 64), np.float32), np.ones((224, 224), np.float32)
        target = Path(work) / "map.npy"

        def bare() -> None:
            for _ in range(100):
                target.write_bytes(whole.tobytes())

        def resized() -> None:
            for _ in range(100):
                with target.open("wb") as file:
                    np.save(file, resize_map(small, (224, 224)))

        limit, takes = (least(f, limits.repeats) / 100 for f in (bare, resized))
        limits.show("a map of 224 x 224", "its 200 kB written", limit, takes)


def arrays(limits: Limits) -> None:
    """Metrics over pixels, and all pairs of images."""
    maps, masks = make(11_400_000)
    total = maps.nbytes + masks.nbytes
    takes = least(lambda: ours(maps, masks), limits.repeats)
    limits.traffic("pixel metrics of 11.4 million, exact", total, takes)
    positive, values = masks.ravel(), maps.ravel()
    sorts = least(lambda: (np.sort(values[positive]), np.sort(values[~positive])), limits.repeats)
    limits.show("the same", "NumPy's sort by class", sorts, takes)
    takes = least(lambda: streaming(maps, masks), limits.repeats)
    limits.traffic("the same, streaming", total, takes)
    rng = np.random.default_rng(0)
    pixels = rng.random((3000, 64, 64)).astype(np.float32)
    is_test = np.arange(len(pixels)) % 2 == 0
    takes = least(lambda: duplicates.scan(pixels, is_test), limits.repeats)
    count = float(len(pixels)) ** 2 / 2 * pixels[0].size  # each pair once
    limits.arithmetic("near copies among 3,000", count, torch.float32, takes)


def start(limits: Limits) -> None:
    """The command line's first answer, wall time of a process."""

    def wall(*command: str) -> float:
        times = []
        for _ in range(limits.repeats):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            times.append(time.perf_counter() - started)
        return min(times)

    bare, ours = wall("-c", "import typer, rich"), wall("-m", "normalis", "--help")
    limits.show("`normalis --help` (wall)", "Python, Typer, Rich imported", bare, ours)


def growth() -> None:
    print(
        "\n| models in one training | s an epoch of 256 images | ms a model and step | peak, MB |"
    )
    print("|---:|---:|---:|---:|")
    pixels = torch.randint(0, 256, (256, 1, 64, 64), dtype=torch.uint8)
    for n in (1, 4, 16, 64):
        some = [models.build("ae", seed=seed) for seed in range(n)]
        training = Training(
            some,
            pixels,
            settings=TrainingSettings(epochs=2),
            seeds=list(range(n)),
            device="cpu",
        )
        started = time.process_time()
        training.run()
        took = (time.process_time() - started) / 2
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {n} | {took:.2f} | {1e3 * took / n / 4:.1f} | {peak:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    limits = Limits(given.repeats)
    networks(limits)
    images(limits)
    arrays(limits)
    start(limits)
    growth()


if __name__ == "__main__":
    main()
