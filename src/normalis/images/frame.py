"""What a reader returns: the pixels of one image, and what its header said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["Frame", "Probe"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Frame:
    """One decoded image: a file, a frame of a multi-frame DICOM, or a slice of a volume.

    Attributes:
        pixels: (C, H, W). ``uint8`` if the file holds 8-bit values, whose 0..255 means [0, 1];
            ``float32`` for everything deeper, in the file's own units.
        path: the file.
        slice_index: number of the frame or slice in the file, from 0; None for a single image.
        header: what the header said, with plain keys: ``format``, ``bits``, ``modality``,
            ``patient_id``, ``spacing_mm``, ... Only keys that the file has.
    """

    pixels: NDArray[Any]
    path: Path
    slice_index: int | None = None
    header: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Probe:
    """What a file's header says, without decoding its pixels.

    Attributes:
        path: the file.
        format: ``PNG``, ``JPEG``, ``TIFF``, ``DICOM`` or ``NIfTI``, by the file's bytes.
        bits: bits per stored value.
        channels: 1 for grey, 3 for RGB, 4 for RGBA or CMYK.
        height: rows, in pixels.
        width: columns, in pixels.
        frames: images that ``read_frames`` yields by default.
        header: as in `Frame`.
    """

    path: Path
    format: str
    bits: int
    channels: int
    height: int
    width: int
    frames: int
    header: Mapping[str, Any] = field(default_factory=dict)
