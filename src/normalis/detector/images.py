"""The images that a detector is fitted on, and how those held out calibrate it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis import models
from normalis.calibration.choice import Choice, choose
from normalis.detector.resolved import Resolved
from normalis.errors import SettingsError
from normalis.loading.arrays import Loaded
from normalis.loading.held_out import (
    Images,
    Normals,
    fingerprint,
    folds,
    image_marks,
    normal_images,
    units_of,
    with_units,
)
from normalis.loading.unlabelled import Unlabelled, unlabelled_images

__all__ = ["FitImages", "ReadUnlabelled", "read_images", "unlabelled_reader"]

#: Reads the unlabelled images, given the normal ones and what these were read from.
ReadUnlabelled = Callable[[Normals, Images], Unlabelled]

_NONE = np.empty(0, np.uint64)


@dataclass(frozen=True, eq=False, kw_only=True)
class FitImages:
    """Normal images to train on and to hold out, and unlabelled ones beside them.

    Attributes:
        normals: as they were read and parted.
        choice: how they calibrate; None if they do not.
        others: unlabelled images, where there are any.
    """

    normals: Normals
    choice: Choice | None
    others: Unlabelled | None = None

    @property
    def train(self) -> Loaded:
        """Images that are trained on."""
        return self.normals.train

    @property
    def held(self) -> Loaded | None:
        """Images that calibrate; None with folds, or if there are none."""
        return self.normals.held

    @property
    def n_folds(self) -> int:
        """Folds of the calibration; 0 without."""
        return self.choice.folds if self.choice else 0

    @property
    def options(self) -> dict[str, Any]:
        """Options of the method that follow from the images."""
        return {"unlabelled": len(self.others.loaded.rows)} if self.others else {}

    @property
    def unlabelled_marks(self) -> NDArray[np.uint64]:
        """A mark of each unlabelled image."""
        return image_marks(self.others.loaded.pixels) if self.others else _NONE

    def folds(self, seed: int) -> NDArray[np.int64] | None:
        """Return the fold of each training image; None without folds."""
        return folds(self.train, self.n_folds, seed) if self.n_folds else None

    def described(self) -> dict[str, Any]:
        """Return what is written down of the data."""
        train, held = self.train, self.held
        calibrating = train if self.n_folds else held
        return {
            "name": self.normals.name,
            "fingerprint": fingerprint(train.pixels),
            "calibration_fingerprint": fingerprint(held.pixels) if held else "",
            "train_images": len(train.rows),
            "calibration_images": len(calibrating.rows) if calibrating else 0,
            "skipped": len(train.skipped) + (len(held.skipped) if held else 0),
            **({"unlabelled": self.others.described()} if self.others else {}),
        }


def read_images(
    asked: Resolved,
    x: Images,
    *,
    patient_ids: Sequence[str | None] | None,
    watches: bool,
    beside: ReadUnlabelled | None,
) -> FitImages:
    """Read the images of a fit.

    Args:
        asked: the detector's settings.
        x: the normal images.
        patient_ids: (N,) for arrays.
        watches: whether half of what is held out is for the method to watch while it trains.
        beside: reads the unlabelled images; None if there are none.
    """
    chosen: list[Choice] = []

    def decide(n_units: int) -> float | None:
        chosen.append(_choose(asked, n_units, cross_fit=not (watches or asked.is_panel)))
        return chosen[0].share

    given = asked.given
    normals = normal_images(
        x,
        asked.image_settings,
        patient_ids=patient_ids,
        hold_out=decide if given.calibration in ("auto", "split") else None,
        watch=watches,
        seed=given.random_state,
    )
    normals, choice = _calibrating(asked, normals, chosen)
    others = beside(normals, x) if beside else None
    return FitImages(normals=normals, choice=choice, others=others)


def _calibrating(
    asked: Resolved, normals: Normals, chosen: Sequence[Choice]
) -> tuple[Normals, Choice | None]:
    """Return the images, and how they calibrate; None if they do not."""
    if asked.given.calibration == "none":
        return normals, None
    if asked.given.calibration == "cv+":
        train = with_units(normals.train)
        units = units_of(train)
        plus = Choice(kind="cv+", n_units=units.n, folds=asked.given.folds)
        return replace(normals, train=train, notes=units.notes), plus
    held = normals.held.units.n if normals.held and normals.held.units else 0
    given = Choice(kind="split", n_units=held, held=held, reason="of the validation split")
    return normals, chosen[0] if chosen else given


def _choose(asked: Resolved, n_units: int, *, cross_fit: bool) -> Choice:
    given = asked.given
    if given.calibration == "auto":
        return choose(n_units, given.fpr, folds=given.folds, cross_fit=cross_fit)
    held = given.calibration_share * n_units
    return Choice(kind="split", n_units=n_units, held=max(1, round(held)))


def unlabelled_reader(
    asked: Resolved, unlabelled: Images | None, overlap: str
) -> ReadUnlabelled | None:
    """Return what reads the unlabelled images once the normal ones are there.

    Raises:
        SettingsError: if the method has no use for them.
    """
    if unlabelled is None and (said := asked.method_options.get("unlabelled")):
        raise SettingsError(
            f"unlabelled = {said} images were said and none are there: give them (--unlabelled "
            "FOLDER, unlabelled=...); their number is counted"
        )
    if unlabelled is None:
        return None
    if not models.model_class(asked.method).learns_unlabelled:
        able = [m for m in models.MODELS if models.model_class(m).learns_unlabelled]
        raise SettingsError(
            f"the method {models.method_name(asked.method)} learns from normal images alone: "
            f"leave out unlabelled (--unlabelled), or choose {' or '.join(able)}"
        )

    def read(normals: Normals, source: Images) -> Unlabelled:
        return unlabelled_images(
            unlabelled, asked.image_settings, normals=normals, source=source, overlap=overlap
        )

    return read
