"""Deformations of images: warping, smooth invertible flows, and what compares warped images.

::

    warp(x, u)(p) = x(p + u(p))                     bilinear; u in pixels, (down, right)
    integrate(v)  = u with p + u(p) = exp(v)(p):    u = v / 2^k, then k times u <- u + warp(u, u)
    likeness(a, b) = (cov² + e²) / ((var a + e) (var b + e))    in a window around each pixel

A stationary velocity v, integrated by scaling and squaring, gives a deformation that can be undone:
exp(-v) is the inverse of exp(v), up to interpolation.

Reference: Balakrishnan et al., "VoxelMorph: a learning framework for deformable medical image
registration", IEEE TMI 2019; Dalca et al., MICCAI 2018, for the integration.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["folded_share", "integrate", "likeness", "roughness", "warp"]

#: e of `likeness`, the square of a contrast that does not count, a third of a level of 8 bits. Flat
#: backgrounds would divide 0 by 0, and a variance that rounds to nothing would make anything alike.
_EPSILON = 1e-5


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Return x looked up at places moved by a flow, float32.

    Args:
        x: (B, C, H, W); beyond its border lies the border's value.
        flow: (B, 2, H, W) in pixels, down and right: 1 down shows the row below.

    Returns:
        (B, C, H, W). Where H and W are powers of two a flow of whole pixels is exact, else up to
        rounding.
    """
    height, width = x.shape[-2:]
    flow = flow.float()
    # Centres of pixels as fractions, (2 i + 1) / H - 1: exact in binary where H is a power of two.
    down = (2 * torch.arange(height, device=x.device) + 1).view(-1, 1) / height - 1
    right = (2 * torch.arange(width, device=x.device) + 1).view(1, -1) / width - 1
    grid = torch.stack([right + 2 * flow[:, 1] / width, down + 2 * flow[:, 0] / height], -1)
    moved: Tensor = F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
    return moved


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Return the flow of a stationary velocity after one unit of time.

    Args:
        velocity: (B, 2, H, W) in pixels.
        steps: doublings; each of the 2^steps small steps must stay well below a pixel.

    Returns:
        (B, 2, H, W), float32.
    """
    flow: Tensor = velocity.float() / 2**steps
    for _ in range(steps):
        flow = flow + warp(flow, flow)
    return flow


def likeness(a: Tensor, b: Tensor, window: int = 9) -> Tensor:
    """Return the squared correlation of two images around each pixel, (B, C, H, W) in [0, 1].

    It is 1 where one is a linear function of the other, and where both are flat.

    Args:
        a: (B, C, H, W).
        b: (B, C, H, W).
        window: side of the window, odd; at the border the part that lies inside.
    """
    # What is far from 0 has no digits left for its differences.
    a, b = (x.float() - x.float().mean((2, 3), keepdim=True) for x in (a, b))
    down, right = (_averaging(n, window, a) for n in a.shape[-2:])
    with torch.autocast(a.device.type, enabled=False):  # differences of squares need float32
        several = torch.stack([a, b, a * b, a * a, b * b])
        mean_a, mean_b, mean_ab, mean_aa, mean_bb = down @ several @ right.T
    cov = mean_ab - mean_a * mean_b
    # Differences of squares may round to below zero.
    var_a = (mean_aa - mean_a.square()).clamp_min(0)
    var_b = (mean_bb - mean_b.square()).clamp_min(0)
    alike: Tensor = (cov.square() + _EPSILON**2) / ((var_a + _EPSILON) * (var_b + _EPSILON))
    return alike


def _averaging(size: int, window: int, like: Tensor) -> Tensor:
    """Return the matrix (size, size) that averages over a window along one side.

    Products with it are several times as fast as pooling, whose gradient most of all is slow.
    """
    place = torch.arange(size, device=like.device)
    near = ((place[:, None] - place).abs() <= window // 2).to(like.dtype)
    return near / near.sum(1, keepdim=True)


def roughness(flow: Tensor) -> Tensor:
    """Return the mean square of a field's derivatives, a scalar: 0 of a translation.

    Derivatives are central differences, pixels per pixel: the number of one deformation is the same
    at any image size.

    Args:
        flow: (B, 2, H, W) velocity or displacement in pixels.
    """
    flow = flow.float()
    down = (flow[:, :, 2:] - flow[:, :, :-2]) / 2
    right = (flow[..., 2:] - flow[..., :-2]) / 2
    return (down.square().mean() + right.square().mean()) / 2


def folded_share(flow: Tensor) -> Tensor:
    """Return the share of pixels (B,) where a flow folds the image over: a Jacobian below 0.

    Args:
        flow: (B, 2, H, W) displacement in pixels.
    """
    down = flow[:, :, 1:, :-1] - flow[:, :, :-1, :-1]
    right = flow[:, :, :-1, 1:] - flow[:, :, :-1, :-1]
    jacobian = (1 + down[:, 0]) * (1 + right[:, 1]) - down[:, 1] * right[:, 0]
    return (jacobian < 0).float().flatten(1).mean(1)
