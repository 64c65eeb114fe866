"""The object that users hold: fit on normal images, score new ones, save, load.

The vocabulary is scikit-learn's and PyOD's: ``fit`` returns self, fitted state ends in ``_``,
``get_params`` and ``clone`` work. As in PyOD, and unlike scikit-learn's outlier detectors, **higher
scores are more anomalous** and ``predict`` returns 1 for anomalous, 0 for normal.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor

from normalis import models, scorers
from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration
from normalis.errors import DataError, NotFittedError, RunError, SettingsError, UntrustedError
from normalis.fitting import Place, judge, score_loaded, train_models
from normalis.images import IntensityRule
from normalis.loading.arrays import ImageSettings, Loaded, from_array, stream
from normalis.loading.held_out import (
    Images,
    Normals,
    as_dataset,
    fingerprint,
    folds,
    is_array,
    normal_images,
    samples_to_score,
    split,
    take,
    units_of,
)
from normalis.models.base import AnomalyModel, Autoencoder
from normalis.models.inputs import to_model_input
from normalis.scoring import BATCH_SIZE, Explained, Reader, Scored, explain, joined_scores, score
from normalis.storage import RunFolder, content_hash, versions
from normalis.training.loop import Progress, TrainingSettings, pick_device, settings_for
from normalis.trust import named_by_a_file

if TYPE_CHECKING:
    from normalis.datasets import Sample

__all__ = ["AnomalyDetector"]

_FOR_A_RULE = 3000  # images that rules and measurements look at, evenly spread, at most


class AnomalyDetector(BaseEstimator):
    """Learn normal images; say of new ones how abnormal they are, and where.

    Args:
        method: a name from `normalis.models.MODELS`, or a class of your own.
        latent_dim: size of the bottleneck, the paper's *d*. ``auto`` is what hedged best without a
            label, 16, with a table of what that stakes on the size of lesions
            (`normalis.research.selection.usual_latent_dim`), and the method's own width where
            something
            else limits it; ``closed-form`` chooses by that table
            (`normalis.research.selection.choose_latent_dim`), found no better.
        image_size: side to which images are resized, a multiple of 16.
        channels: 1 (grey) or 3.
        epochs: passes over the training images; None for the recipe's own, 250 for ``paper`` and
            83 for ``fast``, more where the images are few (`normalis.training.loop.settings_for`).
        batch_size: images per training step.
        learning_rate: of Adam; None for the recipe's own, 1e-3 and a peak of 4e-3.
        recipe: ``paper``, or ``fast``: the paper's error on held-out normal images in a third of
            its steps, about a point worse where it differs (docs/performance.md).
        precision: ``auto``, ``float32`` or ``bfloat16``.
        standardize: whether each image's own brightness and contrast are removed.
        scorer: how the model's residual is read, a name from `normalis.scorers.SCORERS`; ``auto``
            is ``median`` for methods whose score is the mean of their map, else ``native``. The
            paper's reading is ``native``.
        reduction: how a map becomes one number: ``mean`` (the paper's), ``max``, ``top:0.01``,
            ``quantile:0.95``; None for the scorer's own, which is ``top:0.02`` for ``median`` and
            ``mean`` for the others.
        calibration: ``split`` holds out normal images, by patient where patients are known and by
            group of near duplicates elsewhere, so that p-values and thresholds are exact; ``cv+``,
            for few images, trains one model per fold on the others and holds nothing back, at the
            price of a guarantee of twice the rate (`normalis.calibration.conformal`); ``none``
            trains on
            everything, as the paper does.
        calibration_share: share of the patients or groups held out by ``split``.
        folds: of ``cv+``.
        fpr: share of normal patients that ``predict`` may flag.
        plane, slice_range: which slices of a volume are images.
        window, percentiles: the intensity rule of images deeper than 8 bits.
        random_state: seed of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        method_options: further settings of the method, on top of those that are usual for it
            (`AnomalyModel.usual_options`).
        scorer_options: further settings of the scorer.

    Attributes:
        models_: the fitted `AnomalyModel`, with ``cv+`` one per fold; scores, maps and
            reconstructions are their means.
        scorers_: the fitted `Scorer` of each.
        rule_: the intensity rule of deep images, None if all were 8-bit.
        calibration_: scores of held-out normal images, None with ``calibration="none"``.
        colour_scale_: the one scale of all pictures.
        decision_scores_: scores of the held-out (else of the training) normal images.
        history_: losses by epoch.
        latent_dim_: size of the bottleneck that was used.
        training_: the `TrainingSettings` that were used.
        info_: data, versions, durations; ``selection`` says why unless ``latent_dim`` was a number,
            ``measured`` what a method says of held-out images (of `rate-ae` its rate, nats).
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
        method: str | type[AnomalyModel] = "ae-u",
        latent_dim: int | str = "auto",
        image_size: int = 64,
        channels: int = 1,
        epochs: int | None = None,
        batch_size: int = 64,
        learning_rate: float | None = None,
        recipe: str = "paper",
        precision: str = "auto",
        standardize: bool = False,
        scorer: str = "auto",
        reduction: str | None = None,
        calibration: str = "split",
        calibration_share: float = 0.2,
        folds: int = 5,
        fpr: float = 0.05,
        plane: str = "axial",
        slice_range: tuple[float, float] = (0.0, 1.0),
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] = (0.5, 99.5),
        random_state: int = 0,
        device: str = "auto",
        method_options: dict[str, Any] | None = None,
        scorer_options: dict[str, Any] | None = None,
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
        self.folds = folds
        self.fpr = fpr
        self.plane = plane
        self.slice_range = slice_range
        self.window = window
        self.percentiles = percentiles
        self.random_state = random_state
        self.device = device
        self.method_options = method_options
        self.scorer_options = scorer_options

    # --- settings of the steps below, made from the parameters ---

    @property
    def image_settings(self) -> ImageSettings:
        """How images are read, from the parameters."""
        return ImageSettings(
            image_size=self.image_size,
            channels=self.channels,
            plane=self.plane,
            slice_range=_pair("slice_range", self.slice_range),
            window=None if self.window is None else _pair("window", self.window),
            percentiles=_pair("percentiles", self.percentiles),
        )

    def _training_settings(self, n_images: int = 0) -> TrainingSettings:
        return settings_for(
            self.recipe,  # type: ignore[arg-type]
            n_images=n_images,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            precision=self.precision,
            standardize=self.standardize,
        )

    def _build(self, latent_dim: int | None = None) -> AnomalyModel:
        width = {} if latent_dim is None else {"latent_dim": latent_dim}
        return models.build(
            self.method,
            seed=self.random_state,
            image_size=self.image_size,
            channels=self.channels,
            **width,
            **self._method_options,
        )

    @property
    def _method_options(self) -> dict[str, Any]:
        """What is usual for the method, and on top of it what was asked for."""
        return {**models.model_class(self.method).usual_options, **(self.method_options or {})}

    def _build_scorer(self) -> scorers.Scorer:
        options = dict(self.scorer_options or {})
        if self.reduction is not None:
            options["reduction"] = self.reduction
        return scorers.build(self._scorer_name, **options)

    @property
    def _scorer_name(self) -> str:
        if self.scorer != "auto":
            return self.scorer
        return scorers.usual_scorer(models.model_class(self.method))

    def _check(self) -> None:
        """Fail before any image is read if a setting is out of its range."""
        width = None if isinstance(self.latent_dim, str) else self.latent_dim
        if width is None and self.latent_dim not in ("auto", "closed-form"):
            raise SettingsError(
                f"latent_dim must be a whole number, auto or closed-form, got {self.latent_dim!r}"
            )
        if self.calibration not in ("split", "cv+", "none"):
            raise SettingsError(f"calibration must be split, cv+ or none, got {self.calibration!r}")
        if self.calibration == "cv+" and self.latent_dim == "closed-form":
            raise SettingsError(
                "latent_dim must be a number or auto with calibration cv+, got closed-form: each "
                "fold would have to choose for itself; give a number, or use split"
            )
        if not (isinstance(self.folds, Integral) and self.folds >= 2):
            raise SettingsError(f"folds must be a whole number of at least 2, got {self.folds!r}")
        if not 0 < self.calibration_share < 1:
            raise SettingsError(
                f"calibration_share must be in (0, 1), got {self.calibration_share}"
            )
        if not 0 < self.fpr < 1:
            raise SettingsError(f"fpr must be in (0, 1), got {self.fpr}")
        if not (isinstance(self.random_state, Integral) and 0 <= self.random_state < 2**32):
            raise SettingsError(
                "random_state must be a whole number from 0 to 4294967295, got "
                f"{self.random_state!r}"
            )
        _ = self.image_settings, self._training_settings(), pick_device(self.device)
        self._build(width)
        self._build_scorer()

    # --- fit ---

    def fit(
        self,
        x: Images,
        y: None = None,
        *,
        patient_ids: Sequence[str | None] | None = None,
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
        patient_ids: Sequence[str | None] | None,
        folder: RunFolder | None,
        progress: Callable[[Progress], None] | None,
    ) -> Self:
        started = time.perf_counter()
        normals = self._normal_images(x, patient_ids)
        train, held = normals.train, normals.held
        self.skipped_ = [*train.skipped, *(held.skipped if held else [])]
        self.rule_ = train.rule
        loaded_s = time.perf_counter() - started
        self.info_: dict[str, Any] = {
            "data": {
                "name": normals.name,
                "fingerprint": fingerprint(train.pixels),
                "train_images": len(train.rows),
                "calibration_images": self._n_calibration(normals),
                "skipped": len(self.skipped_),
            },
            "load_s": loaded_s,
        }
        self.latent_dim_ = self._choose_latent_dim(train)
        self.training_ = self._training_settings(len(train.rows))
        fold = self._folds_of(train)
        self.models_ = [self._build(self.latent_dim_) for _ in range(self._n_models)]
        self.device_ = pick_device(self.device)
        trained = train_models(
            self.models_,
            torch.from_numpy(train.pixels),
            settings=self.training_,
            place=self._place,
            fold=fold,
            held=torch.from_numpy(normals.watched.pixels) if normals.watched else None,
            folder=folder,
            identity=self._identity(),
            progress=progress,
        )
        self.history_ = trained.history
        self._judge(normals, fold)
        if measured := self._measured(normals):
            self.info_["measured"] = measured
        self.info_ |= {
            "fit_s": time.perf_counter() - started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(self.device_),
            "threads": trained.threads or torch.get_num_threads(),
            "versions": versions(),
        }
        return self

    def _normal_images(self, x: Images, patient_ids: Sequence[str | None] | None) -> Normals:
        found = normal_images(
            x,
            self.image_settings,
            patient_ids=patient_ids,
            hold_out=self.calibration_share if self.calibration == "split" else None,
            seed=self.random_state,
        )
        method = self._build()
        if not (isinstance(method, Autoencoder) and method.needs_held_out and found.held):
            return found
        watched, left = split(found.held, 0.5, self.random_state)
        return replace(found, held=left, watched=watched)

    def _measured(self, normals: Normals) -> dict[str, float]:
        """Return what the method says of held-out images, if there are any."""
        (model, *others) = self.models_
        if others or normals.held is None or not isinstance(model, Autoencoder):
            return {}
        if type(model).measure is Autoencoder.measure:  # which has nothing to say
            return {}
        every = -(-len(normals.held.rows) // _FOR_A_RULE)
        some = take(normals.held, np.arange(len(normals.held.rows)) % every == 0)
        x = to_model_input(torch.from_numpy(some.pixels), standardize=self.standardize)
        return model.measure(x, units_of(some).member.tolist())

    @property
    def _place(self) -> Place:
        return Place(device=self.device_, standardize=self.standardize, seed=self.random_state)

    @property
    def _n_models(self) -> int:
        return self.folds if self.calibration == "cv+" else 1

    def _n_calibration(self, normals: Normals) -> int:
        if self.calibration == "cv+":
            return len(normals.train.rows)
        return len(normals.held.rows) if normals.held else 0

    def _folds_of(self, train: Loaded) -> NDArray[np.int64] | None:
        if self.calibration != "cv+":
            return None
        return folds(train, self.folds, self.random_state)

    def _choose_latent_dim(self, train: Loaded) -> int:
        """Return the latent dimension; a rule sees the training images, never those held out."""
        if not isinstance(self.latent_dim, str):
            return self.latent_dim
        # Not at import: the closed forms are for this setting only.
        from normalis.research.selection import choose_latent_dim, usual_latent_dim
        from normalis.research.selection.usual import USUAL_LATENT_DIM

        own: int = models.model_class(self.method).Settings.latent_dim
        limits = models.model_class(self.method).has_latent and own == USUAL_LATENT_DIM
        if self.latent_dim == "auto" and not limits:
            return own  # wide enough not to matter: something else limits this method

        def grey(part: Loaded) -> NDArray[Any]:
            x = to_model_input(torch.from_numpy(part.pixels), standardize=self.standardize)
            return np.asarray(x.mean(1).numpy())

        # Some thousand images determine the leading directions; more only cost time.
        some = take(train, np.arange(len(train.rows)) % -(-len(train.rows) // _FOR_A_RULE) == 0)
        try:
            seen, other = map(grey, split(some, 0.3, self.random_state))
        except DataError:  # of fewer than three patients
            seen, other = grey(some), grey(some)[:0]
        rule = usual_latent_dim if self.latent_dim == "auto" else choose_latent_dim
        chosen = rule(seen, other)
        self.info_["selection"] = chosen.to_dict()
        return int(chosen.latent_dim or USUAL_LATENT_DIM)

    def _identity(self) -> str:
        """Return what a resumed run must have in common with the one that was interrupted."""
        params = {k: v for k, v in self._plain_params().items() if k != "device"}
        return content_hash({"params": params, "data": self.info_["data"]["fingerprint"]})

    def _plain_params(self) -> dict[str, Any]:
        params = self.get_params(deep=False)
        params["method"] = models.method_name(self.method)
        # What was left to the defaults is kept as it was then: these may change.
        params["scorer"] = self._scorer_name
        params["reduction"] = self._build_scorer().settings.reduction
        params["method_options"] = self._method_options or None
        used = {k: getattr(self.training_, k) for k in ("recipe", "epochs", "learning_rate")}
        params |= used
        return {k: _plain(v) for k, v in params.items()}

    def _judge(self, normals: Normals, fold: NDArray[np.int64] | None) -> None:
        """Score normal images that the models have not seen; fix thresholds and colours."""
        found = judge(
            self.models_,
            self._build_scorer,
            normals.train,
            normals.held,
            place=self._place,
            fold=fold,
        )
        self.scorers_ = found.scorers
        self.decision_scores_ = found.scores
        self.calibration_ = found.calibration
        self.colour_scale_ = found.colour_scale

    # --- score ---

    def _fitted(self) -> None:
        if not hasattr(self, "models_"):
            raise NotFittedError("this AnomalyDetector must be fitted first: call fit or load")

    @property
    def model_(self) -> AnomalyModel:
        """The fitted model; with ``cv+`` the first of ``models_``."""
        self._fitted()
        return self.models_[0]

    @property
    def scorer_(self) -> scorers.Scorer:
        """The fitted scorer; with ``cv+`` the first of ``scorers_``."""
        self._fitted()
        return self.scorers_[0]

    def _readers(self) -> list[Reader]:
        return list(zip(self.models_, self.scorers_, strict=True))

    def stream(
        self,
        samples: Sequence[Sample],
        *,
        maps: bool = True,
        reconstructions: bool = False,
        skipped: list[tuple[Path, str]] | None = None,
        need_one: bool = True,
        workers: int | None = None,
    ) -> Iterator[Scored]:
        """Score files batch after batch in constant memory; unreadable ones are skipped.

        Args:
            samples: files of a `Dataset`.
            maps: whether to compute anomaly maps.
            reconstructions: whether to return reconstructions.
            skipped: receives (path, reason) of what could not be read.
            need_one: whether it is an error if nothing can be read.
            workers: threads that read files; None means one per core.
        """
        self._fitted()
        batches = stream(
            samples,
            self.image_settings,
            rule=self.rule_,
            batch_size=BATCH_SIZE,
            need_one=need_one,
            workers=workers,
        )

        def noting() -> Iterator[Loaded]:
            for batch in batches:
                if skipped is not None:
                    skipped.extend(batch.skipped)
                yield batch

        yield from score(
            self._readers(),
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
        yield from explain(
            self._readers(),
            samples,
            settings=self.image_settings,
            rule=self.rule_,
            device=self.device_,
            standardize=self.standardize,
        )

    def _scored(self, x: Images, *, maps: bool) -> list[Scored]:
        self._fitted()
        settings = self.image_settings
        if is_array(x):
            loaded = from_array(x, settings, rule=self.rule_, fit_rule=False)
            return list(score_loaded(self._readers(), loaded, self._place, maps=maps))
        skipped: list[tuple[Path, str]] = []
        samples = samples_to_score(as_dataset(x))
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
        calibration = self._calibrated()
        return calibration.p_values(joined_scores(self._scored(x, maps=False)))

    def predict(self, x: Images) -> NDArray[np.int64]:
        """Return 1 for images flagged at the false-positive rate ``fpr``, 0 for others.

        Raises:
            NotFittedError: if the detector was fitted without calibration.
            SettingsError: if too few normal images were held out to certify the rate.
        """
        self._calibrated().check_rate(self.fpr)
        return self._calibrated().flags(self.p_value(x), self.fpr).astype(np.int64)

    @property
    def threshold_(self) -> float:
        """Score above which an image is flagged at the false-positive rate ``fpr``.

        Raises:
            SettingsError: with ``cv+``, whose models have no common scale.
        """
        return self._calibrated().threshold(self.fpr)

    def _calibrated(self) -> Calibration:
        self._fitted()
        if self.calibration_ is None:
            raise NotFittedError(
                'p-values and thresholds need calibration="split" or "cv+", this detector was '
                'fitted with "none": fit it again, or rank by anomaly_score'
            )
        return self.calibration_

    def read_by(
        self,
        scorer: str,
        normals: Images,
        *,
        reduction: str | None = None,
        scorer_options: dict[str, Any] | None = None,
    ) -> Self:
        """Return a detector with the same fitted model, read by another scorer.

        Args:
            scorer: a name from `normalis.scorers.SCORERS`.
            normals: the images that the detector was fitted on. Those held out then are found
                again, and give the new scores their p-values and pictures their colours.
            reduction: how a map becomes one number; None for the scorer's own.
            scorer_options: further settings of the scorer.

        Raises:
            DataError: if the images are not those of the fit.
            SettingsError: if the scorer cannot read the model.
        """
        self._fitted()
        other = copy.copy(self)
        other.scorer, other.reduction, other.scorer_options = scorer, reduction, scorer_options
        found = other._normal_images(normals, None)
        if fingerprint(found.train.pixels) != self.info_["data"]["fingerprint"]:
            raise DataError(
                "the normal images must be those that the detector was fitted on, for the ones "
                f"held out then; got others ({found.name}, fitted on {self.info_['data']['name']})"
            )
        other._judge(found, other._folds_of(found.train))
        return other

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
        arrays: dict[str, NDArray[Any]] = {}
        for i, (model, scorer) in enumerate(self._readers()):
            arrays |= {f"{_place('model', i)}{k}": _to_numpy(v) for k, v in model.state().items()}
            arrays |= {f"{_place('scorer', i)}{k}": _to_numpy(v) for k, v in scorer.state().items()}
        arrays["decision_scores"] = self.decision_scores_
        folder.write(
            arrays,
            {
                "params": self._plain_params(),
                "image_settings": asdict(self.image_settings),
                "model_settings": self.models_[0].settings.to_dict(),
                "rule": self.rule_.to_dict() if self.rule_ else None,
                "colour_scale": self.colour_scale_.to_dict(),
                "calibration": self.calibration_.to_dict() if self.calibration_ else None,
                "history": self.history_,
                "info": self.info_,
            },
            self.skipped_,
        )

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", trust: bool = False) -> Self:
        """Read a run folder; nothing that its files name is imported or run.

        Args:
            path: the folder that ``fit`` or `save` wrote.
            device: where to score, whatever the device it was fitted on.
            trust: whether a method, scorer or network that the folder names as ``module:Class``
                may be imported, which runs that code. Methods of this package and of installed
                packages need no trust.

        Raises:
            RunError: if a file is missing, damaged or was edited.
            UntrustedError: if the folder names code of its own and ``trust`` is False.
        """
        folder = RunFolder(path)
        pick_device(device)
        body, arrays = folder.read_settings(), folder.read_arrays()
        try:
            with named_by_a_file(folder.path / folder.SETTINGS, trust=trust):
                params: dict[str, Any] = {
                    k: tuple(v) if isinstance(v, list) else v for k, v in body["params"].items()
                }
                self = cls(**(params | {"device": device}))
                _check_agree(params.get("method_options"), body["model_settings"])
                stored = sum(v.size for v in arrays.values())
                models.check_size(self.method, stored, **body["model_settings"])
                self._check_stored(body)
                self._restore(body, arrays)
        except UntrustedError:
            raise
        except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
                ValueError) as error:  # fmt: skip
            raise RunError(f"{path}: is damaged ({error}); fit the model again") from error
        return self

    def _check_stored(self, body: dict[str, Any]) -> None:
        """Refuse what no fit writes, though every checksum is right."""
        read, built = self.image_settings, body["model_settings"]
        if (read.image_size, read.channels) != (built["image_size"], built["channels"]):
            raise RunError("params and model_settings disagree on the size of images")
        if not (0 < self.fpr < 1 and body["info"]["data"]["fingerprint"]):
            raise RunError(f"fpr must be in (0, 1), is {self.fpr}")
        for losses in body["history"]:
            sum(losses.values())

    def _restore(self, body: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        self.device_ = pick_device(self.device)
        self.latent_dim_ = int(body["model_settings"]["latent_dim"])
        self.training_ = self._training_settings()
        built = body["model_settings"]  # not the parameters: what is usual may have changed since
        self.models_ = [models.build(self.method, **built) for _ in range(self._n_models)]
        self.scorers_ = [self._build_scorer() for _ in self.models_]
        for i, (model, scorer) in enumerate(self._readers()):
            if not any(name.startswith(_place("model", i)) for name in arrays):
                raise RunError(f"model.safetensors holds nothing of model {i + 1}")
            model.load_state(_part(arrays, _place("model", i), self.device_))
            if isinstance(model, Autoencoder):
                model.to(self.device_, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            scorer.load_state(_part(arrays, _place("scorer", i), self.device_))
        self.rule_ = IntensityRule.from_dict(body["rule"]) if body["rule"] else None
        self.colour_scale_ = ColourScale(**body["colour_scale"])
        kept = body["calibration"]
        self.calibration_ = None
        if kept:
            self.calibration_ = Calibration.from_dict(kept)
        self.decision_scores_ = arrays["decision_scores"]
        self.history_, self.info_, self.skipped_ = body["history"], body["info"], []


def _check_agree(asked: Mapping[str, Any] | None, built: Mapping[str, Any]) -> None:
    """Refuse names of code that were asked for and are not those that the model was built with."""
    for key, value in (asked or {}).items():
        if isinstance(value, str) and ":" in value and built.get(key) != value:
            raise RunError(f"method_options and model_settings disagree on {key}")


def _place(part: str, number: int) -> str:
    """Return the prefix of what is kept of a model or scorer; the first has no number."""
    return f"{part}_{number}." if number else f"{part}."


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _part(arrays: dict[str, NDArray[Any]], prefix: str, device: torch.device) -> dict[str, Tensor]:
    return {
        k.removeprefix(prefix): torch.from_numpy(v).to(device)
        for k, v in arrays.items()
        if k.startswith(prefix)
    }


def _pair(name: str, values: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = values
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{name} must be two numbers (low, high), got {values!r}") from error
    return low, high


def _plain(value: Any) -> Any:
    """Return a parameter as JSON has it: no tuple, no NumPy scalar."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
