"""Results as DICOM objects, and the way to and from a PACS (extra ``pacs``).

`OBJECTS` lists the kinds of objects that a scored study can become; one file each, with
``build(study, options) -> list`` of data sets. All carry PRELIMINARY or unverified status, stable
UIDs, series numbers from 9001, the research words, and the mark that keeps them from being scored.
"""

from __future__ import annotations

__all__ = ["OBJECTS"]

#: kind -> module with ``build``; and whether it is written unless asked otherwise.
OBJECTS: dict[str, str] = {
    "sc": "normalis.pacs.capture",
    "sr": "normalis.pacs.structured_report",
    "seg": "normalis.pacs.segmentation",
    "pm": "normalis.pacs.parametric_map",
    "pr": "normalis.pacs.presentation",
}
