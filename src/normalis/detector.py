"""The object that users hold: fit on normal images, score new ones, save, load.

The vocabulary is scikit-learn's and PyOD's: ``fit`` returns self, fitted state ends in ``_``,
``get_params`` and ``clone`` work. As in PyOD, and unlike scikit-learn's outlier detectors, **higher
scores are more anomalous** and ``predict`` returns 1 for anomalous, 0 for normal.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor

from normalis import models, scorers
from normalis.calibration import Calibration, calibrate
from normalis.datasets import Dataset, open_dataset
from normalis.duplicates import duplicate_groups
from normalis.errors import DataError, NotFittedError, RunError, SettingsError
from normalis.images import IntensityRule, read_frames
from normalis.loading import ImageSettings, Loaded, Row, from_array, load, stream, to_unit
from normalis.models.base import AnomalyModel, Autoencoder
from normalis.models.inputs import FLAT, to_model_input
from normalis.overlays import ColourScale
from normalis.records import RunFolder, content_hash, versions, write_csv
from normalis.scoring import BATCH_SIZE, Scored, image_statistics, score
from normalis.training import Progress, Training, TrainingSettings, fit, pick_device

if TYPE_CHECKING:
    from normalis.datasets import Sample

__all__ = ["AnomalyDetector", "Explained", "Images", "samples_to_score"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Explained:
    """One image with what the model makes of it, for a picture.

    Attributes:
        row: where the image came from.
        original: (C, H, W) with nominal range [0, 1], at the image's own geometry.
        anomaly_score: its score.
        anomaly_map: (S, S).
        reconstruction: (C, S, S) with nominal range [0, 1]; None if the method has none.
    """

    row: Row
    original: NDArray[np.float32]
    anomaly_score: float
    anomaly_map: NDArray[np.float32]
    reconstruction: NDArray[np.float32] | None


#: What `AnomalyDetector` takes as images.
Images = str | Path | Sequence[str | Path] | Dataset | NDArray[Any] | Tensor

CHECKPOINT_EVERY_S = 30.0


class AnomalyDetector(BaseEstimator):  # type: ignore[misc]
    """Learn normal images; say of new ones how abnormal they are, and where.

    Args:
        method: a name from `normalis.models.MODELS`, or a class of your own.
        latent_dim: size of the bottleneck, the paper's *d*.
        image_size: side to which images are resized, a multiple of 16.
        channels: 1 (grey) or 3.
        epochs: passes over the training images; the paper's default is 250.
        batch_size: images per training step.
        learning_rate: of Adam.
        recipe: ``paper`` or ``fast``; see `normalis.training.TrainingSettings`.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        standardize: whether each image's own brightness and contrast are removed.
        scorer: how the model's residual is read, a name from `normalis.scorers.SCORERS`.
        reduction: how a map becomes one number: ``mean`` (the paper's), ``max``, ``top:0.01``,
            ``quantile:0.95``.
        calibration: ``split`` holds out normal images, by patient where patients are known and by
            group of near duplicates elsewhere, so that p-values and thresholds are exact;
            ``none`` trains on everything, as the paper does.
        calibration_share: share of the patients or groups held out.
        fpr: share of normal patients that ``predict`` may flag.
        plane, slice_range: which slices of a volume are images.
        window, percentiles: the intensity rule of images deeper than 8 bits.
        random_state: seed of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        method_options: further settings of the method.

    Attributes:
        model_: the fitted `AnomalyModel`.
        scorer_: the fitted `Scorer`.
        rule_: the intensity rule of deep images, None if all were 8-bit.
        calibration_: scores of held-out normal images, None with ``calibration="none"``.
        colour_scale_: the one scale of all pictures.
        decision_scores_: scores of the held-out (else of the training) normal images.
        history_: losses by epoch.
        info_: data, versions, durations.
        skipped_: (path, reason) of images that could not be read.

    Example:
        >>> import numpy as np
        >>> from normalis import AnomalyDetector
        >>> normal = np.random.default_rng(0).random((40, 32, 32))
        >>> detector = AnomalyDetector(image_size=32, epochs=1, latent_dim=2).fit(normal)
        >>> detector.anomaly_score(normal).shape
        (40,)
    """

    def __init__(
        self,
        *,
        method: str | type[AnomalyModel] = "ae",
        latent_dim: int = 16,
        image_size: int = 64,
        channels: int = 1,
        epochs: int = 250,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        recipe: str = "paper",
        precision: str = "auto",
        standardize: bool = False,
        scorer: str = "native",
        reduction: str = "mean",
        calibration: str = "split",
        calibration_share: float = 0.2,
        fpr: float = 0.05,
        plane: str = "axial",
        slice_range: tuple[float, float] = (0.0, 1.0),
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] = (0.5, 99.5),
        random_state: int = 0,
        device: str = "auto",
        method_options: dict[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.latent_dim = latent_dim
        self.image_size = image_size
        self.channels = channels
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.recipe = recipe
        self.precision = precision
        self.standardize = standardize
        self.scorer = scorer
        self.reduction = reduction
        self.calibration = calibration
        self.calibration_share = calibration_share
        self.fpr = fpr
        self.plane = plane
        self.slice_range = slice_range
        self.window = window
        self.percentiles = percentiles
        self.random_state = random_state
        self.device = device
        self.method_options = method_options

    # --- settings of the steps below, made from the parameters ---

    def _image_settings(self) -> ImageSettings:
        return ImageSettings(
            image_size=self.image_size,
            channels=self.channels,
            plane=self.plane,
            slice_range=tuple(self.slice_range),
            window=None if self.window is None else tuple(self.window),
            percentiles=tuple(self.percentiles),
        )

    def _training_settings(self) -> TrainingSettings:
        return TrainingSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            recipe=self.recipe,  # type: ignore[arg-type]
            precision=self.precision,  # type: ignore[arg-type]
            standardize=self.standardize,
        )

    def _build(self) -> AnomalyModel:
        return models.build(
            self.method,
            seed=self.random_state,
            image_size=self.image_size,
            channels=self.channels,
            latent_dim=self.latent_dim,
            **(self.method_options or {}),
        )

    def _check(self) -> None:
        """Fail before any image is read if a setting is out of its range."""
        if self.calibration not in ("split", "none"):
            raise SettingsError(f"calibration must be split or none, got {self.calibration!r}")
        if not 0 < self.calibration_share < 1:
            raise SettingsError(
                f"calibration_share must be in (0, 1), got {self.calibration_share}"
            )
        self._image_settings(), self._training_settings(), pick_device(self.device)
        self._build()

    # --- fit ---

    def fit(
        self,
        x: Images,
        y: None = None,
        *,
        patient_ids: Sequence[str] | None = None,
        run: str | Path | None = None,
        overwrite: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> Self:
        """Learn from normal images.

        Args:
            x: a folder or data set (its normal training images are used), a list of files, an
                array or tensor (N, H, W) or (N, C, H, W).
            y: ignored, for scikit-learn's sake; labels are never looked at.
            patient_ids: (N,) for arrays, so that whole patients are held out.
            run: folder to write the run into as it goes; an interrupted run found there is
                resumed, with the result that it would have had.
            overwrite: whether a finished run in that folder may be replaced.
            progress: called after each epoch.

        Raises:
            DataError: if there is no readable normal image.
            SettingsError: if a setting is out of its range.
            RunError: if the run folder cannot be used.
        """
        self._check()
        if run is None:
            return self._fit(x, patient_ids, None, progress)
        folder = RunFolder(run)
        folder.check_writable(overwrite=overwrite)
        with folder.locked():
            folder.check_writable(overwrite=overwrite)
            self._fit(x, patient_ids, folder, progress)
            self._write(folder)
        return self

    def _fit(
        self,
        x: Images,
        patient_ids: Sequence[str] | None,
        folder: RunFolder | None,
        progress: Callable[[Progress], None] | None,
    ) -> Self:
        started = time.perf_counter()
        train, held, name = self._normals(x, patient_ids)
        self.skipped_ = [*train.skipped, *(held.skipped if held else [])]
        self.rule_ = train.rule
        loaded_s = time.perf_counter() - started
        self.info_ = {
            "data": {
                "name": name,
                "fingerprint": _fingerprint(train.pixels),
                "train_images": len(train.rows),
                "calibration_images": len(held.rows) if held else 0,
                "skipped": len(self.skipped_),
            },
            "load_s": loaded_s,
        }
        self.model_ = self._build()
        self._train(torch.from_numpy(train.pixels), folder, progress)
        self._calibrate(train, held)
        self.info_ |= {
            "fit_s": time.perf_counter() - started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(self.device_),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        return self

    def _train(
        self,
        pixels: Tensor,
        folder: RunFolder | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.device_ = pick_device(self.device)
        settings, seed = self._training_settings(), self.random_state
        if not isinstance(self.model_, Autoencoder):
            self.history_ = fit(
                self.model_, pixels, settings=settings, seed=seed, device=self.device_
            )
            return
        training = Training(
            [self.model_], pixels, settings=settings, seeds=[seed], device=self.device_
        )
        keeper = _Checkpoints(training, folder, self._identity()) if folder else None
        if keeper:
            keeper.resume()

        def after_epoch(step: Progress) -> None:
            if keeper:
                keeper.after_epoch(step)
            if progress:
                progress(step)

        training.run(after_epoch)
        self.history_ = training.members[0].history

    def _identity(self) -> str:
        """Return what a resumed run must have in common with the one that was interrupted."""
        params = {k: v for k, v in self._plain_params().items() if k != "device"}
        return content_hash({"params": params, "data": self.info_["data"]["fingerprint"]})

    def _plain_params(self) -> dict[str, Any]:
        params = self.get_params(deep=False)
        params["method"] = models.method_name(self.method)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in params.items()}

    def _normals(
        self, x: Images, patient_ids: Sequence[str] | None
    ) -> tuple[Loaded, Loaded | None, str]:
        """Return the images to train on, those held out (None for none), and the data's name."""
        settings = self._image_settings()
        if _is_array(x):
            loaded, name = from_array(x, settings), "array"
            patients = None if patient_ids is None else [str(p) for p in patient_ids]
            if patients is not None and len(patients) != len(loaded.rows):
                raise DataError(
                    f"patient_ids must have one entry per image, got {len(patients)} for "
                    f"{len(loaded.rows)} images"
                )
        else:
            data = _as_dataset(x)
            name, samples = data.name, _normal_training_samples(data)
            loaded = load(samples, settings, cache=True)
            patients = _patients(loaded)
            held_out = [s for s in data.split("validation") if s.is_anomalous is not True]
            if self.calibration == "split" and held_out:
                return loaded, load(held_out, settings, rule=loaded.rule, cache=True), name
        if self.calibration == "none":
            return loaded, None, name
        return (*_hold_out(loaded, patients, self.calibration_share, self.random_state), name)

    def _calibrate(self, train: Loaded, held: Loaded | None) -> None:
        """Score normal images that the model has not seen; fix thresholds and colours."""
        normals = held or train
        self.scorer_ = scorers.build(self.scorer, reduction=self.reduction)
        reason = self.scorer_.supports(self.model_)
        if reason:
            raise SettingsError(f"scorer {self.scorer!r} cannot read {self.method!r}: {reason}")
        self._fit_scorer(normals)
        parts = list(self._score_loaded(normals, maps=True))
        self.decision_scores_ = np.concatenate([p.anomaly_score for p in parts])
        maxima = np.concatenate([p.anomaly_map.max((1, 2)) for p in parts])  # type: ignore[union-attr]
        groups = _patients(normals)
        self.colour_scale_ = ColourScale.from_maxima(maxima)
        self.calibration_ = None
        if held is not None:
            self.calibration_ = calibrate(
                self.decision_scores_,
                patients=groups,
                map_maxima=maxima,
                statistics=image_statistics(held.pixels),
            )

    def _fit_scorer(self, normals: Loaded) -> None:
        x = to_model_input(torch.from_numpy(normals.pixels), standardize=self.standardize)
        self.scorer_.fit(self.model_, x.to(self.device_))

    # --- score ---

    def _fitted(self) -> None:
        if not hasattr(self, "model_"):
            raise NotFittedError("this AnomalyDetector must be fitted first: call fit or load")

    def _score_loaded(self, loaded: Loaded, **options: bool) -> Iterator[Scored]:
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
            self.model_,
            self.scorer_,
            batches,
            device=self.device_,
            standardize=self.standardize,
            **options,
        )

    def stream(
        self,
        samples: Sequence[Sample],
        *,
        maps: bool = True,
        reconstructions: bool = False,
        skipped: list[tuple[Path, str]] | None = None,
    ) -> Iterator[Scored]:
        """Score files batch after batch in constant memory; unreadable ones are skipped.

        Args:
            samples: files of a `Dataset`.
            maps: whether to compute anomaly maps.
            reconstructions: whether to return reconstructions.
            skipped: receives (path, reason) of what could not be read.
        """
        self._fitted()
        batches = stream(samples, self._image_settings(), rule=self.rule_, batch_size=BATCH_SIZE)

        def noting() -> Iterator[Loaded]:
            for batch in batches:
                if skipped is not None:
                    skipped.extend(batch.skipped)
                yield batch

        yield from score(
            self.model_,
            self.scorer_,
            noting(),
            device=self.device_,
            standardize=self.standardize,
            maps=maps,
            reconstructions=reconstructions,
        )

    def explain(self, samples: Sequence[Sample]) -> Iterator[Explained]:
        """Score files and yield each image at full size with its map and reconstruction.

        Args:
            samples: files of a `Dataset`; unreadable ones are left out.
        """
        self._fitted()
        settings = self._image_settings()
        for start in range(0, len(samples), BATCH_SIZE):
            loaded = load(samples[start : start + BATCH_SIZE], settings, rule=self.rule_)
            originals = _originals(loaded.rows, settings, self.rule_)
            first = 0
            for part in self._score_loaded(loaded, maps=True, reconstructions=True):
                unit = to_unit(loaded.pixels[first : first + len(part.rows)])
                yield from self._explained(part, unit, originals)
                first += len(part.rows)

    def _explained(
        self,
        part: Scored,
        unit: NDArray[np.float32],
        originals: Iterator[NDArray[np.float32] | None],
    ) -> Iterator[Explained]:
        rebuilt = part.reconstruction
        if rebuilt is not None:
            rebuilt = from_model_range(rebuilt, unit, standardize=self.standardize)
        assert part.anomaly_map is not None  # asked for above
        for i, (row, original) in enumerate(zip(part.rows, originals, strict=False)):
            yield Explained(
                row=row,
                original=unit[i] if original is None else original,
                anomaly_score=float(part.anomaly_score[i]),
                anomaly_map=part.anomaly_map[i],
                reconstruction=None if rebuilt is None else rebuilt[i],
            )

    def _scored(self, x: Images, *, maps: bool) -> list[Scored]:
        self._fitted()
        settings = self._image_settings()
        if _is_array(x):
            loaded = from_array(x, settings, rule=self.rule_, fit_rule=False)
            return list(self._score_loaded(loaded, maps=maps))
        skipped: list[tuple[Path, str]] = []
        samples = samples_to_score(_as_dataset(x))
        parts = list(self.stream(samples, maps=maps, skipped=skipped))
        if skipped:
            path, reason = skipped[0]
            raise DataError(
                f"{len(skipped)} of the images cannot be read, and scores would no longer line up "
                f"with them; the first is {path}: {reason}. Remove them, or score the folder with "
                "`normalis score`, which skips and reports"
            )
        return parts

    def anomaly_score(self, x: Images) -> NDArray[np.float64]:
        """Return one score per image (N,), higher is more anomalous."""
        parts = self._scored(x, maps=False)
        return np.concatenate([p.anomaly_score for p in parts])

    def decision_function(self, x: Images) -> NDArray[np.float64]:
        """Return `anomaly_score`; PyOD's name and sign."""
        return self.anomaly_score(x)

    def anomaly_map(self, x: Images) -> NDArray[np.float32]:
        """Return one map per image (N, S, S), higher is more anomalous."""
        parts = self._scored(x, maps=True)
        return np.concatenate([p.anomaly_map for p in parts if p.anomaly_map is not None])

    def p_value(self, x: Images) -> NDArray[np.float64]:
        """Return the share of normal images that score at least as high, (N,) in (0, 1].

        Raises:
            NotFittedError: if the detector was fitted without calibration.
        """
        scores = self.anomaly_score(x)
        return self._calibrated().p_values(scores)

    def predict(self, x: Images) -> NDArray[np.int64]:
        """Return 1 for images flagged at the false-positive rate ``fpr``, 0 for others."""
        return (self.anomaly_score(x) > self.threshold_).astype(np.int64)

    @property
    def threshold_(self) -> float:
        """Score above which an image is flagged at the false-positive rate ``fpr``."""
        return self._calibrated().threshold(self.fpr)

    def _calibrated(self) -> Calibration:
        self._fitted()
        if self.calibration_ is None:
            raise NotFittedError(
                'p-values and thresholds need calibration="split", this detector was fitted with '
                '"none": fit it again, or rank by anomaly_score'
            )
        return self.calibration_

    # --- save and load ---

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a run folder without pickles; return its path.

        Raises:
            RunError: if the folder holds something already, or cannot be written.
        """
        self._fitted()
        folder = RunFolder(path)
        folder.check_writable(overwrite=overwrite)
        with folder.locked():
            self._write(folder)
        return folder.path

    def _write(self, folder: RunFolder) -> None:
        write_csv(folder.path / folder.SKIPPED, ("path", "reason"), self.skipped_)
        arrays = {f"model.{k}": _to_numpy(v) for k, v in self.model_.state().items()}
        arrays |= {f"scorer.{k}": _to_numpy(v) for k, v in self.scorer_.state().items()}
        arrays["decision_scores"] = self.decision_scores_
        folder.write(
            arrays,
            {
                "params": self._plain_params(),
                "image_settings": asdict(self._image_settings()),
                "model_settings": self.model_.settings.to_dict(),
                "rule": self.rule_.to_dict() if self.rule_ else None,
                "colour_scale": self.colour_scale_.to_dict(),
                "calibration": self.calibration_.to_dict() if self.calibration_ else None,
                "history": self.history_,
                "info": self.info_,
            },
        )

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Read a run folder.

        Args:
            path: the folder that ``fit`` or `save` wrote.
            device: where to score, whatever the device it was fitted on.

        Raises:
            RunError: if a file is missing, damaged or was edited.
        """
        folder = RunFolder(path)
        body, arrays = folder.read_settings(), folder.read_arrays()
        params = {k: tuple(v) if isinstance(v, list) else v for k, v in body["params"].items()}
        self = cls(**{**params, "device": device})
        try:
            self._restore(body, arrays)
        except (KeyError, RuntimeError, TypeError) as error:
            raise RunError(f"{path}: is damaged ({error}); fit the model again") from error
        return self

    def _restore(self, body: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        self.device_ = pick_device(self.device)
        self.model_ = self._build()
        self.model_.load_state(_part(arrays, "model.", self.device_))
        if isinstance(self.model_, Autoencoder):
            self.model_.to(self.device_, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.scorer_ = scorers.build(self.scorer, reduction=self.reduction)
        self.scorer_.load_state(_part(arrays, "scorer.", self.device_))
        self.rule_ = IntensityRule.from_dict(body["rule"]) if body["rule"] else None
        self.colour_scale_ = ColourScale(**body["colour_scale"])
        kept = body["calibration"]
        self.calibration_ = None
        if kept:
            self.calibration_ = Calibration.from_dict(kept)
        self.decision_scores_ = arrays["decision_scores"]
        self.history_, self.info_, self.skipped_ = body["history"], body["info"], []


class _Checkpoints:
    """Writes the state of a training every half minute, and finds it again."""

    def __init__(self, training: Training, folder: RunFolder, identity: str) -> None:
        self.training, self.folder, self.identity = training, folder, identity
        self.written = time.monotonic()

    def resume(self) -> None:
        kept = self.folder.read_checkpoint()
        if kept is None:
            return
        arrays, progress = kept
        if progress["identity"] != self.identity:
            raise RunError(
                f"{self.folder.path}: holds an unfinished run with other settings or other data; "
                f"choose another --out, or remove {self.folder.CHECKPOINT} there to start again"
            )
        state = {k: torch.from_numpy(v) for k, v in arrays.items()}
        self.training.resume(state, progress)

    def after_epoch(self, step: Progress) -> None:
        due = time.monotonic() - self.written > CHECKPOINT_EVERY_S
        if not due or step.epoch == step.epochs:
            return
        arrays = {k: _to_numpy(v) for k, v in self.training.state().items()}
        self.folder.write_checkpoint(
            arrays, {"identity": self.identity, **self.training.progress()}
        )
        self.written = time.monotonic()


def _originals(
    rows: Sequence[Row], settings: ImageSettings, rule: IntensityRule | None
) -> Iterator[NDArray[np.float32] | None]:
    """Yield the pixels of each row at the image's own geometry; None for rows of array files."""
    for sample, group in groupby(rows, key=lambda row: row.sample):
        wanted = list(group)
        if sample.index is not None:
            yield from (None for _ in wanted)
            continue
        frames = read_frames(sample.path, plane=settings.plane, slice_range=settings.slice_range)
        yield from (_shown(frame.pixels, rule) for frame in frames)


def _shown(pixels: NDArray[Any], rule: IntensityRule | None) -> NDArray[np.float32]:
    if pixels.dtype == np.uint8 or rule is None:
        return to_unit(pixels)
    return rule.apply(pixels)


def from_model_range(
    x_hat: NDArray[np.float32], unit: NDArray[np.float32], *, standardize: bool
) -> NDArray[np.float32]:
    """Bring a reconstruction back to the range [0, 1] of the image that it belongs to.

    Args:
        x_hat: (B, C, S, S) in the model's range.
        unit: (B, C, S, S) the images in [0, 1].
        standardize: whether the model saw standardised images.
    """
    if not standardize:
        return (x_hat + 1) / 2
    axes = (1, 2, 3)
    spread = np.maximum(unit.std(axes, keepdims=True), FLAT)
    return x_hat * 2 * spread + unit.mean(axes, keepdims=True)


def samples_to_score(data: Dataset) -> tuple[Sample, ...]:
    """Return the images of a data set that `score` means: its test split, else all."""
    return data.split("test") or data.samples


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _part(arrays: dict[str, NDArray[Any]], prefix: str, device: torch.device) -> dict[str, Tensor]:
    return {
        k.removeprefix(prefix): torch.from_numpy(v).to(device)
        for k, v in arrays.items()
        if k.startswith(prefix)
    }


def _is_array(x: Images) -> bool:
    if isinstance(x, np.ndarray | Tensor):
        return True
    return not isinstance(x, str | Path | Dataset) and len(x) > 0 and not _is_path(x[0])


def _is_path(x: Any) -> bool:
    return isinstance(x, str | Path)


def _as_dataset(x: Any) -> Dataset:
    if isinstance(x, Dataset):
        return x
    if _is_path(x):
        return open_dataset(x)
    from normalis.datasets import Sample

    if len(x) == 0:
        raise DataError("at least one image is needed, got an empty list")
    samples = tuple(Sample(path=Path(p), split="train", is_anomalous=None) for p in x)
    return Dataset(name="files", root=samples[0].path.parent, layout="files", samples=samples)


def _normal_training_samples(data: Dataset) -> tuple[Sample, ...]:
    samples = tuple(s for s in data.split("train") if s.is_anomalous is not True)
    if not samples:
        raise DataError(
            f"{data.root}: must have normal training images, has none "
            f"(layout: {data.layout}; found {data.counts()})"
        )
    return samples


def _patients(loaded: Loaded) -> list[str] | None:
    """Return the patient of each image, None unless all are known."""
    patients = [row.patient_id for row in loaded.rows]
    return None if any(p is None for p in patients) else [str(p) for p in patients]


def _hold_out(
    loaded: Loaded, patients: list[str] | None, share: float, seed: int
) -> tuple[Loaded, Loaded]:
    """Split by patient, or by group of near duplicates where patients are unknown."""
    groups = patients if patients is not None else duplicate_groups(loaded.pixels)
    units = np.unique(groups)
    if len(units) < 3:
        raise DataError(
            f"calibration needs at least 3 patients or distinct images, got {len(units)}: give "
            'more, or fit with calibration="none" (no p-values)'
        )
    held_units = np.random.default_rng(seed).permutation(units)[: max(1, round(share * len(units)))]
    held = np.isin(groups, held_units)
    return _take(loaded, ~held), _take(loaded, held)


def _take(loaded: Loaded, chosen: NDArray[np.bool_]) -> Loaded:
    rows = [row for row, keep in zip(loaded.rows, chosen, strict=True) if keep]
    return Loaded(pixels=loaded.pixels[chosen], rows=rows, skipped=loaded.skipped, rule=loaded.rule)


def _fingerprint(pixels: NDArray[Any]) -> str:
    """Return a hash of the training images as the model sees them."""
    head = f"{pixels.dtype} {pixels.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]
