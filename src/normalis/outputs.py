"""The output folder of ``normalis score``: a table, maps, pictures, and what a report needs.

::

    scores.csv      path, slice, patient_id, anomaly_score, p_value, flagged; one row an image
    skipped.csv     path, reason
    maps/           float32 anomaly maps at each image's own geometry: NPY, one NIfTI per volume
    overlays/       PNG: image, reconstruction, map; one colour scale for all
    score.json      settings, calibration and training history of the run that scored
    thumbnails/     small pictures for the report

Rows are appended to ``progress.csv`` once their maps are on disk; ``scores.csv`` appears when all
are done. A killed scoring therefore goes on where it stopped, and a finished one is never
overwritten.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.errors import RunError, SettingsError
from normalis.overlays import ColourScale, grey, render, resize_map
from normalis.records import content_hash, exclusive, write_atomically, write_csv, write_json

if TYPE_CHECKING:
    from normalis.datasets import Sample
    from normalis.detector import AnomalyDetector
    from normalis.loading import Row
    from normalis.scoring import Explained, Scored

__all__ = ["MANY", "ScoreOptions", "ScoreSummary", "score_to_folder"]

#: Beyond so many images only the most anomalous get a picture, unless all are asked for.
MANY = 1000

_PROGRESS = "progress.csv"
_COLUMNS = ("path", "slice", "patient_id", "anomaly_score")
_BY_FOLD = "by_fold"  # of progress.csv: the scores that a p-value of CV+ is made from
_STATISTICS = ("mean intensity", "contrast")
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
    """

    maps: bool = True
    overlays: bool = True
    all_overlays: bool = False
    fpr: float = 0.05


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
    """

    images: int
    skipped: int
    flagged: int | None
    top: list[dict[str, Any]]
    drift: list[str]
    folder: Path


def score_to_folder(
    detector: AnomalyDetector,
    samples: Sequence[Sample],
    out: str | Path,
    *,
    root: Path,
    options: ScoreOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreSummary:
    """Score files and write the output folder.

    Args:
        detector: fitted.
        samples: the files.
        out: the folder; new, empty, or an interrupted scoring with the same settings.
        root: folder that names of maps and pictures are relative to.
        options: what to write.
        progress: called with (files done, files in all).

    Raises:
        RunError: if the folder holds something else or cannot be written.
    """
    options = options or ScoreOptions()
    folder = Path(out)
    with exclusive(folder / ".lock", what=f"{folder}: the output"):
        writer = _Writer(detector, folder, root, options)
        todo = writer.resume(samples)
        done = len(samples) - len(todo)
        for part in _scored(detector, todo, writer, options, need_one=not done):
            writer.add(part)
            done += len({row.sample for row in part.rows})
            if progress:
                progress(min(done, len(samples)), len(samples))
        summary = writer.finish(samples)
    (folder / ".lock").unlink(missing_ok=True)
    return summary


def _scored(
    detector: AnomalyDetector,
    samples: Sequence[Sample],
    writer: _Writer,
    options: ScoreOptions,
    *,
    need_one: bool,
) -> Iterator[Scored]:
    """Yield scored batches; `normalis.loading.stream` never ends one in the middle of a file."""
    if samples:  # none are left if it was interrupted after the last image, before the pictures
        yield from detector.stream(
            samples, maps=options.maps, skipped=writer.skipped, need_one=need_one
        )


class _Writer:
    """Writes the folder part by part."""

    def __init__(
        self, detector: AnomalyDetector, folder: Path, root: Path, options: ScoreOptions
    ) -> None:
        self.detector, self.folder, self.root, self.options = detector, folder, root, options
        self.skipped: list[tuple[Path, str]] = []

    # --- resuming ---

    def resume(self, samples: Sequence[Sample]) -> list[Sample]:
        """Refuse a finished or foreign folder; return the samples still to be scored."""
        if (self.folder / "scores.csv").exists():
            raise RunError(
                f"{self.folder}: holds scores already, which are never overwritten; choose "
                "another --out"
            )
        file = self.folder / _PROGRESS
        foreign = [p.name for p in self.folder.iterdir() if p.name not in (".lock", _PROGRESS)]
        if not file.exists():
            if foreign:
                raise RunError(
                    f"{self.folder}: must be a new or empty folder, holds {foreign[0]}; choose "
                    "another --out"
                )
            write_csv(file, (*_COLUMNS, *_STATISTICS, _BY_FOLD, self._identity(samples)), [])
            return list(samples)
        done = {row[0] for row in self._rows(samples)}
        return [s for s in samples if _key(s) not in done]

    def _identity(self, samples: Sequence[Sample]) -> str:
        """Return what a resumed scoring must have in common with the one interrupted."""
        return content_hash(
            {
                "data": self.detector.info_["data"],
                "params": self.detector._plain_params(),
                "maps": self.options.maps,
                "files": [_key(s) for s in samples],
            }
        )

    def _rows(self, samples: Sequence[Sample]) -> list[list[str]]:
        """Return the complete rows of an interrupted scoring."""
        text = (self.folder / _PROGRESS).read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        header, *rows = csv.reader(io.StringIO(whole, newline=""))
        if header[-1] != self._identity(samples):
            raise RunError(
                f"{self.folder}: holds an interrupted scoring of other images or another model; "
                "choose another --out"
            )
        complete = {row[0] for row in rows if row[-1:] == ["end"]}
        kept = [row for row in rows if row[0] in complete]
        if len(kept) != len(rows) or whole != text:
            write_csv(self.folder / _PROGRESS, header, kept)
        return kept

    # --- a part ---

    def add(self, part: Scored) -> None:
        """Write the maps of some images, then note their rows."""
        if part.anomaly_map is not None:
            self._write_maps(part.rows, part.anomaly_map)
        last = {_key(row.sample): i for i, row in enumerate(part.rows)}
        lines = []
        for i, (row, value) in enumerate(zip(part.rows, part.anomaly_score, strict=True)):
            key = _key(row.sample)
            end = ["end"] if last[key] == i else []
            seen = [repr(float(part.statistics[name][i])) for name in _STATISTICS]
            each = [] if part.by_fold is None else part.by_fold[:, i].tolist()
            folds = " ".join(map(repr, each))
            lines.append([key, *_cells(row), repr(float(value)), *seen, folds, *end])
        self._note(lines)

    def _note(self, lines: Sequence[Sequence[str]]) -> None:
        file = self.folder / _PROGRESS
        try:
            with file.open("a", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows(lines)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise RunError(
                f"{file}: cannot be written ({error.strerror or error}); what was scored is kept. "
                "Free space and run the same command again"
            ) from error

    def _write_maps(self, rows: Sequence[Row], maps: NDArray[np.float32]) -> None:
        volumes: dict[Path, list[int]] = {}
        for i, row in enumerate(rows):
            if row.header.get("format") == "NIfTI":
                volumes.setdefault(row.path, []).append(i)
                continue
            whole = resize_map(maps[i], row.original_shape)
            path = self._name("maps", row.path, row.slice_index, row.sample.index, ".npy")
            write_atomically(path, partial(_save_npy, array=whole))
        for path, chosen in volumes.items():
            slices = np.stack([resize_map(maps[i], rows[i].original_shape) for i in chosen])
            self._write_volume(path, slices, [rows[i] for i in chosen])

    def _write_volume(self, path: Path, slices: NDArray[np.float32], rows: Sequence[Row]) -> None:
        from normalis.images import save_map_volume

        name = path.name.removesuffix(".gz").removesuffix(".nii") + ".nii.gz"
        target = self._name("maps", path.with_name(name), None, None, "")
        places = [row.slice_index or 0 for row in rows]
        header = rows[0].header
        write_atomically(target, lambda p: save_map_volume(p, slices, header, slices=places))

    def _name(
        self, kind: str, path: Path, slice_index: int | None, index: int | None, suffix: str
    ) -> Path:
        """Return where an image's map or picture goes; keeps the tree and the whole file name."""
        # Not resolved: links may lead many names to one file, or to a name that means nothing.
        whole, root = (Path(os.path.abspath(p)) for p in (path, self.root))  # noqa: PTH100
        # Files of a manifest may lie elsewhere, with one name in several folders: keep them apart.
        inside = whole.relative_to(root if whole.is_relative_to(root) else whole.anchor)
        numbers = "".join(f"_{n:04d}" for n in (index, slice_index) if n is not None)
        ending = "" if inside.suffix == suffix and not numbers else f"{numbers}{suffix}"
        return self.folder / kind / inside.with_name(inside.name + ending)

    # --- the end ---

    def finish(self, samples: Sequence[Sample]) -> ScoreSummary:
        """Write pictures and the final tables; return what was done."""
        order = {_key(s): i for i, s in enumerate(samples)}
        rows = sorted(self._rows(samples), key=lambda row: order[row[0]])
        paths = {_key(s): s for s in samples}
        scores = np.array([float(row[3]) for row in rows])
        judged = _by_fold(rows) if rows and rows[0][6] else scores
        p_values, flagged = self._judge(judged)
        drift = self._drift(rows, judged)
        table = [
            {
                "path": str(paths[row[0]].path),
                "slice": row[1] if paths[row[0]].index is None else str(paths[row[0]].index),
                "patient_id": row[2],
                "anomaly_score": float(row[3]),
                "p_value": p,
                "flagged": f,
            }
            for row, p, f in zip(rows, p_values, flagged, strict=True)
        ]
        ranked = np.argsort(-scores, kind="stable")
        if self.options.overlays:
            chosen = sorted(ranked if self.options.all_overlays else ranked[:MANY])
            self._draw([table[i] for i in chosen], [paths[rows[i][0]] for i in chosen])
        self._write_details(table, [paths[row[0]] for row in rows], drift)
        write_csv(self.folder / "skipped.csv", ("path", "reason"), self.skipped)
        write_csv(self.folder / "scores.csv", list(table[0]) if table else _COLUMNS, _values(table))
        (self.folder / _PROGRESS).unlink()
        return ScoreSummary(
            images=len(table),
            skipped=len(self.skipped),
            flagged=None if "" in flagged else sum(flagged),
            top=[table[i] for i in ranked[:10]],
            drift=drift,
            folder=self.folder,
        )

    def _drift(self, rows: Sequence[Sequence[str]], scores: NDArray[np.float64]) -> list[str]:
        """Return why the new images may not be of the calibration's kind, empty if they look it."""
        calibration = self.detector.calibration_
        if calibration is None or not len(rows):
            return []
        known = all(row[2] for row in rows)
        found = calibration.drift(
            scores,
            patients=np.array([row[2] for row in rows]) if known else None,
            statistics={
                name: np.array([float(row[4 + i]) for row in rows])
                for i, name in enumerate(_STATISTICS)
            },
        )
        if found.reasons or not found.least_anomalous:
            return list(found.reasons)
        return [
            f"at least {found.least_anomalous:.0%} of the new {calibration.level}s must be "
            "anomalous; if fewer are, the images differ from those held out for calibration, and "
            "the false-positive rate does not hold"
        ]

    def _judge(self, scores: NDArray[np.float64]) -> tuple[list[Any], list[Any]]:
        """Return p-values and flags, empty cells where the detector has no calibration."""
        calibration, count = self.detector.calibration_, scores.shape[-1]
        if calibration is None or not count:
            return [""] * count, [""] * count
        p_values = calibration.p_values(scores)
        try:
            calibration.check_rate(self.options.fpr)
        except SettingsError:  # too few normals to certify the level: nothing can be flagged
            return list(p_values), [""] * count
        return list(p_values), [int(f) for f in calibration.flags(p_values, self.options.fpr)]

    def _write_details(
        self, table: Sequence[dict[str, Any]], samples: Sequence[Sample], drift: list[str]
    ) -> None:
        detector = self.detector
        calibration = detector.calibration_
        write_json(
            self.folder / "score.json",
            {
                "params": detector._plain_params(),
                "info": detector.info_,
                "history": detector.history_,
                "colour_scale": detector.colour_scale_.to_dict(),
                "calibration": calibration.to_dict() if calibration else None,
                "decision_scores": detector.decision_scores_,
                "fpr": self.options.fpr,
                "drift": drift,
                "is_anomalous": [s.is_anomalous for s in samples],
                "kind": [s.kind for s in samples],
            },
        )

    def _draw(self, table: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> None:
        """Draw pictures of some rows; their files are read once more, at full size."""
        rows = {(r["path"], r["slice"]): r for r in table}
        for seen in self.detector.explain(list(dict.fromkeys(samples))):
            number = seen.row.sample.index
            place = seen.row.slice_index if number is None else number
            row = rows.get((str(seen.row.path), "" if place is None else str(place)))
            if row is not None:
                self._picture(seen, row)

    def _picture(self, seen: Explained, row: dict[str, Any]) -> None:
        where, scale = seen.row, self.detector.colour_scale_
        p_value = "" if row["p_value"] == "" else f"   p = {row['p_value']:.3g}"
        place = "" if row["slice"] == "" else f" [{row['slice']}]"
        picture = render(
            seen.original,
            seen.anomaly_map,
            scale=scale,
            reconstruction=seen.reconstruction,
            title=f"{where.path.name}{place}   score {row['anomaly_score']:.4g}{p_value}",
        )
        at = (where.path, where.slice_index, where.sample.index, ".png")
        path = self._name("overlays", *at)
        write_atomically(path, lambda p: picture.save(p, format="PNG", compress_level=1))
        strip = thumbnail(seen, scale)
        path = self._name("thumbnails", *at)
        write_atomically(path, lambda p: strip.save(p, format="PNG"))


def thumbnail(seen: Explained, scale: ColourScale) -> Image.Image:
    """Return image, reconstruction and map side by side in grey, each `THUMBNAIL` high.

    The map is the red channel's: 0 at ``quiet`` and below, 255 at ``full``.
    """
    size = (THUMBNAIL, THUMBNAIL)
    rebuilt = seen.original if seen.reconstruction is None else seen.reconstruction
    level = (scale.smooth(seen.anomaly_map) - scale.quiet) / max(scale.full - scale.quiet, 1e-12)
    level = (255 * np.clip(level, 0, 1)).round().astype(np.uint8)
    parts = [Image.fromarray(grey(seen.original)).convert("L"), Image.fromarray(grey(rebuilt))]
    strip = Image.new("L", (3 * THUMBNAIL, THUMBNAIL))
    for i, part in enumerate([*parts, Image.fromarray(level)]):
        strip.paste(part.convert("L").resize(size, Image.Resampling.BILINEAR), (i * THUMBNAIL, 0))
    return strip


def _save_npy(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:  # a name without .npy would get one appended
        np.save(file, array)


def _key(sample: Sample) -> str:
    """Return what names a sample within one scoring."""
    place = "" if sample.index is None else f"#{sample.array}[{sample.index}]"
    return f"{sample.path}{place}"


def _by_fold(rows: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the scores (F, N) by each model of a cross-fitted detector."""
    return np.array([[float(value) for value in row[6].split()] for row in rows]).T


def _cells(row: Row) -> list[str]:
    return ["" if row.slice_index is None else str(row.slice_index), row.patient_id or ""]


def _values(table: Sequence[dict[str, Any]]) -> list[list[Any]]:
    return [list(row.values()) for row in table]
