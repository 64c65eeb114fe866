"""What an engine costs beyond the work itself: seconds to start, and per experiment.

    python benchmarks/sweep.py [--experiments 60] [--workers 2]

The work is a method that only takes a mean, on 32 images of 16 x 16, so that nearly everything
measured is the engine: claiming, spawning, scheduling, messages. The same jobs in a plain loop are
the baseline. Ray listens on every address: run this where that does no harm, for instance under
``unshare -n sh -c "ip link set lo up; python benchmarks/sweep.py"``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from kill import write_toy
from normalis.research.data import Store
from normalis.research.experiments import plan
from normalis.research.jobs import jobs_of, run_job
from normalis.research.records import Records
from normalis.research.sweep import run_plan


def timed(function: Any, experiments: list[Any], out: Path, **options: Any) -> dict[str, float]:
    """Return the seconds until the first experiment was done, and per further one."""
    marks: list[float] = []
    began = time.perf_counter()
    function(
        experiments, out, device="cpu", keep_models=False,
        callback=lambda e: marks.append(time.perf_counter()) if e.kind == "done" else None,
        **options,
    )  # fmt: skip
    if len(Records(out).identities()) != len(experiments):
        raise SystemExit("experiments are missing")
    return {
        "start_s": round(marks[0] - began, 2),
        "per_experiment_s": round((marks[-1] - marks[0]) / (len(marks) - 1), 4),
    }


def loop(experiments: list[Any], out: Path, callback: Any, **options: Any) -> None:
    """Do the jobs one after the other, without an engine."""
    for job in jobs_of(experiments):
        run_job(job, out, **options)
        callback(argparse.Namespace(kind="done"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    table = {
        "datasets": ["toy"],
        "methods": ["mean-image"],
        "seeds": list(range(given.experiments)),
        "images": {"image_size": 16},
    }
    engines: dict[str, tuple[Any, dict[str, Any]]] = {
        "loop": (loop, {}),
        "local, 1 worker": (run_plan, {"jobs": 1}),
        f"local, {given.workers} workers": (run_plan, {"jobs": given.workers}),
    }
    try:
        from normalis.research.ray import run_plan_on_ray

        engines["ray, this machine"] = (run_plan_on_ray, {})
    except ImportError as error:
        print(f"Ray is not measured: {error}")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        write_toy(root)
        for i, (title, (function, options)) in enumerate(engines.items()):
            out = Path(name) / f"results{i}"
            experiments = plan(table, Store(out, root).fingerprints)
            print(json.dumps({"engine": title, **timed(function, experiments, out, **options)}),
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
