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
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalis import models, scorers
from normalis.errors import NormalisError, RunError
from normalis.experiment_data import Arrays, Store
from normalis.experiments import Experiment, write_plan
from normalis.models.base import AnomalyModel, Autoencoder
from normalis.models.inputs import as_tensor, to_model_input
from normalis.records import (
    ClaimedError,
    Records,
    RunFolder,
    content_hash,
    git_revision,
    versions,
)
from normalis.training import Training, fit, pick_device

__all__ = ["Event", "Job", "estimate", "fitted", "jobs_of", "run_job", "run_plan"]

CHECKPOINT_EVERY_S = 120.0
_BATCH = 256
# Seconds of a training step of 64 images of 64 x 64 with one thread (docs/performance.md).
_STEP_S = 0.083


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training and the experiments that read it.

    Attributes:
        key: the training's key.
        experiments: all with this training key.
    """

    key: str
    experiments: tuple[Experiment, ...]

    @property
    def title(self) -> str:
        """One line for a listing."""
        more = len(self.experiments) - 1
        return f"{self.experiments[0]}" + (f" and {more} more readings" if more else "")


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


def jobs_of(experiments: Sequence[Experiment]) -> list[Job]:
    """Group experiments by training, in their order."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(experiment.training_key, []).append(experiment)
    return [Job(key=key, experiments=tuple(group)) for key, group in groups.items()]


def estimate(job: Job, *, n_train: int) -> float:
    """Return the seconds that a training is expected to take on one core."""
    settings = job.experiments[0].training
    if not issubclass(models.model_class(job.experiments[0].method), Autoencoder):
        return 1.0
    steps = settings.epochs * -(-n_train // settings.batch_size)
    area = (job.experiments[0].image_size / 64) ** 2 * settings.batch_size / 64
    return steps * _STEP_S * area


@lru_cache(maxsize=2)
def _arrays(results: str, data: str) -> Arrays:
    return Store(results).get(data)


def run_job(
    job: Job,
    results: str | Path,
    *,
    device: str = "auto",
    keep_models: bool = True,
    callback: Callable[[int, int], None] | None = None,
) -> bool:
    """Do one training and append the records that are missing.

    Args:
        job: what to do.
        results: the results folder; `Store` must hold the arrays.
        device: where to train.
        keep_models: whether the fitted model stays in ``RESULTS/models``.
        callback: called with (epochs finished, epochs) after each epoch.

    Returns:
        False if another process is working on it, True when all its records are there.
    """
    records = Records(results)
    if all(e.identity in records for e in job.experiments):
        return True
    try:
        with records.claim(job.key):
            _run_claimed(job, records, device, keep_models, callback)
    except ClaimedError:
        return False
    return True


def _run_claimed(
    job: Job,
    records: Records,
    device: str,
    keep_models: bool,
    callback: Callable[[int, int], None] | None,
) -> None:
    missing = [e for e in job.experiments if e.identity not in records]
    if not missing:
        return
    started = time.perf_counter()
    arrays = _arrays(str(records.path), missing[0].data)
    load_s = time.perf_counter() - started
    model, info = fitted(missing[0], arrays, records.path, device=device, callback=callback)
    for experiment in missing:
        arrays = _arrays(str(records.path), experiment.data)
        body = _record(experiment, model, arrays, pick_device(device))
        records.append(experiment.identity, {**body, **info, "load_s": load_s})
    if not keep_models:
        shutil.rmtree(_model_folder(records.path, job.key).path, ignore_errors=True)


def _model_folder(results: str | Path, key: str) -> RunFolder:
    return RunFolder(Path(results) / "models" / key)


def fitted(
    experiment: Experiment,
    arrays: Arrays,
    results: str | Path,
    *,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
) -> tuple[AnomalyModel, dict[str, Any]]:
    """Return the fitted model of an experiment and what is known of its training.

    A model that is kept in ``RESULTS/models`` is loaded, an interrupted training continued.
    """
    place = pick_device(device)
    folder = _model_folder(results, experiment.training_key)
    options = {**experiment.model_options, **experiment.options}
    model = models.build(experiment.method, seed=experiment.seed, **options)
    if folder.finished:
        info = folder.read_settings()["info"]
        model.load_state({k: torch.from_numpy(v) for k, v in folder.read_arrays().items()})
        if hasattr(model, "to"):
            model.to(place)
        return _evaluating(model), info
    started = time.perf_counter()
    pixels = as_tensor(arrays.of("train"))
    info: dict[str, Any] = {}
    if isinstance(model, Autoencoder):
        training = _train(model, pixels, experiment, folder, place, callback)
        history, info["fit_s"] = training.members[0].history, training.seconds
    else:
        history = fit(
            model, pixels, settings=experiment.training, seed=experiment.seed, device=place
        )
        info["fit_s"] = time.perf_counter() - started
    info |= _circumstances(model, place, len(pixels)) | {"history": _columns(history)}
    state = {k: v.detach().cpu().contiguous().numpy() for k, v in model.state().items()}
    body = {"settings": experiment.settings(), "training_key": experiment.training_key}
    folder.write(state, {**body, "info": info})
    return _evaluating(model), info


def _evaluating(model: AnomalyModel) -> AnomalyModel:
    if isinstance(model, torch.nn.Module):
        model.eval()
    return model


def _train(
    model: Autoencoder,
    pixels: torch.Tensor,
    experiment: Experiment,
    folder: RunFolder,
    place: torch.device,
    callback: Callable[[int, int], None] | None,
) -> Training:
    training = Training(
        [model], pixels, settings=experiment.training, seeds=[experiment.seed], device=place
    )
    found = folder.read_checkpoint()
    if found is not None:
        arrays, progress = found
        training.resume({k: torch.from_numpy(v) for k, v in arrays.items()}, progress)
    written = time.monotonic()

    def after_epoch(progress: Any) -> None:
        nonlocal written
        if time.monotonic() - written > CHECKPOINT_EVERY_S:
            state = {k: v.detach().cpu().numpy() for k, v in training.state().items()}
            folder.write_checkpoint(state, training.progress())
            written = time.monotonic()
        if callback:
            callback(progress.epoch, progress.epochs)

    training.run(after_epoch)
    return training


def _columns(history: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return losses by name, each a list by epoch with six digits."""
    names = dict.fromkeys(name for epoch in history for name in epoch)
    return {n: [float(f"{e.get(n, float('nan')):.6g}") for e in history] for n in names}


def _circumstances(model: AnomalyModel, place: torch.device, n_train: int) -> dict[str, Any]:
    """Return on what, and with what, a training was done."""
    is_network = isinstance(model, torch.nn.Module)
    count = sum(p.numel() for p in model.parameters()) if is_network else 0
    gpu = torch.cuda.get_device_name(place) if place.type == "cuda" else ""
    return {
        "n_train": n_train,
        "n_parameters": count,
        "device": gpu or f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "machine": content_hash(platform.node())[:8],  # equal or not is all that is needed
        "versions": versions(),
        "git_revision": git_revision() or "",
    }


@torch.inference_mode()
def _score(
    experiment: Experiment, model: AnomalyModel, pixels: NDArray[Any], place: torch.device,
    scorer: scorers.Scorer, maps: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:  # fmt: skip
    """Return scores (N,) and maps (N, S, S) if asked for."""
    scored, shown = [], []
    for start in range(0, len(pixels), _BATCH):
        part = as_tensor(pixels[start : start + _BATCH]).to(place)
        x = to_model_input(part, standardize=experiment.training.standardize)
        x = x.contiguous(memory_format=torch.channels_last)
        scored.append(scorer.anomaly_score(model, x).float().cpu().numpy())
        if maps:
            shown.append(scorer.anomaly_map(model, x).float().cpu().numpy())
    return np.concatenate(scored), np.concatenate(shown) if shown else None


def _record(
    experiment: Experiment, model: AnomalyModel, arrays: Arrays, place: torch.device
) -> dict[str, Any]:
    """Score an experiment's images and return its record, without what the training says."""
    started = time.perf_counter()
    scorer = scorers.build(
        experiment.scorer, reduction=experiment.reduction, **experiment.scorer_options
    )
    held = "validation" if (arrays.split == "validation").any() else "train"
    if scorer.needs_fit:
        x = to_model_input(
            as_tensor(arrays.of(held)).to(place), standardize=experiment.training.standardize
        )
        scorer.fit(model, x)
    has_masks = bool(len(arrays.masks))
    test = arrays.split == "test"
    scores = np.empty(len(test), np.float32)
    scores[~test], _ = _score(experiment, model, arrays.pixels[~test], place, scorer, False)
    scores[test], maps = _score(experiment, model, arrays.pixels[test], place, scorer, has_masks)
    score_s = time.perf_counter() - started
    metrics = _metrics(scores[test], arrays, maps)
    values = {k: v["value"] for k, v in metrics.items()}
    return {
        **{k: getattr(experiment, k) for k in ("dataset", "method", "latent_dim", "seed")},
        "epochs": experiment.training.epochs,
        "scorer": experiment.scorer,
        "reduction": experiment.reduction,
        **values,
        "training_key": experiment.training_key,
        "data": experiment.data,
        "settings": experiment.settings(),
        "metrics": metrics,
        "score_s": score_s,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "path": arrays.path,
        "split": arrays.split,
        "is_anomalous": arrays.is_anomalous,
        "patient_id": arrays.patient_id,
        "position": None if np.isnan(arrays.position).all() else arrays.position,
        "nearest_ncc": np.minimum(arrays.nearest_ncc, 1),
        "anomaly_score": scores,
    }


def _metrics(
    scores: NDArray[np.float32], arrays: Arrays, maps: NDArray[np.float32] | None
) -> dict[str, dict[str, Any]]:
    """Return metric -> value, and interval where it is cheap; patients are drawn whole."""
    from normalis.metrics import auroc, average_precision, bootstrap, pixel_metrics

    test = arrays.split == "test"
    labels, patients = arrays.is_anomalous[test], arrays.patient_id[test]
    groups = None if (patients == "").any() else patients
    found = {
        name: bootstrap(metric, scores, labels, groups=groups).to_dict()
        for name, metric in (("auroc", auroc), ("average_precision", average_precision))
    }
    if maps is not None:
        pixel = pixel_metrics(maps, arrays.masks)
        found["pixel_auroc"] = {"value": pixel.auroc}
        found["pixel_average_precision"] = {"value": pixel.average_precision}
        found["best_dice"] = {"value": pixel.best_dice}
    return found


def run_plan(
    experiments: Sequence[Experiment],
    results: str | Path,
    *,
    jobs: int | None = None,
    device: str = "auto",
    keep_models: bool = True,
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
        callback: called with an `Event` whenever something happened.

    Returns:
        Title -> error of the trainings that failed; the others were not held up by them.

    Raises:
        RunError: if every worker process died.
    """
    write_plan(results, experiments)
    todo = jobs_of(experiments)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    count = min(jobs or (1 if pick_device(device).type == "cuda" else cores), len(todo))
    monitor = _Monitor(todo, Records(results), callback, max(1, count))
    work = {"results": str(results), "device": device, "keep_models": keep_models}
    if count <= 1:
        _work(todo, bytearray(len(todo)), monitor.hear, **work)
        return monitor.failures
    _run_workers(todo, count, max(1, cores // count), monitor, work)
    return monitor.failures


class _Monitor:
    """Turns what workers say into events, with what is done and how long the rest will take."""

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
        job = self.todo[index]
        now = time.monotonic()
        if kind == "start":
            self.speed[index] = (now, -1)
        if kind == "epoch":
            self._learn(index, epoch, now)
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
        if self.callback:
            self.callback(Event(kind="lost", message=f"a worker process died with code {code}"))


#: (index of the job, kind of event, epoch, message)
Tell = Callable[..., None]


def _work(todo: Sequence[Job], state: Any, tell: Tell, *, results: str, device: str,
          keep_models: bool) -> None:  # fmt: skip
    """Take one open job after the other until all are done or failed here.

    ``state`` holds a byte per job, shared by the workers of one command: 1 done, 2 failed.
    """
    while True:
        waiting = False
        for i, job in enumerate(todo):
            if state[i]:
                continue
            waiting |= not _take(i, job, state, tell, results, device, keep_models)
        if not waiting:
            return
        time.sleep(1.0)


def _take(
    i: int, job: Job, state: Any, tell: Tell, results: str, device: str, keep_models: bool
) -> bool:
    """Do a job; False if another process has it."""
    records = Records(results)
    if all(e.identity in records for e in job.experiments):
        state[i] = 1
        return True
    try:
        with records.claim(job.key):
            tell(i, "start")
            _run_claimed(job, records, device, keep_models, lambda e, n: tell(i, "epoch", e))
    except ClaimedError:
        return False
    except (NormalisError, RuntimeError, ValueError, MemoryError) as error:
        state[i] = 2
        tell(i, "failed", 0, f"{type(error).__name__}: {error}")
        return True
    state[i] = 1
    tell(i, "done", job.experiments[0].training.epochs)
    return True


def _worker(todo: Sequence[Job], state: Any, pipe: Connection, threads: int,
            work: dict[str, Any]) -> None:  # fmt: skip
    """Be one worker process; ends when its parent does."""
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
    todo: Sequence[Job], count: int, threads: int, monitor: _Monitor, work: dict[str, Any]
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
    while workers:
        for pipe in wait(list(workers)):
            try:
                monitor.hear(*pipe.recv())  # type: ignore[union-attr]
            except EOFError:
                process = workers.pop(pipe)  # type: ignore[call-overload]
                process.join()
                if process.exitcode:
                    monitor.lost(process.exitcode)
    if not all(state):
        raise RunError(
            "every worker process died before the plan was finished; run the same command again "
            "to go on, with fewer --jobs if memory was short"
        )
