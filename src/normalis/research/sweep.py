"""Runs plans: every experiment once, resumable, by several processes, into one record store.

The unit of work is a **training** together with the experiments that read it. A process claims one
by a lock file that the system frees when the process dies, trains it (from its last checkpoint if
there is one), scores, and appends a record per experiment. There is no queue and no server: what
is in the store is done, what is locked is in work, the rest is open. Any number of processes, of
one command or of several, can therefore share a plan, and any of them may be killed at any time.

::

    store = Store(results, root)
    experiments = plan(read_plan("plan.toml"), store.fingerprints)
    failures = run_plan(experiments, results, callback=show)

Worker processes are spawned: a script that calls `run_plan` needs ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from normalis.errors import NormalisError, RunError
from normalis.research.experiments import Experiment, write_plan
from normalis.research.jobs import Job, jobs_of, run_job, stacks_of, train_together
from normalis.research.records import Records
from normalis.research.rekey import check_names
from normalis.training.loop import pick_device

__all__ = ["STACK", "Event", "Monitor", "run_plan"]

#: Trainings computed as one on a GPU: a column of Table 1 with three seeds.
STACK = 24


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a callback hears from a running plan.

    Attributes:
        kind: ``start``, ``epoch``, ``done``, ``failed``, or ``lost`` when a process died.
        key: the training's key, empty for ``lost``.
        title: the training in one line.
        epoch: epochs finished.
        epochs: epochs in all.
        message: the error of ``failed``.
        done: trainings of the plan that are finished.
        total: trainings of the plan.
        left_s: estimated seconds until the plan is finished, None if unknown.
    """

    kind: str
    key: str = ""
    title: str = ""
    epoch: int = 0
    epochs: int = 0
    message: str = ""
    done: int = 0
    total: int = 0
    left_s: float | None = None


def run_plan(
    experiments: Sequence[Experiment],
    results: str | Path,
    *,
    jobs: int | None = None,
    device: str = "auto",
    keep_models: bool = True,
    stack: int | None = None,
    callback: Callable[[Event], None] | None = None,
) -> dict[str, str]:
    """Run every experiment that has no record yet.

    Args:
        experiments: the plan; it is written to ``RESULTS/plans`` first.
        results: the results folder; `Store` must hold the arrays.
        jobs: worker processes, by default one per core, each with its share of the cores; 1 works
            in this process.
        device: where to train.
        keep_models: whether fitted models stay in ``RESULTS/models``.
        stack: most trainings that are computed as one (`normalis.training.stack`); by default
        `STACK` on a
            GPU and 1, none, on a CPU, where nothing is gained.
        callback: called with an `Event` whenever something happened.

    Returns:
        Title -> error of the trainings that failed; the others were not held up by them.

    Raises:
        RunError: if every worker process died, or records are named as another version does.
    """
    check_names(results)
    write_plan(results, experiments)
    todo = jobs_of(experiments)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    count = min(jobs or (1 if pick_device(device).type == "cuda" else cores), len(todo))
    monitor = Monitor(todo, Records(results), callback, max(1, count))
    if not monitor.left:
        return {}
    size = stack or (STACK if pick_device(device).type == "cuda" else 1)
    work: dict[str, Any] = {
        "results": str(results),
        "device": device,
        "keep_models": keep_models,
        "stacks": _positions(todo, size),
    }
    if count <= 1:
        _work(todo, bytearray(len(todo)), monitor.hear, **work)
        return monitor.failures
    _run_workers(todo, count, max(1, cores // count), monitor, work)
    return monitor.failures


def _positions(todo: Sequence[Job], size: int) -> dict[int, list[int]]:
    """Return for each job the positions of those that it can be trained with."""
    place = {job.key: i for i, job in enumerate(todo)}
    stacks = [[place[job.key] for job in stack] for stack in stacks_of(todo, size)]
    return {i: stack for stack in stacks for i in stack}


class Monitor:
    """Turns what workers say into events, with what is done and how long the rest will take.

    Args:
        todo: the plan's jobs, which workers call by their index.
        records: where what is done lies.
        callback: who hears the events.
        workers: how many jobs run at once, for the time left.

    Attributes:
        left: index -> epochs to go, of the jobs that are not finished.
        failures: title -> error.
    """

    def __init__(
        self,
        todo: Sequence[Job],
        records: Records,
        callback: Callable[[Event], None] | None,
        workers: int,
    ) -> None:
        self.todo, self.records, self.callback, self.workers = todo, records, callback, workers
        self.failures: dict[str, str] = {}
        self.done = sum(all(e.identity in records for e in job.experiments) for job in todo)
        weight = [j.experiments[0].training.epochs for j in todo]
        is_open = [any(e.identity not in records for e in j.experiments) for j in todo]
        self.left = {i: float(w) for i, (w, o) in enumerate(zip(weight, is_open, strict=True)) if o}
        self.speed: dict[int, tuple[float, int]] = {}
        self.rate: float | None = None

    def hear(self, index: int, kind: str, epoch: int = 0, message: str = "") -> None:
        """Take in what a worker says of a job; see `Event`."""
        job = self.todo[index]
        now = time.monotonic()
        if kind == "start":
            self.speed[index] = (now, -1)
        if kind == "epoch":
            self._learn(index, epoch, now)
        if kind == "done" and index not in self.left:
            return  # it was finished before this plan began, or another worker told already
        if kind in ("done", "failed"):
            self.left.pop(index, None)
            self.done += kind == "done"
        if kind == "failed":
            self.failures[job.title] = message
        self._tell(kind, job, epoch, message)

    def _learn(self, index: int, epoch: int, now: float) -> None:
        epochs = self.todo[index].experiments[0].training.epochs
        since, first = self.speed.get(index, (now, -1))
        if first < 0:
            self.speed[index] = (now, epoch)
        elif epoch > first:
            self.rate = (now - since) / (epoch - first)
        self.left[index] = float(epochs - epoch)

    def _tell(self, kind: str, job: Job, epoch: int, message: str) -> None:
        if self.callback is None:
            return
        left = None if self.rate is None else sum(self.left.values()) * self.rate / self.workers
        self.callback(
            Event(
                kind=kind,
                key=job.key,
                title=job.title,
                epoch=epoch,
                epochs=job.experiments[0].training.epochs,
                message=message,
                done=self.done,
                total=len(self.todo),
                left_s=left,
            )
        )

    def lost(self, code: int | None) -> None:
        """Take in that a worker died."""
        if self.callback:
            self.callback(Event(kind="lost", message=f"a worker process died with code {code}"))


#: (index of the job, kind of event, epoch, message)
Tell = Callable[..., None]

#: What one job may fail by without the others being held up: a fault of a method's own among them.
_FAILURES = (
    NormalisError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    ArithmeticError, MemoryError,
)  # fmt: skip


def _work(todo: Sequence[Job], state: Any, tell: Tell, *, results: str, device: str,
          keep_models: bool, stacks: dict[int, list[int]]) -> None:  # fmt: skip
    """Take one open job after the other until all are done or failed here.

    ``state`` holds a byte per job, shared by the workers of one command: 1 done, 2 failed.
    """
    while True:
        waiting = False
        for i, job in enumerate(todo):
            if state[i]:
                continue
            together = [j for j in stacks[i] if not state[j]]
            if len(together) > 1:
                _train_together(together, todo, tell, results, device)
            waiting |= not _take(i, job, state, tell, results, device, keep_models)
        if not waiting:
            return
        time.sleep(1.0)


def _train_together(
    chosen: Sequence[int], todo: Sequence[Job], tell: Tell, results: str, device: str
) -> None:
    """Train what can be trained as one; what fails here is tried, and reported, alone."""

    def after_epoch(epoch: int, epochs: int) -> None:
        for i in chosen:
            tell(i, "epoch" if epoch else "start", epoch)

    with suppress(NormalisError, RuntimeError, ValueError, MemoryError):
        train_together([todo[i] for i in chosen], results, device=device, callback=after_epoch)


def _take(
    i: int, job: Job, state: Any, tell: Tell, results: str, device: str, keep_models: bool
) -> bool:
    """Do a job; False if another process has it."""

    def after_epoch(epoch: int, epochs: int) -> None:
        tell(i, "epoch" if epoch else "start", epoch)

    try:
        mine = run_job(job, results, device=device, keep_models=keep_models, callback=after_epoch)
    except _FAILURES as error:
        state[i] = 2
        tell(i, "failed", 0, f"{type(error).__name__}: {error}")
        return True
    if mine:
        state[i] = 1
        tell(i, "done", job.experiments[0].training.epochs)
    return mine


def _worker(todo: Sequence[Job], state: Any, pipe: Connection, threads: int,
            work: dict[str, Any]) -> None:  # fmt: skip
    """Be one worker process; ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its workers
    torch.set_num_threads(threads)
    last = 0.0

    def tell(index: int, kind: str, epoch: int = 0, message: str = "") -> None:
        nonlocal last
        if kind == "epoch" and time.monotonic() - last < 0.5:
            return
        last = time.monotonic()
        try:
            pipe.send((index, kind, epoch, message))
        except OSError:  # the parent is gone, and with it the wish for the result
            os._exit(1)

    _work(todo, state, tell, **work)


def _run_workers(
    todo: Sequence[Job], count: int, threads: int, monitor: Monitor, work: dict[str, Any]
) -> None:
    context = multiprocessing.get_context("spawn")
    state = context.RawArray("b", len(todo))
    workers: dict[Connection, Any] = {}
    # One pipe per worker: a shared queue's lock would stay held by a worker that is killed.
    for _ in range(count):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_worker, args=(todo, state, theirs, threads, work), daemon=True
        )
        process.start()
        theirs.close()
        workers[ours] = process
    try:
        _listen(workers, monitor)
    finally:
        for process in workers.values():  # only after an interrupt; the next run goes on
            process.terminate()
    if not all(state):
        raise RunError(
            "every worker process died before the plan was finished; run the same command again "
            "to go on, with fewer --jobs if memory was short"
        )


def _listen(workers: dict[Connection, Any], monitor: Monitor) -> None:
    """Pass on what workers say until the last one has ended."""
    while workers:
        ready: Any = wait(list(workers))
        for pipe in ready:
            try:
                monitor.hear(*pipe.recv())
            except EOFError:
                process = workers.pop(pipe)
                process.join()
                if process.exitcode:
                    monitor.lost(process.exitcode)
