"""One row for each patient: the worst image, and an exact p-value of the patient as a whole.

A patient with many images has more chances to be flagged by one of them. `patients.csv` says of the
patient what `scores.csv` says of images: among new normal patients at most a share alpha has
``p_value <= alpha`` (`Calibration.patient_p_values`), if they have about as many images as those
that calibrate. A row is a unit of `normalis.loading.units.unit_name`: a patient, a study without
patient, or a file of which neither is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.conformal import Calibration
from normalis.calibration.grouped import Grouped, group_name
from normalis.calibration.levels import benjamini_hochberg

__all__ = ["COLUMNS", "Patients", "patient_rows", "summarise_patients"]

COLUMNS = (
    "patient", "images", "worst_path", "worst_slice", "anomaly_score", "p_value",
    "calibration_units", "adjusted_p_value", "flagged", "group", "warning",
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


def patient_rows(
    calibration: Calibration | Grouped | None,
    units: Sequence[str],
    groups: Sequence[str],
    anomaly_score: NDArray[np.float64],
    scores: NDArray[np.float64],
    where: Callable[[int], tuple[str, str]],
    *,
    fpr: float,
    fdr: float | None = None,
) -> list[tuple[Any, ...]]:
    """Return the rows of patients.csv, the smallest p-values first.

    Args:
        calibration: of the model, or of its groups: a unit with images in several groups then has
            a row in each.
        units: (N,) name of each image's unit.
        groups: (N,) value of what groups, read where the calibration is one of groups.
        anomaly_score: (N,) scores that are shown.
        scores: (N,) or (F, N), what the calibration reads.
        where: number of an image -> its path and slice as in scores.csv.
        fpr: as in `summarise_patients`.
        fdr: as in `summarise_patients`.
    """
    grouped = calibration if isinstance(calibration, Grouped) else None
    names = np.array([group_name(g) if grouped else "" for g in groups])
    rows: list[tuple[Any, ...]] = []
    for name in dict.fromkeys(names.tolist()):
        mine = np.flatnonzero(names == name)
        known = grouped.groups.get(name) if grouped else calibration
        assert not isinstance(known, Grouped)
        given = [units[i] for i in mine.tolist()], anomaly_score[mine], scores[..., mine]
        found = summarise_patients(known, *given, fpr=fpr, fdr=fdr)
        for i, unit in enumerate(found.name):
            worst = int(mine[found.worst[i]])
            rows.append((
                unit, int(found.images[i]), *where(worst), float(anomaly_score[worst]),
                _cell(found.p_value, i, float), found.n_units or "",
                _cell(found.adjusted, i, float), _cell(found.flagged, i, int), name,
                found.warning[i],
            ))  # fmt: skip
    return sorted(rows, key=lambda row: (row[5] == "", row[5] or 0.0))


def _cell(values: NDArray[Any] | None, i: int, kind: type) -> Any:
    return "" if values is None else kind(values[i])


def _flags(
    calibration: Calibration,
    p_value: NDArray[np.float64],
    adjusted: NDArray[np.float64] | None,
    fpr: float,
    fdr: float | None,
) -> NDArray[np.bool_] | None:
    if adjusted is not None and fdr is not None:
        return calibration.flags(adjusted, fdr)
    return calibration.flags(p_value, fpr) if calibration.certifies_rate(fpr) else None


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
