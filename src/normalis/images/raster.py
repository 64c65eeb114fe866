"""PNG, JPEG and TIFF through Pillow.

Eight-bit files give ``uint8``, one channel for grey and three for colour; palettes and CMYK become
RGB and transparency is dropped, which is what Pillow's own ``convert("L")`` does to them. The
orientation that EXIF may ask for is ignored, as the reference reader does, so that arrays stay
equal. Sixteen- and 32-bit grey values keep their own units as ``float32``: Pillow's
``convert("L")`` would turn 4095 into 255.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from normalis.errors import UnreadableImageError
from normalis.images.frame import Frame, Probe

__all__ = ["check_finite", "probe", "read"]

_FORMATS = ("PNG", "JPEG", "TIFF")
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}
_PHOTOMETRIC, _SUBFILE, _BITS, _SAMPLE_FORMAT = 262, 254, 258, 339  # TIFF 6.0 tag numbers


def read(stream: BinaryIO, path: Path, *, grey: bool = False, **_: Any) -> Iterator[Frame]:
    """Yield the image of a PNG or JPEG, or every page of a TIFF."""
    image = _open(stream, path)
    pages = _pages(image)
    for page in pages:
        image.seek(page)
        bits = _bits(image, stream)
        _check_page(image, path, bits)
        try:
            pixels = _decode(image, path, bits, grey=grey)
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImageError(path, f"truncated or damaged: {error}") from error
        yield Frame(
            pixels=pixels,
            path=path,
            slice_index=page if len(pages) > 1 else None,
            header={"format": image.format, "bits": bits, "mode": image.mode},
        )


def probe(stream: BinaryIO, path: Path) -> Probe:
    """Say what the header says."""
    image = _open(stream, path)
    pages = _pages(image)
    image.seek(pages[0])
    bits = _bits(image, stream)
    _check_page(image, path, bits)
    return Probe(
        path=path,
        format=str(image.format),
        bits=bits,
        channels=3 if image.mode == "P" else len(image.getbands()),
        height=image.height,
        width=image.width,
        frames=len(pages),
        header={"format": image.format, "bits": bits, "mode": image.mode},
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


def _pages(image: Image.Image) -> list[int]:
    """Return the pages that are images; thumbnails and masks of other pages are not."""
    if image.format != "TIFF":
        return [0]
    full = []
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        if not _tag(image, _SUBFILE, 0) & 0b101:
            full.append(page)
    return full or [0]


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)


def _check_page(image: Image.Image, path: Path, bits: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UnreadableImageError(path, _bomb(f"{image.width} x {image.height} pixels"))
    if bits > 8 and image.mode not in _DEEP:
        raise UnreadableImageError(
            path,
            f"{bits}-bit colour ({image.mode}), of which Pillow keeps only 8 bits; "
            "save it as 16-bit grey or as 8-bit colour",
        )


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
    mode = image.mode
    if mode in _DEEP:
        return _deep(image, path, bits)[None]
    if grey or mode in ("L", "1", "LA", "La", "YCbCr"):
        return np.asarray(image if mode == "L" else image.convert("L"))[None]
    rgb = image if mode == "RGB" else image.convert("RGB")
    return np.asarray(rgb).transpose(2, 0, 1)


def _deep(image: Image.Image, path: Path, bits: int) -> NDArray[np.float32]:
    unsigned_32 = _tag(image, _BITS, ()) == (32,) and _tag(image, _SAMPLE_FORMAT, (1,)) == (1,)
    inverted = _tag(image, _PHOTOMETRIC, 1) == 0 and image.mode.startswith("I;16")
    top = 2**bits - 1
    values = np.asarray(image)
    if unsigned_32:
        values = values.view(np.uint32)  # Pillow reads them into signed 32 bit
    pixels = values.astype(np.float32)
    if inverted:  # white is zero: Pillow turns these round in 8 bit only
        pixels = top - pixels
    if image.mode == "F":
        check_finite(pixels, path)
    return pixels


def check_finite(pixels: NDArray[Any], path: Path, *, where: str = "") -> None:
    """Refuse NaN and infinity, saying how many and where the first is."""
    bad = ~np.isfinite(pixels)
    if bad.any():
        at = ", ".join(str(int(i)) for i in np.argwhere(bad)[0])
        raise UnreadableImageError(
            path,
            f"{int(bad.sum())} values are NaN or infinite{where}, the first at [{at}]; "
            "replace them by a number",
        )
