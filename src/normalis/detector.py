"""Settings of a detector, and the verbs that users need: fit, score, save, load.

A detector is settings. Fitting it on normal images gives a `normalis.fitted.FittedDetector`, which
is immutable, scores, and is what is saved; the detector holds it and hands its verbs on.

The vocabulary is scikit-learn's and PyOD's: ``fit`` returns self, fitted state ends in ``_``,
``get_params`` and ``clone`` work. As in PyOD, and unlike scikit-learn's outlier detectors, **higher
scores are more anomalous** and ``predict`` returns 1 for anomalous, 0 for normal.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from normalis import models, scorers
from normalis.calibration.choice import Choice, choose
from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration
from normalis.calibration.findings import Finding
from normalis.errors import CalibrationWarning, RunError, SettingsError
from normalis.errors.arguments import check_kind, path_of
from normalis.fitted import FittedDetector, fitted_of
from normalis.fitting import calibrate_on, train_models
from normalis.images import IntensityRule
from normalis.loading.arrays import ImageSettings
from normalis.loading.held_out import (
    Images,
    Normals,
    fingerprint,
    folds,
    image_marks,
    normal_images,
    take,
    units_of,
    with_units,
)
from normalis.loading.labels import check_all_normal
from normalis.loading.similar import SHOWN, SimilarImages, SimilarNormals
from normalis.loading.unlabelled import Unlabelled, unlabelled_images
from normalis.models.base import AnomalyModel, Autoencoder, CompositeModel, Footprint
from normalis.models.inputs import to_model_input
from normalis.notebook.progress import listener
from normalis.notebook.verbs import Verbs
from normalis.storage import RunFolder, content_hash, versions
from normalis.training.loop import Progress, pick_device
from normalis.training.params import check_params
from normalis.training.settings import TrainingSettings, settings_for

if TYPE_CHECKING:

    class BaseEstimator:
        """What is used of scikit-learn's; without types it would take every name for granted."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Return the parameters."""

        def set_params(self, **params: Any) -> Self:
            """Change parameters; return self."""
else:
    from sklearn.base import BaseEstimator

__all__ = ["AnomalyDetector"]

_NONE = np.empty(0, np.uint64)  # images that were learned from unlabelled
_MOST_MEASURED = 3000  # images that a measurement looks at, evenly spread, at most


class AnomalyDetector(Verbs, BaseEstimator):
    """Learn normal images; say of new ones how abnormal they are, and where.

    Args:
        method: ``panel``, several methods that look together (`normalis.panel`), a name from
            `normalis.models.MODELS`, or a class of your own.
        latent_dim: size of the bottleneck, the paper's *d*; ``auto`` is the method's own default.
        image_size: side to which images are resized, a multiple of 16; None for what is usual for
            the method, 64, of a feature network 128 or its own (`AnomalyModel.default_image_size`).
        channels: 1 (grey) or 3.
        epochs: passes over the training images; None for the recipe's own, 250 for ``paper`` and
            83 for ``fast``, more where images are few (`training.settings.settings_for`).
        batch_size: images per training step.
        learning_rate: of Adam; None for the recipe's own, 1e-3 and a peak of 4e-3.
        recipe: ``auto`` is ``fast`` for the networks of a panel, else ``paper``; ``fast`` reaches
            the paper's error on held-out normal images in a third of
            its steps, about a point worse where it differs (docs/reference/performance.md).
        precision: ``auto``, ``float32`` or ``bfloat16``.
        keep_epoch: ``last``, or ``best``: the epoch that tells normal images, which are neither
            trained nor calibrated on, best from the same with a change
            (`normalis.training.keeping`).
        standardize: whether each image's own brightness and contrast are removed.
        scorer: how the model's residual is read, a name from `normalis.scorers.SCORERS`; ``auto``
            is ``median`` for methods whose score is the mean of their map, else ``native``. The
            paper's reading is ``native``.
        reduction: how a map becomes one number: ``mean`` (the paper's), ``max``, ``top:0.01``,
            ``quantile:0.95``; None for the scorer's own, which is ``top:0.02`` for ``median`` and
            ``mean`` for the others.
        calibration: ``split`` holds out normal images, whole patients, files and groups of copies
            (`normalis.loading.units`), so that p-values and thresholds are exact; ``cv+``, for few
            images, trains one model per fold on the others and holds nothing back, at the price of
            a guarantee of twice the rate (`normalis.calibration.conformal`); ``auto`` takes the
            one that suits the number of units and ``fpr`` (`normalis.calibration.choice`); ``none``
            trains on everything, as the paper does.
        calibration_share: share of the units held out by ``split``.
        folds: of ``cv+``.
        fpr: share of normal patients that ``predict`` may flag.
        plane, slice_range: which slices of a volume are images.
        window, percentiles: the intensity rule of images deeper than 8 bits.
        margin: share of the side at each edge that is blanked in every image, for text, letterboxes
            or film edges that `normalis check` names.
        where: rules that headers or columns must fulfil, such as ``ViewPosition=PA,AP``; kept in
            the run and applied to what is scored (`normalis.studies.where`).
        random_state: seed of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        method_options: further settings of the method, on top of those that are usual for it
            (`AnomalyModel.default_options`).
        scorer_options: further settings of the scorer.
        members: methods of the panel, instead of the default ones; one alone is that method.
        keep_similar: whether to keep small pictures of the normal images in the run, to be shown
            beside images that resemble them, where the method names these
            (`normalis.loading.similar`). They are pictures of other people, without name, path or
            patient id.

    Attributes:
        fitted_: the `FittedDetector`, immutable. What it holds can be read here as well:
            ``models_``, ``scorers_``, ``rule_``, ``calibration_``, ``colour_scale_``,
            ``decision_scores_``, ``history_``, ``latent_dim_``, ``training_``, ``info_``,
            ``skipped_``.

    Example:
        >>> import numpy as np
        >>> from normalis import AnomalyDetector
        >>> normal = np.random.default_rng(0).random((40, 32, 32))
        >>> detector = AnomalyDetector(method="ae-u", image_size=32, epochs=1).fit(normal)
        >>> detector.anomaly_score(normal).shape
        (40,)
    """

    #: Settings and the network built of them, where it was asked for before `fit` needs it.
    _ready: tuple[dict[str, Any], AnomalyModel] | None = None

    def __init__(
        self,
        *,
        method: str | type[AnomalyModel] = "panel",
        latent_dim: int | str = "auto",
        image_size: int | None = None,
        channels: int = 1,
        epochs: int | None = None,
        batch_size: int = 64,
        learning_rate: float | None = None,
        recipe: str = "auto",
        precision: str = "auto",
        standardize: bool = False,
        scorer: str = "auto",
        reduction: str | None = None,
        calibration: str = "auto",
        calibration_share: float = 0.2,
        folds: int = 5,
        fpr: float = 0.05,
        plane: str = "axial",
        slice_range: tuple[float, float] = (0.0, 1.0),
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] = (0.5, 99.5),
        margin: float = 0.0,
        where: Sequence[str] = (),
        random_state: int = 0,
        device: str = "auto",
        method_options: dict[str, Any] | None = None,
        scorer_options: dict[str, Any] | None = None,
        members: Sequence[str] | None = None,
        keep_similar: bool = True,
        keep_epoch: str = "last",
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
        self.margin = margin
        self.where = where
        self.random_state = random_state
        self.device = device
        self.method_options = method_options
        self.scorer_options = scorer_options
        self.members = members
        self.keep_similar = keep_similar
        self.keep_epoch = keep_epoch

    # --- settings of the steps below, made from the parameters ---

    @property
    def image_settings(self) -> ImageSettings:
        """How images are read, from the parameters."""
        return ImageSettings(
            image_size=self._image_size,
            channels=self.channels,
            plane=self.plane,
            slice_range=_pair("slice_range", self.slice_range),
            window=None if self.window is None else _pair("window", self.window),
            percentiles=_pair("percentiles", self.percentiles),
            margin=self.margin,
            where=_rules(self.where),
        )

    @property
    def _image_size(self) -> int:
        """The side that was asked for, else what is usual for the method."""
        if self.image_size is not None:
            return self.image_size
        return models.model_class(self._method).default_image_size(self._method_options)

    @property
    def _method(self) -> str | type[AnomalyModel]:
        """The method, which ``members`` may choose."""
        if self.members is None:
            return self.method
        if self.method != "panel" or isinstance(self.members, str) or not len(self.members):
            raise SettingsError(
                "members must be a list of methods, for the method panel; got "
                f"{self.members!r} for {self.method!r}"
            )
        return self.members[0] if len(self.members) == 1 else "panel"

    @property
    def _recipe(self) -> str:
        if self.recipe != "auto":
            return self.recipe
        return "fast" if self._is_panel else "paper"

    @property
    def _is_panel(self) -> bool:
        return issubclass(models.model_class(self._method), CompositeModel)

    def _training_settings(self, n_images: int = 0) -> TrainingSettings:
        return settings_for(
            self._recipe,  # type: ignore[arg-type]
            n_images=n_images,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            precision=self.precision,
            standardize=self.standardize,
            keep_epoch=self.keep_epoch,
        )

    def _build(self, **more: Any) -> AnomalyModel:
        width = {} if isinstance(self.latent_dim, str) else {"latent_dim": self.latent_dim}
        return models.build(
            self._method,
            seed=self.random_state,
            image_size=self._image_size,
            channels=self.channels,
            **width,
            **{**self._method_options, **more},
        )

    @property
    def _method_options(self) -> dict[str, Any]:
        """What is usual for the method, and on top of it what was asked for."""
        own = {**models.model_class(self._method).default_options, **(self.method_options or {})}
        if self.members is not None and self._is_panel:
            own["members"] = "+".join(self.members)
        return own

    def _build_scorer(self) -> scorers.Scorer:
        options = dict(self.scorer_options or {})
        if self.reduction is not None:
            options["reduction"] = self.reduction
        return scorers.build(self._scorer_name, **options)

    @property
    def _scorer_name(self) -> str:
        if self.scorer != "auto":
            return self.scorer
        return scorers.default_scorer(models.model_class(self._method))

    def _checked(self, **more: Any) -> AnomalyModel:
        """Fail before any image is read if a setting is out of its range; return the model."""
        check_params(self.get_params(deep=False))
        if self._is_panel:
            self._check_panel()
        _ = self.image_settings, self._training_settings(), pick_device(self.device)
        self._build_scorer()
        ready, self._ready = self._ready, None
        if ready and not more and ready[0] == self.get_params(deep=False):
            return ready[1]
        return self._build(**more)

    def _check_panel(self) -> None:
        if self.calibration == "cv+":
            raise SettingsError(
                "a panel's readings are measured by held-out images, so its calibration must be "
                "split or none, got cv+; for few images cross-fit one of its members: "
                'members=("feature-knn",) with calibration cv+'
            )
        if self.keep_epoch != "last":
            raise SettingsError(
                "a panel keeps the last epoch of its networks: leave out keep_epoch, or fit one "
                "member"
            )
        if self.scorer != "auto" or self.reduction is not None or self.scorer_options:
            raise SettingsError(
                "a panel reads each member by the member's own scorer: leave out scorer, reduction "
                "and scorer_options, or fit one member"
            )

    # --- fit ---

    def footprint(self, images: int) -> Footprint | None:
        """Return what fitting on so many normal images will take, before it starts.

        Args:
            images: number of normal images, held-out ones among them.

        Returns:
            None for methods that know nothing of it.
        """
        self._ready = self.get_params(deep=False), self._build()
        return self._ready[1].footprint(images)

    def fit(
        self,
        x: Images,
        y: Sequence[Any] | NDArray[Any] | None = None,
        *,
        patient_ids: Sequence[str | None] | None = None,
        unlabelled: Images | None = None,
        unlabelled_overlap: str = "refuse",
        run: str | Path | None = None,
        overwrite: bool = False,
        progress: Callable[[Progress], None] | bool | None = None,
    ) -> Self:
        """Learn from normal images.

        Args:
            x: a folder or data set (its normal training images are used), a list of files, an
                array or tensor (N, H, W) or (N, C, H, W).
            y: for scikit-learn's sake: labels, which must all be 0, False or "normal". Nothing is
                learnt from them.
            patient_ids: (N,) for arrays, so that whole patients are held out.
            unlabelled: images of which nothing is known, as ``x``, for methods that learn from them
                beside the normal ones (``ddad``): of other patients than those of ``x``, its test
                split among them, and no copies.
            unlabelled_overlap: ``refuse`` raises where some are known; ``leave-out`` goes on
                without these.
            run: folder to write the run into as it goes; an interrupted run found there is
                resumed, with the result that it would have had.
            overwrite: whether a finished run in that folder may be replaced. Otherwise the same
                fit of the same images is answered from what is there, and any other refused.
            progress: called after each epoch; True shows a bar in a notebook and a line on standard
                error elsewhere, None a bar in a notebook alone, False nothing.

        Raises:
            DataError: if a label is not normal, if there is no readable normal image, or if the
                validation split shares patients, files or copies with the training images.
            SettingsError: if a setting is out of its range.
            RunError: if the run folder cannot be used.

        Warns:
            CalibrationWarning: of unknown patients, and if few units calibrate.
        """
        check_all_normal(y)
        hears = listener(progress)
        beside = self._beside(unlabelled, unlabelled_overlap)
        first = self._checked(**({"unlabelled": 1} if beside else {}))  # how many is not known yet
        if run is None:
            self.fitted_ = self._fit(first, x, patient_ids, None, hears, beside=beside)
            _warn(self.fitted_)
            return self
        folder = RunFolder(path_of("run", run))
        folder.check_writable(overwrite=overwrite or self._may_have_written(folder))
        with folder.locked():
            folder.check_writable(overwrite=overwrite or self._may_have_written(folder))
            there = None if overwrite or not folder.finished else folder
            fitted = self._fit(first, x, patient_ids, folder, hears, there, beside=beside)
            if there is None:
                fitted.write(folder)
        self.fitted_ = fitted
        _warn(fitted)
        return self

    def _beside(
        self, unlabelled: Images | None, overlap: str
    ) -> Callable[[Normals, Images], Unlabelled] | None:
        """Return what reads the unlabelled images once the normal ones are there.

        Raises:
            SettingsError: if the method has no use for them.
        """
        if unlabelled is None and self._method_options.get("unlabelled"):
            raise SettingsError(
                f"unlabelled = {self._method_options['unlabelled']} images were said and none are "
                "there: give them (--unlabelled FOLDER, unlabelled=...); their number is counted"
            )
        if unlabelled is None:
            return None
        if not models.model_class(self._method).learns_unlabelled:
            able = [m for m in models.MODELS if models.model_class(m).learns_unlabelled]
            raise SettingsError(
                f"the method {models.method_name(self._method)} learns from normal images alone: "
                f"leave out unlabelled (--unlabelled), or choose {' or '.join(able)}"
            )

        def read(normals: Normals, source: Images) -> Unlabelled:
            return unlabelled_images(
                unlabelled, self.image_settings, normals=normals, source=source, overlap=overlap
            )

        return read

    def _may_have_written(self, folder: RunFolder) -> bool:
        """Return whether a finished run has the settings that were asked for; fast."""
        if not folder.finished:
            return False
        stored = folder.read_settings().get("params", {})
        asked = self.get_params(deep=False) | {"method": models.method_name(self.method)}
        open_ = ("device", "method_options", "scorer_options", "reduction", "scorer", "where",
                 "calibration_share", "folds", "members", "backbone")  # fmt: skip
        fixed = {k: v for k, v in asked.items() if k not in open_ and v not in (None, "auto")}
        return all(stored.get(k) == _plain(v) for k, v in fixed.items())

    def _fit(
        self,
        first: AnomalyModel,
        x: Images,
        patient_ids: Sequence[str | None] | None,
        folder: RunFolder | None,
        progress: Callable[[Progress], None] | None,
        there: RunFolder | None = None,
        *,
        beside: Callable[[Normals, Images], Unlabelled] | None = None,
    ) -> FittedDetector:
        started = time.perf_counter()
        watches = isinstance(first, Autoencoder) and (
            first.needs_held_out or self.keep_epoch != "last"
        )
        normals, choice = self._normal_images(x, patient_ids, watches)
        train, held = normals.train, normals.held
        others = beside(normals, x) if beside else None
        more = {"unlabelled": len(others.loaded.rows)} if others else {}
        if others:
            first = self._build(**more)
        info: dict[str, Any] = {
            "data": _described(normals, choice, others),
            "calibration": self._said(normals, choice),
            "load_s": time.perf_counter() - started,
        }
        training = self._training_settings(len(train.rows))
        params = self._plain_params(training, more) | self._used(choice)
        fold = folds(train, choice.folds, self.random_state) if choice and choice.folds else None
        if there is not None:
            return _answered_from(there, params, info["data"], self.device)
        count = choice.folds or 1 if choice else 1
        built = [first, *(self._build(**more) for _ in range(count - 1))]
        if footprint := built[0].footprint(len(train.rows)):
            info["footprint"] = asdict(footprint)
        fitted, threads = self._trained(
            built,
            normals,
            others,
            params=params,
            training=training,
            fold=fold,
            folder=folder,
            identity=_resumed_by(params, _seen(info["data"])),
            progress=progress,
        )
        fixed = calibrate_on(fitted, train, held, fold=fold, seed=self.random_state)
        if measured := self._measured(normals, built):
            info["measured"] = measured
        info |= {"fit_s": time.perf_counter() - started, **_circumstances(fitted, threads)}
        # Of folds the first model names them, among the images that it has seen.
        seen = None if fold is None else np.flatnonzero(fold != 0)
        kept = SimilarImages.of(built[0], train.pixels, seen) if self.keep_similar else None
        return replace(fitted, **vars(fixed), info=info, similar=kept)

    def _trained(
        self,
        built: Sequence[AnomalyModel],
        normals: Normals,
        others: Unlabelled | None,
        *,
        params: Mapping[str, Any],
        training: TrainingSettings,
        fold: NDArray[np.int64] | None,
        folder: RunFolder | None,
        identity: str,
        progress: Callable[[Progress], None] | None,
    ) -> tuple[FittedDetector, int]:
        """Train the models; return what is fitted, not calibrated yet, and threads used (or 0)."""
        train, held, device = normals.train, normals.held, pick_device(self.device)
        trained = train_models(
            built,
            torch.from_numpy(train.pixels),
            settings=training,
            device=device,
            seed=self.random_state,
            fold=fold,
            held=torch.from_numpy(normals.watched.pixels) if normals.watched else None,
            folder=folder,
            identity=identity,
            progress=progress,
            unlabelled=torch.from_numpy(others.loaded.pixels) if others else None,
        )
        fitted = FittedDetector(
            params=params,
            models=tuple(built),
            scorers=tuple(self._build_scorer() for _ in built),
            image_settings=self.image_settings,
            device=device,
            rule=train.rule,
            history=trained.history,
            skipped=[*train.skipped, *(held.skipped if held else [])],
            trained_on=image_marks(train.pixels),
            unlabelled_on=image_marks(others.loaded.pixels) if others else _NONE,
        )
        return fitted, trained.threads or 0

    def _normal_images(
        self, x: Images, patient_ids: Sequence[str | None] | None, watches: bool
    ) -> tuple[Normals, Choice | None]:
        """Return the images, and how they calibrate; None if they do not."""
        chosen: list[Choice] = []

        def decide(n_units: int) -> float | None:
            chosen.append(self._choose(n_units, cross_fit=not (watches or self._is_panel)))
            return chosen[0].share

        normals = normal_images(
            x,
            self.image_settings,
            patient_ids=patient_ids,
            hold_out=decide if self.calibration in ("auto", "split") else None,
            watch=watches,
            seed=self.random_state,
        )
        if self.calibration == "none":
            return normals, None
        if self.calibration == "cv+":
            train = with_units(normals.train)
            units = units_of(train)
            plus = Choice(kind="cv+", n_units=units.n, folds=self.folds)
            return replace(normals, train=train, notes=units.notes), plus
        held = normals.held.units.n if normals.held and normals.held.units else 0
        given = Choice(kind="split", n_units=held, held=held, reason="of the validation split")
        return normals, chosen[0] if chosen else given

    def _choose(self, n_units: int, *, cross_fit: bool) -> Choice:
        if self.calibration == "auto":
            return choose(n_units, self.fpr, folds=self.folds, cross_fit=cross_fit)
        held = self.calibration_share * n_units
        return Choice(kind="split", n_units=n_units, held=max(1, round(held)))

    def _used(self, choice: Choice | None) -> dict[str, Any]:
        """Return the calibration as it was chosen, in place of ``auto``."""
        if choice is None or self.calibration != "auto":
            return {}
        if choice.folds:
            return {"calibration": choice.kind, "folds": choice.folds}
        share = choice.share
        part = {"calibration_share": share} if share and share < 1 else {}
        return {"calibration": choice.kind, **part}

    def _said(self, normals: Normals, choice: Choice | None) -> dict[str, Any]:
        """Return what is written down of the calibration, beside its scores."""
        reason = choice.reason if choice and self.calibration == "auto" else ""
        return {"asked": self.calibration, "reason": reason, "notes": list(normals.notes)}

    def _measured(self, normals: Normals, models: Sequence[AnomalyModel]) -> dict[str, float]:
        """Return what the method says of held-out images, if there are any."""
        (model, *others) = models
        if others or normals.held is None or not isinstance(model, Autoencoder):
            return {}
        if type(model).measure is Autoencoder.measure:  # which has nothing to say
            return {}
        every = -(-len(normals.held.rows) // _MOST_MEASURED)
        some = take(normals.held, np.arange(len(normals.held.rows)) % every == 0)
        x = to_model_input(torch.from_numpy(some.pixels), standardize=self.standardize)
        return model.measure(x, units_of(some).member.tolist())

    def _plain_params(self, training: TrainingSettings, more: Mapping[str, Any]) -> dict[str, Any]:
        """Return every parameter as it was used; ``more`` options came with the images."""
        params = self.get_params(deep=False)
        params["method"] = models.method_name(self._method)
        # What was left to the defaults is kept as it was then: these may change.
        params["scorer"] = self._scorer_name
        params["reduction"] = self._build_scorer().settings.reduction
        params["image_size"] = self._image_size
        params["method_options"], params["members"] = {**self._method_options, **more} or None, None
        params |= {k: getattr(training, k) for k in ("recipe", "epochs", "learning_rate")}
        return {k: _plain(v) for k, v in params.items()}

    # --- what was fitted ---

    def _fitted(self) -> FittedDetector:
        return fitted_of(self)

    @property
    def models_(self) -> tuple[AnomalyModel, ...]:
        """The fitted models, with ``cv+`` one per fold."""
        return self._fitted().models

    @property
    def model_(self) -> AnomalyModel:
        """The fitted model; with ``cv+`` the first of ``models_``."""
        return self._fitted().models[0]

    @property
    def scorers_(self) -> tuple[scorers.Scorer, ...]:
        """The fitted scorer of each model."""
        return self._fitted().scorers

    @property
    def scorer_(self) -> scorers.Scorer:
        """The fitted scorer; with ``cv+`` the first of ``scorers_``."""
        return self._fitted().scorers[0]

    @property
    def rule_(self) -> IntensityRule | None:
        """The intensity rule of deep images, None if all were 8-bit."""
        return self._fitted().rule

    @property
    def calibration_(self) -> Calibration | None:
        """Scores of held-out normal images, None with ``calibration="none"``."""
        return self._fitted().calibration

    @property
    def colour_scale_(self) -> ColourScale:
        """The one scale of all pictures."""
        return self._fitted().colour_scale

    @property
    def decision_scores_(self) -> NDArray[np.float64]:
        """Scores of the held-out (else of the training) normal images."""
        return self._fitted().normal_scores

    @property
    def history_(self) -> Sequence[Mapping[str, float]]:
        """Losses by epoch."""
        return self._fitted().history

    @property
    def latent_dim_(self) -> int:
        """Size of the bottleneck that was used."""
        return self._fitted().latent_dim

    @property
    def training_(self) -> TrainingSettings:
        """The settings of the training that were used."""
        return type(self)(**_settings_of(self._fitted().params))._training_settings()

    @property
    def info_(self) -> Mapping[str, Any]:
        """Data, versions, durations; ``measured`` is what a method says of held-out images."""
        return self._fitted().info

    @property
    def skipped_(self) -> Sequence[tuple[Path, str]]:
        """(path, reason) of normal images that could not be read."""
        return self._fitted().skipped

    @property
    def device_(self) -> torch.device:
        """Where the models are."""
        return self._fitted().device

    @property
    def threshold_(self) -> float:
        """Score above which an image is flagged at the false-positive rate ``fpr``.

        Raises:
            SettingsError: with ``cv+``, whose models have no common scale.
        """
        return self._fitted().require_calibration().threshold(self.fpr)

    # --- score ---

    def anomaly_score(self, x: Images) -> NDArray[np.float64]:
        """Return one score per image (N,), higher is more anomalous."""
        return self._fitted().anomaly_score(x)

    def decision_function(self, x: Images) -> NDArray[np.float64]:
        """Return `anomaly_score`; PyOD's name and sign."""
        return self.anomaly_score(x)

    def anomaly_map(self, x: Images) -> NDArray[np.float32]:
        """Return one map per image (N, S, S), higher is more anomalous."""
        return self._fitted().anomaly_map(x)

    def similar_normals(self, x: Images, k: int = SHOWN) -> SimilarNormals:
        """Return the normal images that each image resembles most, with their pictures.

        See `FittedDetector.similar_normals`.
        """
        return self._fitted().similar_normals(x, k)

    def calibrated_map(self, x: Images) -> NDArray[np.float32]:
        """Return one calibrated map per image (N, S, S); see `FittedDetector.calibrated_map`."""
        return self._fitted().calibrated_map(x)

    def findings(self, x: Images) -> list[list[Finding]]:
        """Return each image's areas above normal ones; see `FittedDetector.findings`."""
        return self._fitted().findings(x)

    def p_value(self, x: Images) -> NDArray[np.float64]:
        """Return the share of normal images that score at least as high, (N,) in (0, 1].

        Raises:
            NotFittedError: if the detector was fitted without calibration.
        """
        return self._fitted().p_value(x)

    def predict(self, x: Images) -> NDArray[np.int64]:
        """Return 1 for images flagged at the false-positive rate ``fpr``, 0 for others.

        Raises:
            NotFittedError: if the detector was fitted without calibration.
            SettingsError: if too few normal images were held out to certify the rate.
        """
        return self._fitted().predict(x, fpr=self.fpr)

    def fit_predict(
        self, x: Images, y: Sequence[Any] | NDArray[Any] | None = None
    ) -> NDArray[np.int64]:
        """Fit on normal images, then return `predict` of the same ones, PyOD's and scikit-learn's.

        The model has seen most of them, so that fewer than ``fpr`` of them are flagged: this says
        nothing of new images.
        """
        return self.fit(x, y).predict(x)

    def _repr_html_(self) -> str:
        if not hasattr(self, "fitted_"):
            return f"<pre>{escape(repr(self))}</pre>"
        return super()._repr_html_()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def calibrate(
        self, normals: Images, *, patient_ids: Sequence[str | None] | None = None
    ) -> Self:
        """Calibrate on other normal images, without training; see `FittedDetector.calibrate`."""
        self.fitted_ = self._fitted().calibrate(normals, patient_ids=patient_ids)
        return self

    # --- save and load ---

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a run folder without pickles; return its path.

        Raises:
            RunError: if the folder holds something already, or cannot be written.
        """
        return self._fitted().save(path, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        trust: bool = False,
        backbone: str | Path | None = None,
    ) -> Self:
        """Read a run folder, with the settings that it was fitted with.

        Args:
            path: the folder that ``fit`` or `save` wrote.
            device: where to score, whatever the device it was fitted on.
            trust: as of `FittedDetector.load`.
            backbone: likewise.

        Raises:
            RunError: if a file is missing, damaged or was edited.
            UntrustedError: if the folder names code of its own and ``trust`` is False.
        """
        fitted = FittedDetector.load(path, device=device, trust=trust, backbone=backbone)
        try:
            self = cls(**_settings_of(fitted.params))
        except TypeError as error:
            raise RunError(f"{path}: is damaged ({error}); fit the model again") from error
        self.fitted_ = fitted
        return self


def _settings_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values as the constructor takes them."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}


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


def _rules(where: Sequence[str]) -> tuple[str, ...]:
    check_kind("where", where, "texts")
    return tuple(where)


def _described(
    normals: Normals, choice: Choice | None, others: Unlabelled | None = None
) -> dict[str, Any]:
    """Return what is written down of the data."""
    train, held = normals.train, normals.held
    calibrating = train if choice and choice.folds else held
    return {
        "name": normals.name,
        "fingerprint": fingerprint(train.pixels),
        "calibration_fingerprint": fingerprint(held.pixels) if held else "",
        "train_images": len(train.rows),
        "calibration_images": len(calibrating.rows) if calibrating else 0,
        "skipped": len(train.skipped) + (len(held.skipped) if held else 0),
        **({"unlabelled": others.described()} if others else {}),
    }


def _warn(fitted: FittedDetector) -> None:
    """Say in Python what the command line prints: what is weak about the p-values."""
    said = fitted.info["calibration"]
    notes = [*said["notes"]]
    if fitted.calibration is not None:
        weak = fitted.calibration.advice(fitted.params["fpr"])
        if weak or (fitted.calibration.kind == "cv+" and said["asked"] == "auto"):
            why = f": {said['reason']}" if said["reason"] else ""
            notes.append(f"{fitted.calibration.certifies()}{why}")
        notes += [*weak, *fitted.calibration.of_unknown_patients()]
    for note in notes:
        warnings.warn(note, CalibrationWarning, stacklevel=3)


def _pair(name: str, values: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = values
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{name} must be two numbers (low, high), got {values!r}") from error
    for value in (low, high):
        check_kind(f"each of {name}", value, "number")
    return low, high


def _plain(value: Any) -> Any:
    """Return a parameter as JSON has it: no tuple, no NumPy scalar."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
