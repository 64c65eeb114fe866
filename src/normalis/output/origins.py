"""Where an image comes from, so that tables join with those of a hospital: UIDs, numbers, views.

`COLUMNS` are added to ``scores.csv``, each only if any image has it; ``series.csv`` has one row for
each series. Values are the header's; columns of a manifest that have these names go before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.grouped import unit_p_values
from normalis.loading.unlabelled import LEARNED_FROM

if TYPE_CHECKING:
    from normalis.calibration.conformal import Calibration
    from normalis.calibration.grouped import Grouped
    from normalis.loading.arrays import Row

__all__ = ["COLUMNS", "SERIES_COLUMNS", "columns_of", "origin_of", "series_rows"]

#: In this order, after the columns that every table of scores has.
COLUMNS = (
    "study_uid", "series_uid", "sop_uid", "frame", "instance_number", "series_number",
    "series_description", "view", "laterality", "accession_number", LEARNED_FROM,
)  # fmt: skip
#: Of series.csv; ``lie`` says how the slices lie in space.
SERIES_COLUMNS = (
    "series_uid", "study_uid", "patient_id", "series_number", "series_description", "view",
    "plane", "lie", "images", "anomaly_score", "p_value", "worst_path", "worst_slice",
    "worst_sop_uid", "worst_instance_number",
)  # fmt: skip


def origin_of(row: Row) -> str:
    """Return what is known of an image's origin, as JSON; empty if nothing is."""
    header = row.header
    found = {name: str(header[name]) for name in COLUMNS if header.get(name) not in (None, "")}
    if "sop_uid" in found and row.slice_index is not None:
        found["frame"] = str(int(row.slice_index) + 1)  # DICOM counts from 1
    return json.dumps(found) if found else ""


def columns_of(origins: Iterable[str]) -> list[str]:
    """Return the columns that any image has."""
    known: set[str] = set()
    for text in set(origins):
        known |= json.loads(text).keys() if text else set()
    return [name for name in COLUMNS if name in known]


def series_rows(
    lines: Sequence[Mapping[str, Any]],
    about: Sequence[Mapping[str, Any]],
    scores: NDArray[np.float64],
    groups: Sequence[Any],
    calibration: Calibration | Grouped | None,
) -> Iterator[list[Any]]:
    """Yield the rows of ``series.csv``, the most anomalous series first.

    The p-value is that of a unit with the images of the series: exact for a new normal patient who
    has this series alone, if it has about as many images as those that calibrate.

    Args:
        lines: N rows of ``scores.csv`` of the images that have a series.
        about: N times what the data set says of the image, with ``plane`` and ``lie``.
        scores: what the calibration reads: (N,), of a cross-fitted detector (F, N).
        groups: N times the value of what the calibration groups by.
        calibration: of the model, or of its groups.
    """
    if not lines:
        return
    uids = np.array([line["series_uid"] for line in lines])
    names, member = np.unique(uids, return_inverse=True)
    score = np.array([float(line["anomaly_score"]) for line in lines])
    order = np.lexsort((-score, member))
    worst = order[np.searchsorted(member[order], np.arange(names.size))]
    images = np.bincount(member, minlength=names.size)
    known: dict[str, tuple[float, int]] = {}
    if calibration is not None:
        known = unit_p_values(calibration, scores, uids.tolist(), groups)
    for k in np.argsort(-score[worst], kind="stable"):
        line, said = lines[worst[k]], about[worst[k]]
        p_value, units = known.get(str(names[k]), (np.nan, 0))
        yield [
            *(line.get(name, "") for name in SERIES_COLUMNS[:6]),
            said.get("plane", ""),
            said.get("lie", ""),
            int(images[k]),
            line["anomaly_score"],
            p_value if units else "",
            line["path"],
            line["slice"],
            line.get("sop_uid", ""),
            line.get("instance_number", ""),
        ]
