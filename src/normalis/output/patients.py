"""One row for each patient: the worst image, and an exact p-value of the patient as a whole.

A patient with many images has more chances to be flagged by one of them. `patients.csv` says of the
patient what `scores.csv` says of images: among new normal patients at most a share alpha has
``p_value <= alpha`` (`Calibration.patient_p_values`), if they have about as many images as those
that calibrate. A row is a unit of `normalis.loading.units.unit_name`: a patient, a study without
patient, or a file of which neither is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.conformal import Calibration, benjamini_hochberg
from normalis.errors import SettingsError

__all__ = ["COLUMNS", "Patients", "summarise_patients"]

COLUMNS = (
    "patient", "images", "worst_path", "worst_slice", "anomaly_score", "p_value",
    "calibration_units", "adjusted_p_value", "flagged", "warning",
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Patients:
    """The units of scored images, the most anomalous first.

    Attributes:
        name: U names.
        images: (U,) images of each.
        worst: (U,) number of the image with the highest score.
        p_value: (U,); None without calibration.
        adjusted: (U,) p-values adjusted for the false discovery rate; None if none was asked for.
        flagged: (U,); None where nothing can be flagged.
        warning: U texts, empty where nothing is odd.
        n_units: units K that calibrate; 0 without calibration.
    """

    name: list[str]
    images: NDArray[np.int64]
    worst: NDArray[np.int64]
    p_value: NDArray[np.float64] | None
    adjusted: NDArray[np.float64] | None
    flagged: NDArray[np.bool_] | None
    warning: list[str]
    n_units: int


def summarise_patients(
    calibration: Calibration | None,
    units: Sequence[str],
    anomaly_score: NDArray[np.float64],
    scores: NDArray[np.float64],
    *,
    fpr: float,
    fdr: float | None = None,
) -> Patients:
    """Return the units of scored images with their p-values.

    Args:
        calibration: of the model; None if there is none.
        units: (N,) name of each image's unit.
        anomaly_score: (N,) scores that are shown.
        scores: what the calibration reads: (N,), of a cross-fitted detector (F, N).
        fpr: share of normal units that may be flagged.
        fdr: flag instead so that at most this share of the flagged units is normal.
    """
    names, first, member = np.unique(np.array(units), return_index=True, return_inverse=True)
    order = np.lexsort((-anomaly_score, member))  # by unit, the worst first
    worst = order[np.searchsorted(member[order], np.arange(names.size))]
    images = np.bincount(member, minlength=names.size)
    p_value = adjusted = flagged = None
    warning = [""] * names.size
    if calibration is not None and names.size:
        _, p_value = calibration.patient_p_values(scores, np.array(units))
        warning = _odd_numbers(calibration, images)
        if fdr is not None:  # for cv+ nothing is proven of how p-values depend on each other
            adjusted = benjamini_hochberg(p_value, dependent=calibration.kind != "split")
        flagged = _flags(calibration, p_value, adjusted, fpr, fdr)
    ranked = np.lexsort((first, -anomaly_score[worst]))
    if p_value is not None:
        ranked = ranked[np.argsort(p_value[ranked], kind="stable")]
    return Patients(
        name=[str(names[i]) for i in ranked],
        images=images[ranked],
        worst=worst[ranked],
        p_value=None if p_value is None else p_value[ranked],
        adjusted=None if adjusted is None else adjusted[ranked],
        flagged=None if flagged is None else flagged[ranked],
        warning=[warning[i] for i in ranked],
        n_units=calibration.n_units if calibration else 0,
    )


def _flags(
    calibration: Calibration,
    p_value: NDArray[np.float64],
    adjusted: NDArray[np.float64] | None,
    fpr: float,
    fdr: float | None,
) -> NDArray[np.bool_] | None:
    if adjusted is not None and fdr is not None:
        return calibration.flags(adjusted, fdr)
    try:
        calibration.check_rate(fpr)
    except SettingsError:  # too few normals to certify the level: nothing can be flagged
        return None
    return calibration.flags(p_value, fpr)


def _odd_numbers(calibration: Calibration, images: NDArray[np.int64]) -> list[str]:
    """Say where a unit has far more or fewer images than those that calibrate."""
    low, high = np.quantile(calibration.images_per_unit(), [0.05, 0.95])
    usual = f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
    said = []
    for count in images.tolist():
        way = "small" if count > 2 * high else "large" if 2 * count < low else ""
        text = f"{count} images where those that calibrate have {usual}: the p-value may be too"
        said.append(f"{text} {way}" if way else "")
    return said
