"""The folder that ``normalis score`` wrote -> scored studies, ready to become result objects.

The images themselves are read where they lay when they were scored: a result object copies
patient and study from them and shows their pixels. Nothing is scored again. ``maps/`` holds raw
maps; ``score.json`` holds what calibrates them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration
from normalis.calibration.maps import MapScale
from normalis.errors import DataError, NormalisError, RunError
from normalis.files import read_csv
from normalis.output.details import restored_scale
from normalis.output.image_files import ImageFiles
from normalis.output.overlays import resize_map
from normalis.pacs.cases import Region, ScoredImage, ScoredStudy

__all__ = ["ScoredFolder", "read_scored"]

_NEEDED = ("path", "slice", "patient_id", "anomaly_score", "p_value", "flagged")
_HEX = 16  # digits of the model's hash that name it in its results

Table = Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredFolder:
    """A finished scoring. Make it with `read_scored`.

    Attributes:
        folder: where it lies.
        details: what ``score.json`` holds.
        rows: of ``scores.csv``.
        unread: rows of ``skipped.csv``, which names of maps were kept apart from too.
        findings: rows of ``findings.csv`` by path and slice.
        roots: the folder that was scored, as tables have it and in full; empty if they do not say.
        images: where its images lie now; None if they lie where they lay.
        skipped: (path, reason) of images that cannot be read any more; grows with `studies`.
    """

    folder: Path
    details: Mapping[str, Any]
    rows: Table
    unread: Table
    findings: Mapping[tuple[str, str], list[Mapping[str, str]]]
    roots: tuple[str, ...] = ()
    images: Path | None = None
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def model(self) -> str:
        """Hash by which the model is named in its results."""
        return str(self.details["model"])[:_HEX]

    def studies(self) -> Iterator[ScoredStudy]:
        """Yield the studies one after another, each with its images, the worst first.

        Raises:
            DataError: if no scored image is a DICOM file that can be read.
        """
        found = self._by_study
        if not found:
            why = f"; the first: {self.skipped[0][0]}: {self.skipped[0][1]}" if self.skipped else ""
            raise DataError(
                f"{self.folder}: none of its {len(self.rows)} images is a DICOM file that can be "
                f"read, and results are written for DICOM only{why}. If the images have moved, "
                "give their folder with --images"
            )
        for uid, rows in found.items():
            images = [image for row in rows if (image := self._image(row)) is not None]
            if images:
                yield self._study(uid, rows[0].get("study_uid", uid), images)

    @property
    def n_studies(self) -> int:
        """Number of studies."""
        return len(self._by_study)

    @cached_property
    def _by_study(self) -> dict[str, list[Mapping[str, str]]]:
        studies: dict[str, list[Mapping[str, str]]] = defaultdict(list)
        known: dict[Path, str | None] = {}
        for row in self.rows:
            path = self.path(row)
            if path not in known:
                known[path] = self._study_of(path)
            uid = known[path]
            if uid is not None:
                studies[uid].append(row)
        return studies

    def _study_of(self, path: Path) -> str | None:
        from normalis.studies.index import read_header

        entry = read_header(path)
        uid = None if entry is None else entry.columns.get("study_uid")
        if uid is None:
            there = path.is_file()
            why = "no DICOM image with a Study Instance UID" if there else "no longer there"
            self.skipped.append((path, why))
        return uid

    def path(self, row: Mapping[str, str]) -> Path:
        """Return where the file of a row lies now."""
        inside = self._inside(row)
        root = self.images or Path(self.roots[-1] if self.roots else ".")
        return Path(row["path"]) if inside is None else root / inside

    def _inside(self, row: Mapping[str, str]) -> PurePath | None:
        """Return the file of a row relative to the scored folder; None if it lay elsewhere."""
        said = PurePath(row["path"])
        for root in self.roots:
            if said.is_relative_to(root):
                return said.relative_to(root)
        return None if said.is_absolute() else said

    def _as_scored(self, row: Mapping[str, str]) -> Path:
        """Return the file of a row as maps are named after it."""
        return Path(row["path"]) if (at := self._inside(row)) is None else self._files_root / at

    @property
    def _files_root(self) -> Path:
        return Path(self.roots[-1] if self.roots else "/")

    def _image(self, row: Mapping[str, str]) -> ScoredImage | None:
        import pydicom

        path = self.path(row)
        try:
            source = pydicom.dcmread(path)
            _ = source.pixel_array if "PixelData" in source else None
        except Exception as error:  # decoders raise whatever they like
            self.skipped.append((path, str(error) or type(error).__name__))
            return None
        scale = self._colours
        shape = (int(source.Rows), int(source.Columns))
        found = self.findings.get((row["path"], row["slice"]), [])
        return ScoredImage(
            source=source,
            frame=int(row["slice"]) + 1 if row["slice"] else None,
            score=float(row["anomaly_score"]),
            p_value=float(row["p_value"]) if row["p_value"] else None,
            flagged=bool(int(row["flagged"])) if row["flagged"] else None,
            anomaly_map=self._map(row, shape),
            level=scale.quiet,
            full=scale.full,
            regions=tuple(map(_region, found)),
        )

    @cached_property
    def _colours(self) -> ColourScale:
        return ColourScale(**self.details["colour_scale"])

    def _map(self, row: Mapping[str, str], shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """Return the calibrated map at the image's own size, None if no map was written."""
        name = self._files.below(self._as_scored(row), row["slice"], ".npy")
        file = self.folder / "maps" / name
        if not file.is_file():
            return None
        try:
            raw = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{file}: is damaged ({error}); score again") from error
        if self._scale is None:
            return self._colours.smooth(raw)
        return resize_map(self._scale.apply(_at_model_size(raw, self._scale)), shape)

    @cached_property
    def _scale(self) -> MapScale | None:
        return restored_scale(self.details)

    @cached_property
    def _files(self) -> ImageFiles:
        every = (self._as_scored(row) for row in (*self.rows, *self.unread))
        return ImageFiles(self.folder, self._files_root).keeping_apart(every)

    def _study(self, uid: str, said: str, images: Sequence[ScoredImage]) -> ScoredStudy:
        ranked = tuple(sorted(images, key=lambda image: -image.score))
        stored = self.details.get("calibration")
        patient: dict[str, Any] = {}
        if stored:
            every = Calibration.from_dict(stored).n_units
            units = self.details.get("study_calibration_units", {}).get(said, every)
            patient["patient_p_value"] = self.details.get("study_p_values", {}).get(said)
            patient["calibration_units"] = units if patient["patient_p_value"] else None
        fpr = float(self.details["fpr"])
        return ScoredStudy(uid=uid, model=self.model, images=ranked, fpr=fpr, **patient)


def read_scored(folder: Path, *, images: Path | None = None) -> ScoredFolder:
    """Read the tables of a finished scoring.

    Args:
        folder: that ``normalis score`` wrote.
        images: where the images lie now; None for where they lay.

    Raises:
        RunError: if it is no finished scoring, is damaged, or is of an older version.
    """
    try:
        details = json.loads((folder / "score.json").read_text(encoding="utf-8"))
        rows = read_csv(folder / "scores.csv")
        found = folder / "findings.csv"
        findings = read_csv(found) if found.is_file() else []
        unread = read_csv(folder / "skipped.csv", columns=("path",))
    except FileNotFoundError as error:
        raise RunError(
            f"{folder}: must be a folder that `normalis score` wrote and finished, has no "
            f"{Path(str(error.filename)).name}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder}: is damaged ({error}); score again") from error
    if not isinstance(details, dict) or any(k not in details for k in ("model", "fpr", "root")):
        raise RunError(
            f"{folder}: was scored by a version of normalis that kept less; score again to make "
            "DICOM objects of it"
        )
    if rows and (missing := [name for name in _NEEDED if name not in rows[0]]):
        raise RunError(f"{folder / 'scores.csv'}: there is no column {missing[0]!r}; score again")
    by_image: dict[tuple[str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in findings:
        by_image[row.get("path", ""), row.get("slice", "")].append(row)
    return ScoredFolder(
        folder=folder,
        details=details,
        rows=rows,
        unread=unread,
        findings=by_image,
        roots=tuple(details["root"] or ()),
        images=images,
    )


def _region(row: Mapping[str, str]) -> Region:
    try:
        return Region(
            left=float(row["left"]),
            top=float(row["top"]),
            right=float(row["right"]),
            bottom=float(row["bottom"]),
            peak=float(row["peak"]),
            p_value=float(row["p_value"]) if row["p_value"] else None,
            above=bool(int(row["above"])),
        )
    except (KeyError, ValueError) as error:
        raise NormalisError(f"findings.csv: is damaged ({error}); score again") from error


def _at_model_size(raw: NDArray[Any], scale: MapScale) -> NDArray[np.float32]:
    """Return the map (S, S) that was stretched to an image's size.

    Stretching is linear along each side, W m W'; its least-squares inverse gives the map back,
    exactly where the image is at least as large as the map.
    """
    rows, columns = (
        _shrinking(n, size) for n, size in zip(raw.shape, scale.scale.shape, strict=True)
    )
    return np.asarray(rows @ raw @ columns.T, np.float32)


@cache
def _shrinking(long: int, short: int) -> NDArray[np.float64]:
    """Return what undoes `resize_map` along one side, (short, long)."""
    stretching = resize_map(np.eye(short, dtype=np.float32), (long, short))
    return np.asarray(np.linalg.pinv(stretching.astype(np.float64)))
