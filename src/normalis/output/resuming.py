"""A scoring that was interrupted goes on; one that is finished is answered from what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalis.errors import RunError
from normalis.files import is_temporary, read_csv, remove_temporaries
from normalis.output.image_files import ImageFiles, slice_label
from normalis.output.journal import Journal, stamp
from normalis.output.noted import key_of
from normalis.output.options import ScoreOptions, ScoreSummary
from normalis.output.patients import COLUMNS as PATIENT_COLUMNS
from normalis.output.replacing import NEW, remove_own

if TYPE_CHECKING:
    from normalis.datasets import Sample

__all__ = ["MODEL", "finished", "resume"]

#: Where the model lies below the folder while other processes need it.
MODEL = ".model"


def resume(
    folder: Path,
    samples: Sequence[Sample],
    *,
    journal: Journal,
    identity: str,
    files: ImageFiles,
    options: ScoreOptions,
) -> list[Sample]:
    """Refuse a foreign folder; return the samples still to be scored.

    Raises:
        RunError: if the folder holds something else, and it may not be replaced.
    """
    if journal.begun and journal.identity != identity and not options.overwrite:
        raise RunError(
            f"{folder}: holds an interrupted scoring of other images or another "
            "model; choose another --out"
        )
    if journal.identity == identity:
        remove_temporaries(folder)
        known = {key_of(s): s for s in samples}
        done = journal.keep(partial(_is_done, known, files if options.maps else None))
        return [s for s in samples if key_of(s) not in done]
    if not journal.file.exists():
        _refuse_foreign(folder)
    remove_own(folder)
    remove_temporaries(folder)
    journal.begin(identity)
    return list(samples)


def _refuse_foreign(folder: Path) -> None:
    known = (".lock", MODEL, NEW, "progress.csv")
    names = sorted(p.name for p in folder.iterdir() if not is_temporary(p.name))
    foreign = [name for name in names if name not in known]
    if "progress.csv" in names:
        raise RunError(
            f"{folder}: holds a scoring that an older version began; go on with that "
            "version, or choose another --out"
        )
    if foreign:
        raise RunError(
            f"{folder}: must be a new or empty folder, holds {foreign[0]}; choose another --out"
        )


def _is_done(
    known: dict[str, Sample], maps: ImageFiles | None, noted: str, lines: list[list[str]]
) -> bool:
    """Return whether what was noted of a file holds: it is the same, and its maps are there."""
    sample = known.get(lines[0][0])
    if sample is None:
        return False
    now = stamp(sample.path)
    if now and now != noted:
        return False
    places = (slice_label(sample, line[1] or None) for line in lines)
    return maps is None or all(maps.has_map(sample.path, p) for p in places)


def finished(folder: Path, journal: Journal, *, maps: bool = False) -> ScoreSummary:
    """Remove what a killed process left; return what is there.

    Args:
        folder: of the scores.
        journal: of the scoring.
        maps: whether maps were asked for.

    Raises:
        RunError: if a table is damaged or has lost rows, or if maps are gone.
    """
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    journal.remove()
    remove_temporaries(folder)
    try:
        table = read_csv(
            folder / "scores.csv", columns=("path", "slice", "patient_id", "anomaly_score")
        )
        skipped = len(read_csv(folder / "skipped.csv", columns=("path", "reason")))
        patients = _kept_patients(folder)
        said = json.loads((folder / "score.json").read_text(encoding="utf-8"))
        drift = said["drift"]
        rows = [
            row
            | {"anomaly_score": float(row["anomaly_score"])}
            | {"p_value": float(row["p_value"]) if row["p_value"] else ""}
            for row in table
        ]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{folder}: is damaged ({error}); choose another --out") from error
    if why := _lost(folder, table, said, maps=maps):
        raise RunError(f"{folder}: {why}; choose another --out, or add --overwrite")
    flags = [row["flagged"] for row in table]
    rows.sort(key=lambda row: float(row["anomaly_score"]), reverse=True)
    return ScoreSummary(
        images=len(table),
        skipped=skipped,
        flagged=sum(map(int, flags)) if all(flags) else None,
        top=rows[:10],
        drift=drift,
        folder=folder,
        patients=patients,
    )


def _lost(
    folder: Path, table: list[dict[str, str]], said: dict[str, Any], *, maps: bool
) -> str | None:
    """Say what is no longer there of a finished scoring; None if nothing is missing."""
    labels = said.get("is_anomalous")
    if isinstance(labels, list) and len(labels) != len(table):
        return f"scores.csv has {len(table)} rows, of {len(labels)} images that were scored"
    files = {row["path"] for row in table}
    there = sum(p.is_file() for p in (folder / "maps").rglob("*")) if maps else len(files)
    return f"{len(files) - there} maps are gone" if there < len(files) else None


def _kept_patients(folder: Path) -> list[tuple[Any, ...]]:
    """Return the rows of patients.csv; none of a scoring from before it was written."""
    file = folder / "patients.csv"
    rows = read_csv(file, columns=PATIENT_COLUMNS) if file.is_file() else []
    flags = ({**row, "flagged": int(row["flagged"]) if row["flagged"] else ""} for row in rows)
    return [tuple(row[name] for name in PATIENT_COLUMNS) for row in flags]
