"""One fit of 250 epochs and the 24 fits of a Table 1 column: a plain PyTorch loop against ours.

    python benchmarks/training.py [--epochs 10] [--repeats 5] [--data FOLDER] [--keep-decoded]
        [--full]

The reference is the loop that the paper's authors publish, in its parts: a ``Dataset`` that opens,
greys, resizes and normalises one image file at a time, a ``DataLoader`` without workers, float32,
batches of 64, Adam at 1e-3, and every 25 epochs an evaluation of the test images at batch 1. With
``--keep-decoded`` its ``Dataset`` keeps the resized images and only normalises them, which is
kinder to it. Ours is `normalis.training.loop` as `fit` runs it: ``precision="auto"``, all cores;
for the
24 fits two processes of one thread each, as `sweep` runs them.

Each repeat times N epochs and one evaluation of each side, in turns, and extrapolates: a fit of the
reference is 250 epochs and ten evaluations, one of ours is reading the files once, 250 epochs and
one evaluation (and, in a row of its own, ten). Start-up of the processes is left out: a sweep pays
it once. ``--full`` then runs one fit of each side from start to end, without extrapolation.
Images: those of FOLDER, else brain_tumor or kermany_cxr under NORMALIS_DATA or
../shared/data, else phantoms.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metrics import machine
from normalis import models
from normalis.datasets import Sample, open_dataset
from normalis.datasets.phantom import PhantomSettings, generate
from normalis.loading.arrays import ImageSettings, load
from normalis.models.inputs import to_model_input
from normalis.training.loop import Training
from normalis.training.settings import TrainingSettings

EPOCHS, EVERY, FITS = 250, 25, 24
CPU = torch.device("cpu")


class Files(Dataset[Tensor]):
    """One image file at a time, to float32 in [-1, 1]."""

    def __init__(self, paths: Sequence[Path], *, keep: bool) -> None:
        self.paths = list(paths)
        self.kept = [self.decode(p) for p in paths] if keep else None

    @staticmethod
    def decode(path: Path) -> Image.Image:
        """Return the image as grey 64 x 64."""
        with Image.open(path) as image:
            return image.convert("L").resize((64, 64), Image.Resampling.BILINEAR)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        image = self.kept[i] if self.kept else self.decode(self.paths[i])
        x = torch.from_numpy(np.array(image)).unsqueeze(0).float() / 255
        return (x - 0.5) / 0.5


class Reference:
    """The loop to beat."""

    def __init__(self, train: Sequence[Path], test: Sequence[Path], *, keep: bool) -> None:
        self.model: Any = models.build("ae")
        self.optimiser = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.train = DataLoader(Files(train, keep=keep), batch_size=64, shuffle=True)
        self.test = DataLoader(Files(test, keep=keep), batch_size=1)

    def epoch(self) -> None:
        """Train on every image once."""
        self.model.train()
        for x in self.train:
            self.optimiser.zero_grad()
            loss = (self.model(x) - x).square().mean()
            loss.backward()
            self.optimiser.step()
            loss.item()

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Return the score of every test image."""
        self.model.eval()
        return [float((self.model(x) - x).square().mean()) for x in self.test]


def ours(pixels: Any, epochs: int) -> Training:
    settings = TrainingSettings(epochs=epochs)
    return Training(
        [models.build("ae")], torch.from_numpy(pixels), settings=settings, seeds=[0], device=CPU
    )


@torch.inference_mode()
def evaluate(model: Any, pixels: Any) -> Any:
    parts = torch.from_numpy(pixels).split(64)
    return torch.cat([model.anomaly_score(to_model_input(p)) for p in parts]).numpy()


_worker: tuple[Any, Any, Barrier]


def _start(train: Any, test: Any, barrier: Barrier) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = train, test, barrier
    ours(train[:128], 1).run()  # the first step of a process sets up its kernels


def _beside_another(epochs: int) -> tuple[float, float]:
    """Return the seconds an epoch and an evaluation take while the other process does the same."""
    train, test, barrier = _worker
    barrier.wait()
    training = ours(train, epochs)
    epoch = timed(training.run) / epochs
    barrier.wait()
    return epoch, timed(lambda: evaluate(training.members[0].model, test))


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def images(folder: Path | None) -> Iterator[tuple[str, list[Sample], list[Sample]]]:
    """Yield a name, the training samples and the test samples."""
    roots = [os.environ.get("NORMALIS_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    tried = [Path(r) / name for r in roots if r for name in ("brain_tumor", "kermany_cxr")]
    found = folder or next((f for f in tried if f.is_dir()), None)
    with tempfile.TemporaryDirectory() as made:
        samples = open_dataset(found or phantoms(Path(made))).samples
        train = [s for s in samples if s.split == "train"]
        yield found.name if found else "phantoms", train, [s for s in samples if s.split == "test"]


def phantoms(root: Path) -> Path:
    drawn = generate(2000, PhantomSettings(noise=0.03)).images
    for i, image in enumerate((255 * np.clip(drawn, 0, 1)).astype(np.uint8)):
        part = "train/good" if i < 1000 else "test/good" if i < 1500 else "test/other"
        (root / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((256, 256)).save(root / part / f"{i:04d}.png")
    return root


def repeat(
    reference: Reference, train: list[Sample], test: list[Sample], epochs: int, pool: Any
) -> dict[str, float]:
    """Return the seconds of every part, each side in turns."""
    seconds = {
        "reference: epoch": timed(lambda: [reference.epoch() for _ in range(epochs)]) / epochs
    }
    settings = ImageSettings()
    seconds["ours: read all files"] = timed(lambda: load(train + test, settings))
    training = ours(load(train, settings).pixels, epochs)
    seconds["ours: epoch"] = timed(training.run) / epochs
    seconds["reference: evaluation"] = timed(reference.evaluate)
    pixels = load(test, settings).pixels
    model = training.members[0].model
    seconds["ours: evaluation"] = timed(lambda: evaluate(model, pixels))
    pair = [f.result() for f in [pool.submit(_beside_another, epochs) for _ in range(2)]]
    seconds["ours: epoch, one of two"] = max(epoch for epoch, _ in pair)
    seconds["ours: evaluation, one of two"] = max(evaluation for _, evaluation in pair)
    return seconds


def extrapolate(s: dict[str, float]) -> dict[str, float]:
    """Return the seconds of whole fits."""
    often = EPOCHS // EVERY
    theirs = EPOCHS * s["reference: epoch"] + often * s["reference: evaluation"]
    mine = s["ours: read all files"] + EPOCHS * s["ours: epoch"]
    pair = EPOCHS * s["ours: epoch, one of two"] + s["ours: evaluation, one of two"]
    return {
        "reference: one fit": theirs,
        "ours: one fit": mine + s["ours: evaluation"],
        "ours: one fit, ten evaluations": mine + often * s["ours: evaluation"],
        "reference: 24 fits": FITS * theirs,
        "ours: 24 fits": s["ours: read all files"] + FITS / 2 * pair,
    }


def confirm(train: list[Sample], test: list[Sample], *, keep: bool) -> tuple[float, float]:
    """Return the seconds of one whole fit: the reference's and ours, models and files anew."""

    def theirs() -> None:
        reference = Reference([s.path for s in train], [s.path for s in test], keep=keep)
        for epoch in range(1, EPOCHS + 1):
            reference.epoch()
            if epoch % EVERY == 0:
                reference.evaluate()

    def mine() -> None:
        settings = ImageSettings()
        pixels = load(train + test, settings).pixels
        training = ours(pixels[: len(train)], EPOCHS)
        training.run()
        evaluate(training.members[0].model, pixels[len(train) :])

    return timed(theirs), timed(mine)


def show(runs: list[dict[str, float]]) -> None:
    for name in runs[0]:
        print(f"  {name:<45}{spread([run[name] for run in runs])} s")
    for name, reference in (
        ("ours: epoch", "reference: epoch"),
        ("ours: evaluation", "reference: evaluation"),
        ("ours: one fit", "reference: one fit"),
        ("ours: one fit, ten evaluations", "reference: one fit"),
        ("ours: 24 fits", "reference: 24 fits"),
    ):
        ratios = [run[reference] / run[name] for run in runs]
        print(f"  reference / {name:<33}{spread(ratios)} x")


def spread(values: list[float]) -> str:
    return f"{min(values):10.3f} {float(np.median(values)):10.3f} {max(values):10.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="timed in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder with one data set")
    parser.add_argument("--images", type=int, help="use so many of each part, spread evenly")
    parser.add_argument("--keep-decoded", action="store_true", help="spare the reference decoding")
    parser.add_argument("--full", action="store_true", help="also one whole fit of each side")
    given = parser.parse_args()
    with images(given.data) as (name, train, test):
        if given.images:
            train, test = (p[:: max(1, len(p) // given.images)] for p in (train, test))
        print(f"{machine()}; PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
        print(
            f"{name}: {len(train)} training, {len(test)} test images; min, median, max", flush=True
        )
        paths = [s.path for s in train], [s.path for s in test]
        reference = Reference(*paths, keep=given.keep_decoded)
        settings = ImageSettings()
        arrays = load(train, settings).pixels, load(test, settings).pixels
        ours(arrays[0][:128], 1).run()
        context = multiprocessing.get_context("spawn")
        start = (*arrays, context.Barrier(2))
        with ProcessPoolExecutor(2, context, initializer=_start, initargs=start) as pool:
            runs = []
            for i in range(given.repeats):
                runs.append(repeat(reference, train, test, given.epochs, pool))
                took = ", ".join(f"{k} {v:.2f}" for k, v in runs[-1].items())
                print(f"  repeat {i + 1}, seconds: {took}", flush=True)
        show([run | extrapolate(run) for run in runs])
        if given.full:
            theirs, mine = confirm(train, test, keep=given.keep_decoded)
            both = f"reference {theirs:.0f} s, ours {mine:.0f} s"
            print(f"  one whole fit: {both}, {theirs / mine:.2f} x")
        print(f"  load average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
