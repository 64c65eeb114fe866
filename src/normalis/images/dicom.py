r"""DICOM through pydicom, every frame of a file.

The grey pipeline of the standard (PS3.3 C.11, PS3.4 N.2), without its last clipping:

1. modality: LUT, or ``slope * stored + intercept``;
2. values of interest: LUT, scaled to [0, 1]; or the (first) window, as a linear map of
   [low, high] to [0, 1] that keeps what lies outside. For ``LINEAR`` with centre c and width w,
   low, high = c - 0.5 -+ (w - 1) / 2; for ``LINEAR_EXACT`` c -+ w / 2; a ``SIGMOID`` is applied
   as it is;
3. MONOCHROME1 is inverted: 1 - y after step 2, else (least + greatest possible value) - y.

An 8-bit file without modality transform stays ``uint8``, as does one whose window is the whole
0..255; everything else is ``float32``. Colour comes out as RGB. Overlays are not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, get_decoder, iter_pixels

from normalis.errors import UnreadableImageError
from normalis.images.frame import Frame, Probe
from normalis.images.raster import check_finite

__all__ = ["probe", "read"]

MAX_FRAME_VALUES = 2**28  # a compressed file of kilobytes can claim gigabytes
MAX_FRAMES = 100_000
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_DICOMDIR = "1.2.840.10008.1.3.10"
_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
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
    "photometric": "PhotometricInterpretation",
}
_GROUPS = {
    "modality": "PixelValueTransformationSequence",
    "voi": "FrameVOILUTSequence",
    "position": "PlanePositionSequence",
    "orientation": "PlaneOrientationSequence",
    "measures": "PixelMeasuresSequence",
}


def read(stream: BinaryIO, path: Path, *, voi: bool = True, **_: Any) -> Iterator[Frame]:
    """Yield every frame, decoded one at a time."""
    data = _load(stream)
    frames = _check(data, path)
    header = _header(data)
    try:
        for index, stored in enumerate(iter_pixels(data)):
            pixels, window = _to_pixels(stored, data, index, voi=voi)
            check_finite(pixels, path)  # stored floats, or a rescale slope that is none
            extra = _frame_header(data, index) | window
            number = index if frames > 1 else None
            yield Frame(pixels=pixels, path=path, slice_index=number, header=header | extra)
    except UnreadableImageError:
        raise
    except (RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        raise UnreadableImageError(path, _why_not_decoded(data, error)) from error


def probe(stream: BinaryIO, path: Path) -> Probe:
    """Say what the header says; pixel data are passed over."""
    data = _load(stream)
    frames = _check(data, path)
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


def _load(stream: BinaryIO) -> Dataset:
    data = pydicom.dcmread(stream, force=True)  # force: also without preamble; reader.py looked
    if not data.preamble and not data.file_meta:
        # A bare data set has no place for its syntax; it was just read, so the encoding is known.
        implicit, little = data.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
        )
    return data


def _check(data: Dataset, path: Path) -> int:
    """Refuse what has no pixels or insane ones; return the number of frames."""
    reason = _why_no_image(data) or _why_too_large(data)
    if reason:
        raise UnreadableImageError(path, reason)
    return _frames(data)


def _why_no_image(data: Dataset) -> str | None:
    sop = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop == _DICOMDIR or "DirectoryRecordSequence" in data:
        return "a DICOMDIR, which only lists other files; give the folder of the images"
    if sop.startswith(_REPORTS) or data.get("Modality") == "SR":
        return "a structured report, which has no pixels"
    if not data.file_meta.get("TransferSyntaxUID"):
        return "no (0002,0010) Transfer Syntax UID in its file meta, so its encoding is unknown"
    if not len(data):  # pydicom drops all elements when the file ends within an encapsulated one
        return "truncated: the file ends within its pixels or header, so that none of it is usable"
    missing = [n for n in ("Rows", "Columns", "BitsAllocated") if not data.get(n)]
    if not any(name in data for name in _PIXELS):
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
    return None


def _why_too_large(data: Dataset) -> str | None:
    values = int(data.Rows) * int(data.Columns) * int(data.get("SamplesPerPixel") or 1)
    if values > MAX_FRAME_VALUES:
        return f"its header claims {data.Rows} x {data.Columns} pixels, beyond the limit"
    if not 1 <= _frames(data) <= MAX_FRAMES:
        return f"its header claims {_frames(data)} frames, beyond the limit of {MAX_FRAMES}"
    return None


def _frames(data: Dataset) -> int:
    return int(data.get("NumberOfFrames") or 1)


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
        return f"compressed as {syntax.name}, without a decoder: pip install 'normalis[codecs]'"
    if "less than expected" in said:
        return f"truncated: {said.split(' - ')[0]}"
    return f"its pixels ({syntax.name}) cannot be decoded, truncated or damaged: {said}"


# --- pixel values -------------------------------------------------------------------------------


def _to_pixels(
    stored: NDArray[Any], data: Dataset, index: int, *, voi: bool
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Apply the pipeline to one frame; say which window was applied."""
    if not data.PhotometricInterpretation.startswith("MONOCHROME"):
        return _colour(stored, data), {}
    modality, interest = _item(data, index, "modality"), _item(data, index, "voi")
    values, least, greatest = _apply_modality(stored, data, modality)
    applied: dict[str, Any] = {}
    if voi:
        mapped, applied = _apply_voi(values, interest, eight_bit=_is_8_bit(stored, values, data))
        if applied:
            inverted = 1 - mapped if _is_inverse(data) else mapped
            return inverted.astype(np.float32)[None], applied
    if _is_8_bit(stored, values, data):
        pixels = np.ascontiguousarray(values, dtype=np.uint8)
        return (255 - pixels if _is_inverse(data) else pixels)[None], {}
    turned = (least + greatest) - values.astype(np.float64) if _is_inverse(data) else values
    return turned.astype(np.float32)[None], {}


def _is_inverse(data: Dataset) -> bool:
    return bool(data.PhotometricInterpretation == "MONOCHROME1")


def _is_8_bit(stored: NDArray[Any], values: NDArray[Any], data: Dataset) -> bool:
    return values is stored and stored.dtype == np.uint8 and int(data.get("BitsStored", 8)) == 8


def _apply_modality(
    stored: NDArray[Any], data: Dataset, item: Dataset
) -> tuple[NDArray[Any], float, float]:
    """Return values in modality units and the least and greatest that the file could hold."""
    if stored.dtype.kind == "f":
        return stored, float(stored.min()), float(stored.max())
    bits, signed = int(data.get("BitsStored", 8)), bool(data.get("PixelRepresentation", 0))
    least, greatest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if item.get("ModalityLUTSequence"):
        values, top = _look_up(stored, item.ModalityLUTSequence[0], data)
        return values, 0.0, top
    slope = float(item.get("RescaleSlope") or 1)
    intercept = float(item.get("RescaleIntercept") or 0)
    if (slope, intercept) == (1, 0):
        return stored, least, greatest
    ends = sorted((slope * least + intercept, slope * greatest + intercept))
    return stored.astype(np.float64) * slope + intercept, ends[0], ends[1]


def _apply_voi(
    values: NDArray[Any], item: Dataset, *, eight_bit: bool
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return values on [0, 1] and what was applied; nothing applied if there is no window."""
    if item.get("VOILUTSequence"):
        looked, top = _look_up(values, item.VOILUTSequence[0], item)
        return looked / top, {"voi_lut": True}
    centre, width = _first(item.get("WindowCenter")), _first(item.get("WindowWidth"))
    function = str(item.get("VOILUTFunction") or "LINEAR")
    if centre is None or width is None or width <= (1 if function == "LINEAR" else 0):
        return values, {}
    if function == "SIGMOID":
        bend = np.clip(-4 * (values.astype(np.float64) - centre) / width, -700, 700)
        return 1 / (1 + np.exp(bend)), {"voi_lut": True}
    shift, half = (0.5, (width - 1) / 2) if function == "LINEAR" else (0.0, width / 2)
    low, high = centre - shift - half, centre - shift + half
    if eight_bit and abs(low) <= 1.5 and abs(high - 255) <= 1.5:
        return values, {}  # the whole range, as written by most makers with one rounding or another
    return (values.astype(np.float64) - low) / (high - low), {"window": (low, high)}


def _look_up(
    values: NDArray[Any], table: Dataset, owner: Dataset
) -> tuple[NDArray[np.float64], float]:
    """Read values in a LUT (PS3.3 C.11.1.1); return also the greatest entry its depth allows."""
    count, first, depth = (int(n) for n in table.LUTDescriptor)
    count = count or 2**16
    entries = table.LUTData
    if isinstance(entries, bytes):
        little = getattr(owner, "original_encoding", (None, True))[1] is not False
        wide = "<u2" if little else ">u2"
        entries = np.frombuffer(entries, dtype=np.uint8 if len(entries) == count else wide)
    where = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    return np.asarray(entries, dtype=np.float64)[where], float(2**depth - 1)


def _colour(stored: NDArray[Any], data: Dataset) -> NDArray[Any]:
    if data.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, data)[..., :3]
        if stored.dtype == np.uint16:  # a palette is for showing: its high byte is what is shown
            stored = (stored >> 8).astype(np.uint8)
    pixels = np.ascontiguousarray(stored.transpose(2, 0, 1))
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)


# --- header -------------------------------------------------------------------------------------


def _item(data: Dataset, index: int, group: str) -> Dataset:
    """Return the data set that holds a frame's attributes: its own, the shared, or the file's."""
    name = _GROUPS[group]
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for holder in (*per_frame[index : index + 1], *shared[:1]):
        if holder.get(name):
            found: Dataset = holder[name].value[0]
            return found
    return data


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers, None where there is none."""
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        value = value[0] if len(value) else None
    return None if value in (None, "") else float(value)


def _header(data: Dataset) -> dict[str, Any]:
    header: dict[str, Any] = {
        "format": "DICOM",
        "bits": int(data.get("BitsStored") or data.BitsAllocated),
        "transfer_syntax": data.file_meta.TransferSyntaxUID.name,
    }
    for key, name in _HEADER.items():
        value = str(data.get(name) or "").strip()
        if value:
            header[key] = value
    age = _years(str(data.get("PatientAge") or ""))
    return header | ({} if age is None else {"age": age})


def _years(age: str) -> float | None:
    """Turn the standard's ``045Y``, ``006M``, ``010D`` into years."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
    digits, unit = age.strip()[:-1], age.strip()[-1:]
    return int(digits) / per_year[unit] if unit in per_year and digits.isdigit() else None


def _frame_header(data: Dataset, index: int) -> dict[str, Any]:
    """Return what may differ between frames: spacing and position along the slice axis."""
    header: dict[str, Any] = {}
    spacing = _item(data, index, "measures").get("PixelSpacing") or data.get("ImagerPixelSpacing")
    if spacing and all(float(s) > 0 for s in spacing):
        header["spacing_mm"] = (float(spacing[0]), float(spacing[1]))
    position = _slice_position(
        _item(data, index, "position").get("ImagePositionPatient"),
        _item(data, index, "orientation").get("ImageOrientationPatient"),
    )
    if position is None:
        position = _first(data.get("SliceLocation"))
    return header | ({} if position is None else {"slice_position_mm": position})


def _slice_position(position: Any, orientation: Any) -> float | None:
    """Project the image's corner on the normal of its plane, in mm."""
    if not position or not orientation:
        return None
    axes = np.array([float(v) for v in orientation])
    normal = np.cross(axes[:3], axes[3:])
    return float(normal @ np.array([float(v) for v in position]))
