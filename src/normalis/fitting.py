"""Normal images -> trained models, and how their residuals are judged.

Three ways of calibration come down to which images each model has seen. With images held out
there is one model and nothing that it judges was trained on; with folds (CV+) there is one model
per fold, and each image is judged by the one without it; with neither, all was trained on and
nothing can be promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration, calibrate
from normalis.loading.arrays import Loaded
from normalis.loading.held_out import split, take, units_of
from normalis.models.base import AnomalyModel, Autoencoder
from normalis.models.inputs import to_model_input
from normalis.scorers.base import Scorer
from normalis.scoring import BATCH_SIZE, Reader, Scored, image_statistics, score
from normalis.storage import RunFolder
from normalis.training.checkpoints import train_resumably
from normalis.training.loop import Progress, Training, TrainingSettings, fit

__all__ = ["Judgement", "Place", "Trained", "judge", "score_loaded", "train_models"]

Fold = NDArray[np.int64] | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where, and on what kind of images, models work.

    Attributes:
        device: of the models.
        standardize: whether each image's own brightness and contrast are removed first.
        seed: of everything random.
    """

    device: torch.device
    standardize: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How a residual is read, and what is normal for it.

    Attributes:
        scorers: fitted, one per model.
        scores: (n,) of normal images, held out where any are.
        calibration: None where nothing was held out.
        colour_scale: of all pictures.
    """

    scorers: list[Scorer]
    scores: NDArray[np.float64]
    calibration: Calibration | None
    colour_scale: ColourScale


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is known of a training.

    Attributes:
        history: losses by epoch; empty for methods that are fitted in one go.
        threads: of the processor that it ran on; None on a GPU or without a network.
    """

    history: list[dict[str, float]]
    threads: int | None


def train_models(
    models: Sequence[AnomalyModel],
    pixels: Tensor,
    *,
    settings: TrainingSettings,
    place: Place,
    fold: Fold = None,
    held: Tensor | None = None,
    folder: RunFolder | None = None,
    identity: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Fit each model on the images outside its fold; return what is known of the training.

    Args:
        models: one, or one per fold; changed in place.
        pixels: (N, C, S, S) normal images.
        settings: of the training.
        place: where.
        fold: (N,) number of the model that must not see each image; None if the one sees all.
        held: (M, C, S, S) normal images for methods that watch some; see `Training`.
        folder: where checkpoints are kept, so that a killed training goes on.
        identity: what an interrupted training must have in common with this one.
        progress: called after each epoch.
    """
    rows = None
    if fold is not None:
        rows = [torch.from_numpy(np.flatnonzero(fold != k)) for k in range(len(models))]
    networks = [model for model in models if isinstance(model, Autoencoder)]
    if not networks:
        for k, model in enumerate(models):
            seen = pixels if rows is None else pixels[rows[k]]
            fit(model, seen, settings=settings, seed=place.seed, device=place.device)
        return Trained(history=[], threads=None)
    seeds = [place.seed + k for k in range(len(networks))]
    shared: dict[str, Any] = {
        "settings": settings,
        "seeds": seeds,
        "device": place.device,
        "rows": rows,
        "held": held,
    }
    if folder is None:
        training = Training(networks, pixels, **shared)
        training.run(progress)
    else:
        training = train_resumably(
            networks, pixels, folder=folder, identity=identity, callback=progress, **shared
        )
    return Trained(history=training.history, threads=training.threads)


def judge(
    models: Sequence[AnomalyModel],
    make_scorer: Callable[[], Scorer],
    train: Loaded,
    held: Loaded | None,
    *,
    place: Place,
    fold: Fold = None,
) -> Judgement:
    """Score normal images that the models have not seen; fix thresholds and colours.

    Args:
        models: fitted on ``train``, with folds each on the images outside its own.
        make_scorer: returns a new scorer.
        train: normal images that were trained on.
        held: normal images that were not; None with folds, or if there are none.
        place: where.
        fold: (n,) fold of each training image; None without folds.

    Raises:
        SettingsError: if the scorer cannot read the models.
    """
    scorers = [make_scorer() for _ in models]
    readers = list(zip(models, scorers, strict=True))
    for model, scorer in readers:
        scorer.check_supports(model)
    if scorers[0].needs_fit:
        held = _fit_scorers(readers, train, held, place, fold)
    normals, unseen = held or train, held is not None or fold is not None
    scores, maps = _score_unseen(readers, normals, place, fold)
    return Judgement(
        scorers=scorers,
        scores=scores,
        calibration=_calibration(normals, scores, maps, fold) if unseen else None,
        colour_scale=ColourScale.from_maps(maps, held_out=unseen),
    )


def score_loaded(
    readers: Sequence[Reader], loaded: Loaded, place: Place, *, maps: bool = True
) -> Iterator[Scored]:
    """Score images in memory, batch after batch; see `normalis.scoring.score`."""
    batches = (
        Loaded(
            pixels=loaded.pixels[i : i + BATCH_SIZE],
            rows=loaded.rows[i : i + BATCH_SIZE],
            skipped=[],
            rule=loaded.rule,
        )
        for i in range(0, len(loaded.rows), BATCH_SIZE)
    )
    yield from score(
        readers, batches, device=place.device, standardize=place.standardize, maps=maps
    )


def _fit_scorers(
    readers: Sequence[Reader], train: Loaded, held: Loaded | None, place: Place, fold: Fold
) -> Loaded | None:
    """Fit the scorers; return what is left to calibrate on.

    What a scorer was fitted on scores too low to calibrate it. Of held-out images one half is for
    each; with folds a scorer sees what its model has seen.
    """
    seen, left = [train] * len(readers), held
    if fold is not None:
        seen = [take(train, fold != k) for k in range(len(readers))]
    elif held is not None:
        half, left = split(held, 0.5, place.seed)
        seen = [half]
    for (model, scorer), normals in zip(readers, seen, strict=True):
        x = to_model_input(torch.from_numpy(normals.pixels), standardize=place.standardize)
        scorer.fit(model, x.to(place.device))
    return left


def _score_unseen(
    readers: Sequence[Reader], normals: Loaded, place: Place, fold: Fold
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return scores (n,) and maps (n, S, S), with folds each by the model without its own."""
    number = np.zeros(len(normals.rows), np.int64) if fold is None else fold
    scores = np.empty(len(number))
    maps = np.empty((len(number), *normals.pixels.shape[2:]), np.float32)
    for k, reader in enumerate(readers):
        mine = number == k
        parts = list(score_loaded([reader], take(normals, mine), place))
        scores[mine] = np.concatenate([p.anomaly_score for p in parts])
        maps[mine] = np.concatenate([p.anomaly_map for p in parts if p.anomaly_map is not None])
    return scores, maps


def _calibration(
    normals: Loaded, scores: NDArray[np.float64], maps: NDArray[np.float32], fold: Fold
) -> Calibration:
    units = units_of(normals)
    calibration = calibrate(
        scores,
        patients=units.member,
        kind="split" if fold is None else "cv+",
        fold=fold,
        map_maxima=maps.max((1, 2)),
        statistics=image_statistics(normals.pixels),
    )
    return replace(calibration, level=units.level)
