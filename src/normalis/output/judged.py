"""What the calibration says of scored images: p-values, flags, members, drift."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.grouped import unit_p_values
from normalis.output.noted import STATISTICS, Rows

if TYPE_CHECKING:
    from normalis.fitted import FittedDetector

__all__ = ["Judged", "judge", "study_p_values"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """What is said of N images.

    Attributes:
        p_values: (N,) NaN where nothing calibrates an image's group; None without calibration.
        flagged: (N,) None where nothing can be flagged.
        seen_by: N members of a panel that the images surprise most; empty without a panel.
        drift: sentences on how the images differ from the calibration's normals.
        too_few: sentences on groups that cannot be flagged; no group is pooled with another in
            silence.
    """

    p_values: NDArray[np.float64] | None
    flagged: NDArray[np.bool_] | None
    seen_by: list[str]
    drift: list[str]
    too_few: tuple[str, ...]


def judge(detector: FittedDetector, rows: Rows, fpr: float) -> Judged:
    """Judge images by a detector's calibration.

    Args:
        detector: fitted.
        rows: what was noted of the images.
        fpr: share of normal units that may be flagged.
    """
    p_values, flagged = _flags(detector, rows, fpr)
    return Judged(
        p_values=p_values,
        flagged=flagged,
        seen_by=_seen_by(detector, rows.scores),
        drift=_drift(detector, rows),
        too_few=() if detector.grouped is None else detector.grouped.too_few(fpr, rows.group),
    )


def _flags(
    detector: FittedDetector, rows: Rows, fpr: float
) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None]:
    """Return p-values and flags (N,), None where the calibration gives none."""
    if detector.calibration is None or not rows.scores.size:
        return None, None
    p_values = detector.p_values_of(rows.scores, rows.group)
    return p_values, detector.flags_of(p_values, rows.group, fpr)


def _seen_by(detector: FittedDetector, scores: NDArray[np.float64]) -> list[str]:
    """Return the member of a panel that each image surprises most; empty without a panel."""
    calibration = detector.calibration
    if calibration is None or calibration.readings is None or not scores.size:
        return []
    return calibration.seen_by(scores)


def _drift(detector: FittedDetector, rows: Rows) -> list[str]:
    """Return why the new images may not be of the calibration's kind, empty if they look it."""
    calibration = detector.calibration
    if calibration is None or not len(rows.sample):
        return []
    found = calibration.drift(
        rows.scores,
        patients=np.array(rows.unit),
        statistics={name: rows.values[:, 1 + i] for i, name in enumerate(STATISTICS)},
    )
    if found.reasons or not found.least_anomalous:
        return list(found.reasons)
    return [
        f"at least {found.least_anomalous:.0%} of the new {calibration.level}s must be "
        "anomalous; if fewer are, the images differ from those held out for calibration, and "
        "the false-positive rate does not hold"
    ]


def study_p_values(
    detector: FittedDetector, rows: Rows, leaves: Callable[[str, str], str]
) -> dict[str, dict[str, Any]]:
    """Return p-value and calibrating units of each study with its images, for result objects."""
    calibration = detector.grouped or detector.calibration
    known = [json.loads(text).get("study_uid", "") if text else "" for text in rows.origin]
    chosen = [i for i, uid in enumerate(known) if uid]
    if calibration is None or not chosen:
        return {"study_p_values": {}, "study_calibration_units": {}}
    groups = [rows.group[i] for i in chosen] if detector.grouped else []
    found = unit_p_values(calibration, rows.scores[..., chosen], [known[i] for i in chosen], groups)
    said = {leaves("study_uid", uid): one for uid, one in found.items()}
    return {
        "study_p_values": {uid: p for uid, (p, units) in said.items() if units},
        "study_calibration_units": {uid: units for uid, (_, units) in said.items() if units},
    }
