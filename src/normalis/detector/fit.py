"""The steps of a fit: images are read, models trained, and what is normal for them is fixed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalis.calibration.choice import Choice
from normalis.detector.images import FitImages, ReadUnlabelled, read_images
from normalis.detector.resolved import Resolved
from normalis.fitted import FittedDetector
from normalis.fitting import calibrate_on, train_models, watches
from normalis.loading.held_out import Images, Normals, image_marks, take, units_of
from normalis.loading.similar import SimilarImages
from normalis.models.base import AnomalyModel, Autoencoder, CompositeModel
from normalis.models.inputs import to_model_input
from normalis.storage import RunFolder, content_hash, versions
from normalis.training.loop import Progress, pick_device
from normalis.training.settings import TrainingSettings

__all__ = ["fit_detector"]

_MOST_MEASURED = 3000  # images that a measurement looks at, evenly spread, at most


def fit_detector(
    asked: Resolved,
    model: AnomalyModel,
    x: Images,
    *,
    patient_ids: Sequence[str | None] | None = None,
    beside: ReadUnlabelled | None = None,
    folder: RunFolder | None = None,
    there: RunFolder | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> FittedDetector:
    """Return what a detector becomes by fitting it on normal images.

    Args:
        asked: its settings, checked.
        model: built of them, not trained yet.
        x: as of `normalis.AnomalyDetector.fit`.
        patient_ids: likewise.
        beside: reads the unlabelled images; None if there are none.
        folder: where checkpoints are kept, so that a killed fit goes on.
        there: a finished run, which answers if it is of the same settings and images.
        progress: called after each epoch.

    Raises:
        RunError: if ``there`` is a run of other settings or images.
    """
    started, given = time.perf_counter(), asked.given
    images = read_images(
        asked,
        x,
        patient_ids=patient_ids,
        watches=watches(model, given.keep_epoch),
        beside=beside,
    )
    info: dict[str, Any] = {
        "data": images.described(),
        "calibration": _said(asked, images),
        "load_s": time.perf_counter() - started,
    }
    training = asked.training(len(images.train.rows))
    params = asked.plain_params(training, images.options) | _used(asked, images.choice)
    fold = images.folds(given.random_state)
    if there is not None:
        return _answered_from(there, params, info["data"], given.device)
    built = _models(asked, model, images)
    if footprint := model.footprint(len(images.train.rows)):
        info["footprint"] = asdict(footprint)
    fitted, threads = _trained(
        asked,
        built,
        images,
        params=params,
        training=training,
        fold=fold,
        folder=folder,
        identity=_resumed_by(params, _seen(info["data"])),
        progress=progress,
    )
    fixed = calibrate_on(fitted, images.train, images.held, fold=fold, seed=given.random_state)
    if measured := _measured(asked, images.normals, built):
        info["measured"] = measured
    info |= {"fit_s": time.perf_counter() - started, **_circumstances(fitted, threads)}
    similar = _similar(model, images, fold) if given.keep_similar else None
    return replace(fitted, **vars(fixed), info=info, similar=similar)


def _models(asked: Resolved, first: AnomalyModel, images: FitImages) -> list[AnomalyModel]:
    """Return the models to train, one per fold; what follows from the images is set in the first.

    It was built before any image was read, so that bad settings are refused at once.
    """
    if images.options:
        first.settings = replace(first.settings, **images.options)
    return [first, *(asked.build(**images.options) for _ in range(images.n_folds - 1))]


def _trained(
    asked: Resolved,
    built: Sequence[AnomalyModel],
    images: FitImages,
    *,
    params: Mapping[str, Any],
    training: TrainingSettings,
    fold: NDArray[np.int64] | None,
    folder: RunFolder | None,
    identity: str,
    progress: Callable[[Progress], None] | None,
) -> tuple[FittedDetector, int]:
    """Train the models; return what is fitted, not calibrated yet, and threads used (or 0)."""
    train, held, watched = images.train, images.held, images.normals.watched
    device = pick_device(asked.given.device)
    trained = train_models(
        built,
        torch.from_numpy(train.pixels),
        settings=training,
        device=device,
        seed=asked.given.random_state,
        fold=fold,
        held=torch.from_numpy(watched.pixels) if watched else None,
        folder=folder,
        identity=identity,
        progress=progress,
        unlabelled=torch.from_numpy(images.others.loaded.pixels) if images.others else None,
    )
    fitted = FittedDetector(
        params=params,
        models=tuple(built),
        scorers=tuple(asked.build_scorer() for _ in built),
        image_settings=asked.image_settings,
        device=device,
        rule=train.rule,
        history=trained.history,
        skipped=[*train.skipped, *(held.skipped if held else [])],
        trained_on=image_marks(train.pixels),
        unlabelled_on=images.unlabelled_marks,
    )
    return fitted, trained.threads or 0


def _used(asked: Resolved, choice: Choice | None) -> dict[str, Any]:
    """Return the calibration as it was chosen, in place of ``auto``."""
    if choice is None or asked.given.calibration != "auto":
        return {}
    if choice.folds:
        return {"calibration": choice.kind, "folds": choice.folds}
    share = choice.share
    part = {"calibration_share": share} if share and share < 1 else {}
    return {"calibration": choice.kind, **part}


def _said(asked: Resolved, images: FitImages) -> dict[str, Any]:
    """Return what is written down of the calibration, beside its scores."""
    way, choice = asked.given.calibration, images.choice
    reason = choice.reason if choice and way == "auto" else ""
    return {"asked": way, "reason": reason, "notes": list(images.normals.notes)}


def _measured(
    asked: Resolved, normals: Normals, models: Sequence[AnomalyModel]
) -> dict[str, float]:
    """Return what the method says of held-out images, if there are any."""
    (model, *others) = models
    if others or normals.held is None or not isinstance(model, Autoencoder):
        return {}
    if type(model).measure is Autoencoder.measure:  # which has nothing to say
        return {}
    every = -(-len(normals.held.rows) // _MOST_MEASURED)
    some = take(normals.held, np.arange(len(normals.held.rows)) % every == 0)
    x = to_model_input(torch.from_numpy(some.pixels), standardize=asked.given.standardize)
    return model.measure(x, units_of(some).member.tolist())


def _similar(
    model: AnomalyModel, images: FitImages, fold: NDArray[np.int64] | None
) -> SimilarImages | None:
    """Return pictures of the normal images that the model can name, if it names any."""
    # Of folds the first model names them, among the images that it has seen.
    seen = None if fold is None else np.flatnonzero(fold != 0)
    return SimilarImages.of(model, images.train.pixels, seen)


def _answered_from(
    folder: RunFolder, params: Mapping[str, Any], data: Mapping[str, Any], device: str
) -> FittedDetector:
    """Return the finished run of a folder, if it is of these settings and images.

    Raises:
        RunError: if it is of others.
    """
    body = folder.read_settings()
    stored = _resumed_by(body["params"], content_hash(body["info"]["data"]))
    if stored != _resumed_by(params, content_hash(dict(data))):
        folder.check_writable(overwrite=False)
    return FittedDetector.load(folder.path, device=device, trust=True)


def _circumstances(fitted: FittedDetector, threads: int) -> dict[str, Any]:
    """Return when, on what and with what a detector was fitted."""
    first, members = fitted.models[0], {}
    if isinstance(first, CompositeModel):
        members = {"members": list(first.parts()), "left_out": first.left_out}
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(fitted.device),
        "threads": threads or torch.get_num_threads(),
        "versions": versions(),
        **members,
    }


def _seen(data: Mapping[str, Any]) -> str:
    """Return the fingerprint of all that is trained on."""
    found = str(data["fingerprint"])
    return f"{found} {data['unlabelled']['fingerprint']}" if "unlabelled" in data else found


def _resumed_by(params: Mapping[str, Any], data: str) -> str:
    """Return what a resumed run must have in common with the one that was interrupted."""
    usual = {"keep_epoch": "last"}  # runs from before it could be chosen do not say it
    asked = {k: v for k, v in params.items() if k != "device" and usual.get(k) != v}
    return content_hash({"params": asked, "data": data})
