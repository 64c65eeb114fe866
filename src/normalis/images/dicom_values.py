r"""From a DICOM's stored values to what a model sees: PS3.3 C.11, PS3.4 N.2, without clipping.

1. modality: LUT, or ``slope * stored + intercept``;
2. values of interest: LUT, scaled to [0, 1]; or the (first) window, as a linear map of
   [low, high] to [0, 1] that keeps what lies outside. For ``LINEAR`` with centre c and width w,
   low, high = c - 0.5 -+ (w - 1) / 2; for ``LINEAR_EXACT`` c -+ w / 2; a ``SIGMOID`` is applied
   as it is;
3. MONOCHROME1 is inverted: 1 - y after step 2, else (least + greatest possible value) - y;
4. padding (C.7.5.1.1.2) is no part of the patient: it becomes the darkest value of the rest.

An 8-bit file without modality transform stays ``uint8``, as does one whose window is the whole
0..255; everything else is ``float32``. Colour comes out as RGB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

from normalis.images.dicom_stored import StoredFrame, bits_stored

__all__ = ["functional_item", "number", "numbers", "to_pixels"]

_GROUPS = {
    "modality": "PixelValueTransformationSequence",
    "voi": "FrameVOILUTSequence",
    "position": "PlanePositionSequence",
    "orientation": "PlaneOrientationSequence",
    "measures": "PixelMeasuresSequence",
}
_BLOCK = 2**22  # values turned at once, so that no copy in float64 is as large as the image
_USUAL_DEPTHS = (8, 10, 12, 14)


def to_pixels(
    frame: StoredFrame, data: Dataset, index: int, *, voi: bool
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Apply the pipeline to one frame.

    Args:
        frame: of `normalis.images.dicom_stored`.
        data: the header.
        index: the frame's number.
        voi: whether the file's window or VOI LUT is applied.

    Returns:
        (C, H, W) ``uint8`` or ``float32``, and for the header what was applied and in which units
        (`normalis.images.units`) the values are.

    Raises:
        ValueError: if an attribute that values depend on is no number, or a table is damaged.
    """
    if not data.PhotometricInterpretation.startswith("MONOCHROME"):
        pixels = _colour(frame.values, data)
        return pixels, {"units": "8 bit" if pixels.dtype == np.uint8 else "raw"}
    pixels, said = _grey(frame, data, index, voi=voi)
    padding = _padding(frame, data)
    if padding is None and said["units"] == "HU":
        padding = _nothing_measured(pixels)
    if padding is not None and padding.any():
        said["padding"] = round(float(padding.mean()), 4)
        pixels = _without_padding(pixels, padding, said["units"])
    return np.ascontiguousarray(pixels)[None], said


def _stated_window(item: Dataset) -> dict[str, Any]:
    """Return the linear window of an image that is not seen through it, to compare files by."""
    found = _window(item)
    return {} if found is None or found[2] == "SIGMOID" else {"stated_window": _ends(*found)}


def _grey(
    frame: StoredFrame, data: Dataset, index: int, *, voi: bool
) -> tuple[NDArray[Any], dict[str, Any]]:
    stored = frame.values
    values, least, greatest, units = _apply_modality(
        stored, data, functional_item(data, index, "modality")
    )
    eight_bit = units == "8 bit"
    item = functional_item(data, index, "voi")
    stated = {} if voi else _stated_window(item)
    if voi:
        mapped, applied = _apply_voi(values, item, (least, greatest), eight_bit=eight_bit)
        if applied:
            inverted = 1 - mapped if _is_inverse(data) else mapped
            said = {"units": "windowed", "units_without_window": units}
            return inverted.astype(np.float32, copy=False), applied | said
    if eight_bit:
        pixels = values.astype(np.uint8, copy=False)
        return (255 - pixels if _is_inverse(data) else pixels), stated | {"units": units}
    turned = _linear(values, -1.0, least + greatest) if _is_inverse(data) else values
    return turned.astype(np.float32, copy=False), stated | {"units": units}


def _is_inverse(data: Dataset) -> bool:
    return bool(data.PhotometricInterpretation == "MONOCHROME1")


def _linear(values: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """Return slope * values + intercept, computed in float64 and kept in float32."""
    out = np.empty(values.shape, np.float32)
    rows = max(1, _BLOCK // max(1, values.shape[-1]))
    with np.errstate(over="ignore"):
        for start in range(0, len(values), rows):
            some = slice(start, start + rows)
            out[some] = values[some].astype(np.float64) * slope + intercept
    return out


# --- modality -------------------------------------------------------------------------------------


def _apply_modality(
    stored: NDArray[Any], data: Dataset, item: Dataset
) -> tuple[NDArray[Any], float, float, str]:
    """Return values in modality units, the least and greatest possible, and the units' name."""
    slope, intercept = _rescale(item)
    plain = (slope, intercept) == (1.0, 0.0)
    if stored.dtype.kind == "f":
        values = stored if plain else _linear(stored, slope, intercept)
        return values, *_finite_ends(values), "own"
    bits, signed = bits_stored(data), stored.dtype.kind == "i"
    least, greatest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if item.get("ModalityLUTSequence"):
        values, top = _look_up(stored, item.ModalityLUTSequence[0], (least, greatest))
        return values, 0.0, top, _units(data, item)
    if plain:
        eight = bits == 8 and not signed
        if eight:
            return stored, least, greatest, "8 bit"
        # slope 1 and intercept 0, in so many words, are those units and stored values at once
        stated = item.get("RescaleIntercept") is not None
        unstated = "HU" if data.get("Modality") == "CT" else "own"
        return stored, least, greatest, unstated if stated else "raw"
    ends = sorted((slope * least + intercept, slope * greatest + intercept))
    return _linear(stored, slope, intercept), ends[0], ends[1], _units(data, item)


def _finite_ends(values: NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _rescale(item: Dataset) -> tuple[float, float]:
    """Return slope and intercept; a slope of 0 means none, as writers mean it."""
    slope, intercept = number(item, "RescaleSlope"), number(item, "RescaleIntercept")
    for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{_named(name)} is {value}, where a number is needed")
    return slope or 1.0, intercept or 0.0


def _units(data: Dataset, item: Dataset) -> str:
    """Name the units of rescaled values: HU in a CT, else the header's own word."""
    stated = str(_quietly(item, "RescaleType") or "").strip().upper()
    if data.get("Modality") == "CT" and stated in ("", "HU", "US"):
        return "HU"
    stated = stated if stated not in ("", "US") else str(_quietly(data, "Units") or "").strip()
    return f"rescaled ({stated})" if stated else "rescaled"


# --- values of interest ---------------------------------------------------------------------------


def _apply_voi(
    values: NDArray[Any], item: Dataset, possible: tuple[float, float], *, eight_bit: bool
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return values on [0, 1] and what was applied; nothing applied if there is no window."""
    if item.get("VOILUTSequence"):
        looked, top = _look_up(values, item.VOILUTSequence[0], possible)
        return _linear(looked, 1 / top, 0.0), {"voi_lut": True}
    found = _window(item)
    if found is None:
        return values, {}
    centre, width, function = found
    if function == "SIGMOID":
        bend = np.clip(-4 * (values.astype(np.float64) - centre) / width, -700, 700)
        return 1 / (1 + np.exp(bend)), {"voi_lut": True}
    low, high = _ends(centre, width, function)
    if eight_bit and abs(low) <= 1.5 and abs(high - 255) <= 1.5:
        return values, {}  # the whole range, as written by most makers with one rounding or another
    return _linear(values, 1 / (high - low), -low / (high - low)), {"window": (low, high)}


def _window(item: Dataset) -> tuple[float, float, str] | None:
    """Return the first window's centre, width and function; None where there is none of sense."""
    centre, width = number(item, "WindowCenter"), number(item, "WindowWidth")
    function = str(_quietly(item, "VOILUTFunction") or "LINEAR").strip().upper()
    if centre is None or width is None or not np.isfinite([centre, width]).all():
        return None
    if width <= (1 if function == "LINEAR" else 0):
        return None
    return centre, width, function


def _ends(centre: float, width: float, function: str) -> tuple[float, float]:
    """Return the values that a window maps to 0 and 1."""
    shift, half = (0.5, (width - 1) / 2) if function == "LINEAR" else (0.0, width / 2)
    return centre - shift - half, centre - shift + half


# --- tables ---------------------------------------------------------------------------------------


def _look_up(
    values: NDArray[Any], table: Dataset, possible: tuple[float, float]
) -> tuple[NDArray[np.float64], float]:
    """Read values in a LUT (PS3.3 C.11.1.1); return also the greatest entry its depth allows."""
    count, first, depth = _descriptor(table, "LUTDescriptor", possible)
    entries = _entries(table, "LUTData", count, depth)
    top = _depth(entries, depth)
    where = np.rint(values).astype(np.int64) - first
    return _at(entries, where, "LUTData", count).astype(np.float64), float(2**top - 1)


def _at(
    entries: NDArray[np.int64], where: NDArray[np.int64], keyword: str, count: int
) -> NDArray[np.int64]:
    """Return the entries at some places; beyond its ends a table goes on with its last ones.

    Raises:
        ValueError: if a place is among those that the table states and does not hold.
    """
    if len(entries) < count and int(where.max()) >= len(entries):
        raise ValueError(f"{_named(keyword)} holds {len(entries)} of the {count} entries stated")
    return entries[np.clip(where, 0, len(entries) - 1)]


def _descriptor(
    table: Dataset, keyword: str, possible: tuple[float, float]
) -> tuple[int, int, int]:
    """Return count of entries, first value mapped and bits of an entry.

    The first value is written in the sign of the pixels, or should be: an unsigned reading that
    no value can reach is a negative number.
    """
    stated = table.get(keyword)
    if stated is None or len(stated) != 3:
        raise ValueError(f"{_named(keyword)} must have three numbers, got {stated}")
    count, first, depth = (int(n) for n in stated)
    count = count % 2**16 or 2**16
    if first > possible[1] and first >= 2**15:
        first -= 2**16
    return count, first, depth


def _entries(table: Dataset, keyword: str, count: int, depth: int) -> NDArray[np.int64]:
    """Return a table's entries, whether they are bytes, words, or bytes in words.

    Bytes are those of a table that states at most 8 bits; half as many as words would need are else
    a table that is cut off.
    """
    data = table.get(keyword)
    if isinstance(data, bytes | bytearray):
        eight = depth <= 8 and len(data) in (count, count + count % 2)
        little = getattr(table, "original_encoding", (None, True))[1] is not False
        wide = "<u2" if little else ">u2"
        usable = data if eight else data[: len(data) - len(data) % 2]
        found = np.frombuffer(usable, np.uint8 if eight else wide).astype(np.int64)
    else:
        listed = data if isinstance(data, list | pydicom.multival.MultiValue) else [data]
        found = np.array([int(v) for v in listed if v is not None], np.int64) % 2**16
    if not len(found):
        raise ValueError(f"{_named(keyword)} is empty, where {count} entries are stated")
    return found[:count]


def _depth(entries: NDArray[np.int64], stated: int) -> int:
    """Return the bits of an entry.

    Some makers state 16 and write 12: a table whose greatest entry all but fills a smaller usual
    depth is of that depth.
    """
    greatest = int(entries.max())
    needed = max(1, greatest.bit_length())
    full = needed in _USUAL_DEPTHS and greatest >= 0.95 * (2**needed - 1)
    if not needed <= stated <= 16 or full:
        return needed
    return stated


def _colour(stored: NDArray[Any], data: Dataset) -> NDArray[Any]:
    if data.PhotometricInterpretation == "PALETTE COLOR":
        stored = _from_palette(stored, data)
    pixels = np.ascontiguousarray(stored.transpose(2, 0, 1))
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def _from_palette(stored: NDArray[Any], data: Dataset) -> NDArray[np.uint8]:
    """Look colours up; what is shown is 8 bits, in whichever way the table holds them."""
    if "RedPaletteColorLookupTableData" not in data:  # segmented
        shown = apply_color_lut(stored, data)[..., :3]
        return shown if shown.dtype == np.uint8 else (shown >> 8).astype(np.uint8)
    possible = (float(np.iinfo(stored.dtype).min), float(2 ** bits_stored(data) - 1))
    tables, greatest = [], 0
    for name in ("Red", "Green", "Blue"):
        stem = f"{name}PaletteColorLookupTable"
        count, first, depth = _descriptor(data, f"{stem}Descriptor", possible)
        entries = _entries(data, f"{stem}Data", count, depth)
        greatest = max(greatest, int(entries.max()))
        tables.append(_at(entries, stored.astype(np.int64) - first, f"{stem}Data", count))
    found = [t >> (8 if greatest > 255 else 0) for t in tables]
    return np.stack(found, axis=-1).astype(np.uint8)


# --- padding --------------------------------------------------------------------------------------

_BELOW_AIR = -1500.0  # HU; air is -1000, and the noise of a sharp kernel a few hundred


def _padding(frame: StoredFrame, data: Dataset) -> NDArray[np.bool_] | None:
    """Return where the frame is padding, None if the header names no padding value."""
    values = frame.values
    if values.dtype.kind == "f":
        name = "FloatPixelPadding" if values.dtype.itemsize == 4 else "DoubleFloatPixelPadding"
        value, limit = number(data, f"{name}Value"), number(data, f"{name}RangeLimit")
        if value is None:
            return None
        if np.isnan(value):
            result: NDArray[np.bool_] | None = np.isnan(values)
            return result
        ends = sorted(np.asarray([value, value if limit is None else limit], values.dtype))
        result = (values >= ends[0]) & (values <= ends[1])
        return result
    value, limit = number(data, "PixelPaddingValue"), number(data, "PixelPaddingRangeLimit")
    if value is None:
        return None
    ends = [_as_stored(v, values.dtype) for v in (value, value if limit is None else limit)]
    found = np.zeros(values.shape, np.bool_)
    if None not in ends:
        low, high = sorted(e for e in ends if e is not None)
        found = (values >= low) & (values <= high)
    if frame.words is not None:  # a padding value may use bits that are cut off as no pixel data
        word = _as_stored(value, frame.words.dtype)
        found |= frame.words == word if word is not None else False
    return found


def _nothing_measured(hu: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return where a CT holds one value far below air, which no header need name as padding."""
    below = hu < _BELOW_AIR
    values = hu[below]
    return below if values.size and values.min() == values.max() else None


def _as_stored(value: float, dtype: np.dtype[Any]) -> int | None:
    """Return a padding value in the sign of the pixels: its own may be written in the other."""
    bits, whole = 8 * dtype.itemsize, int(value) if np.isfinite(value) else 2**64
    if not -(2 ** (bits - 1)) <= whole < 2**bits:
        return None
    whole %= 2**bits
    found: int | None = whole - 2**bits if dtype.kind == "i" and whole >= 2 ** (bits - 1) else whole
    return found


def _without_padding(pixels: NDArray[Any], padding: NDArray[np.bool_], units: str) -> NDArray[Any]:
    """Fill padding with the darkest of the rest, an image of padding alone with its darkness."""
    if padding.all():
        return np.full_like(pixels, -1000 if units == "HU" else 0)
    pixels = np.array(pixels)
    pixels[padding] = pixels[~padding].min()
    return pixels


# --- attributes -----------------------------------------------------------------------------------


def functional_item(data: Dataset, index: int, group: str) -> Dataset:
    """Return the data set that holds a frame's attributes: its own, the shared, or the file's."""
    name = _GROUPS[group]
    per_frame = _quietly(data, "PerFrameFunctionalGroupsSequence") or []
    shared = _quietly(data, "SharedFunctionalGroupsSequence") or []
    for holder in (*per_frame[index : index + 1], *shared[:1]):
        if holder.get(name):
            found: Dataset = holder[name].value[0]
            return found
    return data


def _quietly(data: Dataset, keyword: str) -> Any:
    try:
        return data.get(keyword)
    except Exception:  # a value that pydicom cannot turn; what depends on it does without
        return None


def number(data: Dataset, keyword: str) -> float | None:
    """Return the first number of an attribute, None where there is none.

    A decimal comma is read as the point that it stands for; ``None`` as no value.

    Raises:
        ValueError: if it holds something else, naming the attribute.
    """
    found = numbers(data, keyword)
    return found[0] if found else None


def numbers(data: Dataset, keyword: str) -> list[float]:
    """Return the numbers of an attribute; see `number`."""
    try:
        value = data.get(keyword)
        listed = value if isinstance(value, list | pydicom.multival.MultiValue) else [value]
        if isinstance(value, bytes):  # of an unknown representation
            listed = value.decode("ascii", "replace").split("\\")
        return [float(v) for v in listed if v not in (None, "")]
    except (ValueError, TypeError, OverflowError):
        return _from_text(data, keyword)


def _from_text(data: Dataset, keyword: str) -> list[float]:
    raw = data.get_item(keyword)
    value = getattr(raw, "value", b"")
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    found = []
    for part in text.strip(" \0").split("\\"):
        part = part.strip(" \0")
        if not part or part.lower() in ("none", "null", "n/a"):
            continue
        if part.count(",") == 1 and "." not in part:
            part = part.replace(",", ".")
        try:
            found.append(float(part))
        except ValueError as error:
            raise ValueError(
                f"{_named(keyword)} is {text.strip()!r}, which is no number"
            ) from error
    return found


def _named(keyword: str) -> str:
    tag = tag_for_keyword(keyword) or 0
    return f"its ({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword}"
