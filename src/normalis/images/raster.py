"""PNG, JPEG and TIFF through Pillow.

Eight-bit files give ``uint8``, one channel for grey and three for colour; palettes and CMYK become
RGB and transparency is dropped, which is what Pillow's own ``convert("L")`` does to them. The
orientation that EXIF or a TIFF's tag may ask for is ignored, as the reference reader does for PNG
and JPEG, so that arrays stay equal. Signed 8-bit, 16- and 32-bit grey values keep their own units
as ``float32``: Pillow's ``convert("L")`` would turn 4095 into 255.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from normalis.errors import UnreadableImageError
from normalis.images.frame import Frame, Probe
from normalis.images.limits import check_images, check_values

__all__ = ["NO_VALUE", "check_finite", "probe", "read"]

NO_VALUE = 1e30
"""From here on a number is no measurement: what stands for missing values is about 1e38."""

_FORMATS = ("PNG", "JPEG", "TIFF")
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}
_PHOTOMETRIC, _SUBFILE, _BITS, _SAMPLE_FORMAT = 262, 254, 258, 339  # TIFF 6.0 tag numbers
_WIDTH, _LENGTH, _ORIENTATION, _NODATA = 256, 257, 274, 42113
_SIGNED = 2  # of SampleFormat


def read(stream: BinaryIO, path: Path, *, grey: bool = False, **_: Any) -> Iterator[Frame]:
    """Yield the image of a PNG or JPEG, or every page of a TIFF."""
    image = _open(stream, path)
    pages = _pages(image, path)
    for page in pages:
        image.seek(page)
        bits = _bits(image, stream)
        _check_page(image, path, bits)
        try:
            pixels = _decode(image, path, bits, grey=grey)
        except UnreadableImageError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImageError(path, f"truncated or damaged: {error}") from error
        yield Frame(
            pixels=pixels,
            path=path,
            slice_index=page if len(pages) > 1 else None,
            header=_header(image, bits) | {"units": _units(image, pixels)},
        )


def _header(image: Image.Image, bits: int) -> dict[str, Any]:
    return {"format": image.format, "bits": bits, "mode": image.mode}


def _units(image: Image.Image, pixels: NDArray[Any]) -> str:
    if pixels.dtype == np.uint8:
        return "8 bit"
    return "float" if image.mode == "F" else "raw"


def probe(stream: BinaryIO, path: Path) -> Probe:
    """Say what the header says."""
    image = _open(stream, path)
    pages = _pages(image, path)
    image.seek(pages[0])
    bits = _bits(image, stream)
    _check_page(image, path, bits)
    width, height = _size(image)
    return Probe(
        path=path,
        format=str(image.format),
        bits=bits,
        channels=3 if image.mode == "P" else len(image.getbands()),
        height=height,
        width=width,
        frames=len(pages),
        header=_header(image, bits),
    )


def _open(stream: BinaryIO, path: Path) -> Image.Image:
    try:
        return Image.open(stream, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(path, _bomb(str(error))) from error
    except UnidentifiedImageError as error:
        reason = (
            "its header is damaged, or it is of a kind that Pillow does not read (a TIFF of 64-bit "
            "values, for instance); save it again as 8- or 16-bit grey"
        )
        raise UnreadableImageError(path, reason) from error


def _pages(image: Image.Image, path: Path) -> list[int]:
    """Return the pages that are images; thumbnails and masks of other pages are not."""
    if image.format == "PNG" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise UnreadableImageError(
            path, f"an animated PNG of {frames} images; save the one that is meant as a file"
        )
    if image.format != "TIFF":
        return [0]
    full = []
    for page in count():
        check_images(path, page + 1, what="pages")
        try:
            image.seek(page)
        except EOFError:
            break
        if not _tag(image, _SUBFILE, 0) & 0b101:
            full.append(page)
    return full or [0]


def _size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height as stored, before any turning."""
    if image.format != "TIFF":
        return image.width, image.height
    return int(_tag(image, _WIDTH, image.width)), int(_tag(image, _LENGTH, image.height))


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)


def _check_page(image: Image.Image, path: Path, bits: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UnreadableImageError(path, _bomb(f"{image.width} x {image.height} pixels"))
    check_values(path, image.height, image.width, 1 if image.mode in _DEEP else _bytes(image))
    if bits > 8 and image.mode not in _DEEP:
        raise UnreadableImageError(
            path,
            f"{bits}-bit colour ({image.mode}), of which Pillow keeps only 8 bits; "
            "save it as 16-bit grey or as 8-bit colour",
        )


def _bytes(image: Image.Image) -> int:
    """Return the samples of a pixel that reading will hold at once."""
    return 1 if image.mode in ("L", "1") else 3


def _bomb(what: str) -> str:
    return f"larger than the limit of {Image.MAX_IMAGE_PIXELS} pixels (PIL.Image): {what}"


def _bits(image: Image.Image, stream: BinaryIO) -> int:
    """Return the bits of a stored value, which for PNG only the file's own header says."""
    if image.format == "TIFF":
        return int(max(_tag(image, _BITS, (1,))))
    if image.format == "PNG":
        at = stream.tell()
        stream.seek(24)  # signature 8 bytes, IHDR's length 4 and name 4, width 4, height 4
        depth = stream.read(1)[0]
        stream.seek(at)
        return depth
    return 8


def _decode(image: Image.Image, path: Path, bits: int, *, grey: bool) -> NDArray[Any]:
    if image.format != "TIFF":
        return _pixels(image, path, bits, grey=grey)
    _silence_libtiff()
    _check_white(image, path)
    asked = _tag(image, _ORIENTATION, 1)
    image.load()
    was_turned = _ORIENTATION not in getattr(image, "tag_v2", {})  # Pillow takes the tag away
    pixels = _pixels(image, path, bits, grey=grey)
    return _turn_back(pixels, asked) if was_turned else pixels


@cache
def _silence_libtiff() -> None:
    """Keep libtiff from printing to the terminal what is said in the reason of a skipped file.

    Its handlers are set in the library that Pillow's wheels bring; where it lies elsewhere, or is
    linked into Pillow, messages stay as they are.
    """
    root = Path(PIL.__file__).resolve().parent
    for folder in (root.parent / "pillow.libs", root / ".dylibs"):
        for library in sorted(folder.glob("libtiff*")):
            with suppress(OSError, AttributeError):
                loaded = ctypes.CDLL(str(library))
                for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                    handler = getattr(loaded, name)
                    handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                    handler(None)


def _turn_back(pixels: NDArray[Any], orientation: Any) -> NDArray[Any]:
    """Undo what Pillow did for a TIFF's orientation (TIFF 6.0, section 8)."""
    axes = (1, 2)
    match orientation:
        case 2:
            turned = np.flip(pixels, 2)
        case 3:
            turned = np.rot90(pixels, 2, axes)
        case 4:
            turned = np.flip(pixels, 1)
        case 5:
            turned = np.swapaxes(pixels, 1, 2)
        case 6:
            turned = np.rot90(pixels, 1, axes)
        case 7:
            turned = np.swapaxes(np.rot90(pixels, 2, axes), 1, 2)
        case 8:
            turned = np.rot90(pixels, -1, axes)
        case _:
            return pixels
    return np.ascontiguousarray(turned)


def _check_white(image: Image.Image, path: Path) -> None:
    """Refuse to guess which value is white where the file's kind does not say."""
    whole = image.mode in ("1", "L", "P") or image.mode.startswith("I;16")
    signed = _tag(image, _SAMPLE_FORMAT, (1,)) != (1,)
    if _tag(image, _PHOTOMETRIC, 1) == 0 and (not whole or signed):
        raise UnreadableImageError(
            path,
            "its photometric interpretation is WhiteIsZero, but its values are "
            f"{'signed' if whole else '32-bit'} or floating-point, of which the white one is not "
            "stated; save it as BlackIsZero",
        )


def _pixels(image: Image.Image, path: Path, bits: int, *, grey: bool) -> NDArray[Any]:
    mode = image.mode
    if mode in _DEEP:
        return _deep(image, path, bits)[None]
    if mode == "L" and _tag(image, _SAMPLE_FORMAT, (1,)) == (_SIGNED,):
        return np.asarray(image).view(np.int8).astype(np.float32)[None]
    if grey or mode in ("L", "1", "LA", "La", "YCbCr"):
        return np.asarray(image if mode == "L" else image.convert("L"))[None]
    rgb = image if mode == "RGB" else image.convert("RGB")
    return np.asarray(rgb).transpose(2, 0, 1)


def _deep(image: Image.Image, path: Path, bits: int) -> NDArray[np.float32]:
    unsigned_32 = _tag(image, _BITS, ()) == (32,) and _tag(image, _SAMPLE_FORMAT, (1,)) == (1,)
    inverted = _tag(image, _PHOTOMETRIC, 1) == 0 and image.mode.startswith("I;16")
    values = np.asarray(image)
    if unsigned_32:
        values = values.view(np.uint32)  # Pillow reads them into signed 32 bit
    pixels = values.astype(np.float32)
    if inverted:  # white is zero: Pillow turns these round in 8 bit only
        np.subtract(2**bits - 1, pixels, out=pixels)
    missing = _missing(image)
    if missing is not None:
        empty = np.isnan(pixels) if np.isnan(missing) else values == missing
        if empty.any() and not empty.all():
            pixels[empty] = pixels[~empty].min()
    if image.mode == "F":
        check_finite(pixels, path)
    return pixels


def _missing(image: Image.Image) -> np.float32 | None:
    """Return the value that a TIFF's GDAL_NODATA names as no data."""
    try:
        stated = _tag(image, _NODATA, None)
        return None if stated is None else np.float32(str(stated).strip("\0 "))
    except (ValueError, OverflowError):
        return None


def check_finite(pixels: NDArray[Any], path: Path, *, where: str = "") -> None:
    """Refuse NaN, infinity and numbers that stand for no value.

    Raises:
        UnreadableImageError: saying how many there are, and where the first is.
    """
    if pixels.dtype.kind != "f":
        return
    with np.errstate(invalid="ignore"):
        fine = np.abs(pixels) < NO_VALUE
    if fine.all():
        return
    bad = ~np.isfinite(pixels)
    if bad.any():
        at = ", ".join(str(int(i)) for i in np.argwhere(bad)[0])
        raise UnreadableImageError(
            path,
            f"{int(bad.sum())} values are NaN or infinite{where}, the first at [{at}]; "
            "replace them by a number",
        )
    at = ", ".join(str(int(i)) for i in np.argwhere(~fine)[0])
    raise UnreadableImageError(
        path,
        f"{int((~fine).sum())} values are {float(np.abs(pixels).max()):.3g}{where}, the first at "
        f"[{at}]: such numbers stand for missing values; replace them by the background's",
    )
