"""Plans on Ray: the same jobs and records, on this machine or a cluster, some to a GPU.

Every node must see the results folder under the same path: arrays are read from it and records
written to it, by the code of the local engine (`normalis.research.jobs.run_job`). Ray decides
where a job
runs and runs it again when its worker or node is lost; the job then goes on from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from normalis.engines.cluster import Cluster, cause_of
from normalis.errors.extras import require
from normalis.research.experiments import Experiment, write_plan
from normalis.research.jobs import Job, jobs_of, run_job
from normalis.research.records import Records
from normalis.research.rekey import check_names
from normalis.research.sweep import Event, Monitor

__all__ = ["run_plan_on_ray"]

_POLL_S = 0.5


class _Mailbox:
    """Collects what jobs say until the driver takes it; runs as a Ray actor beside the driver."""

    def __init__(self) -> None:
        self.said: list[tuple[int, str, int]] = []

    def say(self, index: int, kind: str, epoch: int) -> None:
        """Leave a message."""
        self.said.append((index, kind, epoch))

    def take(self) -> list[tuple[int, str, int]]:
        """Return all messages since the last call."""
        said, self.said = self.said, []
        return said


def _do_job(
    index: int, job: Job, results: str, device: str, keep_models: bool, mailbox: Any, threads: int
) -> None:
    """Do a job on a worker; wait for another process that has it."""
    import torch

    torch.set_num_threads(threads)
    last = 0.0

    def tell(epoch: int, epochs: int) -> None:
        nonlocal last
        if epoch and epoch < epochs and time.monotonic() - last < _POLL_S:
            return
        last = time.monotonic()
        mailbox.say.remote(index, "epoch" if epoch else "start", epoch)

    while not run_job(job, results, device=device, keep_models=keep_models, callback=tell):
        time.sleep(1.0)


def run_plan_on_ray(
    experiments: Sequence[Experiment],
    results: str | Path,
    *,
    address: str = "local",
    gpus_per_job: float = 0.0,
    cpus_per_job: float = 1.0,
    device: str = "auto",
    keep_models: bool = True,
    callback: Callable[[Event], None] | None = None,
) -> dict[str, str]:
    """Run every experiment that has no record yet on a Ray cluster.

    Args:
        experiments: the plan; it is written to ``RESULTS/plans`` first.
        results: the results folder, seen by every node under this path.
        address: ``local`` starts Ray on this machine and stops it in the end; ``auto`` or
            ``HOST:PORT`` joins a cluster that runs.
        gpus_per_job: share of a GPU that a job gets: 0.25 trains four at once on each.
        cpus_per_job: cores that a job gets.
        device: where to train; ``auto`` takes a GPU where the job was given one.
        keep_models: whether fitted models stay in ``RESULTS/models``.
        callback: called with an `Event` whenever something happened.

    Returns:
        Title -> error of the trainings that failed; the others were not held up by them.

    Raises:
        MissingExtraError: if Ray is not installed.
        RunError: if there is no cluster at the address, or records are named as another version
            does.
    """
    cluster = Cluster(address=address, gpus_per_job=gpus_per_job, cpus_per_job=cpus_per_job)
    require("ray", extra="ray", why="the engine ray")
    folder = str(Path(results).resolve())
    check_names(folder)
    write_plan(folder, experiments)
    todo = jobs_of(experiments)
    monitor = Monitor(todo, Records(folder), callback, 1)
    if monitor.left:
        with cluster.joined() as ray:
            monitor.workers = min(cluster.slots(ray), len(monitor.left))
            _drive(ray, cluster, todo, monitor, (folder, device, keep_models))
    return monitor.failures


def _drive(
    ray: Any,
    cluster: Cluster,
    todo: Sequence[Job],
    monitor: Monitor,
    settings: tuple[str, str, bool],
) -> None:
    """Submit the open jobs and listen until all are finished."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    task = cluster.task(ray, _do_job)
    pending = {
        task.remote(i, todo[i], *settings, mailbox, cluster.threads): i
        for i in sorted(monitor.left)
    }
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_POLL_S)
        for message in ray.get(mailbox.take.remote()):
            monitor.hear(*message)
        for reference in ready:
            _finish(ray, reference, pending.pop(reference), monitor)


def _finish(ray: Any, reference: Any, index: int, monitor: Monitor) -> None:
    """Tell how a job ended."""
    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        monitor.hear(index, "failed", 0, cause_of(error))
        return
    monitor.hear(index, "done", monitor.todo[index].experiments[0].training.epochs)
