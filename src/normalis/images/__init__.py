"""One file on disk becomes arrays and what its header said; nothing here knows of learning.

``frame`` says what an image is; ``reader`` recognises the format by the bytes and calls
``raster``, ``dicom``, ``nifti`` or ``arrays``; ``fit`` resizes; ``intensity`` maps native units
to [0, 1]; ``cache`` keeps decoded images between runs. The names below are imported on use, so
that nothing slow is loaded before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normalis.images.fit import fit_pixels
    from normalis.images.frame import Frame, Probe
    from normalis.images.intensity import IntensityRule
    from normalis.images.nifti import restore_slices, save_map_volume
    from normalis.images.reader import probe, read_frames

__all__ = [
    "Frame",
    "IntensityRule",
    "Probe",
    "fit_pixels",
    "probe",
    "read_frames",
    "restore_slices",
    "save_map_volume",
]

_WHERE = {
    "Frame": "frame",
    "IntensityRule": "intensity",
    "Probe": "frame",
    "fit_pixels": "fit",
    "probe": "reader",
    "read_frames": "reader",
    "restore_slices": "nifti",
    "save_map_volume": "nifti",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
