"""What lies in a folder: a run, or the output of ``score``.

Only tables and JSON are read here, never a model and never an image, so a page can be made on a
machine without PyTorch and without the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.conformal import Calibration
from normalis.errors import RunError, SettingsError
from normalis.files import order_of, read_csv
from normalis.output.replacing import is_being_replaced
from normalis.storage import RunFolder

__all__ = ["KNOWN", "Cases", "Source", "detect", "read_run", "read_scores", "under_pseudonyms"]

Kind = Literal["scores", "run"]
_COLUMNS = ("path", "slice", "patient_id", "anomaly_score", "p_value", "flagged")
#: Columns of scores.csv that are shown where they are there.
KNOWN = (
    "study_uid", "series_description", "accession_number", "view", "laterality", "seen_by",
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Cases:
    """The scored images, in the order of ``scores.csv``.

    Attributes:
        path: (N,) file names as they were given.
        place: (N,) slice or row within the file, empty where there is one image a file.
        patient_id: (N,) empty where unknown.
        anomaly_score: (N,) higher is more anomalous.
        p_value: (N,) NaN without calibration.
        is_anomalous: (N,) None where nobody said.
        kind: (N,) name of the anomaly, None where unknown.
        known: name -> (N,) of the columns `KNOWN` that are there; empty where unknown.
        similar: (N,) number and distance of the most similar normal images, nearest first.
    """

    path: list[str]
    place: list[str]
    patient_id: list[str]
    anomaly_score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    is_anomalous: list[bool | None]
    kind: list[str | None]
    known: Mapping[str, list[str]] = field(default_factory=dict)
    similar: list[list[tuple[int, float]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.path)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(N,) whether the class is known."""
        return np.array([label is not None for label in self.is_anomalous], dtype=bool)

    @property
    def anomalous(self) -> NDArray[np.bool_]:
        """(N,) whether the image is known to be anomalous."""
        return np.array([label is True for label in self.is_anomalous], dtype=bool)

    @property
    def groups(self) -> NDArray[Any] | None:
        """(N,) patient of each image, None unless all are known."""
        return np.array(self.patient_id) if all(self.patient_id) else None

    @property
    def order(self) -> NDArray[np.intp]:
        """Positions by p-value, then by descending score: what a reader should look at first."""
        p_value = np.where(np.isnan(self.p_value), np.inf, self.p_value)
        return np.lexsort((-self.anomaly_score, p_value))


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """A run or a scoring, as far as its folder tells.

    Attributes:
        folder: where it lies.
        kind: ``run`` or ``scores``.
        details: settings, history, versions and so on, as ``fit`` or ``score`` wrote them.
        calibration: scores of held-out normal images, None where there are none.
        grouped_by: within what groups p-values are; empty where all normal images calibrate all.
        normal_scores: (n,) scores of the normal images held out (else trained on).
        cases: the scored images; None for a run.
        skipped: (path, reason) of images that could not be read.
        audit: findings of ``check``; empty where there is no ``audit.json``.
        evaluations: results of ``evaluate``, one for each ``evaluation*.json``.
        patients: p-value of each patient, of ``patients.csv``; empty where there is none.
    """

    folder: Path
    kind: Kind
    details: dict[str, Any]
    calibration: Calibration | None
    grouped_by: str = ""
    normal_scores: NDArray[np.float64]
    cases: Cases | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    audit: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    patients: Mapping[str, float] = field(default_factory=dict)


def detect(path: Path) -> Kind:
    """Return what a folder holds.

    Raises:
        RunError: if it is neither, or unfinished.
    """
    if is_being_replaced(path):
        raise RunError(f"{path}: is being replaced: run the same `normalis score` to go on")
    if (path / "scores.csv").is_file():
        return "scores"
    if RunFolder(path).finished:
        return "run"
    if any((path / "records").glob("*.parquet")) or (path / "records.parquet").is_file():
        raise RunError(
            f"{path}: holds records of experiments, whose page `normalis research page {path} "
            "--out PAGE` writes"
        )
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise RunError(f"{path}: must be a folder written by fit or score, {state}")
    for name, command in (("progress.jsonl", "score"), (RunFolder.CHECKPOINT, "fit")):
        if (path / name).is_file():
            raise RunError(f"{path}: is unfinished: run the same `normalis {command}` to go on")
    raise RunError(
        f"{path}: must hold a run (model.json) or the output of score (scores.csv), holds neither"
    )


def read_run(path: Path) -> Source:
    """Read a run folder; its checksums are checked.

    Raises:
        RunError: if it is damaged.
    """
    folder = RunFolder(path)
    details = _checked(folder.file(folder.SETTINGS), folder.read_settings())
    mine = folder.identity
    return Source(
        folder=path,
        kind="run",
        details=details,
        calibration=_calibration(path / RunFolder.SETTINGS, details),
        grouped_by=str((details.get("grouped") or {}).get("by", "")),
        normal_scores=np.asarray(folder.read_arrays().get("decision_scores", []), dtype=float),
        skipped=_read_skipped(path / "skipped.csv"),
        audit=_read_json(path / "audit.json"),
        evaluations=[one for one in _evaluations(path) if one.get("model", mine) == mine],
    )


def _evaluations(path: Path) -> list[dict[str, Any]]:
    return [_read_json(file) for file in sorted(path.glob(RunFolder.EVALUATIONS))]


def read_scores(path: Path) -> Source:
    """Read an output folder of ``score``; without its ``score.json`` the table alone serves.

    Raises:
        RunError: if a file is damaged.
    """
    details = _read_json(path / "score.json")
    return Source(
        folder=path,
        kind="scores",
        details=details,
        calibration=_calibration(path / "score.json", details),
        grouped_by=str(details.get("grouped_by", "")),
        normal_scores=np.asarray(details.get("decision_scores") or [], dtype=float),
        cases=_read_cases(path / "scores.csv", details),
        skipped=_read_skipped(path / "skipped.csv"),
        audit=_read_json(path / "audit.json"),
        evaluations=_evaluations(path),
        patients=_read_patients(path / "patients.csv"),
    )


def under_pseudonyms(source: Source, leaves: Callable[[str, str], str]) -> Source:
    """Return what may leave the hospital of a source.

    Args:
        source: what was scored; what has pseudonyms already stays as it is.
        leaves: ``leaves(column, cell)`` gives what may be said of a cell.
    """
    if source.cases is None or source.details.get("pseudonyms"):
        return source
    cases = source.cases
    return replace(
        source,
        cases=replace(
            cases,
            patient_id=[leaves("patient_id", name) for name in cases.patient_id],
            known={name: [leaves(name, v) for v in cells] for name, cells in cases.known.items()},
        ),
        patients={leaves("patient", name): p for name, p in source.patients.items()},
    )


def _read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object, empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: cannot be read as JSON ({error}); restore or remove it") from error
    if not isinstance(body, dict):
        raise RunError(f"{file}: must hold a JSON object, holds {type(body).__name__}; remove it")
    return _checked(file, body)


#: What parts of our JSON files are, and what a list holds.
_TABLES = ("info", "params", "colour_scale", "calibration", "pictures", "groups", "group_sizes")
_LISTS: dict[str, Any] = {
    "history": dict, "findings": dict, "tables": dict, "subsets": dict, "lesions": dict,
    "drift": str, "notes": str, "decision_scores": (int, float), "is_anomalous": (bool, type(None)),
    "kind": (str, type(None)),
}  # fmt: skip


def _checked(file: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Refuse parts that are not what we write, by name."""
    for name, value in body.items():
        wrong = name in _TABLES and not isinstance(value, dict)
        if name in _LISTS:
            kind = _LISTS[name]
            wrong = not isinstance(value, list) or not all(isinstance(v, kind) for v in value)
        if wrong and value is not None:
            shown = str(value)[:60]
            raise RunError(f"{file}: {name} is not what normalis writes, {shown}; restore the file")
    return body


def _calibration(file: Path, details: Mapping[str, Any]) -> Calibration | None:
    stored = details.get("calibration")
    if not stored:
        return None
    try:
        found = Calibration.from_dict(stored)
    except SettingsError as error:
        raise RunError(f"{file}: {error}") from error
    return found if found.kind != "none" and found.n_units else None


def _read_table(file: Path) -> list[dict[str, str]]:
    try:
        return read_csv(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read as CSV ({error}); restore it") from error


def _read_skipped(file: Path) -> list[tuple[str, str]]:
    rows = _read_table(file) if file.is_file() else []
    return [(row.get("path") or "", row.get("reason") or "") for row in rows]


def _read_cases(file: Path, details: Mapping[str, Any]) -> Cases:
    rows = _read_table(file)
    missing = [name for name in _COLUMNS[:4] if rows and name not in rows[0]]
    if missing:
        raise RunError(f"{file}: must have a column {missing[0]!r}, has {list(rows[0])}")
    labels = details.get("is_anomalous") or [None] * len(rows)
    kinds = details.get("kind") or [None] * len(rows)
    if len(labels) != len(rows) or len(kinds) != len(rows):
        raise RunError(
            f"{file}: must have as many rows as score.json beside it has labels, has {len(rows)} "
            f"rows for {len(labels)}; score again into a new folder"
        )
    order = details.get("order")
    if order and order != order_of((row["path"], row["slice"] or "") for row in rows):
        raise RunError(
            f"{file}: its rows are in another order than they were written in, or of other images, "
            "so that the labels of score.json beside it would be those of other rows; restore it, "
            "or score again into a new folder"
        )
    return Cases(
        path=[row["path"] for row in rows],
        place=[row["slice"] or "" for row in rows],
        patient_id=[row["patient_id"] or "" for row in rows],
        anomaly_score=_numbers(file, rows, "anomaly_score"),
        p_value=_numbers(file, rows, "p_value"),
        is_anomalous=list(labels),
        kind=list(kinds),
        known={
            name: [row[name] or "" for row in rows] for name in KNOWN if rows and name in rows[0]
        },
        similar=_read_similar(file.with_name("similar.csv"), rows),
    )


def _read_patients(file: Path) -> dict[str, float]:
    """Return the p-value of each patient, empty if there is no such table or it has none."""
    rows = _read_table(file) if file.is_file() else []
    if not rows or not {"patient", "p_value"} <= rows[0].keys():
        return {}
    values = _numbers(file, rows, "p_value")
    return {
        row["patient"]: float(value)
        for row, value in zip(rows, values, strict=True)
        if row["patient"] and np.isfinite(value)
    }


def _read_similar(file: Path, cases: list[dict[str, str]]) -> list[list[tuple[int, float]]]:
    """Return the similar normal images of each case, nearest first, none without a table."""
    found: dict[tuple[str, str], list[tuple[int, int, float]]] = {}
    for row in _read_table(file) if file.is_file() else []:
        try:
            one = int(row["rank"]), int(row["normal_image"]), float(row["distance"])
            found.setdefault((row["path"], row["slice"] or ""), []).append(one)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{file}: is not what normalis writes ({error!r}); restore it"
            ) from error
    named = (sorted(found.get((row["path"], row["slice"] or ""), [])) for row in cases)
    return [[(number, distance) for _, number, distance in one] for one in named]


def _numbers(file: Path, rows: list[dict[str, str]], column: str) -> NDArray[np.float64]:
    """Return a column as numbers; empty cells are NaN."""
    try:
        return np.array([float(row.get(column) or "nan") for row in rows], dtype=np.float64)
    except ValueError as error:
        raise RunError(
            f"{file}: column {column} must hold numbers ({error}); restore it"
        ) from error
