"""How near scoring comes to the speed of decoding alone, what it costs to write, what it holds.

    python benchmarks/scoring.py [--images 500] [--repeats 5] [--size 224] [--data FOLDER]
    python benchmarks/scoring.py --memory 1000 10000 100000
    python benchmarks/scoring.py --agree RUN DATA

Without options: images a second of decoding alone (`normalis.loading.arrays.stream`, what scoring
reads
from), of ``normalis score`` with neither maps nor pictures on each engine, with maps, with maps and
pictures, and of the reference's evaluation: eager PyTorch at batch 1, each file opened, greyed,
resized and normalised by itself (`training.Files`). Every repeat times all of them in turns, and
ratios are formed within it. The network is the paper's at 64 x 64 and d = 16, hardly trained, since
weights take no time. Images are FOLDER's, else phantoms as JPEG, 200 different ones under as many
names as it takes. Left out are what happens once: loading the model, building the engine (printed),
and the drift test of a calibrated model, 0.2 s. Processor time counts all threads.

``--memory`` scores so many files, each number in a process of its own, and prints its peak.

``--agree`` compares, on the JPEGs of DATA and with a trained model, the scores of onnxruntime with
PyTorch's, and the scores of JPEGs decoded at reduced size (Pillow's ``draft``) with those of whole
ones.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch.utils.data import DataLoader

from metrics import machine
from normalis import AnomalyDetector, open_dataset
from normalis.datasets import Sample
from normalis.datasets.phantom import PhantomSettings, generate
from normalis.engines.onnx import on_engine
from normalis.errors import MissingExtraError
from normalis.loading.arrays import from_array, stream
from normalis.loading.held_out import samples_to_score
from normalis.output.folder import ScoreOptions, score_to_folder
from training import Files

DISTINCT = 200
BARE = ScoreOptions(maps=False, overlays=False)


def write_images(folder: Path, count: int, size: int) -> None:
    """Write JPEGs of phantoms; beyond `DISTINCT` they are links to the first ones."""
    folder.mkdir()
    settings = PhantomSettings(image_size=size, noise=0.03)
    drawn = generate(min(count, DISTINCT), settings).images
    for i, image in enumerate((255 * np.clip(drawn, 0, 1)).astype(np.uint8)):
        Image.fromarray(image).save(folder / f"{i:06d}.jpg", quality=90)
    for i in range(DISTINCT, count):
        os.link(folder / f"{i % DISTINCT:06d}.jpg", folder / f"{i:06d}.jpg")


def fitted(**settings: Any) -> AnomalyDetector:
    images = generate(64, PhantomSettings(noise=0.03)).images
    return AnomalyDetector(epochs=1, device="cpu", **settings).fit(np.clip(images, 0, 1))


def decode(detector: AnomalyDetector, samples: Sequence[Sample]) -> None:
    for _ in stream(samples, detector.image_settings, rule=detector.rule_, batch_size=64):
        pass


def score(
    detector: AnomalyDetector, samples: Sequence[Sample], root: Path, options: ScoreOptions
) -> None:
    with tempfile.TemporaryDirectory() as out:
        score_to_folder(detector, samples, Path(out) / "out", root=root, options=options)


@torch.no_grad()
def evaluate_singly(detector: AnomalyDetector, samples: Sequence[Sample]) -> None:
    model: Any = detector.model_
    for x in DataLoader(Files([s.path for s in samples], keep=False), batch_size=1):
        float((model(x) - x).square().mean())


def timed(function: Callable[[], None], count: int) -> tuple[float, float]:
    """Return images a second, and milliseconds of processor time an image."""
    wall, used = time.perf_counter(), time.process_time()
    function()
    return count / (time.perf_counter() - wall), 1e3 * (time.process_time() - used) / count


def engines() -> dict[str, AnomalyDetector]:
    """Return the detector on each engine that is installed."""
    found = {"torch": fitted(calibration="none", method="ae", scorer="native")}
    started, used = time.perf_counter(), time.process_time()
    try:
        found["onnx"] = on_engine(found["torch"])
        wall, processor = time.perf_counter() - started, time.process_time() - used
        print(f"building the engine onnx: {wall:.1f} s, {processor:.1f} s of processor time")
    except MissingExtraError as error:
        print(f"without onnx: {error}")
    return found


def speed(folder: Path, count: int, repeats: int) -> None:
    samples = samples_to_score(open_dataset(folder))[:count]
    detectors = engines()
    plain = detectors["torch"]
    some = samples[:60]
    sides: dict[str, tuple[Callable[[], None], int]] = {
        "decoding alone": (lambda: decode(plain, samples), len(samples))
    }
    for name, one in detectors.items():

        def bare(one: AnomalyDetector = one) -> None:
            score(one, samples, folder, BARE)

        sides[f"score, {name}"] = (bare, len(samples))
    usual = fitted(calibration="none")
    sides["score, default reading"] = (lambda: score(usual, samples, folder, BARE), len(samples))
    sides |= {
        "with maps": (
            lambda: score(plain, samples, folder, ScoreOptions(overlays=False)),
            len(samples),
        ),
        "with maps and pictures": (
            lambda: score(plain, samples[:20], folder, ScoreOptions()),
            len(samples[:20]),
        ),
        "reference at batch 1": (lambda: evaluate_singly(plain, some), len(some)),
    }
    decode(plain, samples)
    score(plain, some, folder, BARE)
    runs = []
    for i in range(repeats):
        runs.append({name: timed(*side) for name, side in sides.items()})
        took = ", ".join(f"{name} {rate:.0f}/s" for name, (rate, _) in runs[-1].items())
        print(f"repeat {i + 1}: {took}; load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"\n{len(samples)} images, {repeats} repeats: min / median / max\n")
    show(runs)


def show(runs: list[dict[str, tuple[float, float]]]) -> None:
    columns = ["", "images/s", "ms of processor", "% of decoding", "x reference"]
    columns += ["% of decoding, by processor", "x reference, by processor"]
    print("| " + " | ".join(columns) + " |\n|---" + "|---:" * (len(columns) - 1) + "|")
    for name in runs[0]:
        rate, used = (np.array([run[name][i] for run in runs]) for i in (0, 1))
        whole, whole_used = (np.array([run["decoding alone"][i] for run in runs]) for i in (0, 1))
        single = np.array([run["reference at batch 1"] for run in runs]).T
        cells = [
            three(rate, ".0f"),
            three(used, ".2f"),
            three(100 * rate / whole, ".0f"),
            three(rate / single[0], ".1f"),
            three(100 * whole_used / used, ".0f"),
            three(single[1] / used, ".1f"),
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def three(values: Any, how: str) -> str:
    return " / ".join(format(v, how) for v in (values.min(), np.median(values), values.max()))


# --- memory -----------------------------------------------------------------------------------


def memory(counts: Sequence[int], size: int) -> None:
    """Print the peak of one scoring process for each number of images."""
    print("| images | listed, MB | peak, MB | MB per 1,000 images more | s |")
    print("|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as work:
        # What is kept of an image does not depend on the network: a small one takes less time.
        small = fitted(image_size=16, method_options={"hidden_dim": 8})
        run = small.save(Path(work) / "run")
        before: tuple[int, float] | None = None
        for count in counts:
            folder = Path(work) / str(count)
            write_images(folder, count, size)
            call = [sys.executable, __file__, "--child", str(run), str(folder)]
            done = subprocess.run(call, capture_output=True, text=True, check=True)
            listed, peak, seconds = map(float, done.stdout.split())
            grows = (
                "" if before is None else f"{1e3 * (peak - before[1]) / (count - before[0]):.2f}"
            )
            print(
                f"| {count:,} | {listed:.0f} | {peak:.0f} | {grows} | {seconds:.0f} |", flush=True
            )
            before = count, peak


def child(run: Path, folder: Path) -> None:
    """Score a folder; print the peak after listing it and at the end, and the seconds."""
    started = time.perf_counter()
    detector = AnomalyDetector.load(run, device="cpu")
    samples = samples_to_score(open_dataset(folder))
    listed = peak_mb()
    score(detector, samples, folder, BARE)
    print(listed, peak_mb(), time.perf_counter() - started)


def peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in ru_maxrss what the process was before it was this program
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# --- agreement --------------------------------------------------------------------------------


def agree(run: Path, data: Path) -> None:
    detector = AnomalyDetector.load(run, device="cpu")
    paths = [s.path for s in open_dataset(data).samples if s.path.suffix in (".jpg", ".jpeg")]
    size = detector.image_size
    used, pixels = {}, {}
    for name, reduced in (("whole", None), ("reduced", (size, size))):
        start = time.process_time()
        pixels[name] = np.stack([open_grey(path, size, reduced) for path in paths])
        used[name] = time.process_time() - start
    scores = {name: scores_of(detector, x) for name, x in pixels.items()}
    calibration = detector.calibration_
    print(f"{data.name}: {len(paths)} JPEGs, {run.name}")
    try:
        report(
            "onnx", scores_of(on_engine(detector), pixels["whole"]), scores["whole"], calibration
        )
    except MissingExtraError as error:
        print(f"without onnx: {error}")
    off = np.abs(pixels["reduced"].astype(int) - pixels["whole"])
    print(
        f"reduced decoding: {used['whole'] / used['reduced']:.1f} x as fast; pixels differ by "
        f"{off.mean():.2f} on average, {off.max()} at most (of 255)"
    )
    report("reduced", scores["reduced"], scores["whole"], calibration)


def open_grey(path: Path, size: int, reduced: tuple[int, int] | None) -> Any:
    with Image.open(path) as image:
        if reduced:
            image.draft("L", reduced)
        return np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))


def scores_of(detector: AnomalyDetector, x: Any) -> Any:
    loaded = from_array(x, detector.image_settings, rule=detector.rule_, fit_rule=False)
    return detector.anomaly_score(loaded.pixels)


def report(name: str, found: Any, expected: Any, calibration: Any) -> None:
    off = np.abs(found / expected - 1)
    said = [f"median {np.median(off):.1e}", f"largest {off.max():.1e}"]
    said.append(f"rank correlation {spearmanr(found, expected).statistic:.6f}")
    if calibration is not None:
        p, q = calibration.p_values(found), calibration.p_values(expected)
        said.append(
            f"p-values that differ {np.mean(p != q):.2%}, by {np.abs(p - q).max():.3f} at most"
        )
        flags = [calibration.flags(v, 0.05) for v in (p, q)]
        said.append(f"decisions at 5 % that differ {np.mean(flags[0] != flags[1]):.2%}")
    print(f"scores, {name} against whole and torch: relative difference " + ", ".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="side of the generated JPEGs")
    parser.add_argument("--data", type=Path, help="folder with one data set")
    parser.add_argument("--memory", type=int, nargs="+", metavar="IMAGES")
    parser.add_argument("--agree", type=Path, nargs=2, metavar=("RUN", "DATA"))
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    print(f"{machine()}; PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    if given.agree:
        agree(*given.agree)
    elif given.memory:
        memory(given.memory, given.size)
    else:
        with tempfile.TemporaryDirectory() as work:
            folder = given.data or Path(work) / "images"
            if given.data is None:
                write_images(folder, given.images, given.size)
                print(f"phantoms, JPEG of {given.size} x {given.size}")
            speed(folder, given.images, given.repeats)


if __name__ == "__main__":
    main()
