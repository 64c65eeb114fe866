"""DICOM files of a folder that are results about images, by their first bytes.

Archives keep segmentations, screenshots, presentation states, reports and plans in the folder of
the series they belong to. What a file is, its SOP class says, which stands in its meta information;
which classes are no images, `normalis.images.objects` says.
"""

from __future__ import annotations

from pathlib import Path

from normalis.images.objects import equipment_of, why_left_aside
from normalis.images.remarks import collected

__all__ = ["CAPTURE", "object_kind"]

CAPTURE = "a secondary capture"
_CLASS = b"\x02\x00\x02\x00UI"  # (0002,0002) Media Storage SOP Class UID; meta is little endian
_HEAD = 1024


def object_kind(path: Path) -> str | None:
    """Return what a DICOM file is if it is no acquired image; None for all others.

    A file that cannot be read is left to the reader, which says what is wrong with it.
    """
    kind = why_left_aside(_sop_class(path) or _without_meta(path))
    return (kind and why_left_aside("", equipment=_equipment(path))) or kind


def _without_meta(path: Path) -> str:
    """Return the SOP class of a data set without meta information, as old exports are."""
    from pydicom import dcmread

    try:
        with path.open("rb") as stream:
            head = stream.read(132)
        if head[128:] == b"DICM" or head[:1] not in (b"\x08", b"\x02"):
            return ""
        wanted = ["SOPClassUID"]
        said = dcmread(path, stop_before_pixels=True, specific_tags=wanted, force=True)
        return str(said.get("SOPClassUID", ""))
    except Exception:  # of damaged files pydicom raises almost anything; the reader will say it
        return ""


def _equipment(path: Path) -> list[str]:
    from pydicom import dcmread

    try:
        wanted = ["ContributingEquipmentSequence"]
        with collected(path):
            return equipment_of(dcmread(path, stop_before_pixels=True, specific_tags=wanted))
    except Exception:  # of damaged files pydicom raises almost anything; the reader will say it
        return []


def _sop_class(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return ""
    at = head.find(_CLASS, 128) if head[128:132] == b"DICM" else -1
    if at < 0:
        return ""
    size = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + size].rstrip(b"\0 ").decode("ascii", "replace")
