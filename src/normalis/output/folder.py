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

import hashlib
import json
import logging
import os
import shutil
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.calibration.colours import ColourScale
from normalis.calibration.findings import Finding
from normalis.calibration.grouped import unit_p_values
from normalis.engines.cluster import Cluster
from normalis.errors import RunError, SettingsError
from normalis.files import ANY_NAME, is_temporary, read_csv, remove_temporaries, visible
from normalis.fitted import fitted_of
from normalis.loading.similar import SHOWN
from normalis.loading.units import file_of, some, unit_name
from normalis.loading.unlabelled import LEARNED_FROM
from normalis.output.details import kept_details
from normalis.output.image_files import ImageFiles, do_all, slice_label
from normalis.output.journal import END, Journal, stamp
from normalis.output.origins import SERIES_COLUMNS, columns_of, origin_of, series_rows
from normalis.output.overlays import grey, render
from normalis.output.patients import COLUMNS as PATIENT_COLUMNS
from normalis.output.patients import patient_rows
from normalis.output.pictures import write_pictures
from normalis.output.pseudonyms import replaced
from normalis.output.replacing import NEW, put_in_place, remove_own
from normalis.storage import content_hash, exclusive, write_atomically, write_csv, write_json

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.detector import AnomalyDetector
    from normalis.fitted import FittedDetector
    from normalis.loading.arrays import Row
    from normalis.scoring import Detail, Scored

__all__ = ["ENGINES", "MANY", "ScoreOptions", "ScoreSummary", "score_to_folder"]

#: Beyond so many images only the most anomalous get a picture, unless all are asked for.
MANY = 1000

#: Where the model lies below the folder while other processes need it.
MODEL = ".model"
#: What computes scores; the first is the default.
ENGINES = ("torch", "onnx", "ray")

_log = logging.getLogger("normalis.scoring")

_COLUMNS = ("path", "slice", "patient_id", "anomaly_score")
_FINDINGS = tuple(f.name for f in fields(Finding))
_STATISTICS = ("mean intensity", "contrast")
#: Of findings.csv; the shape is of the image that places are in.
FINDING_COLUMNS = (*_COLUMNS[:3], *_FINDINGS, "image_height", "image_width")
#: Of similar.csv.
SIMILAR_COLUMNS = ("path", "slice", "rank", "normal_image", "distance")
#: Side of a picture in the report, in pixels.
THUMBNAIL = 160


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What ``score`` writes.

    Args:
        maps: whether to write anomaly maps.
        overlays: whether to write pictures.
        all_overlays: pictures of every image even beyond `MANY`.
        fpr: share of normal patients that may be flagged.
        fdr: flag patients so that at most this share of those flagged is normal, instead.
        engine: what computes the scores: ``torch``, ``onnx`` (on CPUs) or ``ray`` (PyTorch on a
            cluster, `normalis.engines.ray_scoring`).
        cluster: of the engine ``ray``.
        overwrite: whether a finished scoring in the folder may be replaced, once the new one is
            complete, and an interrupted one of something else be dropped.
        similar: whether to write the most similar normal images, where the run keeps pictures.
        relative_paths: whether tables name files relative to the scored folder, which tells
            nobody where the images lie; else as they were given, which other tables join by.
        pseudonyms: file of a key by which patients, accession numbers and UIDs in tables are
            replaced (`normalis.output.pseudonyms`); None leaves them as they are.
    """

    maps: bool = True
    overlays: bool = True
    all_overlays: bool = False
    fpr: float = 0.05
    fdr: float | None = None
    engine: str = "torch"
    cluster: Cluster = field(default_factory=Cluster)
    overwrite: bool = False
    relative_paths: bool = False
    pseudonyms: Path | None = None
    similar: bool = True

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise SettingsError(f"engine must be one of {', '.join(ENGINES)}, got {self.engine!r}")
        if self.fdr is not None and not 0 < self.fdr < 1:
            raise SettingsError(f"fdr must be in (0, 1), got {self.fdr}")


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What was written.

    Attributes:
        images: images scored.
        skipped: images that could not be read.
        flagged: images above the threshold; None without calibration, or with too few held-out
            normals to certify the rate.
        top: the most anomalous rows, as written to scores.csv.
        drift: sentences on how the images differ from the calibration's normals; empty if not.
        folder: where.
        patients: the rows of patients.csv.
    """

    images: int
    skipped: int
    flagged: int | None
    top: list[dict[str, Any]]
    drift: list[str]
    folder: Path
    patients: list[tuple[Any, ...]] = field(default_factory=list)


def score_to_folder(
    detector: AnomalyDetector | FittedDetector,
    samples: Sequence[Sample],
    out: str | Path,
    *,
    root: Path,
    options: ScoreOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    aside: Sequence[tuple[Path, str]] = (),
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
        return _score(_Writer(fitted, folder, root, options, aside), samples, progress)


def _score(
    writer: _Writer, samples: Sequence[Sample], progress: Callable[[int, int], None] | None
) -> ScoreSummary:
    folder, options = writer.folder, writer.options
    replaced = put_in_place(folder)
    if (folder / "scores.csv").exists():
        is_over = replaced or writer.journal.file.exists() or not options.overwrite
        if is_over and writer.is_of(samples):
            return writer.finished()
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
    summary = writer.finish(samples)
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

    @property
    def similar(self) -> int:
        """How many of the most similar normal images are written of each image."""
        return SHOWN if self.options.similar and self.detector.similar is not None else 0

    # --- resuming ---

    def resume(self, samples: Sequence[Sample]) -> list[Sample]:
        """Refuse a foreign folder; return the samples still to be scored."""
        self.files = self.files.keeping_apart(sample.path for sample in samples)
        identity = self._identity(samples)
        if self.journal.begun and self.journal.identity != identity and not self.options.overwrite:
            raise RunError(
                f"{self.folder}: holds an interrupted scoring of other images or another "
                "model; choose another --out"
            )
        if self.journal.identity == identity:
            remove_temporaries(self.folder)
            done = self.journal.keep(partial(self._is_done, {_key(s): s for s in samples}))
            return [s for s in samples if _key(s) not in done]
        if not self.journal.file.exists():
            self._refuse_foreign()
        remove_own(self.folder)
        remove_temporaries(self.folder)
        self.journal.begin(identity)
        return list(samples)

    def _refuse_foreign(self) -> None:
        known = (".lock", MODEL, NEW, "progress.csv")
        names = sorted(p.name for p in self.folder.iterdir() if not is_temporary(p.name))
        foreign = [name for name in names if name not in known]
        if "progress.csv" in names:
            raise RunError(
                f"{self.folder}: holds a scoring that an older version began; go on with that "
                "version, or choose another --out"
            )
        if foreign:
            raise RunError(
                f"{self.folder}: must be a new or empty folder, holds {foreign[0]}; choose "
                "another --out"
            )

    def _is_done(self, known: dict[str, Sample], noted: str, lines: list[list[str]]) -> bool:
        """Return whether what was noted of a file holds: it is the same, and its maps are there."""
        sample = known.get(lines[0][0])
        if sample is None:
            return False
        now = stamp(sample.path)
        if now and now != noted:
            return False
        places = (slice_label(sample, line[1] or None) for line in lines)
        return not self.options.maps or all(self.files.has_map(sample.path, p) for p in places)

    def _identity(self, samples: Sequence[Sample]) -> str:
        """Return what a resumed scoring must have in common with the one interrupted."""
        files = hashlib.sha256(os.path.abspath(self.root).encode("utf-8", ANY_NAME))  # noqa: PTH100
        for sample in samples:
            files.update(f"{_key(sample)}\n{sample.patient_id}\n".encode("utf-8", ANY_NAME))
        return content_hash(
            {
                "detector": self.detector.identity,
                "maps": self.options.maps,
                "engine": "onnx" if self.options.engine == "onnx" else "torch",  # ray is torch
                "files": files.hexdigest(),
                "by": self.detector.grouped.by if self.detector.grouped else "",
                **({"similar": self.similar} if self.similar else {}),
            }
        )

    # --- one that is finished ---

    def _whole(self, samples: Sequence[Sample]) -> str:
        """Return what a finished scoring was of: models, settings, and the files' contents.

        Of what is noted the contents are those that were scored, of the rest those there now.
        """
        total, noted = 0, set()
        for key, seen in self.journal.stamps():
            noted.add(key)
            total += _number(key, seen)
        total += sum(_number(_key(s), stamp(s.path)) for s in samples if _key(s) not in noted)
        options = self.options
        asked: list[Any] = [
            options.fpr,
            options.overlays,
            options.all_overlays,
            options.relative_paths,
            options.fdr,
        ]
        asked.append(getattr(self.leaves, "identity", ""))  # which key, if any
        asked.append([[str(path), why] for path, why in self.aside])
        labels = hashlib.sha256(repr([(s.is_anomalous, s.kind) for s in samples]).encode())
        return content_hash(
            [self._identity(samples), asked, str(total % 2**256), labels.hexdigest(), self._known()]
        )

    def _known(self) -> str:
        """Return what p-values are made from, which a calibration elsewhere changes."""
        parts = self.detector.calibration, self.detector.grouped
        return content_hash([part.to_dict() if part else None for part in parts])

    def is_of(self, samples: Sequence[Sample]) -> bool:
        """Return whether the finished scoring here is the one that is asked for."""
        try:
            kept = json.loads((self.folder / "score.json").read_text(encoding="utf-8"))
            there: bool = kept["identity"] == self._whole(samples)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        return there

    def finished(self) -> ScoreSummary:
        """Remove what a killed process left; return what is there."""
        shutil.rmtree(self.folder / MODEL, ignore_errors=True)
        self.journal.remove()
        remove_temporaries(self.folder)
        try:
            table = read_csv(self.folder / "scores.csv", columns=_COLUMNS)
            skipped = len(read_csv(self.folder / "skipped.csv", columns=("path", "reason")))
            patients = self._kept_patients()
            drift = json.loads((self.folder / "score.json").read_text(encoding="utf-8"))["drift"]
            rows = [
                row
                | {"anomaly_score": float(row["anomaly_score"])}
                | {"p_value": float(row["p_value"]) if row["p_value"] else ""}
                for row in table
            ]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{self.folder}: is damaged ({error}); choose another --out") from error
        flags = [row["flagged"] for row in table]
        rows.sort(key=lambda row: float(row["anomaly_score"]), reverse=True)
        return ScoreSummary(
            images=len(table),
            skipped=skipped,
            flagged=sum(map(int, flags)) if all(flags) else None,
            top=rows[:10],
            drift=drift,
            folder=self.folder,
            patients=patients,
        )

    def _kept_patients(self) -> list[tuple[Any, ...]]:
        """Return the rows of patients.csv; none of a scoring from before it was written."""
        file = self.folder / "patients.csv"
        rows = read_csv(file, columns=PATIENT_COLUMNS) if file.is_file() else []
        flags = ({**row, "flagged": int(row["flagged"]) if row["flagged"] else ""} for row in rows)
        return [tuple(row[name] for name in PATIENT_COLUMNS) for row in flags]

    # --- a part ---

    def add(self, part: Scored) -> None:
        """Write the maps of some images, then note their rows."""
        if part.anomaly_map is not None:
            self.files.write_maps(part.rows, part.anomaly_map)
        last = {_key(row.sample): i for i, row in enumerate(part.rows)}
        lines = []
        for i, (row, value) in enumerate(zip(part.rows, part.anomaly_score, strict=True)):
            key = _key(row.sample)
            end = [END] if last[key] == i else []
            seen = [repr(float(part.statistics[name][i])) for name in _STATISTICS]
            several = part.by_fold if part.readings is None else part.readings
            each = [] if several is None else several[:, i].tolist()
            folds = " ".join(map(repr, each))
            place = *_shown(part, i), _unit(row), self._group(row), origin_of(row)
            more = [*place, _similar(part, i), *end]
            lines.append((row.path, [key, *_cells(row), repr(float(value)), *seen, folds, *more]))
        self.journal.note(lines)

    # --- the end ---

    def finish(self, samples: Sequence[Sample]) -> ScoreSummary:
        """Write pictures and the final tables; return what was done."""
        rows = self._rows(samples)
        p_values, flagged = self._judge(rows)
        seen_by = self._seen_by(rows.scores)
        drift = [*self._drift(rows), *self._learned_from(samples, rows)]

        origins = columns_of(rows.origin)

        def line(i: int) -> dict[str, Any]:
            known = json.loads(rows.origin[i]) if rows.origin[i] else {}
            return {
                "path": self._said(samples[rows.sample[i]].path),
                "slice": slice_label(samples[rows.sample[i]], rows.slice_index[i]),
                "patient_id": self.leaves("patient_id", rows.patient[i]),
                "anomaly_score": float(rows.anomaly_score[i]),
                "p_value": _p_value(p_values, i),
                "flagged": "" if flagged is None else int(flagged[i]),
                "at_border": int(rows.at_border[i]) if rows.at_border[i] else "",
                **({"seen_by": seen_by[i]} if seen_by else {}),
                **{name: self.leaves(name, known.get(name, "")) for name in origins},
            }

        ranked = np.argsort(-rows.anomaly_score, kind="stable")
        pictures: dict[int, str] = {}
        if self.options.overlays:
            chosen = np.sort(ranked if self.options.all_overlays else ranked[:MANY])
            pictures = {
                int(i): self.files.below(samples[rows.sample[i]].path, line(i)["slice"], ".png")
                for i in chosen
            }
            self._draw([line(i) for i in chosen], [samples[rows.sample[i]] for i in chosen])
        more = {
            "identity": self._whole(samples),
            "pictures": pictures,
            **self._study_p_values(rows),
            "pseudonyms": self.options.pseudonyms is not None,
        }
        self._write_details([samples[i] for i in rows.sample], drift, more)
        order = {sample.path: i for i, sample in enumerate(samples)}
        skipped = sorted(self.skipped, key=lambda item: order[item[0]])
        unread = ((self._said(path), reason) for path, reason in skipped)
        write_csv(self.folder / "skipped.csv", ("path", "reason"), unread)
        if self.options.maps:
            more_columns = ("sop_uid",) if "sop_uid" in origins else ()
            found = (
                [*list(named.values())[:3], *one, *(named[name] for name in more_columns)]
                for i, named in enumerate(map(line, range(len(rows.sample))))
                for one in _finding_cells(rows.findings[i], rows.shape[i])
            )
            columns = (*FINDING_COLUMNS, *more_columns)
            write_csv(self.folder / "findings.csv", columns, found)
        if "series_uid" in origins:
            self._write_series(samples, rows, line)
        if self.aside:
            listed = ((self._said(path), reason) for path, reason in self.aside)
            write_csv(self.folder / "aside.csv", ("path", "reason"), listed)
        if self.similar:
            self._write_similar([list(line(i).values())[:2] for i in range(len(rows.sample))], rows)
        table = (list(line(i).values()) for i in range(len(rows.sample)))
        by_member = ["seen_by"] if seen_by else []
        columns = (*_COLUMNS, "p_value", "flagged", "at_border", *by_member, *origins)
        units = [self._named(rows, i, samples[rows.sample[i]]) for i in range(len(rows.sample))]
        patients = self._patients(rows, units, lambda i: (line(i)["path"], line(i)["slice"]))
        write_csv(self.folder / "patients.csv", PATIENT_COLUMNS, patients)
        write_csv(self.folder / "scores.csv", columns, table)
        self.journal.remove()
        return ScoreSummary(
            images=len(rows.sample),
            skipped=len(self.skipped),
            flagged=None if flagged is None else int(flagged.sum()),
            top=[line(i) for i in ranked[:10]],
            drift=[*drift, *self._too_few(rows)],
            folder=self.folder,
            patients=patients,
        )

    def _too_few(self, rows: _Rows) -> tuple[str, ...]:
        """Say which groups cannot be flagged; no group is pooled with another in silence."""
        grouped = self.detector.grouped
        return () if grouped is None else grouped.too_few(self.options.fpr, rows.group)

    def _write_series(
        self, samples: Sequence[Sample], rows: _Rows, line: Callable[[int], dict[str, Any]]
    ) -> None:
        chosen = [i for i, text in enumerate(rows.origin) if '"series_uid"' in text]
        found = series_rows(
            [line(i) for i in chosen],
            [samples[rows.sample[i]].header for i in chosen],
            rows.scores[..., chosen],
            self.detector.calibration,
        )
        write_csv(self.folder / "series.csv", SERIES_COLUMNS, found)

    def _named(self, rows: _Rows, i: int, sample: Sample) -> str:
        """Return the unit of an image as tables may name it."""
        unit = rows.unit[i]
        if unit == rows.patient[i].strip():
            return self.leaves("patient_id", unit)
        known = json.loads(rows.origin[i]) if rows.origin[i] else {}
        kind = next((k for k in ("study_uid", "series_uid") if known.get(k) == unit), "")
        return self.leaves(kind, unit) if kind else self._said_unit(unit, sample)

    def _study_p_values(self, rows: _Rows) -> dict[str, dict[str, Any]]:
        """Return p-value and calibrating units of each study with its images, for objects."""
        calibration = self.detector.grouped or self.detector.calibration
        known = [json.loads(text).get("study_uid", "") if text else "" for text in rows.origin]
        chosen = [i for i, uid in enumerate(known) if uid]
        if calibration is None or not chosen:
            return {"study_p_values": {}, "study_calibration_units": {}}
        groups = [rows.group[i] for i in chosen] if self.detector.grouped else []
        found = unit_p_values(
            calibration, rows.scores[..., chosen], [known[i] for i in chosen], groups
        )
        said = {self.leaves("study_uid", uid): one for uid, one in found.items()}
        return {
            "study_p_values": {uid: p for uid, (p, units) in said.items() if units},
            "study_calibration_units": {uid: units for uid, (_, units) in said.items() if units},
        }

    def _write_similar(self, names: Sequence[list[Any]], rows: _Rows) -> None:
        """Write the most similar normal images of each image, and a picture of each of them."""
        kept, table = self.detector.similar, []
        assert kept is not None  # or nothing was to be written
        for name, noted in zip(names, rows.similar, strict=True):
            for rank, (row, distance) in enumerate(json.loads(noted or "[]")):
                number = int(kept.numbers[kept.places(np.asarray(row))])
                table.append([*name, rank + 1, number, distance])
        for number in sorted({line[3] for line in table}):
            pixels = kept.picture(number)
            picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
            _save(self.folder / "similar" / f"{number:04d}.png", picture)
        write_csv(self.folder / "similar.csv", SIMILAR_COLUMNS, table)

    def _rows(self, samples: Sequence[Sample]) -> _Rows:
        """Return all that was noted, in the order of the samples."""
        order = {_key(s): i for i, s in enumerate(samples)}
        where, numbers = array("q"), array("d")
        slices: list[str] = []
        patients: list[str] = []
        border: list[str] = []
        findings: list[str] = []
        origins: list[str] = []
        shapes: list[tuple[str, str]] = []
        units: list[str] = []
        groups: list[str] = []
        similar: list[str] = []
        for row in self.journal.rows():
            key, slice_index, patient, *values, by_fold = row[:7]
            where.append(order[key])
            border.append(sys.intern(row[7]))
            findings.append(row[8])
            shapes.append((sys.intern(row[9]), sys.intern(row[10])))
            units.append(sys.intern(row[11] or key))
            groups.append(sys.intern(row[12]))
            origins.append(row[13])
            similar.append(row[14] if self.similar else "")
            slices.append(sys.intern(slice_index))
            patients.append(sys.intern(patient))
            numbers.extend(map(float, (*values, *by_fold.split())))
        ranks = np.argsort(where, kind="stable")
        return _Rows(
            sample=np.asarray(where, np.int64)[ranks],
            slice_index=[slices[i] for i in ranks],
            patient=[patients[i] for i in ranks],
            at_border=[border[i] for i in ranks],
            findings=[findings[i] for i in ranks],
            shape=[shapes[i] for i in ranks],
            unit=[units[i] for i in ranks],
            group=[groups[i] for i in ranks],
            origin=[origins[i] for i in ranks],
            similar=[similar[i] for i in ranks],
            values=np.asarray(numbers).reshape(len(where), -1 if where else 3)[ranks],
        )

    def _drift(self, rows: _Rows) -> list[str]:
        """Return why the new images may not be of the calibration's kind, empty if they look it."""
        calibration = self.detector.calibration
        if calibration is None or not len(rows.sample):
            return []
        found = calibration.drift(
            rows.scores,
            patients=np.array(rows.unit),
            statistics={name: rows.values[:, 1 + i] for i, name in enumerate(_STATISTICS)},
        )
        if found.reasons or not found.least_anomalous:
            return list(found.reasons)
        return [
            f"at least {found.least_anomalous:.0%} of the new {calibration.level}s must be "
            "anomalous; if fewer are, the images differ from those held out for calibration, and "
            "the false-positive rate does not hold"
        ]

    def _learned_from(self, samples: Sequence[Sample], rows: _Rows) -> list[str]:
        """Say which images the method learned from unlabelled: they are no new images to it."""
        known = [i for i, text in enumerate(rows.origin) if f'"{LEARNED_FROM}"' in text]
        if not known:
            return []
        names = some([self._said(samples[rows.sample[i]].path) for i in known])
        return [
            f"{len(known)} of {len(rows.sample)} images were among the unlabelled ones that the "
            f"method learned from, so that their p-values are none: {names} (column {LEARNED_FROM} "
            "of scores.csv)"
        ]

    def _seen_by(self, scores: NDArray[np.float64]) -> list[str]:
        """Return the member of a panel that each image surprises most; empty without a panel."""
        calibration = self.detector.calibration
        if calibration is None or calibration.readings is None or not scores.size:
            return []
        return calibration.seen_by(scores)

    def _judge(self, rows: _Rows) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None]:
        """Return p-values and flags (N,), None where the calibration gives none."""
        calibration, grouped = self.detector.calibration, self.detector.grouped
        if calibration is None or not rows.scores.size:
            return None, None
        if grouped is not None:
            p_values = grouped.p_values(rows.scores, rows.group)
            return p_values, grouped.flags(p_values, rows.group, self.options.fpr)
        p_values = calibration.p_values(rows.scores)
        try:
            calibration.check_rate(self.options.fpr)
        except SettingsError:  # too few normals to certify the level: nothing can be flagged
            return p_values, None
        return p_values, calibration.flags(p_values, self.options.fpr)

    def _group(self, row: Row) -> str:
        """Return the value of what the calibration is grouped by."""
        grouped = self.detector.grouped
        value = None if grouped is None else row.header.get(grouped.by)
        return "" if value is None else str(value)

    def _said_unit(self, unit: str, sample: Sample) -> str:
        """Return a unit's name, of a file as tables name it."""
        path = str(sample.path)
        return unit.replace(path, self._said(sample.path), 1) if unit.startswith(path) else unit

    def _patients(
        self, rows: _Rows, units: Sequence[str], where: Callable[[int], tuple[str, str]]
    ) -> list[tuple[Any, ...]]:
        return patient_rows(
            self.detector.grouped or self.detector.calibration,
            units,
            rows.group,
            rows.anomaly_score,
            rows.scores,
            where,
            fpr=self.options.fpr,
            fdr=self.options.fdr,
        )

    def _said(self, path: Path) -> str:
        """Return a file as the tables name it."""
        inside = self.files.inside(path) if self.options.relative_paths else None
        return str(path) if inside is None else inside.as_posix()

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

    def _draw(self, table: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> None:
        """Draw pictures of some rows; their files are read once more, at full size."""
        rows = {(r["path"], r["slice"]): r for r in table}

        def drawings() -> Iterator[Callable[[], None]]:
            for seen in self.detector.detail(list(dict.fromkeys(samples))):
                place = slice_label(seen.row.sample, seen.row.slice_index)
                row = rows.get((self._said(seen.row.path), place))
                if row is not None:
                    yield partial(self._picture, seen, row)

        do_all(drawings())

    def _picture(self, seen: Detail, row: dict[str, Any]) -> None:
        where, scale = seen.row, self.detector.colour_scale
        p_value = "" if row["p_value"] == "" else f"   p = {row['p_value']:.3g}"
        place = "" if row["slice"] == "" else f" [{row['slice']}]"
        calibrated = self.detector.calibrated(seen.anomaly_map)
        picture = render(
            seen.original,
            calibrated,
            scale=scale,
            reconstruction=seen.reconstruction,
            title=f"{visible(where.path.name)}{place}   score {row['anomaly_score']:.4g}{p_value}",
        )
        path = self.files.name("overlays", where, ".png")
        _save(path, picture)
        strip = thumbnail(seen, calibrated, scale)
        path = self.files.name("thumbnails", where, ".png")
        _save(path, strip)
        write_pictures(self.files, seen, calibrated)


def _save(path: Path, picture: Image.Image) -> None:
    write_atomically(path, lambda p: picture.save(p, format="PNG", compress_level=1), tidy=False)


def _number(key: str, seen: str) -> int:
    """Return a number of a file and its stamp; a sum of them is the same in any order."""
    text = f"{key}\n{seen}".encode("utf-8", ANY_NAME)
    return int.from_bytes(hashlib.sha256(text).digest(), "big")


def thumbnail(seen: Detail, calibrated: NDArray[np.float32], scale: ColourScale) -> Image.Image:
    """Return image, reconstruction and map side by side in grey, each `THUMBNAIL` high.

    The map is the red channel's: 0 at ``quiet`` and below, 255 at ``full``.
    """
    size = (THUMBNAIL, THUMBNAIL)
    rebuilt = seen.original if seen.reconstruction is None else seen.reconstruction
    level = (calibrated - scale.quiet) / max(scale.full - scale.quiet, 1e-12)
    level = (255 * np.clip(level, 0, 1)).round().astype(np.uint8)
    parts = [Image.fromarray(grey(seen.original)).convert("L"), Image.fromarray(grey(rebuilt))]
    strip = Image.new("L", (3 * THUMBNAIL, THUMBNAIL))
    for i, part in enumerate([*parts, Image.fromarray(level)]):
        strip.paste(part.convert("L").resize(size, Image.Resampling.BILINEAR), (i * THUMBNAIL, 0))
    return strip


def _key(sample: Sample) -> str:
    """Return what names a sample within one scoring."""
    place = "" if sample.index is None else f"#{sample.array}[{sample.index}]"
    return f"{sample.path}{place}"


def _shown(part: Scored, i: int) -> list[str]:
    """Return what is noted of an image's map: at_border, findings, height and width."""
    if part.at_border is None:
        return [""] * 4
    found = [[getattr(one, name) for name in _FINDINGS] for one in part.findings[i]]
    height, width = part.rows[i].original_shape
    return [str(int(part.at_border[i])), json.dumps(found), str(height), str(width)]


def _unit(row: Row) -> str:
    """Return the name of an image's unit, empty for its file."""
    name = unit_name(row)
    return "" if name == file_of(row) else name


def _p_value(p_values: NDArray[np.float64] | None, i: int) -> float | str:
    """Return a cell of scores.csv, empty where nothing calibrates an image's group."""
    return "" if p_values is None or np.isnan(p_values[i]) else float(p_values[i])


def _similar(part: Scored, i: int) -> str:
    """Return what is noted of an image's most similar normal images."""
    if part.similar is None or part.similar_distance is None:
        return ""
    pairs = zip(part.similar[i].tolist(), part.similar_distance[i].tolist(), strict=True)
    return json.dumps(list(pairs))


def _finding_cells(noted: str, shape: tuple[str, str]) -> Iterator[list[Any]]:
    """Yield the rows of findings.csv of one image, without its name."""
    for one in json.loads(noted or "[]"):
        cells = [int(v) if isinstance(v, bool) else "" if v is None else v for v in one]
        yield [*cells, *shape]


def _cells(row: Row) -> list[str]:
    return ["" if row.slice_index is None else str(row.slice_index), row.patient_id or ""]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Rows:
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
        return self.values[:, 0]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Return what a calibration reads: (N,), of a cross-fitted detector or panel (F, N)."""
        folds = self.values[:, 1 + len(_STATISTICS) :]
        return folds.T if folds.shape[1] else self.values[:, 0]
