"""What the triage view needs in the browser: the cases, their pictures, and the calibration.

Everything is sent by column, as JSON; the page's script sorts, filters, counts and paints.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration
from normalis.errors import SettingsError
from normalis.files import ANY_NAME, as_utf8
from normalis.output.overlays import heat
from normalis.report.marks import read_marks
from normalis.report.pictures import EMBEDDED, find_pictures, read_picture
from normalis.report.sources import Cases, Source

__all__ = ["LEVELS", "level_thresholds", "triage_data"]

#: False-positive rates that the page offers and judges.
LEVELS = (0.10, 0.05, 0.01, 0.001)


def triage_data(source: Source) -> dict[str, Any]:
    """Return the plain values of the triage view.

    Args:
        source: a scoring.

    Returns:
        Columns ``path``, ``place``, ``patient``, ``score``, ``p``, ``label``, ``kind``, ``photo``,
        ``level``, ``rebuilt``, ``marks`` of equal length, and what belongs to all cases.
    """
    cases = source.cases
    if cases is None:
        raise TypeError("a run has no cases; triage_data takes a scoring")
    root, names = _split_root(cases.path)
    pictures = _pictures(source, cases)
    shown = [pictures.get(i) for i in range(len(cases))]
    return {
        "id": _identity(cases),
        "root": as_utf8(root),
        "path": list(map(as_utf8, names)),
        "place": cases.place,
        "patient": list(map(as_utf8, cases.patient_id)),
        "score": _finite(cases.anomaly_score),
        "p": _finite(cases.p_value),
        "label": [None if label is None else int(label) for label in cases.is_anomalous],
        "kind": [kind or "" for kind in cases.kind],
        "photo": [picture.photo if picture else "" for picture in shown],
        "level": [picture.level if picture else "" for picture in shown],
        "rebuilt": [bool(picture and picture.rebuilt) for picture in shown],
        "marks": read_marks(source.folder, cases),
        "pictures": len(pictures),
        "threshold": _start(source),
        "kind_of_calibration": source.calibration.kind if source.calibration else "none",
        "calibration": _tail(source.calibration),
        "presets": [
            {"rate": rate, "threshold": threshold}
            for rate, threshold in level_thresholds(source.calibration)
            if threshold is not None
        ],
        "scale": source.details.get("colour_scale"),
        "colours": _colours(),
    }


def level_thresholds(calibration: Calibration | None) -> list[tuple[float, float | None]]:
    """Return (false-positive rate, threshold) for `LEVELS`, None where it cannot be certified."""
    if calibration is None:
        return [(rate, None) for rate in LEVELS]
    return [(rate, _threshold(calibration, rate)) for rate in LEVELS]


def _threshold(calibration: Calibration, rate: float) -> float | None:
    try:
        return calibration.threshold(rate)
    except SettingsError:
        return None


def _start(source: Source) -> float | None:
    """Return the threshold to open with: calibrated, or the score of the top twentieth."""
    if source.calibration is not None:
        found = _threshold(source.calibration, source.details.get("fpr") or 0.05)
        if found is not None:
            return found
    scores = source.cases.anomaly_score if source.cases is not None else np.empty(0)
    return float(np.nanquantile(scores, 0.95)) if np.isfinite(scores).any() else None


def _split_root(paths: list[str]) -> tuple[str, list[str]]:
    """Split off the folder that all paths share."""
    folders = {str(PurePath(p).parent) for p in paths}
    try:
        root = os.path.commonpath(folders) if folders else ""
    except ValueError:  # absolute and relative paths, or two drives
        root = ""
    cut = len(root) + (not root.endswith(("/", "\\")))
    if not root or not all(p.startswith(root) and p[cut:] for p in paths):
        return "", paths
    return root, [p[cut:] for p in paths]


def _pictures(source: Source, cases: Cases) -> dict[int, Any]:
    wanted = [int(i) for i in cases.order]
    named = source.details.get("pictures")
    found = find_pictures(source.folder, cases, wanted, named)
    files = list(found.items())[:EMBEDDED]
    read = ((i, read_picture(file)) for i, file in files)
    return {i: picture for i, picture in read if picture is not None}


def _identity(cases: Cases) -> str:
    """Return what tells this scoring's notes from another's in the browser's storage."""
    names = "\n".join(cases.path + cases.place).encode("utf-8", ANY_NAME)
    body = names + cases.anomaly_score.tobytes()
    return hashlib.sha256(body).hexdigest()[:16]


def _finite(values: NDArray[np.float64]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _tail(calibration: Calibration | None) -> dict[str, Any] | None:
    """Return calibration scores, descending, and the weight of each with all above it.

    A threshold t is exceeded by at most a share (1 + W) / (K + 1) of new normal units, W being the
    weight of the calibration scores above t.
    """
    if calibration is None or calibration.kind != "split":
        return None
    weight = 1.0 / np.bincount(calibration.unit)[calibration.unit]
    order = np.argsort(-calibration.scores)
    return {
        "units": calibration.n_units,
        "unit": calibration.level,
        "scores": calibration.scores[order].tolist(),
        "above": np.cumsum(weight[order]).round(6).tolist(),
    }


def _colours() -> list[int]:
    """Return RGBA of each of the 256 levels of a map, as the overlays are painted."""
    colours, opacity = heat(np.linspace(0, 1, 256), ColourScale(quiet=0.0, full=1.0))
    alpha = (255 * opacity).round().astype(np.uint8)[:, None]
    return [int(v) for v in np.concatenate([colours, alpha], axis=1).ravel()]
