"""The same trained models, calibrated on other normal images or read by another scorer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from normalis import scorers
from normalis.calibration.grouped import calibrate_groups
from normalis.errors import CalibrationWarning, DataError, SettingsError
from normalis.fitting import calibrate_on, watches
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
from normalis.models.base import CompositeModel

if TYPE_CHECKING:
    from normalis.fitted.detector import FittedDetector

    T = TypeVar("T", bound=FittedDetector)

__all__ = ["calibrated", "read_by"]


def calibrated(
    fitted: T,
    normals: Images,
    *,
    patient_ids: Sequence[str | None] | None = None,
    by: str | None = None,
) -> T:
    """Return a detector calibrated on other normal images; see `FittedDetector.calibrate`."""
    if by is not None and isinstance(fitted.models[0], CompositeModel):
        raise SettingsError(
            "a panel fuses its members' ranks among all held-out images, so that it has no "
            "p-values within groups; calibrate one of its members by group"
        )
    found = normal_images(
        normals, fitted.image_settings, patient_ids=patient_ids, rule=fitted.rule, fit_rule=False
    )
    held, mark = with_units(found.train), fingerprint(found.train.pixels)
    _refuse_seen(fitted, held, found.name, mark)
    fixed = calibrate_on(fitted, None, held)
    note = {"name": found.name, "fingerprint": mark, "images": len(held.rows)}
    notes = [*units_of(held).notes]
    said = {"asked": "split", "reason": "", "notes": notes}
    info = {**fitted.info, "calibrated_on": note, "calibration": said}
    grouped = None
    if by is not None:
        units = units_of(held)
        values = [row.header.get(by) for row in held.rows]
        grouped = calibrate_groups(
            fixed.normal_scores, values, by=by, patients=units.member, level=units.level
        )
        notes += grouped.too_few(fitted.params["fpr"])
    again = replace(fitted, **vars(fixed), info=info, grouped=grouped)
    new = again.require_calibration()
    for text in (*notes, *new.advice(fitted.params["fpr"]), *new.of_unknown_patients()):
        warnings.warn(text, CalibrationWarning, stacklevel=3)
    return again


def _refuse_seen(fitted: FittedDetector, held: Loaded, name: str, mark: str) -> None:
    """Refuse images that were trained on: their scores are too low to calibrate."""
    if mark == fitted.info.get("data", {}).get("fingerprint"):
        raise DataError(
            f"{name}: the detector was trained on these images; calibrate it on normal "
            "images that it has not seen"
        )
    known = np.concatenate([fitted.trained_on, fitted.unlabelled_on])
    seen = np.flatnonzero(np.isin(image_marks(held.pixels), known))
    if seen.size:
        first = [str(held.rows[i].path) for i in seen[:3]]
        raise DataError(
            f"{name}: the detector was trained on {seen.size} of these {len(held.rows)} images "
            f"({', '.join(dict.fromkeys(first))}); calibrate it on normal images that it has "
            "not seen"
        )


def read_by(
    fitted: T,
    normals: Images,
    *,
    patient_ids: Sequence[str | None] | None = None,
    scorer: str,
    reduction: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> T:
    """Return a detector read by another scorer; see `FittedDetector.with_scorer`."""
    given, seed = dict(options or {}), fitted.params["random_state"]
    built = tuple(scorers.build_with(scorer, reduction, given) for _ in fitted.models)
    found = _images_of_the_fit(fitted, normals, patient_ids)
    fold = _folds_of_the_fit(fitted, found.train)
    named = {"scorer": scorer, "reduction": built[0].settings.reduction}
    params = {**fitted.params, **named, "scorer_options": given or None}
    other = replace(fitted, scorers=built, params=params)
    fixed = calibrate_on(other, found.train, found.held, fold=fold, seed=seed)
    info = {k: v for k, v in fitted.info.items() if k != "calibrated_on"}
    return replace(other, **vars(fixed), info=info, grouped=None)


def _images_of_the_fit(
    fitted: FittedDetector, x: Images, patient_ids: Sequence[str | None] | None
) -> Normals:
    """Part the normal images as the fit did.

    Raises:
        DataError: if they are others, or part otherwise.
    """
    params = fitted.params
    share = params["calibration_share"] if params["calibration"] == "split" else None
    found = normal_images(
        x,
        fitted.image_settings,
        patient_ids=patient_ids,
        hold_out=share,
        watch=watches(fitted.models[0], params.get("keep_epoch", "last")),
        seed=params["random_state"],
    )
    if fingerprint(found.train.pixels) != fitted.info["data"]["fingerprint"]:
        raise DataError(
            "the normal images must be those that the detector was fitted on, with the same "
            "patient_ids, for the ones held out then; got others "
            f"({found.name}, fitted on {fitted.info['data']['name']})"
        )
    return found


def _folds_of_the_fit(fitted: FittedDetector, train: Loaded) -> NDArray[np.int64] | None:
    """Return the fold of each image, None without folds.

    Raises:
        DataError: if they are not those of the fit: images would be scored by models that have
            seen them.
        SettingsError: if the detector no longer knows those.
    """
    if fitted.params["calibration"] != "cv+":
        return None
    if "calibrated_on" in fitted.info:
        raise SettingsError(
            "a detector of cv+ that was calibrated elsewhere does not know its folds any more: "
            "read the one of the fit by another scorer, and calibrate that"
        )
    found = folds(train, fitted.params["folds"], fitted.params["random_state"])
    if not np.array_equal(found, fitted.require_calibration().fold):
        raise DataError(
            "the normal images must fall into the folds of the fit: give the same patient_ids"
        )
    return found
