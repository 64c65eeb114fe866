"""The output folder of ``normalis score``: a table, maps, pictures, and what a report needs.

::

    scores.csv      path, slice, patient_id, anomaly_score, p_value, flagged, at_border, of a panel
                    seen_by (the member that it surprises most); one row an
                    image; at_border: the map's highest place lies in the outer 5 % of the image.
                    After these what is known of: study_uid, series_uid, sop_uid, frame (from 1),
                    instance_number, series_number, series_description, view, laterality,
                    accession_number, unlabelled_in_fit (1 where the method learned from the image)
    series.csv      one row a DICOM series: worst score, p-value, where, plane, how slices lie
    findings.csv    areas above what 1 in 20 normal images reach, with place, size and p-value; of
                    an image without any its highest place, above = 0 (`calibration.findings`)
    patients.csv    one row a patient, study or file: worst image, exact p-value, flag
    skipped.csv     path, reason of what could not be read
    aside.csv       path, reason of what rules left aside, if anything
    maps/           float32 anomaly maps at each image's own geometry: NPY, one NIfTI per volume
    overlays/       PNG: image, reconstruction, map; one colour scale for all
    score.json      settings, calibration and training history of the run that scored
    thumbnails/     small pictures for the report
    pictures/       large ones for its viewer, and each map on its own scale (`output.pictures`)
    similar.csv     of each image the 3 most similar normal images, nearest first: rank, number of
                    the normal image among those of the fit, distance of the features
    similar/        small pictures of these normal images by number, each once; both only where the
                    run keeps pictures of them (``fit --no-keep-similar``)

Maps and pictures keep the tree and the whole names of the files (`normalis.output.image_files`).

Images are noted in ``progress.jsonl`` once their maps are on disk (`normalis.output.journal`);
``scores.csv`` appears when all are done. A killed scoring therefore goes on where it stopped. A
finished one is left alone, unless it is to be replaced (`normalis.output.replacing`); the same
command again answers from what is there.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import RunError
from normalis.files import order_of
from normalis.fitted import fitted_of
from normalis.loading.similar import SHOWN
from normalis.output.asked import Asked
from normalis.output.details import kept_details
from normalis.output.drawing import draw
from normalis.output.image_files import ImageFiles
from normalis.output.journal import Journal
from normalis.output.judged import judge, study_p_values
from normalis.output.noted import lines_of, rows_of
from normalis.output.options import ENGINES, ScoreOptions, ScoreSummary
from normalis.output.pseudonyms import replaced
from normalis.output.replacing import NEW, put_in_place
from normalis.output.resuming import MODEL, finished, resume
from normalis.output.tables import Tables
from normalis.storage import exclusive, write_json

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.detector import AnomalyDetector
    from normalis.fitted import FittedDetector
    from normalis.loading.arrays import Row
    from normalis.scoring import Scored

__all__ = ["ENGINES", "MANY", "ScoreOptions", "ScoreSummary", "score_to_folder"]

#: Beyond so many images only the most anomalous get a picture, unless all are asked for.
MANY = 1000

_log = logging.getLogger("normalis.scoring")


def score_to_folder(
    detector: AnomalyDetector | FittedDetector,
    samples: Sequence[Sample],
    out: str | Path,
    *,
    root: Path,
    options: ScoreOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    aside: Sequence[tuple[Path, str]] = (),
    drawn: Callable[[int, int], None] | None = None,
) -> ScoreSummary:
    """Score files and write the output folder.

    Args:
        detector: fitted.
        samples: the files.
        out: the folder; new, empty, or an interrupted scoring with the same settings.
        root: folder that names of maps and pictures are relative to.
        options: what to write.
        progress: called with (files done, files in all).
        aside: (path, reason) of files that rules left aside; listed in ``aside.csv``.
        drawn: called with (pictures drawn, pictures in all), once all is scored.

    Raises:
        RunError: if the folder holds something else or cannot be written.
        MissingExtraError: if the engine is not installed.
        SettingsError: if the engine cannot compute what the detector does.
    """
    options = options or ScoreOptions()
    folder, fitted = Path(out), fitted_of(detector)
    if options.engine == "onnx":
        from normalis.engines.onnx import on_engine

        fitted = on_engine(fitted, options.engine)
    with exclusive(folder / ".lock", what=f"{folder}: the output"):
        return _score(_Writer(fitted, folder, root, options, aside), samples, progress, drawn)


def _score(
    writer: _Writer,
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] | None,
    drawn: Callable[[int, int], None] | None,
) -> ScoreSummary:
    folder, options = writer.folder, writer.options
    replaced = put_in_place(folder)
    if (folder / "scores.csv").exists():
        is_over = replaced or writer.journal.file.exists() or not options.overwrite
        if is_over and writer.is_of(samples):
            return finished(folder, writer.journal, maps=options.maps)
        if not options.overwrite:
            raise RunError(
                f"{folder}: holds scores already, of other images, another model or other "
                "settings; choose another --out, or add --overwrite"
            )
        writer = _Writer(writer.detector, folder / NEW, writer.root, options, writer.aside)
        writer.folder.mkdir(exist_ok=True)
    todo = writer.resume(samples)
    done = len(samples) - len(todo)
    for part in _scored(writer.detector, todo, writer, options, need_one=not done):
        writer.add(part)
        done += len({row.sample for row in part.rows})
        _log.info("%s of %s files", f"{done:,}", f"{len(samples):,}")
        if progress:
            progress(min(done, len(samples)), len(samples))
    summary = writer.finish(samples, drawn)
    shutil.rmtree(writer.folder / MODEL, ignore_errors=True)
    put_in_place(folder)
    return replace(summary, folder=folder)


def _scored(
    detector: FittedDetector,
    samples: Sequence[Sample],
    writer: _Writer,
    options: ScoreOptions,
    *,
    need_one: bool,
) -> Iterator[Scored]:
    """Yield scored batches; `loading.arrays.stream` never ends one in the middle of a file."""
    if not samples:  # it was interrupted after the last image, before the pictures
        return
    given: dict[str, Any] = {
        "maps": options.maps,
        "skipped": writer.skipped,
        "need_one": need_one,
        "similar": writer.similar,
    }
    if options.engine == "ray":
        from normalis.engines.ray_scoring import stream_on_ray

        yield from stream_on_ray(
            detector,
            samples,
            writer.files.located(),
            cluster=options.cluster,
            model=writer.folder / MODEL,
            **given,
        )
    else:
        yield from map(detector.with_findings, detector.stream(samples, **given))


class _Writer:
    """Writes the folder part by part."""

    def __init__(
        self,
        detector: FittedDetector,
        folder: Path,
        root: Path,
        options: ScoreOptions,
        aside: Sequence[tuple[Path, str]] = (),
    ) -> None:
        self.detector, self.folder, self.root, self.options = detector, folder, root, options
        self.aside = tuple(aside)
        self.leaves = replaced(options.pseudonyms)
        self.files = ImageFiles(folder, root)
        self.journal = Journal(folder)
        self.skipped: list[tuple[Path, str]] = []
        self.asked = Asked(
            detector=detector,
            root=root,
            options=options,
            aside=self.aside,
            leaves=self.leaves,
            similar=self.similar,
        )

    @property
    def similar(self) -> int:
        """How many of the most similar normal images are written of each image."""
        return SHOWN if self.options.similar and self.detector.similar is not None else 0

    def resume(self, samples: Sequence[Sample]) -> list[Sample]:
        """Refuse a foreign folder; return the samples still to be scored."""
        self.files = self.files.keeping_apart(sample.path for sample in samples)
        return resume(
            self.folder,
            samples,
            journal=self.journal,
            identity=self.asked.identity(samples),
            files=self.files,
            options=self.options,
        )

    def is_of(self, samples: Sequence[Sample]) -> bool:
        """Return whether the finished scoring here is the one that is asked for."""
        try:
            kept = json.loads((self.folder / "score.json").read_text(encoding="utf-8"))
            there: bool = kept["identity"] == self._whole(samples)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        return there

    def _whole(self, samples: Sequence[Sample]) -> str:
        return self.asked.whole(samples, self.journal.stamps())

    def add(self, part: Scored) -> None:
        """Write the maps of some images, then note their rows."""
        if part.anomaly_map is not None:
            self.files.write_maps(part.rows, part.anomaly_map)
        self.journal.note(lines_of(part, self._group))

    def _group(self, row: Row) -> str:
        """Return the value of what the calibration is grouped by."""
        grouped = self.detector.grouped
        value = None if grouped is None else row.header.get(grouped.by)
        return "" if value is None else str(value)

    def finish(
        self, samples: Sequence[Sample], drawn: Callable[[int, int], None] | None = None
    ) -> ScoreSummary:
        """Write pictures and the final tables; return what was done."""
        rows = rows_of(self.journal, samples, similar=self.similar > 0)
        judged = judge(self.detector, rows, self.options.fpr)
        tables = Tables(
            self.detector,
            self.folder,
            samples,
            rows,
            judged,
            files=self.files,
            options=self.options,
            leaves=self.leaves,
        )
        ranked = np.argsort(-rows.anomaly_score, kind="stable")
        pictures = self._draw(tables, ranked, drawn)
        more = {
            "identity": self._whole(samples),
            "pictures": pictures,
            "order": order_of(tables.name(i) for i in range(len(tables))),
            **study_p_values(self.detector, rows, self.leaves),
            "pseudonyms": self.options.pseudonyms is not None,
        }
        drift = [*judged.drift, *tables.learned_from()]
        self._write_details([samples[i] for i in rows.sample], drift, more)
        patients = tables.write(self.skipped, self.aside)
        self.journal.remove()
        return ScoreSummary(
            images=len(tables),
            skipped=len(self.skipped),
            flagged=None if judged.flagged is None else int(judged.flagged.sum()),
            top=[tables.line(i) for i in ranked[:10]],
            drift=[*drift, *judged.too_few],
            folder=self.folder,
            patients=patients,
        )

    def _draw(
        self,
        tables: Tables,
        ranked: NDArray[np.int64],
        drawn: Callable[[int, int], None] | None,
    ) -> dict[int, str]:
        """Draw the pictures that are asked for; return their names by image."""
        if not self.options.overlays:
            return {}
        chosen = np.sort(ranked if self.options.all_overlays else ranked[:MANY]).tolist()
        lines = {i: tables.line(i) for i in chosen}
        files = [tables.sample(i) for i in chosen]
        draw(self.detector, self.files, list(lines.values()), files, tables.said, drawn)
        return {
            i: self.files.below(tables.sample(i).path, line["slice"], ".png")
            for i, line in lines.items()
        }

    def _write_details(
        self, samples: Sequence[Sample], drift: list[str], more: dict[str, Any]
    ) -> None:
        detector = self.detector
        calibration = detector.calibration
        write_json(
            self.folder / "score.json",
            {
                "params": detector.params,
                "info": detector.info,
                "history": detector.history,
                "colour_scale": detector.colour_scale.to_dict(),
                "calibration": calibration.to_dict() if calibration else None,
                "grouped_by": detector.grouped.by if detector.grouped else "",
                "decision_scores": detector.normal_scores,
                "fpr": self.options.fpr,
                "engine": self.options.engine,
                "drift": drift,
                **more,
                **kept_details(detector, None if self.options.relative_paths else self.root),
                "is_anomalous": [s.is_anomalous for s in samples],
                "kind": [s.kind for s in samples],
            },
        )
