"""Results as DICOM objects, and the way to and from a PACS (extra ``pacs``).

`OBJECTS` lists the kinds of objects that a scored study can become; one file each, with
``build(study, options) -> list`` of data sets. All carry PRELIMINARY or unverified status, stable
UIDs, series numbers from 9001, the research words, and the mark that keeps them from being scored.
"""

from __future__ import annotations

from normalis.shelf import Shelf

__all__ = ["OBJECTS"]

#: kind -> what builds its objects from a study
OBJECTS = Shelf(
    "kind",
    {
        "sc": "normalis.pacs.capture:build",
        "sr": "normalis.pacs.structured_report:build",
        "seg": "normalis.pacs.segmentation:build",
        "pm": "normalis.pacs.parametric_map:build",
        "pr": "normalis.pacs.presentation:build",
    },
)
