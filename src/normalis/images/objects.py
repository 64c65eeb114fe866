r"""Which DICOM objects are images of a patient, and which are made of such images.

The SOP class decides, never ``ImageType``: many acquired images are ``DERIVED\SECONDARY``.
Our own results carry the mark of their equipment and are never scored again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["OUR_NAME", "equipment_of", "why_left_aside"]

#: Manufacturer in the Contributing Equipment Sequence of everything that normalis writes.
OUR_NAME = "normalis"

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((_STORAGE + "7",), "a secondary capture"),
    ((_STORAGE + "66.4", _STORAGE + "66.7"), "a segmentation"),
    ((_STORAGE + "30",), "a parametric map"),
    ((_STORAGE + "11",), "a presentation state"),
    ((_STORAGE + "88.59",), "a key object selection"),
    ((_STORAGE + "88",), "a structured report"),
    ((_STORAGE + "481",), "a radiotherapy object"),
    ((_STORAGE + "66",), "raw data or a registration"),
    ((_STORAGE + "67",), "a real world value mapping"),
    ((_STORAGE + "104",), "an encapsulated document"),
    ((_STORAGE + "9",), "a waveform"),
    (("1.2.840.10008.1.3.10",), "a DICOMDIR"),
)


def why_left_aside(
    sop_class: str, image_type: Sequence[str] = (), equipment: Sequence[str] = ()
) -> str | None:
    """Return why an object is no image to learn from or to score; None if it is one.

    Args:
        sop_class: SOP Class UID.
        image_type: values of Image Type.
        equipment: manufacturers of the Contributing Equipment Sequence.
    """
    if any(name.strip().lower() == OUR_NAME for name in equipment):
        return "a result that normalis wrote"
    for classes, kind in _KINDS:
        if any(sop_class == one or sop_class.startswith(one + ".") for one in classes):
            return kind
    if any(str(part).upper() in ("LOCALIZER", "SCOUT") for part in image_type):
        return "a localizer"
    return None


def equipment_of(header: Any) -> list[str]:
    """Return the manufacturers of a data set's Contributing Equipment Sequence."""
    items = header.get("ContributingEquipmentSequence") or []
    return [str(item.get("Manufacturer", "")) for item in items]
