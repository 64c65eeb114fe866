"""Pixels in [0, 1] to what models see: [-1, 1], or each image standardised by itself.

Per-image standardisation removes the brightness and contrast of an image before the model sees
them: ``(x - mean(x)) / (2 std(x))``. The factor 2 keeps the spread near that of ``2 x - 1``, so
that losses and learning rates keep their meaning. It can raise AUROC by more than any choice of
latent dimension, and lower it just as much where brightness itself tells the classes apart.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FLAT", "as_tensor", "to_model_input"]

#: The standard deviation below which an image counts as constant, half a grey level of 8 bits.
FLAT = 0.5 / 255


def as_tensor(pixels: NDArray[Any] | Tensor) -> Tensor:
    """Return pixels as a tensor without copying where possible; the dtype stays."""
    return pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)


def to_model_input(pixels: Tensor, *, standardize: bool = False) -> Tensor:
    """Map a batch of pixels to the models' input range.

    Args:
        pixels: (B, C, H, W); ``uint8`` with 0..255, or floating point with nominal range [0, 1].
        standardize: whether to remove each image's own mean and contrast.

    Returns:
        float32 (B, C, H, W).
    """
    x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    if not standardize:
        return 2 * x - 1
    mean = x.mean((1, 2, 3), keepdim=True)
    spread = x.std((1, 2, 3), keepdim=True, correction=0).clamp_min(FLAT)
    return (x - mean) / (2 * spread)
