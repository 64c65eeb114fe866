"""Folders that are patients, as the DICOM headers of the files in them say.

Exports number the folders of patients, and sets of images number those of classes. A name like
``0`` says neither; the headers do: a folder of one patient is no class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from normalis.datasets.listing import suffix_of
from normalis.images.remarks import collected

__all__ = ["are_patients"]

_LEAST = 3  # patients; two folders of one patient each may be two classes of a tiny set
_START = 132  # bytes: a preamble, and the four letters
_NO_DICOM = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".gz", ".bmp", ".gif", ".webp")


def are_patients(folders: Mapping[str, Iterable[Path]]) -> bool:
    """Whether each folder holds DICOM files of one patient, and all together at least three.

    Args:
        folders: name -> its files. Reading ends at the first file that speaks against it.
    """
    patients = set()
    for files in folders.values():
        found = _only_patient(files)
        if not found:
            return False
        patients.add(found)
    return len(patients) >= _LEAST


def _only_patient(files: Iterable[Path]) -> str:
    """Return the PatientID that all files have; empty if there is none, or another one."""
    found = ""
    for file in files:
        patient = _patient(file)
        if not patient or (found and patient != found):
            return ""
        found = patient
    return found


def _patient(file: Path) -> str:
    """Return the PatientID of a DICOM file; empty if it is none, or names nobody."""
    if suffix_of(file.name) in _NO_DICOM:
        return ""
    try:
        with file.open("rb") as stream:
            if stream.read(_START)[128:] != b"DICM":
                return ""
    except OSError:
        return ""
    from pydicom import dcmread

    try:
        with collected(file):
            header = dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
            return str(header.get("PatientID", "") or "").strip()
    except Exception:  # of damaged files pydicom raises almost anything; the reader will say it
        return ""
