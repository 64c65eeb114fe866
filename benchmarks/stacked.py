"""The 24 fits of a Table 1 column on a GPU: an eager loop, ours one by one, ours as one stack.

    python benchmarks/stacked.py [--data ARRAYS.npz] [--epochs 5] [--repeats 5] [--full]
        [--device cuda] [--precision auto]

The reference is the loop that the paper's authors publish, in its parts, one fit after the other: a
``DataLoader`` without workers over images that are *kept decoded in memory* (which is kinder to it
than its files), float32, batches of 64 copied to the GPU, Adam at 1e-3, the loss read after each
step. Ours is `normalis.training.loop.Training`: the images lie on the GPU, ``precision="auto"``;
one
model alone, and the 24 of d = 1, 2, 4, ..., 128 and three seeds as one computation
(`normalis.training.stack`).

Each repeat times N epochs of each, in turns; a column is 24 x 250 epochs of one, or 250 of the
stack. ``--full`` then trains the whole column as one stack, scores every test image by every model
and says how long that took, nothing extrapolated, from the arrays in memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metrics import machine
from normalis import models
from normalis.datasets import open_dataset
from normalis.datasets.phantom import PhantomSettings, generate
from normalis.loading.arrays import ImageSettings, load
from normalis.models.inputs import to_model_input
from normalis.training.loop import Training, pick_device
from normalis.training.settings import TrainingSettings

EPOCHS = 250
LATENTS, SEEDS = (1, 2, 4, 8, 16, 32, 64, 128), (0, 1, 2)
FITS = len(LATENTS) * len(SEEDS)


class Kept(Dataset[Tensor]):
    """Decoded images, normalised one at a time to float32 in [-1, 1]."""

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:
        return (torch.from_numpy(self.pixels[i]).float() / 255 - 0.5) / 0.5


class Reference:
    """The loop to beat, one model."""

    def __init__(self, pixels: Any, device: torch.device) -> None:
        self.device = device
        self.model: Any = models.build("ae").to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.images = DataLoader(Kept(pixels), batch_size=64, shuffle=True)

    def run(self, epochs: int) -> None:
        """Train on every image so many times."""
        self.model.train()
        for _ in range(epochs):
            for batch in self.images:
                x = batch.to(self.device)
                self.optimiser.zero_grad()
                loss = (self.model(x) - x).square().mean()
                loss.backward()
                self.optimiser.step()
                loss.item()


def ours(pixels: Any, device: torch.device, given: Any, *, column: bool) -> Training:
    pairs = [(d, s) for d in LATENTS for s in SEEDS] if column else [(16, 0)]
    return Training(
        [models.build("ae", seed=s, latent_dim=d) for d, s in pairs],
        torch.from_numpy(pixels),
        settings=TrainingSettings(epochs=given.epochs, precision=given.precision),
        seeds=[s for _, s in pairs],
        device=device,
        stacked=column,
    )


@torch.inference_mode()
def score(training: Training, pixels: Any) -> None:
    """Score every image by every model, in batches."""
    parts = [to_model_input(p.to(training.device)) for p in torch.from_numpy(pixels).split(256)]
    for member in training.members:
        model: Any = member.model
        model.eval()
        torch.cat([model.anomaly_score(x) for x in parts]).cpu()


def timed(device: torch.device, function: Callable[[], Any]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def images(given: Path | None) -> tuple[str, Any, Any]:
    """Return a name, the training pixels and the test pixels, (N, 1, 64, 64) uint8."""
    if given is None:
        drawn = generate(1600, PhantomSettings(noise=0.03)).images
        pixels = (255 * np.clip(drawn, 0, 1)).astype(np.uint8).reshape(-1, 1, *drawn.shape[-2:])
        with tempfile.TemporaryDirectory() as made:
            file = Path(made) / "phantoms.npz"
            np.savez(file, train=pixels[:1000], test=pixels[1000:])
            return images(file)
    samples = open_dataset(given).samples
    parts = [[s for s in samples if s.split == part] for part in ("train", "test")]
    train, test = (load(part, ImageSettings()).pixels for part in parts)
    return given.stem, train, test


def spread(values: list[float]) -> str:
    return f"{min(values):10.3f} {float(np.median(values)):10.3f} {max(values):10.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="arrays file or folder of one data set")
    parser.add_argument("--epochs", type=int, default=5, help="timed in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--full", action="store_true", help="also one whole column")
    given = parser.parse_args()
    device = pick_device(given.device)
    name, train, test = images(given.data)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    print(f"{machine()}; {gpu}; PyTorch {torch.__version__}")
    print(f"{name}: {len(train)} training, {len(test)} test images; min, median, max", flush=True)

    reference = Reference(train, device)
    sides: dict[str, Callable[[], Callable[[], None]]] = {
        "reference": lambda: lambda: reference.run(given.epochs),
        "ours alone": lambda: ours(train, device, given, column=False).run,
        "ours stacked": lambda: ours(train, device, given, column=True).run,
    }
    for prepare in sides.values():
        prepare()()  # the first steps set up kernels and choose algorithms
    runs = []
    for _ in range(given.repeats):
        runs.append({k: timed(device, make()) / given.epochs for k, make in sides.items()})
        took = ", ".join(f"{k} {v:.3f}" for k, v in runs[-1].items())
        print(f"  seconds an epoch: {took}", flush=True)
    fits = {"reference": FITS, "ours alone": FITS, "ours stacked": 1}
    for side, count in fits.items():
        print(f"  column, {side:<28}{spread([count * EPOCHS * r[side] for r in runs])} s")
    for side in ("ours alone", "ours stacked"):
        ratios = [FITS * r["reference"] / (fits[side] * r[side]) for r in runs]
        print(f"  reference / {side:<24}{spread(ratios)} x")
    if given.full:
        given.epochs = EPOCHS
        whole = ours(train, device, given, column=True)
        fit_s = timed(device, whole.run)
        score_s = timed(device, lambda: score(whole, test))
        last = [h["reconstruction"] for h in (m.history[-1] for m in whole.members)]
        print(f"  one whole column: {fit_s:.1f} s to train, {score_s:.1f} s to score", flush=True)
        print(f"  last training errors by d: {', '.join(f'{e:.4f}' for e in last[:: len(SEEDS)])}")


if __name__ == "__main__":
    main()
