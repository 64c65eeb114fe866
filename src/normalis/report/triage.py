"""What the triage view needs in the browser: the cases, their pictures, and the calibration.

Everything is sent by column, as JSON; the page's script sorts, filters, counts and paints.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.conformal import Calibration
from normalis.errors import SettingsError
from normalis.files import ANY_NAME, as_utf8
from normalis.images.ahead import map_ahead
from normalis.report.beside import Beside
from normalis.report.marks import read_marks
from normalis.report.pictures import (
    EMBEDDED,
    Large,
    Picture,
    find_large,
    find_pictures,
    palette,
    read_large,
    read_picture,
)
from normalis.report.sources import KNOWN, Cases, Source

__all__ = ["LARGE_EMBEDDED", "LEVELS", "level_thresholds", "triage_data"]

#: False-positive rates that the page offers and judges.
LEVELS = (0.10, 0.05, 0.01, 0.001)
#: Bytes of large pictures that one page holds; more go into a folder beside it.
LARGE_EMBEDDED = 12_000_000


def triage_data(source: Source, page: Path | None = None) -> dict[str, Any]:
    """Return the plain values of the triage view.

    Args:
        source: a scoring.
        page: where the page will lie. Pictures that are too many or too large for it are written
            into a folder beside it; without a page the first `EMBEDDED` are embedded.

    Returns:
        Columns ``path``, ``place``, ``patient``, ``score``, ``p``, ``label``, ``kind``, ``photo``,
        ``level``, ``rebuilt``, ``contour``, ``large``, ``own``, ``marks`` and those of `KNOWN` that
        are there, of equal length, and what belongs to all cases.
    """
    cases = source.cases
    if cases is None:
        raise TypeError("a run has no cases; triage_data takes a scoring")
    root, names = _split_root(cases.path)
    return {
        "id": _identity(cases),
        "root": as_utf8(root),
        "path": list(map(as_utf8, names)),
        "place": cases.place,
        "patient": list(map(as_utf8, cases.patient_id)),
        "known": {
            name: list(map(as_utf8, cases.known[name]))
            for name in KNOWN
            if any(cases.known.get(name, ()))
        },
        "patients": {as_utf8(name): value for name, value in source.patients.items()},
        "score": _finite(cases.anomaly_score),
        "p": _finite(cases.p_value),
        "label": [None if label is None else int(label) for label in cases.is_anomalous],
        "kind": [kind or "" for kind in cases.kind],
        **_pictures(source, cases, page),
        "marks": read_marks(source.folder, cases),
        "threshold": _start(source),
        "kind_of_calibration": _kind(source),
        "calibration": None if source.grouped_by else _tail(source.calibration),
        "presets": [
            {"rate": rate, "threshold": threshold}
            for rate, threshold in level_thresholds(source)
            if threshold is not None
        ],
        "scale": source.details.get("colour_scale"),
        "colours": [int(v) for v in palette().ravel()],
    }


def level_thresholds(source: Source) -> list[tuple[float, float | None]]:
    """Return (false-positive rate, threshold) for `LEVELS`, None where none serves all images."""
    return [(rate, _threshold(source, rate)) for rate in LEVELS]


def _kind(source: Source) -> str:
    if source.calibration is None:
        return "none"
    return f"by {source.grouped_by}" if source.grouped_by else source.calibration.kind


def _threshold(source: Source, rate: float) -> float | None:
    if source.calibration is None or source.grouped_by:
        return None
    try:
        return source.calibration.threshold(rate)
    except SettingsError:
        return None


def _start(source: Source) -> float | None:
    """Return the threshold to open with.

    It is the calibrated one. Where the held-out images certify no rate as small, nothing is above,
    as `normalis score` says; without a calibration it is the score of the top twentieth.
    """
    scores = source.cases.anomaly_score if source.cases is not None else np.empty(0)
    known = scores[np.isfinite(scores)]
    if source.calibration is not None:
        found = _threshold(source, source.details.get("fpr") or 0.05)
        return found if found is not None or not known.size else float(known.max())
    return float(np.quantile(known, 0.95)) if known.size else None


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


def _pictures(source: Source, cases: Cases, page: Path | None) -> dict[str, Any]:
    """Return the columns of pictures: themselves, or their names in the folder beside the page."""
    wanted = [int(i) for i in cases.order]
    small = find_pictures(source.folder, cases, wanted, source.details.get("pictures"))
    large = find_large(source.folder, small)
    weight = sum(file.stat().st_size for file in large.values())
    apart = page is not None and (len(small) > EMBEDDED or weight > LARGE_EMBEDDED)
    if not apart:
        small = dict(list(small.items())[:EMBEDDED])
    found: dict[str, Any] = {
        "photo": [""] * len(cases),
        "level": [""] * len(cases),
        "rebuilt": [False] * len(cases),
        "contour": [""] * len(cases),
        "large": [""] * len(cases),
        "own": [""] * len(cases),
    }
    shelf = Beside(page) if apart and page is not None else None
    with shelf or nullcontext():
        for i, picture, big in _read(small, large, coloured=apart):
            _note(found, i, picture, big, shelf)
    count = sum(map(bool, found["photo"]))
    return found | {"pictures": count, "beside": shelf.url if shelf else ""}


def _read(
    small: dict[int, Path], large: dict[int, Path], *, coloured: bool
) -> Iterator[tuple[int, Picture | None, Large | None]]:
    """Read the pictures of the cases that have any, side by side: encoders take the time."""

    def read(i: int) -> tuple[int, Picture | None, Large | None]:
        picture = read_picture(small[i], coloured=coloured)
        return i, picture, read_large(large[i], coloured=coloured) if i in large else None

    yield from map_ahead(read, list(small), ahead=4)


def _note(
    found: dict[str, Any], i: int, picture: Picture | None, big: Large | None, shelf: Beside | None
) -> None:
    if picture is None:
        return
    found["rebuilt"][i], found["contour"][i] = picture.rebuilt, picture.contour
    texts = {"photo": picture.photo, "level": picture.level}
    if big is not None:
        texts |= {"large": big.photo, "own": big.own}
    for column, text in texts.items():
        found[column][i] = shelf.keep(f"{i:06d}_{column}.webp", text) if shelf else text


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
