"""`AnomalyDetector`: its parameters, and the verbs that fit, save and load it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from normalis import models
from normalis.detector.fit import fit_detector
from normalis.detector.handed_on import HandedOn
from normalis.detector.images import unlabelled_reader
from normalis.detector.resolved import Resolved, plain
from normalis.errors import CalibrationWarning, RunError
from normalis.errors.arguments import path_of
from normalis.fitted import FittedDetector
from normalis.loading.arrays import ImageSettings
from normalis.loading.held_out import Images
from normalis.loading.labels import check_all_normal
from normalis.models.base import AnomalyModel, Footprint
from normalis.notebook.progress import listener
from normalis.storage import RunFolder
from normalis.training.loop import Progress
from normalis.training.settings import TrainingSettings

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


class AnomalyDetector(HandedOn, BaseEstimator):
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

    @property
    def image_settings(self) -> ImageSettings:
        """How images are read, from the parameters."""
        return Resolved(self).image_settings

    def _checked(self, **more: Any) -> AnomalyModel:
        """Fail before any image is read if a setting is out of its range; return the model."""
        asked = Resolved(self)
        asked.check()
        ready, self._ready = self._ready, None
        if ready and not more and ready[0] == self.get_params(deep=False):
            return ready[1]
        return asked.build(**more)

    # --- fit ---

    def footprint(self, images: int) -> Footprint | None:
        """Return what fitting on so many normal images will take, before it starts.

        Args:
            images: number of normal images, held-out ones among them.

        Returns:
            None for methods that know nothing of it.
        """
        asked = Resolved(self)
        if models.model_class(asked.method).footprint is AnomalyModel.footprint:
            return None
        self._ready = self.get_params(deep=False), asked.build()
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
        asked = Resolved(self)
        beside = unlabelled_reader(asked, unlabelled, unlabelled_overlap)
        steps = partial(
            fit_detector,
            asked,
            self._checked(**({"unlabelled": 1} if beside else {})),  # how many is not known yet
            x,
            patient_ids=patient_ids,
            beside=beside,
            progress=hears,
        )
        self.fitted_ = steps() if run is None else self._fit_into(run, steps, overwrite=overwrite)
        _warn(self.fitted_)
        return self

    def _fit_into(
        self, run: str | Path, steps: Callable[..., FittedDetector], *, overwrite: bool
    ) -> FittedDetector:
        """Fit into a run folder, or answer from the finished run of the same fit."""
        folder = RunFolder(path_of("run", run))
        folder.check_writable(overwrite=overwrite or self._may_have_written(folder))
        with folder.locked():
            folder.check_writable(overwrite=overwrite or self._may_have_written(folder))
            if folder.finished and not overwrite:
                return steps(folder=folder, there=folder)
            fitted = steps(folder=folder)
            fitted.write(folder)
            return fitted

    def _may_have_written(self, folder: RunFolder) -> bool:
        """Return whether a finished run has the settings that were asked for; fast."""
        if not folder.finished:
            return False
        stored = folder.read_settings().get("params", {})
        method = models.method_name(Resolved(self).method)
        asked = self.get_params(deep=False) | {"method": method}
        open_ = ("device", "method_options", "scorer_options", "reduction", "scorer", "where",
                 "calibration_share", "folds", "members")  # fmt: skip
        fixed = {k: v for k, v in asked.items() if k not in open_ and v not in (None, "auto")}
        return all(stored.get(k) == plain(v) for k, v in fixed.items())

    @property
    def training_(self) -> TrainingSettings:
        """The settings of the training that were used."""
        return Resolved(type(self)(**_settings_of(self._fitted().params))).training()

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
        self,
        normals: Images,
        *,
        patient_ids: Sequence[str | None] | None = None,
        by: str | None = None,
    ) -> Self:
        """Calibrate on other normal images, without training; see `FittedDetector.calibrate`."""
        self.fitted_ = self._fitted().calibrate(normals, patient_ids=patient_ids, by=by)
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
