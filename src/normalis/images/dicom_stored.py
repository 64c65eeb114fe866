"""Stored values of a DICOM's frames: from the file's bytes to whole numbers with the right sign.

PS3.5 section 8: a sample is ``BitsStored`` bits that end at ``HighBit`` of a word of
``BitsAllocated`` bits. What lies beyond them is no pixel data (old files keep overlays there), and
``PixelRepresentation`` alone says whether the sample is signed, also where a JPEG 2000 or JPEG-LS
codestream says otherwise. Frames are read one at a time, and compressed ones decoded in a child
process (`normalis.images.codecs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID, RLELossless

from normalis.images.codecs import decode_frame

__all__ = [
    "PixelElement",
    "StoredFrame",
    "bits_stored",
    "find_pixels",
    "held_frames",
    "stored_frames",
]

_UNDEFINED = 0xFFFFFFFF
_LONG = (b"OB", b"OW", b"OF", b"OD", b"UN", b"OL", b"OV")
_TAGS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
)


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels lie in the stream.

    Attributes:
        keyword: ``PixelData``, ``FloatPixelData`` or ``DoubleFloatPixelData``.
        vr: its value representation, None in implicit files.
        at: offset of the first byte of its value.
        length: stated bytes, None if undefined (encapsulated).
        held: bytes from there to the end of the stream.
    """

    keyword: str
    vr: str | None
    at: int
    length: int | None
    held: int


@dataclass(frozen=True, eq=False)
class StoredFrame:
    """One frame.

    Attributes:
        values: (H, W) or (H, W, 3), of the sign that the header states.
        words: (H, W) unsigned, as they lie in the file, where that differs from values; a padding
            value may use bits beyond ``BitsStored``. None of colour, floats and lossy frames.
    """

    values: NDArray[Any]
    words: NDArray[Any] | None = None


def find_pixels(stream: BinaryIO, *, implicit: bool, little: bool) -> PixelElement | None:
    """Read the head of the pixel element, at which reading of the header stopped.

    Returns:
        None if the file has none.

    Raises:
        ValueError: if the head is damaged.
    """
    order = "little" if little else "big"
    head = stream.read(8)
    if len(head) < 8 or int.from_bytes(head[:2], order) != 0x7FE0:  # type: ignore[arg-type]
        return None
    element = int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
    keyword = {0x10: "PixelData", 8: "FloatPixelData", 9: "DoubleFloatPixelData"}.get(element)
    if keyword is None:
        return None
    vr = None
    if implicit:
        length = int.from_bytes(head[4:], order)  # type: ignore[arg-type]
    elif head[4:6] in _LONG:
        vr = head[4:6].decode()
        length = int.from_bytes(stream.read(4), order)  # type: ignore[arg-type]
    else:
        raise ValueError(f"its pixel data have the value representation {head[4:6]!r}; damaged")
    at = stream.tell()
    held = stream.seek(0, 2) - at
    return PixelElement(keyword, vr, at, None if length == _UNDEFINED else length, held)


def held_frames(data: Dataset, pixels: PixelElement, claimed: int) -> int:
    """Return how many frames uncompressed pixels hold, at least one and at least those claimed."""
    if data.file_meta.TransferSyntaxUID.is_encapsulated or pixels.length is None:
        return claimed
    size = _frame_bits(data)
    return max(claimed, 8 * min(pixels.length, pixels.held) // size, 1)


def stored_frames(
    data: Dataset, stream: BinaryIO, pixels: PixelElement, *, frames: int
) -> Iterator[StoredFrame]:
    """Yield the frames.

    Args:
        data: the header.
        stream: the file.
        pixels: of `find_pixels`.
        frames: to be expected, of `held_frames`.

    Raises:
        ValueError: if there are fewer bytes than the header claims, or it contradicts itself.
        CodecError: if a frame cannot be decoded.
        NotImplementedError: if the transfer syntax is one that pydicom does not decode.
    """
    _check_bits(data, pixels)
    if not get_decoder(data.file_meta.TransferSyntaxUID).is_available:
        raise NotImplementedError("no decoder is installed")
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from _compressed(data, stream, pixels, frames)
    else:
        yield from _native(data, stream, pixels, frames)


def _check_bits(data: Dataset, pixels: PixelElement) -> None:
    allocated = int(data.BitsAllocated)
    wanted = {"FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}.get(
        pixels.keyword, (1, 8, 16, 32)
    )
    if allocated not in wanted:
        raise ValueError(
            f"Bits Allocated must be one of {wanted} in its {pixels.keyword}, got {allocated}"
        )
    if pixels.keyword == "PixelData" and not 1 <= bits_stored(data) <= allocated:
        raise ValueError(
            f"Bits Stored is {data.BitsStored} of {allocated} Bits Allocated, which cannot be"
        )


def bits_stored(data: Dataset) -> int:
    """Return the bits of a sample; all of them where the header does not say."""
    return int(data.get("BitsStored") or data.BitsAllocated)


def _samples(data: Dataset) -> int:
    return int(data.get("SamplesPerPixel") or 1)


def _signed(data: Dataset) -> bool:
    return bool(int(data.get("PixelRepresentation") or 0))


# --- uncompressed ---------------------------------------------------------------------------------


def _frame_bits(data: Dataset) -> int:
    """Return the bits that one uncompressed frame takes."""
    values = int(data.Rows) * int(data.Columns) * _samples(data)
    bits = values * int(data.BitsAllocated)
    return bits * 2 // 3 if data.PhotometricInterpretation == "YBR_FULL_422" else bits


def _native(
    data: Dataset, stream: BinaryIO, pixels: PixelElement, frames: int
) -> Iterator[StoredFrame]:
    held = pixels.held if pixels.length is None else min(pixels.length, pixels.held)
    bits = _frame_bits(data)
    needed = -(-bits * frames // 8)
    if held < needed:
        raise ValueError(
            f"The number of bytes of pixel data is less than expected ({held} vs {needed} bytes)"
        )
    for index in range(frames):
        found = _bytes_of(data, stream, pixels, bits, index)
        yield _native_frame(data, pixels, found, bits * index % 8)


def _bytes_of(
    data: Dataset, stream: BinaryIO, pixels: PixelElement, bits: int, index: int
) -> bytes:
    """Read the bytes of one frame; of 1-bit frames those that it shares with its neighbours too."""
    start, end = bits * index // 8, -(-bits * (index + 1) // 8)
    swapped = (
        pixels.vr == "OW" and data.BitsAllocated == 8 and not data.original_encoding[1]
    )  # 8-bit values as big-endian words
    first, last = (start - start % 2, end + end % 2) if swapped else (start, end)
    stream.seek(pixels.at + first)
    found = stream.read(last - first)
    if swapped:
        found += b"\0" * (len(found) % 2)
        found = np.frombuffer(found, "u2").byteswap().tobytes()
    return found[start - first : start - first + end - start]


def _native_frame(data: Dataset, pixels: PixelElement, found: bytes, first_bit: int) -> StoredFrame:
    shape = (int(data.Rows), int(data.Columns))
    if data.BitsAllocated == 1:
        flags = np.unpackbits(np.frombuffer(found, np.uint8), bitorder="little")
        return StoredFrame(flags[first_bit : first_bit + shape[0] * shape[1]].reshape(shape))
    if _samples(data) > 1:
        return StoredFrame(_native_colour(data, found))
    order = "<" if data.original_encoding[1] is not False else ">"
    size = int(data.BitsAllocated) // 8
    if pixels.keyword != "PixelData":
        values = np.frombuffer(found, f"{order}f{size}").reshape(shape)
        return StoredFrame(values.astype(values.dtype.newbyteorder("="), copy=False))
    words = np.frombuffer(found, f"{order}u{size}").reshape(shape)
    words = words.astype(words.dtype.newbyteorder("="), copy=False)
    return StoredFrame(_cut_bits(words, data, codestream=None), words)


def _native_colour(data: Dataset, found: bytes) -> NDArray[Any]:
    """Let pydicom bring planes together and turn YBR into RGB."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    for name, value in _tags(data).items():
        setattr(one, name, value)
    one.NumberOfFrames = 1
    one.PixelData = found + b"\0" * (len(found) % 2)
    one["PixelData"].VR = "OB" if data.BitsAllocated == 8 else "OW"
    decoder = get_decoder(data.file_meta.TransferSyntaxUID)
    return decoder.as_array(one)[0]


def _tags(data: Dataset) -> dict[str, Any]:
    tags: dict[str, Any] = {n: int(data[n].value) for n in _TAGS if data.get(n) not in (None, "")}
    tags["SamplesPerPixel"] = _samples(data)
    tags["BitsStored"] = bits_stored(data)
    tags["HighBit"] = tags["BitsStored"] - 1  # moved bits are put right here, not by the decoder
    tags.setdefault("PixelRepresentation", 0)
    if tags["SamplesPerPixel"] > 1:
        tags.setdefault("PlanarConfiguration", 0)
    return tags | {"PhotometricInterpretation": str(data.PhotometricInterpretation)}


# --- compressed -----------------------------------------------------------------------------------


def _compressed(
    data: Dataset, stream: BinaryIO, pixels: PixelElement, frames: int
) -> Iterator[StoredFrame]:
    syntax = data.file_meta.TransferSyntaxUID
    stream.seek(pixels.at)
    offsets = None
    if data.get("ExtendedOffsetTable") and data.get("ExtendedOffsetTableLengths"):
        offsets = (data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths)
    count = 0
    for frame in _encapsulated(stream, pixels, syntax, frames, offsets):
        values, precision = decode_frame(frame, syntax=str(syntax), tags=_tags(data))
        count += 1
        if _samples(data) > 1:
            yield StoredFrame(values)
            continue
        # a decoder gives signed values for signed codestreams; their bits are what counts
        words = values.view(f"u{values.dtype.itemsize}")
        yield StoredFrame(_cut_bits(words, data, codestream=_precision(precision, data)), words)
    if count < frames:
        raise ValueError(f"The number of frames is less than expected ({count} vs {frames} frames)")


def _encapsulated(
    stream: BinaryIO, pixels: PixelElement, syntax: UID, frames: int, offsets: Any
) -> Iterator[bytes]:
    """Yield the compressed frames; of RLE each fragment is one, whatever the header claims."""
    if pixels.length is not None:
        raise ValueError("its compressed pixel data are not encapsulated")
    if syntax == RLELossless:
        from pydicom.encaps import generate_fragments, parse_basic_offsets

        parse_basic_offsets(stream)
        yield from generate_fragments(stream)
        return
    yield from generate_frames(stream, number_of_frames=frames, extended_offsets=offsets)


def _precision(stated: int | None, data: Dataset) -> int:
    """Return the bits of a sample in the codestream; of RLE the word's."""
    return stated or int(data.BitsAllocated)


# --- bits -----------------------------------------------------------------------------------------


def _cut_bits(words: NDArray[Any], data: Dataset, *, codestream: int | None) -> NDArray[Any]:
    """Return the samples that lie in words.

    Args:
        words: (H, W) unsigned.
        data: the header.
        codestream: bits of a sample in a compressed frame; None if uncompressed.

    Returns:
        (H, W), signed where ``PixelRepresentation`` is 1.

    Raises:
        ValueError: if the header's ``HighBit`` contradicts the values.
    """
    width, stored = 8 * words.dtype.itemsize, bits_stored(data)
    bits = stored if codestream is None else min(stored, codestream)
    high = int(data.get("HighBit") or stored - 1)
    shift = high + 1 - stored
    if shift > 0 and high < min(codestream or width, width):
        _check_shift(words, shift, stored)
        words = words >> np.asarray(shift, words.dtype)
    if bits < width:
        words = words & np.asarray(2**bits - 1, words.dtype)
    if not _signed(data):
        return words
    if bits == width:
        return words.view(f"i{words.dtype.itemsize}")
    top = np.asarray(2 ** (bits - 1), words.dtype)
    found: NDArray[Any] = (words ^ top).view(f"i{words.dtype.itemsize}") - top.astype(
        f"i{words.dtype.itemsize}"
    )
    return found


def _check_shift(words: NDArray[Any], shift: int, stored: int) -> None:
    low = np.asarray(2**shift - 1, words.dtype)
    if words.max(initial=0) < 2**stored and (words & low).any():
        raise ValueError(
            f"High Bit says that samples begin at bit {shift}, but the values lie below "
            f"{2**stored} and use the bits before it: which is wrong is not known"
        )
