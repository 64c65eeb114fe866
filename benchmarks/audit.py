"""What the audit finds of planted copies, what it finds where there are none, and how fast it is.

    python benchmarks/audit.py planted DATA [--patient-pattern REGEX] [--copies 100]
    python benchmarks/audit.py speed [--images 10000]

*planted*: copies of training images are added to a test that holds none: the test images of DATA
whose patients are known to be others (with a pattern), or its anomalous test images, which can be
no copy of a normal one. *recall* is the share of the copies that have a twin by the audit;
*precision* the share of copies among all test images that have one; *none* counts the images that
have one although nothing was planted. Thresholds are the audit's own.

*speed*: generated grey images of 224 x 224, half of them test, audited as files on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from normalis.audit import Audit, audit
from normalis.datasets import open_dataset, patients_from_pattern
from normalis.datasets.base import Dataset, Sample

Maker = Callable[[Path, Path], Path]


def exact(source: Path, target: Path) -> Path:
    return Path(shutil.copyfile(source, target.with_suffix(source.suffix)))


def jpeg_60(source: Path, target: Path) -> Path:
    path = target.with_suffix(".jpg")
    grey(source).save(path, quality=60)
    return path


def mirrored(source: Path, target: Path) -> Path:
    return as_png(np.asarray(grey(source))[:, ::-1], target)


def shifted(source: Path, target: Path) -> Path:
    """Move by two pixels of the file, right and down; the edge is repeated."""
    return as_png(np.pad(np.asarray(grey(source)), ((2, 0), (2, 0)), "edge")[:-2, :-2], target)


def shifted_at_64(source: Path, target: Path) -> Path:
    """Move by two pixels of 64, whatever the file's size."""
    small = np.asarray(grey(source).resize((64, 64), Image.Resampling.BILINEAR))
    return as_png(np.pad(small, ((2, 0), (2, 0)), "edge")[:-2, :-2], target)


def rescaled(source: Path, target: Path) -> Path:
    image = grey(source)
    size = round(0.75 * image.width), round(0.75 * image.height)
    return as_png(np.asarray(image.resize(size, Image.Resampling.BICUBIC)), target)


def grey(path: Path) -> Image.Image:
    return Image.open(path).convert("L")


def as_png(pixels: np.ndarray, target: Path) -> Path:
    path = target.with_suffix(".png")
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path


KINDS: dict[str, Maker] = {
    "exact": exact,
    "JPEG quality 60": jpeg_60,
    "mirrored": mirrored,
    "shifted 2 px": shifted,
    "shifted 2 px at 64": shifted_at_64,
    "rescaled to 75 %": rescaled,
}


def plant(args: argparse.Namespace) -> dict[str, object]:
    data = open_dataset(args.data)
    if args.patient_pattern:
        data = patients_from_pattern(data, args.patient_pattern)
    train = [s for s in data.samples if s.split != "test"]
    clean = [s for s in data.split("test") if args.patient_pattern or s.is_anomalous]
    rng = np.random.default_rng(args.seed)
    chosen = [train[i] for i in rng.choice(len(train), min(args.copies, len(train)), replace=False)]
    # Patients are not told to the audit: the harder task, in which look-alikes are false alarms.
    train, clean = [hide(s) for s in train], [hide(s) for s in clean]
    none = flagged(audit(dataset_of(data, [*train, *clean])))
    result: dict[str, object] = {"data": data.name, "train": len(train), "clean": len(clean)}
    result["none"] = {way: len(names) for way, names in none.items()}
    for kind, make in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = [make(s.path, Path(folder) / f"planted_{i}") for i, s in enumerate(chosen)]
            copies = [Sample(path=p, split="test", is_anomalous=False) for p in paths]
            found = flagged(audit(dataset_of(data, [*train, *clean, *copies])))
            result[kind] = {way: rates(names, paths) for way, names in found.items()}
    return result


def hide(sample: Sample) -> Sample:
    return Sample(path=sample.path, split=sample.split, is_anomalous=sample.is_anomalous)


def dataset_of(data: Dataset, samples: list[Sample]) -> Dataset:
    return Dataset(name=data.name, root=data.root, layout="planted", samples=tuple(samples))


def flagged(found: Audit) -> dict[str, frozenset[str]]:
    return {
        "bytes": found.leaked(2.0) & exact_names(found),
        "0.999 as it lies": found.leaked(0.999),
        "0.95 as it lies": found.leaked(0.95),
        "0.95, mirrored or shifted too": found.leaked(0.95, mirrored=True, shifted=True),
    }


def exact_names(found: Audit) -> frozenset[str]:
    return frozenset(k for k, same in zip(found.keys, found.copies.by_bytes, strict=True) if same)


def rates(names: frozenset[str], planted: list[Path]) -> dict[str, float | None]:
    hits = len(names & {str(p) for p in planted})
    precision = round(hits / len(names), 3) if names else None
    return {"recall": round(hits / len(planted), 3), "precision": precision}


def speed(args: argparse.Namespace) -> dict[str, object]:
    stages: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        samples = generate(Path(folder), args.images, args.seed)
        data = Dataset(name="generated", root=Path(folder), layout="planted", samples=samples)
        start, cpu = time.perf_counter(), time.process_time()

        def note(stage: str, share: float) -> None:
            stages.setdefault(stage, [time.perf_counter() - start] * 2)[1] = (
                time.perf_counter() - start
            )

        found = audit(data, progress=note)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "images": len(found.facts),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "load_average": os.getloadavg()[0],
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "stages_s": {name: round(last - first, 1) for name, (first, last) in stages.items()},
    }


def generate(folder: Path, count: int, seed: int) -> tuple[Sample, ...]:
    """Write smooth random images, PNG and JPEG by turns."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
        path = folder / (f"{i}.png" if i % 2 else f"{i}.jpg")
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(path)
        split, anomalous = ("test", i % 4 < 2) if i >= count // 2 else ("train", False)
        samples.append(Sample(path=path, split=split, is_anomalous=anomalous))
    return tuple(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    planted = commands.add_parser("planted")
    planted.add_argument("data", type=Path)
    planted.add_argument("--patient-pattern")
    planted.add_argument("--copies", type=int, default=100)
    planted.set_defaults(run=plant)
    fast = commands.add_parser("speed")
    fast.add_argument("--images", type=int, default=10_000)
    fast.set_defaults(run=speed)
    parser.set_defaults(seed=0)
    args = parser.parse_args()
    print(json.dumps(args.run(args), indent=2))


if __name__ == "__main__":
    main()
