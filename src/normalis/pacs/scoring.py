"""A fitted detector and DICOM files -> scored studies, ready to become result objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.grouped import unit_p_values
from normalis.output.overlays import resize_map
from normalis.pacs.cases import Region, ScoredImage, ScoredStudy
from normalis.scoring import joined_scores

if TYPE_CHECKING:
    from normalis.calibration.findings import Finding
    from normalis.datasets import Sample
    from normalis.fitted import FittedDetector
    from normalis.scoring import Scored

__all__ = ["model_hash", "score_studies"]


def model_hash(detector: FittedDetector) -> str:
    """Return the short hash by which a model is named in its results."""
    return detector.identity[:16]


def score_studies(
    detector: FittedDetector,
    samples: Sequence[Sample],
    *,
    fpr: float = 0.05,
    skipped: list[tuple[Path, str]] | None = None,
) -> Iterator[ScoredStudy]:
    """Score DICOM files and yield their studies, each with its images, the worst first.

    Args:
        detector: fitted.
        samples: DICOM files of any number of studies.
        fpr: share of normals that may be flagged.
        skipped: receives (path, reason) of files that could not be read or scored.

    Raises:
        DataError: if nothing can be scored.
    """
    parts = [detector.with_findings(part) for part in detector.stream(samples, skipped=skipped)]
    p_values, flagged = _judged(detector, parts, fpr)
    studies: dict[str, list[ScoredImage]] = defaultdict(list)
    whose: list[str] = []
    number = 0
    for part in parts:
        for i, row in enumerate(part.rows):
            image = _image(detector, part, i, p_values[number], flagged[number])
            uid = str(image.source.get("StudyInstanceUID") or row.path)
            studies[uid].append(image)
            whose.append(uid)
            number += 1
    known = _of_studies(detector, parts, whose)
    groups = np.array(detector.groups_of(parts), dtype=object)
    for uid, images in studies.items():
        mine = groups[np.array(whose) == uid].tolist()
        yield _study(detector, uid, images, fpr, known.get(uid), mine)


def _judged(
    detector: FittedDetector, parts: Sequence[Scored], fpr: float
) -> tuple[list[float | None], list[bool | None]]:
    count = sum(len(part.rows) for part in parts)
    if detector.calibration is None or not count:
        return [None] * count, [None] * count
    groups = detector.groups_of(parts)
    p_values = detector.p_values_of(joined_scores(parts), groups)
    flags = detector.flags_of(p_values, groups, fpr)
    return _or_none(p_values), [None] * count if flags is None else flags.tolist()


def _or_none(p_values: NDArray[np.float64]) -> list[float | None]:
    """Return None where nothing calibrates."""
    return [None if np.isnan(p) else float(p) for p in p_values]


def _image(
    detector: FittedDetector, part: Scored, i: int, p_value: float | None, flagged: bool | None
) -> ScoredImage:
    import pydicom

    row, scale = part.rows[i], detector.colour_scale
    source = pydicom.dcmread(row.path)
    values: NDArray[np.float32] | None = None
    if part.anomaly_map is not None:
        values = resize_map(detector.calibrated(part.anomaly_map[i]), row.original_shape)
    return ScoredImage(
        source=source,
        frame=None if row.slice_index is None else int(row.slice_index) + 1,
        score=float(part.anomaly_score[i]),
        p_value=p_value,
        flagged=flagged,
        anomaly_map=values,
        level=scale.quiet,
        full=scale.full,
        regions=tuple(map(_region, part.findings[i] if part.findings else ())),
    )


def _region(found: Finding) -> Region:
    return Region(
        left=found.left,
        top=found.top,
        right=found.right,
        bottom=found.bottom,
        peak=found.peak,
        p_value=found.p_value,
        above=found.above,
    )


def _of_studies(
    detector: FittedDetector, parts: Sequence[Scored], whose: Sequence[str]
) -> dict[str, tuple[float, int]]:
    """Return the p-value of each study as a unit with its images, and the units behind it."""
    calibration = detector.grouped or detector.calibration
    if calibration is None or not whose:
        return {}
    return unit_p_values(calibration, joined_scores(parts), whose, detector.groups_of(parts))


def _study(
    detector: FittedDetector,
    uid: str,
    images: list[ScoredImage],
    fpr: float,
    known: tuple[float, int] | None,
    groups: Sequence[Any],
) -> ScoredStudy:
    p_value, units = known or (None, 0)
    notes = detector.grouped.too_few(fpr, groups, of_these=True) if detector.grouped else ()
    return ScoredStudy(
        uid=uid,
        model=model_hash(detector),
        images=tuple(sorted(images, key=lambda image: -image.score)),
        patient_p_value=p_value if units else None,
        calibration_units=units or None,
        fpr=fpr,
        notes=notes,
    )
