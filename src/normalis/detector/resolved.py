"""The parameters of a detector, what was left open filled in, as settings of the steps of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from normalis import models, scorers
from normalis.errors import SettingsError
from normalis.errors.arguments import check_kind
from normalis.loading.arrays import ImageSettings
from normalis.models.base import AnomalyModel, CompositeModel
from normalis.scorers.base import Scorer
from normalis.training.loop import pick_device
from normalis.training.params import check_params
from normalis.training.settings import TrainingSettings, settings_for

if TYPE_CHECKING:
    from normalis.detector.estimator import AnomalyDetector

__all__ = ["Resolved", "plain"]


class Resolved:
    """What the parameters of a detector come down to.

    Args:
        given: the detector; its parameters are read when they are asked for.
    """

    def __init__(self, given: AnomalyDetector) -> None:
        self.given = given

    @property
    def image_settings(self) -> ImageSettings:
        """How images are read."""
        return ImageSettings(
            image_size=self.image_size,
            channels=self.given.channels,
            plane=self.given.plane,
            slice_range=_pair("slice_range", self.given.slice_range),
            window=None if self.given.window is None else _pair("window", self.given.window),
            percentiles=_pair("percentiles", self.given.percentiles),
            margin=self.given.margin,
            where=_rules(self.given.where),
        )

    @property
    def image_size(self) -> int:
        """The side that was asked for, else what is usual for the method."""
        if self.given.image_size is not None:
            return self.given.image_size
        return models.model_class(self.method).default_image_size(self.method_options)

    @property
    def method(self) -> str | type[AnomalyModel]:
        """The method, which ``members`` may choose."""
        method, members = self.given.method, self.given.members
        if members is None:
            return method
        if method != "panel" or isinstance(members, str) or not len(members):
            raise SettingsError(
                "members must be a list of methods, for the method panel; got "
                f"{members!r} for {method!r}"
            )
        return members[0] if len(members) == 1 else "panel"

    @property
    def recipe(self) -> str:
        """The recipe of the training."""
        if self.given.recipe != "auto":
            return self.given.recipe
        return "fast" if self.is_panel else "paper"

    @property
    def is_panel(self) -> bool:
        """Whether the method joins several."""
        return issubclass(models.model_class(self.method), CompositeModel)

    def training(self, n_images: int = 0) -> TrainingSettings:
        """Return the settings of the training on so many images."""
        return settings_for(
            self.recipe,  # type: ignore[arg-type]
            n_images=n_images,
            epochs=self.given.epochs,
            batch_size=self.given.batch_size,
            learning_rate=self.given.learning_rate,
            precision=self.given.precision,
            standardize=self.given.standardize,
            keep_epoch=self.given.keep_epoch,
        )

    def build(self, **more: Any) -> AnomalyModel:
        """Return a new model; ``more`` are options on top of the method's."""
        latent = self.given.latent_dim
        width = {} if isinstance(latent, str) else {"latent_dim": latent}
        return models.build(
            self.method,
            seed=self.given.random_state,
            image_size=self.image_size,
            channels=self.given.channels,
            **width,
            **{**self.method_options, **more},
        )

    @property
    def method_options(self) -> dict[str, Any]:
        """What is usual for the method, and on top of it what was asked for."""
        own = {
            **models.model_class(self.method).default_options,
            **(self.given.method_options or {}),
        }
        if self.given.members is not None and self.is_panel:
            own["members"] = "+".join(self.given.members)
        return own

    def build_scorer(self) -> Scorer:
        """Return a new scorer."""
        return scorers.build_with(self.scorer_name, self.given.reduction, self.given.scorer_options)

    @property
    def scorer_name(self) -> str:
        """The scorer that was asked for, else the method's."""
        if self.given.scorer != "auto":
            return self.given.scorer
        return scorers.default_scorer(models.model_class(self.method))

    def check(self) -> None:
        """Fail before any image is read if a setting is out of its range."""
        check_params(self.given.get_params(deep=False))
        if self.is_panel:
            self._check_panel()
        _ = self.image_settings, self.training(), pick_device(self.given.device)
        self.build_scorer()

    def _check_panel(self) -> None:
        if self.given.calibration == "cv+":
            raise SettingsError(
                "a panel's readings are measured by held-out images, so its calibration must be "
                "split or none, got cv+; for few images cross-fit one of its members: "
                'members=("feature-knn",) with calibration cv+'
            )
        if self.given.keep_epoch != "last":
            raise SettingsError(
                "a panel keeps the last epoch of its networks: leave out keep_epoch, or fit one "
                "member"
            )
        if (
            self.given.scorer != "auto"
            or self.given.reduction is not None
            or self.given.scorer_options
        ):
            raise SettingsError(
                "a panel reads each member by the member's own scorer: leave out scorer, reduction "
                "and scorer_options, or fit one member"
            )

    def plain_params(self, training: TrainingSettings, more: Mapping[str, Any]) -> dict[str, Any]:
        """Return every parameter as it was used; ``more`` options came with the images."""
        params = self.given.get_params(deep=False)
        params["method"] = models.method_name(self.method)
        # What was left to the defaults is kept as it was then: these may change.
        params["scorer"] = self.scorer_name
        params["reduction"] = self.build_scorer().settings.reduction
        params["image_size"] = self.image_size
        params["method_options"], params["members"] = {**self.method_options, **more} or None, None
        params |= {k: getattr(training, k) for k in ("recipe", "epochs", "learning_rate")}
        return {k: plain(v) for k, v in params.items()}


def _rules(where: Sequence[str]) -> tuple[str, ...]:
    check_kind("where", where, "texts")
    return tuple(where)


def _pair(name: str, values: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = values
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{name} must be two numbers (low, high), got {values!r}") from error
    for value in (low, high):
        check_kind(f"each of {name}", value, "number")
    return low, high


def plain(value: Any) -> Any:
    """Return a parameter as JSON has it: no tuple, no NumPy scalar."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
