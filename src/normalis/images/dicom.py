"""DICOM through pydicom, every frame of a file.

This module reads headers and says what is no image; `dicom_stored` reads stored values,
`dicom_values` turns them into what a model sees. Overlays are not drawn.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian

from normalis.errors import UnreadableImageError
from normalis.errors.extras import install_line
from normalis.images.dicom_stored import (
    PixelElement,
    find_pixels,
    held_frames,
    stored_frames,
)
from normalis.images.dicom_values import functional_item, numbers, to_pixels
from normalis.images.frame import Frame, Probe
from normalis.images.limits import MAX_INFLATED, check_images, check_values
from normalis.images.raster import check_finite

__all__ = ["probe", "read"]

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_DICOMDIR = "1.2.840.10008.1.3.10"
_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_DEFERRED = 64 * 2**20  # bytes of one element that are left in the file: no pixels depend on it
_PIECE = 2**22  # bytes inflated at once
_SAMPLES = {"RGB": 3, "PALETTE COLOR": 1, "MONOCHROME1": 1, "MONOCHROME2": 1}
_HEADER = {
    "modality": "Modality",
    "patient_id": "PatientID",
    "sex": "PatientSex",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "sop_uid": "SOPInstanceUID",
    "accession_number": "AccessionNumber",
    "series_description": "SeriesDescription",
    "series_number": "SeriesNumber",
    "instance_number": "InstanceNumber",
    "laterality": "ImageLaterality",
    "photometric": "PhotometricInterpretation",
}


def read(stream: BinaryIO, path: Path, *, voi: bool = True, **_: Any) -> Iterator[Frame]:
    """Yield every frame, decoded one at a time."""
    data, stream, pixels = _load(stream, path)
    claimed = _check(data, pixels, path)
    assert pixels is not None
    header = _header(data)
    try:
        stored = stored_frames(data, stream, pixels, frames=claimed)
        first = list(islice(stored, 2))  # a file may hold more frames than it claims
        several = claimed > 1 or len(first) > 1
        for index, frame in enumerate(chain(first, stored)):
            check_images(path, index + 1, what="frames")
            values, said = to_pixels(frame, data, index, voi=voi)
            check_finite(values, path)  # stored floats, or a rescale slope that is none
            extra = _frame_header(data, index) | said
            number = index if several else None
            yield Frame(pixels=values, path=path, slice_index=number, header=header | extra)
    except UnreadableImageError:
        raise
    except (RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        raise UnreadableImageError(path, _why_not_decoded(data, error)) from error


def probe(stream: BinaryIO, path: Path) -> Probe:
    """Say what the header says; pixel data are passed over."""
    data, _, pixels = _load(stream, path)
    frames = _check(data, pixels, path)
    return Probe(
        path=path,
        format="DICOM",
        bits=int(data.get("BitsStored") or data.BitsAllocated),
        channels=1 if data.PhotometricInterpretation.startswith("MONOCHROME") else 3,
        height=int(data.Rows),
        width=int(data.Columns),
        frames=frames,
        header=_header(data) | _frame_header(data, 0),
    )


def _load(stream: BinaryIO, path: Path) -> tuple[Dataset, BinaryIO, PixelElement | None]:
    """Read the header; find the pixels and the stream that they lie in."""
    if _is_deflated(stream):
        stream = _inflate(stream, path)
    data = pydicom.dcmread(  # force: also without preamble; reader.py looked
        stream, force=True, stop_before_pixels=True, defer_size=_DEFERRED
    )
    implicit, little = data.original_encoding
    if not data.preamble and not data.file_meta:
        # A bare data set has no place for its syntax; it was just read, so the encoding is known.
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
        )
    pixels = find_pixels(stream, implicit=bool(implicit), little=little is not False)
    return data, stream, pixels


def _is_deflated(stream: BinaryIO) -> bool:
    """Whether the file meta says that the rest is compressed as one."""
    head = stream.read(2**14)
    stream.seek(0)
    return head[128:132] == b"DICM" and f"{DeflatedExplicitVRLittleEndian}".encode() in head


def _inflate(stream: BinaryIO, path: Path) -> BinaryIO:
    """Return the file with its data set inflated, if it stays within the limit."""
    stream.seek(132)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        stream.seek(0)
        return stream
    at = stream.tell()
    stream.seek(0)
    head = stream.read(at)
    whole = BytesIO()
    whole.write(_with_plain_syntax(head))
    inflater, rest = zlib.decompressobj(-zlib.MAX_WBITS), stream.read()
    while rest and not inflater.eof:
        whole.write(inflater.decompress(rest, _PIECE))
        rest = inflater.unconsumed_tail
        if whole.tell() > MAX_INFLATED:
            raise UnreadableImageError(
                path,
                f"deflated, and more than {MAX_INFLATED >> 20} MiB when inflated, beyond the "
                "limit; save it without compression",
            )
    whole.seek(0)
    return whole


def _with_plain_syntax(head: bytes) -> bytes:
    """Let the file meta say that what follows is no longer deflated."""
    plain = f"{pydicom.uid.ExplicitVRLittleEndian}".encode()
    deflated = f"{DeflatedExplicitVRLittleEndian}".encode()
    padded = plain + b"\0" * (len(deflated) + len(deflated) % 2 - len(plain))
    return head.replace(deflated + b"\0" * (len(deflated) % 2), padded)


def _check(data: Dataset, pixels: PixelElement | None, path: Path) -> int:
    """Refuse what has no pixels or insane ones; return the number of frames."""
    reason = _why_no_image(data, pixels)
    if reason or pixels is None:
        raise UnreadableImageError(path, reason or "no (7FE0,0010) Pixel Data")
    check_values(path, int(data.Rows), int(data.Columns), int(data.get("SamplesPerPixel") or 1))
    claimed = int((numbers(data, "NumberOfFrames") or [1])[0]) or 1
    check_images(path, claimed, what="frames")
    frames = held_frames(data, pixels, claimed)
    check_images(path, frames, what="frames")
    return frames


def _why_no_image(data: Dataset, pixels: PixelElement | None) -> str | None:
    sop = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop == _DICOMDIR or "DirectoryRecordSequence" in data:
        return "a DICOMDIR, which only lists other files; give the folder of the images"
    if sop.startswith(_REPORTS) or data.get("Modality") == "SR":
        return "a structured report, which has no pixels"
    if not data.file_meta.get("TransferSyntaxUID"):
        return "no (0002,0010) Transfer Syntax UID in its file meta, so its encoding is unknown"
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax:
        return (
            f"its (0002,0010) Transfer Syntax UID is {str(syntax)!r}, which is none of DICOM's: of "
            "the maker's own, or damaged. Export it as Explicit VR Little Endian"
        )
    if not len(data):  # pydicom drops all elements when the file ends within an encapsulated one
        return "truncated: the file ends within its pixels or header, so that none of it is usable"
    missing = [n for n in ("Rows", "Columns", "BitsAllocated") if not data.get(n)]
    if pixels is None:
        if not missing:
            return (
                "no (7FE0,0010) Pixel Data, although its header describes "
                f"{data.Rows} x {data.Columns} pixels; truncated, or a header only"
            )
        kind = f" (it is a {pydicom.uid.UID(sop).name})" if sop else ""
        return f"no (7FE0,0010) Pixel Data{kind}; is this an image?"
    if missing:
        return f"pixels without {', '.join(missing)} in the header; damaged"
    if not data.get("PhotometricInterpretation"):
        return "no (0028,0004) Photometric Interpretation, so the meaning of its values is unknown"
    if pixels.length == 0 or pixels.held == 0:
        return "its (7FE0,0010) Pixel Data are empty (0 bytes), although its header describes " + (
            f"{data.Rows} x {data.Columns} pixels; export it again"
        )
    return _why_no_colours(data)


def _why_no_colours(data: Dataset) -> str | None:
    """Say whether samples and photometric interpretation contradict each other."""
    photometric = str(data.PhotometricInterpretation)
    samples = int(data.get("SamplesPerPixel") or 1)
    expected = _SAMPLES.get(photometric, 3 if photometric.startswith("YBR_") else None)
    if expected is None:
        return f"its Photometric Interpretation is {photometric!r}, which is not read; save as RGB"
    if samples != expected:
        return (
            f"it has {samples} samples a pixel, but its Photometric Interpretation says "
            f"{photometric}, which has {expected}: which is wrong is not known; correct its header"
        )
    return None


def _why_not_decoded(data: Dataset, error: Exception) -> str:
    """Say which package is missing, where that is the reason."""
    syntax = data.file_meta.TransferSyntaxUID
    said = " ".join(str(error).split())
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        return f"compressed as {syntax.name}, which pydicom does not decode; export it otherwise"
    if syntax == _JPEG_EXTENDED and int(data.get("BitsStored", 8)) > 8:
        return (
            "12-bit JPEG Extended, which only pylibjpeg-libjpeg decodes (its licence is the GPL, "
            "so it is left to you): pip install pylibjpeg-libjpeg"
        )
    if not available:
        return f"compressed as {syntax.name}, without a decoder: {install_line('codecs')}"
    if "less than expected" in said or "end of the file" in said:
        return f"truncated: {said.split(' - ')[0]}"
    return f"its pixels ({syntax.name}) cannot be decoded, truncated or damaged: {said}"


# --- header -------------------------------------------------------------------------------------


def _header(data: Dataset) -> dict[str, Any]:
    header: dict[str, Any] = {
        "format": "DICOM",
        "bits": int(data.get("BitsStored") or data.BitsAllocated),
        "transfer_syntax": data.file_meta.TransferSyntaxUID.name,
    }
    for key, name in _HEADER.items():
        value = _text(data, name)
        if value:
            header[key] = value
    age = _years(_text(data, "PatientAge"))
    return header | ({} if age is None else {"age": age})


def _text(data: Dataset, keyword: str) -> str:
    """Return an attribute as text, nothing where it cannot be read: no pixels depend on it."""
    try:
        return str(data.get(keyword) or "").strip()
    except Exception:
        return ""


def _years(age: str) -> float | None:
    """Turn the standard's ``045Y``, ``006M``, ``010D`` into years."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
    digits, unit = age.strip()[:-1], age.strip()[-1:]
    return int(digits) / per_year[unit] if unit in per_year and digits.isdigit() else None


def _frame_header(data: Dataset, index: int) -> dict[str, Any]:
    """Return what may differ between frames: spacing and position along the slice axis."""
    header: dict[str, Any] = {}
    spacing = _lengths(functional_item(data, index, "measures"), "PixelSpacing") or _lengths(
        data, "ImagerPixelSpacing"
    )
    if len(spacing) == 2 and min(spacing) > 0:
        header["spacing_mm"] = (spacing[0], spacing[1])
    position = _slice_position(
        _lengths(functional_item(data, index, "position"), "ImagePositionPatient"),
        _lengths(functional_item(data, index, "orientation"), "ImageOrientationPatient"),
    )
    if position is None:
        position = next(iter(_lengths(data, "SliceLocation")), None)
    return header | ({} if position is None else {"slice_position_mm": position})


def _lengths(data: Dataset, keyword: str) -> list[float]:
    """Return finite numbers that no pixels depend on; nothing where they cannot be read."""
    try:
        found = numbers(data, keyword)
    except ValueError:
        return []
    return found if all(np.isfinite(found)) else []


def _slice_position(position: list[float], orientation: list[float]) -> float | None:
    """Project the image's corner on the normal of its plane, in mm."""
    if len(position) != 3 or len(orientation) != 6:
        return None
    axes = np.array(orientation)
    return float(np.cross(axes[:3], axes[3:]) @ np.array(position))
