"""What is noted of each image once its map is on disk, and how it is read back.

A line of the journal holds texts: key, slice, patient, score, statistics, the scores of folds or
members, at_border, findings, height, width, unit, group, origin, similar normal images, and `END`
in the last line of a file.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.findings import Finding
from normalis.loading.units import file_of, unit_name
from normalis.output.journal import END, Journal
from normalis.output.origins import origin_of

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.loading.arrays import Row
    from normalis.scoring import Scored

__all__ = ["FINDINGS", "STATISTICS", "Rows", "finding_cells", "key_of", "lines_of", "rows_of"]

#: Of an image itself, by which drift is seen.
STATISTICS = ("mean intensity", "contrast")
#: What is noted of a finding, in this order.
FINDINGS = tuple(f.name for f in fields(Finding))


def key_of(sample: Sample) -> str:
    """Return what names a sample within one scoring."""
    place = "" if sample.index is None else f"#{sample.array}[{sample.index}]"
    return f"{sample.path}{place}"


def lines_of(part: Scored, group: Callable[[Row], str]) -> list[tuple[Path, list[str]]]:
    """Return the file and the line of each image of a part.

    Args:
        part: scored images.
        group: what the calibration groups an image by.
    """
    last = {key_of(row.sample): i for i, row in enumerate(part.rows)}
    lines = []
    for i, (row, value) in enumerate(zip(part.rows, part.anomaly_score, strict=True)):
        key = key_of(row.sample)
        end = [END] if last[key] == i else []
        seen = [repr(float(part.statistics[name][i])) for name in STATISTICS]
        several = part.by_fold if part.readings is None else part.readings
        each = [] if several is None else several[:, i].tolist()
        folds = " ".join(map(repr, each))
        place = *_shown(part, i), _unit(row), group(row), origin_of(row)
        more = [*place, _similar(part, i), *end]
        lines.append((row.path, [key, *_cells(row), repr(float(value)), *seen, folds, *more]))
    return lines


def _shown(part: Scored, i: int) -> list[str]:
    """Return what is noted of an image's map: at_border, findings, height and width."""
    if part.at_border is None:
        return [""] * 4
    found = [[getattr(one, name) for name in FINDINGS] for one in part.findings[i]]
    height, width = part.rows[i].original_shape
    return [str(int(part.at_border[i])), json.dumps(found), str(height), str(width)]


def _unit(row: Row) -> str:
    """Return the name of an image's unit, empty for its file."""
    name = unit_name(row)
    return "" if name == file_of(row) else name


def _similar(part: Scored, i: int) -> str:
    """Return what is noted of an image's most similar normal images."""
    if part.similar is None or part.similar_distance is None:
        return ""
    pairs = zip(part.similar[i].tolist(), part.similar_distance[i].tolist(), strict=True)
    return json.dumps(list(pairs))


def _cells(row: Row) -> list[str]:
    return ["" if row.slice_index is None else str(row.slice_index), row.patient_id or ""]


def finding_cells(noted: str, shape: tuple[str, str]) -> Iterator[list[Any]]:
    """Yield the rows of findings.csv of one image, without its name."""
    for one in json.loads(noted or "[]"):
        cells = [int(v) if isinstance(v, bool) else "" if v is None else v for v in one]
        yield [*cells, *shape]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """What was noted of N images, by column: lists of text would outgrow the model's memory.

    Attributes:
        sample: (N,) position of its file among the samples.
        slice_index: N texts.
        patient: N texts.
        at_border: N texts, empty without maps.
        findings: N texts of JSON, empty without maps.
        shape: N heights and widths, as texts.
        unit: N names of units, see `normalis.loading.units.unit_name`.
        group: N values of what the calibration is grouped by, else empty.
        origin: N texts of JSON (`normalis.output.origins`), empty where nothing is known.
        similar: N texts of JSON: numbers and distances of similar normal images; may be empty.
        values: (N, 3 + F) score, statistics and, of a cross-fitted detector, scores by model.
    """

    sample: NDArray[np.int64]
    slice_index: list[str]
    patient: list[str]
    at_border: list[str]
    findings: list[str]
    shape: list[tuple[str, str]]
    unit: list[str]
    group: list[str]
    origin: list[str]
    similar: list[str]
    values: NDArray[np.float64]

    @property
    def anomaly_score(self) -> NDArray[np.float64]:
        """Return (N,) scores."""
        return self.values[:, 0]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Return what a calibration reads: (N,), of a cross-fitted detector or panel (F, N)."""
        folds = self.values[:, 1 + len(STATISTICS) :]
        return folds.T if folds.shape[1] else self.values[:, 0]


def rows_of(journal: Journal, samples: Sequence[Sample], *, similar: bool) -> Rows:
    """Return all that was noted, in the order of the samples."""
    order = {key_of(s): i for i, s in enumerate(samples)}
    where, numbers = array("q"), array("d")
    slices: list[str] = []
    patients: list[str] = []
    border: list[str] = []
    findings: list[str] = []
    origins: list[str] = []
    shapes: list[tuple[str, str]] = []
    units: list[str] = []
    groups: list[str] = []
    alike: list[str] = []
    for row in journal.rows():
        key, slice_index, patient, *values, by_fold = row[:7]
        where.append(order[key])
        border.append(sys.intern(row[7]))
        findings.append(row[8])
        shapes.append((sys.intern(row[9]), sys.intern(row[10])))
        units.append(sys.intern(row[11] or key))
        groups.append(sys.intern(row[12]))
        origins.append(row[13])
        alike.append(row[14] if similar else "")
        slices.append(sys.intern(slice_index))
        patients.append(sys.intern(patient))
        numbers.extend(map(float, (*values, *by_fold.split())))
    ranks = np.argsort(where, kind="stable")
    return Rows(
        sample=np.asarray(where, np.int64)[ranks],
        slice_index=[slices[i] for i in ranks],
        patient=[patients[i] for i in ranks],
        at_border=[border[i] for i in ranks],
        findings=[findings[i] for i in ranks],
        shape=[shapes[i] for i in ranks],
        unit=[units[i] for i in ranks],
        group=[groups[i] for i in ranks],
        origin=[origins[i] for i in ranks],
        similar=[alike[i] for i in ranks],
        values=np.asarray(numbers).reshape(len(where), -1 if where else 3)[ranks],
    )
