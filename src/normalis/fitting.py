"""Normal images -> trained models, and the calibration of their scores.

Three ways of calibration come down to which images each model has seen. With images held out
there is one model and nothing that it scores was trained on; with folds (CV+) there is one model
per fold, and each image is scored by the one without it; with neither, all was trained on and
nothing can be promised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration, calibrate
from normalis.calibration.maps import MapScale, MapSettings, fit_map_scale
from normalis.loading.arrays import Loaded
from normalis.loading.held_out import split, take, units_of
from normalis.loading.units import Units
from normalis.models.base import AnomalyModel, Autoencoder, CompositeModel
from normalis.models.inputs import to_model_input
from normalis.scoring import Fitted, image_statistics, score_loaded
from normalis.storage import RunFolder
from normalis.training.checkpoints import train_resumably
from normalis.training.loop import Progress, Training, fit, fit_parts
from normalis.training.settings import TrainingSettings

__all__ = ["Calibrated", "Trained", "calibrate_on", "fit_scorers", "train_models", "watches"]

_log = logging.getLogger("normalis.calibration")

Fold = NDArray[np.int64] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibrated:
    """What is normal for a fitted detector.

    Attributes:
        models: the detector's; a panel measures by the readings of these normal images.
        normal_scores: (n,) of normal images, held out where any are.
        calibration: None where nothing was held out.
        colour_scale: of all pictures.
        map_scale: what places of maps are measured in.
    """

    models: tuple[AnomalyModel, ...]
    normal_scores: NDArray[np.float64]
    calibration: Calibration | None
    colour_scale: ColourScale
    map_scale: MapScale


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is known of a training.

    Attributes:
        history: losses by epoch; empty for methods that are fitted in one go.
        threads: of the processor that it ran on; None on a GPU or without a network.
        seconds: that the training took, those before an interruption included.
    """

    history: list[dict[str, float]]
    threads: int | None
    seconds: float


def watches(model: AnomalyModel, keep_epoch: str) -> bool:
    """Return whether some of the held-out images are looked at while a model is trained."""
    return isinstance(model, Autoencoder) and (model.needs_held_out or keep_epoch != "last")


def train_models(
    models: Sequence[AnomalyModel],
    pixels: Tensor,
    *,
    settings: TrainingSettings,
    device: torch.device,
    seed: int = 0,
    fold: Fold = None,
    held: Tensor | None = None,
    folder: RunFolder | None = None,
    identity: str = "",
    progress: Callable[[Progress], None] | None = None,
    unlabelled: Tensor | None = None,
) -> Trained:
    """Fit each model on the images outside its fold; return what is known of the training.

    Args:
        models: one, or one per fold; changed in place.
        pixels: (N, C, S, S) normal images.
        settings: of the training.
        device: where.
        seed: of everything random; each further model has the next one.
        fold: (N,) number of the model that must not see each image; None if the one sees all.
        held: (M, C, S, S) normal images for methods that watch some; see `Training`.
        folder: where checkpoints are kept, so that a killed training goes on.
        identity: what an interrupted training must have in common with this one.
        progress: called after each epoch.
        unlabelled: (U, C, S, S) images of which nothing is known, for methods that learn from them.
    """
    rows = None
    if fold is not None:
        rows = [torch.from_numpy(np.flatnonzero(fold != k)) for k in range(len(models))]
    if isinstance(models[0], CompositeModel):
        return _train_parts(models[0], pixels, settings, device, seed, folder, identity, progress)
    networks = [model for model in models if isinstance(model, Autoencoder)]
    if not networks:
        started = time.perf_counter()
        for k, model in enumerate(models):
            seen = pixels if rows is None else pixels[rows[k]]
            fit(model, seen, settings=settings, seed=seed, device=device)
        return Trained(history=[], threads=None, seconds=time.perf_counter() - started)
    seeds = [seed + k for k in range(len(networks))]
    shared: dict[str, Any] = {
        "settings": settings,
        "seeds": seeds,
        "device": device,
        "rows": rows,
        "held": held,
    }
    for k, network in enumerate(networks):
        normals = len(pixels) if rows is None else len(rows[k])
        network.give_unlabelled(unlabelled, normals=normals, standardize=settings.standardize)
    if folder is None:
        training = Training(networks, pixels, **shared)
        training.run(progress)
    else:
        training = train_resumably(
            networks, pixels, folder=folder, identity=identity, callback=progress, **shared
        )
    for network in networks:  # which is kept, and they need not be
        network.give_unlabelled(None)
    return Trained(history=training.history, threads=training.threads, seconds=training.seconds)


def _train_parts(
    model: CompositeModel,
    pixels: Tensor,
    settings: TrainingSettings,
    device: torch.device,
    seed: int,
    folder: RunFolder | None,
    identity: str,
    progress: Callable[[Progress], None] | None,
) -> Trained:
    """Fit the parts of a model one by one; a network that was interrupted goes on.

    A folder holds one checkpoint, which is the first network's.
    """
    found: list[Trained] = []
    resumed = next((k for k, part in model.parts().items() if isinstance(part, Autoencoder)), "")

    def fit_one(part: AnomalyModel, seen: Tensor, name: str) -> None:
        trained = train_models(
            [part],
            seen,
            settings=settings,
            device=device,
            seed=seed,
            folder=folder if name == resumed else None,
            identity=f"{identity} {name}",
            progress=progress,
        )
        found.append(trained)

    fit_parts(model, pixels, fit_one)
    networks = [trained for trained in found if trained.history]
    network = networks[0] if networks else Trained(history=[], threads=None, seconds=0.0)
    return replace(network, seconds=sum(trained.seconds for trained in found))


def calibrate_on(
    fitted: Fitted, train: Loaded | None, held: Loaded | None, *, fold: Fold = None, seed: int = 0
) -> Calibrated:
    """Score normal images that the models have not seen; fix p-values, thresholds and colours.

    Args:
        fitted: trained on ``train``, with folds each model on the images outside its own; its
            scorers are fitted here where they need it and have not been.
        train: normal images that were trained on; None where no scorer is to be fitted.
        held: normal images that were not; None with folds, or if there are none.
        fold: (n,) fold of each training image; None without folds.
        seed: of what is drawn.

    Raises:
        SettingsError: if the scorer cannot read the models.
    """
    for model, scorer in zip(fitted.models, fitted.scorers, strict=True):
        scorer.check_supports(model)
    if train is not None and fitted.scorers[0].needs_fit:
        held = _fit_scorers(fitted, train, held, fold, seed)
    normals, unseen = held or train, held is not None or fold is not None
    assert normals is not None  # the callers give one of the two
    models = tuple(fitted.models)
    _log.info("calibrating on %d normal images", len(normals.rows))
    scores, raw = _score_unseen(fitted, normals, fold)
    panel: dict[str, Any] = {}
    if isinstance(models[0], CompositeModel):  # its scores are readings (V, n) until it can measure
        readings, models = scores, (models[0].referred(scores),)
        scores = models[0].surprise(readings)
        panel = {"readings": models[0].readings, "held_readings": readings}
    units = units_of(normals)
    settings = MapSettings(left_out=fitted.image_settings.margin)
    map_scale, maps = fit_map_scale(raw, units.member, settings)
    scale = ColourScale.from_calibrated(maps, unit=units.member, held_out=unseen)
    if fold is not None:  # pooled over models, which is approximate: no promise
        scale = replace(scale, rate=None)
    return Calibrated(
        models=models,
        normal_scores=scores,
        calibration=_calibration(normals, units, scores, maps, fold, **panel) if unseen else None,
        colour_scale=scale,
        map_scale=map_scale,
    )


def _fit_scorers(
    fitted: Fitted, train: Loaded, held: Loaded | None, fold: Fold, seed: int
) -> Loaded | None:
    """Fit the scorers; return what is left to calibrate on.

    What a scorer was fitted on scores too low to calibrate it. Of held-out images one half is for
    each; with folds a scorer sees what its model has seen.
    """
    seen, left = [train] * len(fitted.models), held
    if fold is not None:
        seen = [take(train, fold != k) for k in range(len(fitted.models))]
    elif held is not None:
        half, left = split(held, 0.5, seed)
        seen = [half]
    fit_scorers(fitted, seen)
    return left


def fit_scorers(fitted: Fitted, seen: Sequence[Loaded]) -> None:
    """Fit the scorer of each model on normal images, best on those that it was not trained on.

    Args:
        fitted: models with their scorers, which are changed in place.
        seen: normal images, for each model those that its scorer may see.
    """
    for model, scorer, normals in zip(fitted.models, fitted.scorers, seen, strict=True):
        x = to_model_input(torch.from_numpy(normals.pixels), standardize=fitted.standardize)
        scorer.fit(model, x.to(fitted.device))


def _score_unseen(
    fitted: Fitted, normals: Loaded, fold: Fold
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return scores (n,) and maps (n, S, S), with folds each by the model without its own.

    Of a panel the scores are its readings (V, n).
    """
    if fold is None:
        return _score_all(fitted, normals)
    scores = np.empty(len(fold))
    maps = np.empty((len(fold), *normals.pixels.shape[2:]), np.float32)
    for k in range(len(fitted.models)):
        mine = fold == k
        scores[mine], maps[mine] = _score_all(fitted.member(k), take(normals, mine))
    return scores, maps


def _score_all(fitted: Fitted, normals: Loaded) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    parts = list(score_loaded(fitted, normals))
    maps = [p.anomaly_map for p in parts if p.anomaly_map is not None]
    readings = [p.readings for p in parts if p.readings is not None]
    scores = np.concatenate(readings or [p.anomaly_score for p in parts], axis=-1)
    return scores, np.concatenate(maps)


def _calibration(
    normals: Loaded,
    units: Units,
    scores: NDArray[np.float64],
    maps: NDArray[np.float32],
    fold: Fold,
    **panel: Any,
) -> Calibration:
    calibration = calibrate(
        scores,
        patients=units.member,
        kind="split" if fold is None else "cv+",
        fold=fold,
        map_maxima=maps.max((1, 2)),
        statistics=image_statistics(normals.pixels),
    )
    return replace(calibration, level=units.level, **panel)
