"""The tables of an output folder, written when all images are scored; scores.csv is the last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.loading.units import some
from normalis.loading.unlabelled import LEARNED_FROM
from normalis.output.drawing import save
from normalis.output.image_files import ImageFiles, slice_label
from normalis.output.judged import Judged
from normalis.output.noted import FINDINGS, Rows, finding_cells
from normalis.output.options import ScoreOptions
from normalis.output.origins import SERIES_COLUMNS, columns_of, series_rows
from normalis.output.patients import COLUMNS as PATIENT_COLUMNS
from normalis.output.patients import patient_rows
from normalis.storage import write_csv

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.fitted import FittedDetector

__all__ = ["COLUMNS", "FINDING_COLUMNS", "SIMILAR_COLUMNS", "Tables"]

#: The first of scores.csv.
COLUMNS = ("path", "slice", "patient_id", "anomaly_score")
#: Of findings.csv; the shape is of the image that places are in.
FINDING_COLUMNS = (*COLUMNS[:3], *FINDINGS, "image_height", "image_width")
#: Of similar.csv.
SIMILAR_COLUMNS = ("path", "slice", "rank", "normal_image", "distance")


class Tables:
    """The tables of one scoring.

    Args:
        detector: the one that scored.
        folder: where tables go.
        samples: the files.
        rows: what was noted of their N images.
        judged: what the calibration says of them.
        files: names of files within the folder.
        options: what is written.
        leaves: what turns cells into those that are written.
    """

    def __init__(
        self,
        detector: FittedDetector,
        folder: Path,
        samples: Sequence[Sample],
        rows: Rows,
        judged: Judged,
        *,
        files: ImageFiles,
        options: ScoreOptions,
        leaves: Callable[[str, str], str],
    ) -> None:
        self.detector, self.folder, self.samples = detector, folder, samples
        self.rows, self.judged = rows, judged
        self._files, self._options, self._leaves = files, options, leaves
        self.origins = columns_of(rows.origin)

    def __len__(self) -> int:
        return len(self.rows.sample)

    def sample(self, i: int) -> Sample:
        """Return the file of an image."""
        return self.samples[int(self.rows.sample[i])]

    def line(self, i: int) -> dict[str, Any]:
        """Return an image's row of scores.csv."""
        rows, judged = self.rows, self.judged
        known = json.loads(rows.origin[i]) if rows.origin[i] else {}
        return {
            "path": self.said(self.sample(i).path),
            "slice": slice_label(self.sample(i), rows.slice_index[i]),
            "patient_id": self._leaves("patient_id", rows.patient[i]),
            "anomaly_score": float(rows.anomaly_score[i]),
            "p_value": _p_value(judged.p_values, i),
            "flagged": "" if judged.flagged is None else int(judged.flagged[i]),
            "at_border": int(rows.at_border[i]) if rows.at_border[i] else "",
            **({"seen_by": judged.seen_by[i]} if judged.seen_by else {}),
            **{name: self._leaves(name, known.get(name, "")) for name in self.origins},
        }

    def name(self, i: int) -> tuple[str, str]:
        """Return what names an image's row: its file, and its slice where it has one."""
        line = self.line(i)
        return line["path"], line["slice"]

    def said(self, path: Path) -> str:
        """Return a file as the tables name it."""
        inside = self._files.inside(path) if self._options.relative_paths else None
        return str(path) if inside is None else inside.as_posix()

    def learned_from(self) -> list[str]:
        """Say which images the method learned from unlabelled: they are no new images to it."""
        known = [i for i, text in enumerate(self.rows.origin) if f'"{LEARNED_FROM}"' in text]
        if not known:
            return []
        names = some([self.said(self.sample(i).path) for i in known])
        return [
            f"{len(known)} of {len(self)} images were among the unlabelled ones that the "
            f"method learned from, so that their p-values are none: {names} (column {LEARNED_FROM} "
            "of scores.csv)"
        ]

    def write(
        self, skipped: Sequence[tuple[Path, str]], aside: Sequence[tuple[Path, str]]
    ) -> list[tuple[Any, ...]]:
        """Write all tables; return the rows of patients.csv.

        Args:
            skipped: (path, reason) of what could not be read.
            aside: (path, reason) of what rules left aside.
        """
        order = {sample.path: i for i, sample in enumerate(self.samples)}
        self._write_reasons("skipped.csv", sorted(skipped, key=lambda item: order[item[0]]))
        if self._options.maps:
            self._write_findings()
        if "series_uid" in self.origins:
            self._write_series()
        if aside:
            self._write_reasons("aside.csv", aside)
        if self._options.similar and self.detector.similar is not None:
            self._write_similar()
        patients = self._patients()
        write_csv(self.folder / "patients.csv", PATIENT_COLUMNS, patients)
        by_member = ["seen_by"] if self.judged.seen_by else []
        columns = (*COLUMNS, "p_value", "flagged", "at_border", *by_member, *self.origins)
        table = (list(self.line(i).values()) for i in range(len(self)))
        write_csv(self.folder / "scores.csv", columns, table)
        return patients

    def _write_reasons(self, name: str, listed: Sequence[tuple[Path, str]]) -> None:
        rows = ((self.said(path), reason) for path, reason in listed)
        write_csv(self.folder / name, ("path", "reason"), rows)

    def _write_findings(self) -> None:
        more = ("sop_uid",) if "sop_uid" in self.origins else ()

        def found() -> Iterator[list[Any]]:
            for i in range(len(self)):
                line = self.line(i)
                for one in finding_cells(self.rows.findings[i], self.rows.shape[i]):
                    yield [*list(line.values())[:3], *one, *(line[name] for name in more)]

        write_csv(self.folder / "findings.csv", (*FINDING_COLUMNS, *more), found())

    def _write_series(self) -> None:
        chosen = [i for i, text in enumerate(self.rows.origin) if '"series_uid"' in text]
        found = series_rows(
            [self.line(i) for i in chosen],
            [self.sample(i).header for i in chosen],
            self.rows.scores[..., chosen],
            [self.rows.group[i] for i in chosen],
            self.detector.grouped or self.detector.calibration,
        )
        write_csv(self.folder / "series.csv", SERIES_COLUMNS, found)

    def _write_similar(self) -> None:
        """Write the most similar normal images of each image, and a picture of each of them."""
        kept, table = self.detector.similar, []
        assert kept is not None  # or nothing was to be written
        for i, noted in enumerate(self.rows.similar):
            name = list(self.line(i).values())[:2]
            for rank, (row, distance) in enumerate(json.loads(noted or "[]")):
                number = int(kept.numbers[kept.places(np.asarray(row))])
                table.append([*name, rank + 1, number, distance])
        for number in sorted({line[3] for line in table}):
            pixels = kept.picture(number)
            picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
            save(self.folder / "similar" / f"{number:04d}.png", picture)
        write_csv(self.folder / "similar.csv", SIMILAR_COLUMNS, table)

    def _patients(self) -> list[tuple[Any, ...]]:
        return patient_rows(
            self.detector.grouped or self.detector.calibration,
            [self._unit(i) for i in range(len(self))],
            self.rows.group,
            self.rows.anomaly_score,
            self.rows.scores,
            self.name,
            fpr=self._options.fpr,
            fdr=self._options.fdr,
        )

    def _unit(self, i: int) -> str:
        """Return the unit of an image as tables may name it."""
        rows, unit = self.rows, self.rows.unit[i]
        if unit == rows.patient[i].strip():
            return self._leaves("patient_id", unit)
        known = json.loads(rows.origin[i]) if rows.origin[i] else {}
        kind = next((k for k in ("study_uid", "series_uid") if known.get(k) == unit), "")
        return self._leaves(kind, unit) if kind else self._said_unit(unit, self.sample(i))

    def _said_unit(self, unit: str, sample: Sample) -> str:
        """Return a unit's name, of a file as tables name it."""
        path = str(sample.path)
        return unit.replace(path, self.said(sample.path), 1) if unit.startswith(path) else unit


def _p_value(p_values: NDArray[np.float64] | None, i: int) -> float | str:
    """Return a cell of scores.csv, empty where nothing calibrates an image's group."""
    return "" if p_values is None or np.isnan(p_values[i]) else float(p_values[i])
