"""One training with the experiments that read it: fit it, resumably; score; append the records.

Trainings that differ in latent dimension or seed alone can be done together beforehand, by
`train_together`, which a GPU is fast at (`normalis.training.stack`); each job then finds its model.

A fitted model stays in ``RESULTS/models/<training key>`` unless that is declined, so that other
scorers, pictures and studies need no training. An unfinished training leaves a checkpoint there,
from which it goes on exactly as if it had not been interrupted.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalis import models, scorers
from normalis.errors import DataError, MetricError, SettingsError
from normalis.fitted import FittedDetector
from normalis.fitting import fit_scorers, train_models
from normalis.loading.arrays import ImageSettings, Loaded
from normalis.models.base import AnomalyModel, Autoencoder, CompositeModel
from normalis.models.inputs import as_tensor
from normalis.research.data import Arrays, Store
from normalis.research.experiments import Experiment
from normalis.research.records import Records
from normalis.scoring import batches_of
from normalis.storage import ClaimedError, RunFolder, content_hash, git_revision, versions
from normalis.training.checkpoints import train_resumably
from normalis.training.loop import pick_device

__all__ = [
    "Job",
    "estimate",
    "fitted",
    "is_trained",
    "jobs_of",
    "run_job",
    "stacks_of",
    "train_together",
]

_BATCH = 256
# Seconds of a training step of 64 images of 64 x 64 with one thread
# (docs/reference/performance.md).
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


def jobs_of(experiments: Sequence[Experiment]) -> list[Job]:
    """Group experiments by training, in their order."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(experiment.training_key, []).append(experiment)
    return [Job(key=key, experiments=tuple(group)) for key, group in groups.items()]


def stacks_of(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Group jobs whose trainings can be one computation, in their order.

    Args:
        jobs: what is to be done.
        size: most jobs in a group; 1 leaves each alone.
    """
    stacks: list[list[Job]] = []
    last: dict[str, list[Job]] = {}
    for job in jobs:
        key = _stack_key(job.experiments[0])
        if key in last and len(last[key]) < size:
            last[key].append(job)
        else:
            last[key] = [job]
            stacks.append(last[key])
    return stacks


def _stack_key(experiment: Experiment) -> str:
    """Return what trainings of one stack have in common; of a method that cannot, all."""
    body = experiment.training_body()
    stackable = getattr(models.model_class(experiment.method), "stackable", "no")
    if stackable != "no" and _networks(experiment.method, experiment.options) == 1:
        body.pop("seed")
        if stackable == "any width":
            body["model"].pop("latent_dim")
    return content_hash(body)


def train_together(
    jobs: Sequence[Job],
    results: str | Path,
    *,
    device: str = "auto",
    callback: Callable[[int, int], None] | None = None,
) -> int:
    """Train the models of several jobs as one computation and keep them where `run_job` looks.

    Jobs that are done, that another process is working on, or that have a model or a checkpoint of
    their own are left alone.

    Args:
        jobs: of one of `stacks_of`.
        results: the results folder; `Store` must hold the arrays.
        device: where to train.
        callback: called with (epochs finished, epochs).

    Returns:
        Models trained.
    """
    records, place = Records(results), pick_device(device)
    with ExitStack() as claims:
        mine = [job.experiments[0] for job in jobs if _claimed(job, records, claims)]
        if len(mine) < 2:
            return 0
        arrays = _arrays(str(records.path), mine[0].data)
        pixels = as_tensor(arrays.of("train"))
        built = [_build(experiment) for experiment in mine]
        name = content_hash([experiment.training_key for experiment in mine])
        folder = _model_folder(results, name)
        training = train_resumably(
            [model for model in built if isinstance(model, Autoencoder)],
            pixels,
            settings=mine[0].training,
            seeds=[experiment.seed for experiment in mine],
            device=place,
            folder=folder,
            identity=name,
            stacked=True,
            callback=(lambda step: callback(step.epoch, step.epochs)) if callback else None,
        )
        for experiment, model, member in zip(mine, built, training.members, strict=True):
            info = {"fit_s": training.seconds / len(mine)}
            _keep(
                experiment, model, records.path, member.history, info, place, len(pixels),
                together=len(mine),
            )  # fmt: skip
        shutil.rmtree(folder.path, ignore_errors=True)
    return len(mine)


def _claimed(job: Job, records: Records, claims: ExitStack) -> bool:
    """Claim a job for as long as `claims` is open, if its training is still to be begun."""
    folder = _model_folder(records.path, job.key)
    if all(e.identity in records for e in job.experiments) or folder.finished or folder.unfinished:
        return False
    try:
        claims.enter_context(records.claim(job.key))
    except ClaimedError:
        return False
    return not folder.finished


def is_trained(job: Job, results: str | Path) -> bool:
    """Return whether the fitted model of a job is kept, so that only its reading is left."""
    return _model_folder(results, job.experiments[0].training_key).finished


def estimate(job: Job, *, n_train: int, known: Sequence[Mapping[str, Any]] = ()) -> float:
    """Return the seconds that a training is expected to take in one worker.

    Args:
        job: what would be done.
        n_train: training images.
        known: records; the median step of the same method on this machine is taken, else of any
            method, else what was measured once.
    """
    experiment = job.experiments[0]
    if not issubclass(models.model_class(experiment.method), Autoencoder):
        return 1.0
    settings = experiment.training
    steps = settings.epochs * -(-n_train // settings.batch_size)
    here = content_hash(platform.node())[:8]
    mine = [r for r in known if r["machine"] == here and r["n_parameters"]]
    same = [r for r in mine if r["method"] == experiment.method] or mine
    per_pixel = [_step_s(r) for r in same]
    step_s = float(np.median(per_pixel)) if per_pixel else _STEP_S / (64 * 64 * 64)
    pixels = settings.batch_size * experiment.image_size**2
    return steps * step_s * pixels * _networks(experiment.method, experiment.options)


def _networks(method: str, options: Mapping[str, Any]) -> int:
    """Return how many networks one training is of."""
    return models.model_class(method).Settings.from_mapping(dict(options)).networks


def _step_s(record: Mapping[str, Any]) -> float:
    """Return the seconds of a network's training step per pixel of a batch."""
    settings = record["settings"]
    batch = settings["training"]["batch_size"]
    steps = (
        record["epochs"]
        * -(-record["n_train"] // batch)
        * _networks(record["method"], settings["options"])
    )
    return float(record["fit_s"] / (steps * batch * settings["image_size"] ** 2))


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
        callback: called with (epochs finished, epochs), first when the job has been claimed.

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
    if callback:
        callback(0, missing[0].training.epochs)
    started = time.perf_counter()
    arrays = _arrays(str(records.path), missing[0].data)
    load_s = time.perf_counter() - started
    model, info = fitted(missing[0], arrays, records.path, device=device, callback=callback)
    failed = []
    for experiment in missing:
        arrays = _arrays(str(records.path), experiment.data)
        try:
            body = _record(experiment, model, arrays, pick_device(device))
        except (SettingsError, MetricError) as error:  # this reading is impossible, others are not
            failed.append(f"{experiment}: {error}")
            continue
        records.append(experiment.identity, {**body, **info, "load_s": load_s})
    if not keep_models:
        shutil.rmtree(_model_folder(records.path, job.key).path, ignore_errors=True)
    if failed:
        raise SettingsError("; ".join(failed))


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
    model = _build(experiment)
    if folder.finished:
        known: dict[str, Any] = folder.read_settings()["info"]
        for name, reason in known.get("left_out", {}).items():
            model.leave_out(name, reason)  # type: ignore[attr-defined]
        model.load_state({k: torch.from_numpy(v) for k, v in folder.read_arrays().items()})
        if hasattr(model, "to"):
            model.to(place)
        return _evaluating(model), known
    pixels = as_tensor(arrays.of("train"))
    watches = experiment.training.looks or getattr(model, "needs_held_out", False)
    held = as_tensor(arrays.of("validation")) if watches else None
    trained = train_models(
        [model],
        pixels,
        settings=experiment.training,
        device=place,
        seed=experiment.seed,
        held=held,
        folder=folder,
        identity=experiment.training_key,
        progress=(lambda step: callback(step.epoch, step.epochs)) if callback else None,
    )
    info: dict[str, Any] = {"fit_s": trained.seconds}
    if isinstance(model, CompositeModel):
        model = _measuring(model, experiment, arrays, place)
        info |= {"left_out": model.left_out} if model.left_out else {}
    info = _keep(experiment, model, results, trained.history, info, place, len(pixels))
    return _evaluating(model), info


def _measuring(
    model: CompositeModel, experiment: Experiment, arrays: Arrays, place: torch.device
) -> CompositeModel:
    """Return a panel that measures by its readings of normal images it was not trained on.

    Raises:
        DataError: if the experiment holds none out (``subset.validation_share``).
    """
    unseen = arrays.loaded(arrays.split == "validation")
    if not unseen.rows:
        raise DataError(f"{experiment}: a panel needs a subset with a validation_share above 0")
    for part in model.parts().values():
        _evaluating(part)
    detector = _detector_of(experiment, model, arrays, place)
    parts = list(detector.score(batches_of(unseen, _BATCH), maps=False))
    readings = [part.readings for part in parts if part.readings is not None]
    return model.referred(np.concatenate(readings, axis=1))


def _build(experiment: Experiment) -> AnomalyModel:
    options = {**experiment.model_options, **experiment.options}
    return models.build(experiment.method, seed=experiment.seed, **options)


def _keep(
    experiment: Experiment,
    model: AnomalyModel,
    results: str | Path,
    history: list[dict[str, float]],
    info: dict[str, Any],
    place: torch.device,
    n_train: int,
    together: int = 1,
) -> dict[str, Any]:
    """Write a fitted model; return what is known of its training."""
    info = info | _circumstances(model, place, n_train) | {"history": _columns(history)}
    if together > 1:  # said here, since a new column would part old records from new ones
        info["device"] += f", one of {together} computed together"
    state = {k: v.detach().cpu().contiguous().numpy() for k, v in model.state().items()}
    body = {"settings": experiment.settings(), "training_key": experiment.training_key}
    _model_folder(results, experiment.training_key).write(state, {**body, "info": info})
    return info


def _evaluating(model: AnomalyModel) -> AnomalyModel:
    if isinstance(model, torch.nn.Module):
        model.eval()
    return model


def _columns(history: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Return losses by name, each a list by epoch with six digits; None where it was not there."""
    names = dict.fromkeys(name for epoch in history for name in epoch)
    return {n: [float(f"{e[n]:.6g}") if n in e else None for e in history] for n in names}


def _circumstances(model: AnomalyModel, place: torch.device, n_train: int) -> dict[str, Any]:
    """Return on what, and with what, a training was done."""
    network = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
    count = sum(p.numel() for p in network.parameters())
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


def _detector_of(
    experiment: Experiment, model: AnomalyModel, arrays: Arrays, place: torch.device
) -> FittedDetector:
    """Return an experiment's fitted detector; nothing is calibrated in experiments.

    Raises:
        SettingsError: if the scorer cannot read the model.
    """
    scorer = scorers.build(
        experiment.scorer, reduction=experiment.reduction, **experiment.scorer_options
    )
    scorer.check_supports(model)
    detector = FittedDetector(
        params={**experiment.settings(), "standardize": experiment.training.standardize},
        models=(model,),
        scorers=(scorer,),
        image_settings=ImageSettings(**experiment.images),
        device=place,
    )
    if scorer.needs_fit:
        held = "validation" if (arrays.split == "validation").any() else "train"
        fit_scorers(detector, [arrays.loaded(arrays.split == held)])
    return detector


def _scores(
    detector: FittedDetector, loaded: Loaded, *, maps: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return scores (N,) and, if asked for, maps (N, S, S)."""
    parts = list(detector.score(batches_of(loaded, _BATCH), maps=maps))
    shown = [part.anomaly_map for part in parts if part.anomaly_map is not None]
    scores = np.concatenate([part.anomaly_score for part in parts]).astype(np.float32)
    return scores, np.concatenate(shown) if maps else None


def _record(
    experiment: Experiment, model: AnomalyModel, arrays: Arrays, place: torch.device
) -> dict[str, Any]:
    """Score an experiment's images and return its record, without what the training says."""
    started = time.perf_counter()
    detector = _detector_of(experiment, model, arrays, place)
    test = arrays.split == "test"
    scores = np.full(len(test), np.nan, np.float32)
    if experiment.score_training:
        scores[~test], _ = _scores(detector, arrays.loaded(~test), maps=False)
    scores[test], maps = _scores(detector, arrays.loaded(test), maps=bool(len(arrays.masks)))
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
    """Return metric -> value with its bootstrap interval; patients are drawn whole."""
    from normalis.metrics import auroc, average_precision, bootstrap, pixel_bootstrap

    test = arrays.split == "test"
    labels, patients = arrays.is_anomalous[test], arrays.patient_id[test]
    groups = None if (patients == "").any() else patients
    found = {
        name: bootstrap(metric, scores, labels, groups=groups).to_dict()
        for name, metric in (("auroc", auroc), ("average_precision", average_precision))
    }
    if maps is not None:
        intervals = pixel_bootstrap(maps, arrays.masks, groups=groups)
        found |= {name: interval.to_dict() for name, interval in intervals.items()}
    return found
