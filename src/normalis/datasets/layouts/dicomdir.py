"""A DICOMDIR: the table of contents of a CD, which names every image and its patient.

The files are those that its IMAGE records name, below the folder that it lies in. Copies of CDs
often change the case of names; they are found all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normalis.datasets.base import Dataset, Options, Sample
from normalis.datasets.listing import is_file, quote_some
from normalis.errors import DataError
from normalis.errors.words import counted, verb

__all__ = ["LAYOUT", "read", "recognise"]

LAYOUT = "DICOMDIR"

_CLASS = "1.2.840.10008.1.3.10"


def recognise(path: Path, options: Options | None = None) -> bool:
    """Whether the path is a file named DICOMDIR."""
    return path.name.upper() == LAYOUT and is_file(path)


def read(path: Path, options: Options | None = None) -> Dataset:
    """List the images that the directory names.

    Raises:
        DataError: if it is no DICOMDIR, or names no image that is there.
    """
    found, missing = [], []
    for parts, patient in _images(path):
        file = _below(path.parent, parts)
        if file is None:
            missing.append("/".join(parts))
        else:
            found.append(Sample(path=file, split="unlabelled", patient_id=patient or None))
    if not found:
        first = f"; it names {missing[0]}" if missing else ""
        raise DataError(f"{path}: names no image that is there{first}")
    notes = []
    if missing:
        notes.append(
            f"It names {counted(len(missing), 'image')} that {verb(len(missing), 'is', 'are')} "
            f"missing: {quote_some(missing)}."
        )
    return Dataset(
        name=path.parent.resolve().name,
        root=path.parent,
        layout=LAYOUT,
        samples=tuple({sample.path: sample for sample in found}.values()),
        notes=tuple(notes),
    )


def _images(path: Path) -> Iterator[tuple[list[str], str]]:
    """Yield the parts of the name of each image, and its patient."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        data = pydicom.dcmread(path)
        records = list(data.get("DirectoryRecordSequence") or [])
    except (InvalidDicomError, OSError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as a DICOMDIR ({error})") from error
    if data.file_meta.get("MediaStorageSOPClassUID") != _CLASS:
        raise DataError(f"{path}: is named DICOMDIR and is none; rename it, or give its folder")
    patient = ""
    for record in records:  # in the order of the tree: a patient before what is the patient's
        kind = str(record.get("DirectoryRecordType", ""))
        if kind == "PATIENT":
            patient = str(record.get("PatientID") or "").strip()
        elif kind == "IMAGE" and record.get("ReferencedFileID"):
            yield _parts(record.ReferencedFileID), patient


def _parts(value: Any) -> list[str]:
    return [str(value)] if isinstance(value, str) else [str(part) for part in value]


def _below(folder: Path, parts: list[str]) -> Path | None:
    """Return a file by its parts, whatever their case; None if it is not there or leads out."""
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\\" in part:
            return None
        inside = folder / part
        if not inside.exists():
            same = [p for p in _entries(folder) if p.name.casefold() == part.casefold()]
            if len(same) != 1:
                return None
            inside = same[0]
        folder = inside
    return folder if is_file(folder) else None


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
