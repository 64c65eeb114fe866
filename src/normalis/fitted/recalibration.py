"""The same trained models, calibrated on other normal images or read by another scorer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from normalis import scorers
from normalis.calibration.grouped import calibrate_groups
from normalis.errors import CalibrationWarning, DataError, SettingsError
from normalis.fitting import calibrate_on
from normalis.loading.arrays import Loaded
from normalis.loading.held_out import (
    Images,
    fingerprint,
    folds,
    image_marks,
    normal_images,
    units_of,
    with_units,
)
from normalis.models.base import Autoencoder

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
    if by is not None and fixed.calibration and fixed.calibration.readings is not None:
        raise SettingsError(
            "a panel fuses its members' ranks among all held-out images, so that it has no "
            "p-values within groups; calibrate one of its members by group"
        )
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
    scorer: str,
    reduction: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> T:
    """Return a detector read by another scorer; see `FittedDetector.with_scorer`."""
    given, seed = dict(options or {}), fitted.params["random_state"]
    read_by = [scorers.build_with(scorer, reduction, given) for _ in fitted.models]
    split = fitted.params["calibration"] == "split"
    share = fitted.params["calibration_share"] if split else None
    found = normal_images(
        normals, fitted.image_settings, hold_out=share, watch=_watched(fitted), seed=seed
    )
    if fingerprint(found.train.pixels) != fitted.info["data"]["fingerprint"]:
        raise DataError(
            "the normal images must be those that the detector was fitted on, for the ones "
            f"held out then; got others ({found.name}, fitted on {fitted.info['data']['name']})"
        )
    named = {"scorer": scorer, "reduction": read_by[0].settings.reduction}
    params = {**fitted.params, **named, "scorer_options": given or None}
    other = replace(fitted, scorers=tuple(read_by), params=params)
    cross = fitted.params["calibration"] == "cv+"
    fold = folds(found.train, fitted.params["folds"], seed) if cross else None
    fixed = calibrate_on(other, found.train, found.held, fold=fold, seed=seed)
    info = {k: v for k, v in fitted.info.items() if k != "calibrated_on"}
    return replace(other, **vars(fixed), info=info)


def _watched(fitted: FittedDetector) -> bool:
    """Whether the method watched a part of what was held out, while it was trained."""
    model = fitted.models[0]
    split = fitted.params["calibration"] == "split"
    return split and isinstance(model, Autoencoder) and model.needs_held_out
