"""Resize an image to the square that a model takes.

Eight-bit values go through Pillow as ``convert("L").resize((S, S), BILINEAR)``, bit for bit what
the reference reader of the paper's benchmark does. Deeper values go through the same filter in
32-bit floats. The aspect ratio is not kept, as in the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.errors import DataError

__all__ = ["fit_pixels"]

_BILINEAR = Image.Resampling.BILINEAR
# ITU-R 601-2 luma, the weights of Pillow's convert("L")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def fit_pixels(pixels: NDArray[Any], *, image_size: int, channels: int) -> NDArray[Any]:
    """Return an image at the model's size and number of channels, in the same dtype.

    Args:
        pixels: (C, H, W), C = 1 or 3, ``uint8`` or ``float32``.
        image_size: S, the edge of the result.
        channels: 1 turns colour into luma, 3 repeats grey.

    Returns:
        (channels, S, S).

    Raises:
        DataError: if the shape or dtype is another.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        raise DataError(f"an image must be (C, H, W) with C = 1 or 3, got shape {pixels.shape}")
    if pixels.dtype == np.uint8:
        fitted = _fit_8_bit(pixels, image_size, grey=channels == 1)
    elif pixels.dtype == np.float32:
        fitted = _fit_float(pixels, image_size, grey=channels == 1)
    else:
        raise DataError(f"an image must be uint8 or float32, got {pixels.dtype}")
    return fitted if len(fitted) == channels else np.repeat(fitted, channels, axis=0)


def _fit_8_bit(pixels: NDArray[Any], size: int, *, grey: bool) -> NDArray[Any]:
    if len(pixels) == 1:
        return _resize(Image.fromarray(pixels[0]), size)[None]
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if grey:
        return _resize(image.convert("L"), size)[None]
    return _resize(image, size).transpose(2, 0, 1)


def _fit_float(pixels: NDArray[Any], size: int, *, grey: bool) -> NDArray[Any]:
    if grey and len(pixels) == 3:
        pixels = np.tensordot(_LUMA, pixels, axes=1)[None]
    return np.stack([_resize(Image.fromarray(c), size) for c in pixels])


def _resize(image: Image.Image, size: int) -> NDArray[Any]:
    if image.size == (size, size):  # Pillow's resize would copy, with the same values
        return np.asarray(image)
    return np.asarray(image.resize((size, size), _BILINEAR))
