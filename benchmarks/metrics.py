"""Pixel AUROC, AP and best Dice: one sort against scikit-learn twice and 200 thresholds.

    python benchmarks/metrics.py --pixels 11_400_000 --repeats 5

The reference is scikit-learn's ``roc_auc_score`` and ``average_precision_score``, and the best
Dice as the paper's authors compute it: the maximum over 200 quantiles of the map. Theirs runs in
eight processes; here it is one loop, without their copies. All are timed in the same run.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from normalis import metrics


def make(n: int, seed: int = 0) -> tuple[Any, Any]:
    """Maps and masks like a residual's: skewed, 2 % anomalous, one quarter of pixels exactly 0."""
    rng = np.random.default_rng(seed)
    masks = rng.random(n) < 0.02
    maps = rng.gamma(2.0, 0.05, n).astype(np.float32)
    maps[masks] += 0.1
    maps[rng.random(n) < 0.25] = 0.0
    side = 64
    keep = n // (side * side) * side * side
    return maps[:keep].reshape(-1, side, side), masks[:keep].reshape(-1, side, side)


def reference_dice(maps: Any, masks: Any) -> float:
    """Best Dice over 200 quantiles."""
    total = masks.sum()
    best = 0.0
    for threshold in np.quantile(maps, np.linspace(0, 1, 200)):
        flagged = maps >= threshold
        best = max(best, 2 * (flagged & masks).sum() / (flagged.sum() + total))
    return float(best)


def reference(maps: Any, masks: Any) -> tuple[float, float, float]:
    s, y = maps.ravel(), masks.ravel()
    return float(roc_auc_score(y, s)), float(average_precision_score(y, s)), reference_dice(s, y)


def ours(maps: Any, masks: Any) -> tuple[float, float, float]:
    found = metrics.pixel_metrics(maps, masks)
    return found.auroc, found.average_precision, found.best_dice


def streaming(maps: Any, masks: Any) -> tuple[float, float, float]:
    stream = metrics.StreamingPixelMetrics()
    for start in range(0, len(maps), 256):
        stream.update(maps[start : start + 256], masks[start : start + 256])
    found = stream.auroc(), stream.average_precision(), stream.best_dice()

    return tuple(one.value for one in found)  # type: ignore[return-value]


def sorts(maps: Any, masks: Any) -> dict[str, Callable[[], Any]]:
    """The candidates for the one sort."""
    s, y = maps.ravel(), masks.ravel()
    keys = s.view(np.uint32)

    def torch_sort() -> Any:
        import torch

        return torch.sort(torch.from_numpy(s))

    return {
        "two sorts, one per class (chosen)": lambda: (np.sort(s[y]), np.sort(s[~y])),
        "one sort of uint64: key and label packed": lambda: np.sort(
            (keys.astype(np.uint64) << np.uint64(1)) | y
        ),
        "argsort of float32, then gather": lambda: y[np.argsort(s)],
        "torch.sort with indices": torch_sort,
    }


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spread(times: list[float]) -> str:
    return f"{min(times):8.3f} {float(np.median(times)):8.3f} {max(times):8.3f} s"


def machine() -> str:
    """Processor, vector extension that NumPy sorts with, cores, versions."""
    name = platform.processor() or platform.machine()
    flags = ""
    info = "/proc/cpuinfo"
    if os.path.exists(info):  # noqa: PTH110
        with open(info) as file:  # noqa: PTH123
            text = file.read()
        name = text.split("model name")[1].split(":")[1].split("\n")[0].strip()
        flags = ", AVX-512" if "avx512f" in text else ", AVX2" if "avx2" in text else ""
    load = os.getloadavg()[0]
    return f"{name}{flags}, {os.cpu_count()} cores, NumPy {np.__version__}, load {load:.1f}"


def compare(n: int, repeats: int) -> None:
    maps, masks = make(n)
    print(f"{maps.size:,} pixels, {repeats} repeats: min, median, max")
    want, got = reference(maps, masks), ours(maps, masks)
    print(
        f"  differences from the reference: AUROC {abs(got[0] - want[0]):.1e}, "
        f"AP {abs(got[1] - want[1]):.1e}, Dice {got[2] - want[2]:+.1e} (>= 0)"
    )
    times: dict[str, list[float]] = {"reference": [], "one sort": [], "streaming": []}
    for _ in range(repeats):
        for name, function in (
            ("reference", reference),
            ("one sort", ours),
            ("streaming", streaming),
        ):
            times[name].append(timed(lambda f=function: f(maps, masks))[0])
    for name, values in times.items():
        print(f"  {name:<45}{spread(values)}")
    for name in ("one sort", "streaming"):
        ratios = np.array(times["reference"]) / np.array(times[name])
        low, middle, high = ratios.min(), np.median(ratios), ratios.max()
        print(f"  reference / {name:<33}{low:8.1f} {middle:8.1f} {high:8.1f} x")
    for name, function in sorts(maps, masks).items():
        print(f"    {name:<43}{spread([timed(function)[0] for _ in range(repeats)])}")


def growth(largest: int) -> None:
    print("growth: pixels, one sort, streaming")
    n = 100_000
    while n <= largest:
        maps, masks = make(n)
        print(f"  {maps.size:>13,} {timed(lambda: ours(maps, masks))[0]:9.3f} s", flush=True)  # noqa: B023
        print(f"  {'':>13} {timed(lambda: streaming(maps, masks))[0]:9.3f} s", flush=True)  # noqa: B023
        n *= 10


def intervals(n: int) -> None:
    maps, masks = make(n)
    groups = np.arange(len(maps)) % 100
    seconds, found = timed(lambda: metrics.pixel_bootstrap(maps, masks, groups=groups))
    print(f"pixel intervals, 1000 draws of 100 patients, {maps.size:,} pixels: {seconds:.2f} s")
    for name, one in found.items():
        print(f"  {name:<25}{one.value:.4f} [{one.low:.4f}, {one.high:.4f}], slack {one.slack:.1e}")
    rng = np.random.default_rng(0)
    labels = np.arange(1200) % 2 == 0
    scores = rng.normal(size=1200) + labels
    for metric in (metrics.auroc, metrics.average_precision):
        seconds, _ = timed(lambda m=metric: metrics.bootstrap(m, scores, labels))
        print(f"  {metric.__name__}: 1000 draws of 1200 images {seconds:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=11_400_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--largest", type=int, default=10_000_000, help="last size of the growth table"
    )
    args = parser.parse_args()
    print(machine())
    compare(args.pixels, args.repeats)
    intervals(args.pixels)
    growth(args.largest)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the whole run {peak:.0f} MiB")


if __name__ == "__main__":
    main()
