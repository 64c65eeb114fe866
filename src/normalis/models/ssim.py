"""Structural similarity of two images, per pixel and differentiable.

    SSIM(x, y) = (2 μx μy + c1) (2 σxy + c2) / ((μx² + μy² + c1) (σx² + σy² + c2))

with means, variances and the covariance under a Gaussian window of 11 x 11 pixels and standard
deviation 1.5, c1 = 0.01² and c2 = 0.03² for images in [0, 1]. Only windows that lie wholly inside
the image count; the map is resized back to the image.

Reference: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
structural similarity", IEEE Transactions on Image Processing 13 (2004).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["WINDOW", "dissimilarity", "similarity"]

WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def _smooth(images: Tensor) -> Tensor:
    """Average under the window, rows then columns: (B, C, H, W) -> (B, C, H - 10, W - 10)."""
    offset = torch.arange(WINDOW, device=images.device) - WINDOW // 2
    kernel = torch.softmax(-offset.square() / (2 * _SIGMA**2), 0)
    channels = images.shape[1]
    row = kernel.expand(channels, 1, 1, WINDOW)
    column = kernel.view(WINDOW, 1).expand(channels, 1, WINDOW, 1)
    return F.conv2d(F.conv2d(images, row, groups=channels), column, groups=channels)


def similarity(x: Tensor, y: Tensor) -> Tensor:
    """Return SSIM of every whole window: (B, C, S, S) twice -> (B, C, S - 10, S - 10).

    Args:
        x: images in [-1, 1]; they are mapped to [0, 1] here. Values outside keep their distance:
            clipping them, as the authors' code does, would hide what standardised images hold
            beyond the range and stop the gradient of a reconstruction that overshoots.
        y: of the same shape and range.
    """
    # E x² - (E x)² cancels: three digits of bfloat16 would not survive it.
    with torch.autocast(x.device.type, enabled=False):
        x, y = (x.float() + 1) / 2, (y.float() + 1) / 2
        mean_x, mean_y = _smooth(x), _smooth(y)
        var_x = _smooth(x.square()) - mean_x.square()
        var_y = _smooth(y.square()) - mean_y.square()
        cov = _smooth(x * y) - mean_x * mean_y
        means = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
        return means * (2 * cov + _C2) / (var_x + var_y + _C2)


def dissimilarity(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 - SSIM per pixel, in [0, 2], resized to the image: shapes stay (B, C, S, S)."""
    return F.interpolate(1 - similarity(x, y), size=x.shape[-2:], mode="bilinear")
