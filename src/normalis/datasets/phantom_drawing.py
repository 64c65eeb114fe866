"""A phantom's picture: what each of its factors does to a head-like slice.

The picture follows a T1-weighted axial slice: scalp, skull, fluid, folded grey matter, white
matter, deep grey nuclei, ventricles, and a smooth bias field. It is no anatomical model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import SettingsError

__all__ = ["FACTORS", "FloatArray", "inside", "render"]

FloatArray = NDArray[np.float32]

# What varies, in this order: `factors=3` varies the first three.
FACTORS: tuple[str, ...] = (
    "aspect",  # of the head, width over height
    "size",
    "rotation",
    "ventricle_size",
    "contrast",  # between grey and white matter
    "asymmetry",  # midline bowed to one side, one ventricle larger than the other
    "bias_x",  # bias field, left to right
    "bias_y",  # bias field, top to bottom
    "shift_x",
    "shift_y",
    "skull_thickness",
    "cortex_thickness",
    "fold_phase",  # folds of the cortex wander around the head
    "fold_depth",
    "ventricle_spread",  # how far the horns bend away from the midline
    "scalp_brightness",
)

_CHUNK = 64  # images drawn at once, so that the intermediate arrays stay in the processor's cache


def render(factors: NDArray[Any], *, image_size: int = 64) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Draw the images that belong to given factors; the map :math:`g` of this module.

    Args:
        factors: (N, K) with K at most 16, each in [-1, 1]; those not given are 0.
        image_size: side S, in pixels.

    Returns:
        Images (N, S, S) in [0, 1] and their brain (N, S, S).
    """
    factors = np.asarray(factors, dtype=np.float32)
    if factors.ndim != 2 or not 1 <= factors.shape[1] <= len(FACTORS):
        raise SettingsError(f"factors must be (N, 1 to {len(FACTORS)}), got {factors.shape}")
    full = np.zeros((len(factors), len(FACTORS)), dtype=np.float32)
    full[:, : factors.shape[1]] = factors
    images = np.empty((len(full), image_size, image_size), dtype=np.float32)
    brain = np.empty(images.shape, dtype=bool)
    for start in range(0, len(full), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part], brain[part] = _draw(full[part], image_size)
    return images, brain


@dataclass(frozen=True, eq=False, kw_only=True)
class _Head:
    """Coordinates of N images, each array broadcasting to (N, S, S).

    Attributes:
        page_x: to the right of the page, in [-1, 1].
        page_y: down the page.
        x: to the right of the head, 1 at its edge.
        y: down the head.
        radius: distance from its centre, 1 at its edge.
        step: width of an edge, in these units.
    """

    page_x: FloatArray
    page_y: FloatArray
    x: FloatArray
    y: FloatArray
    radius: FloatArray
    step: FloatArray


def _draw(factors: FloatArray, size: int) -> tuple[FloatArray, NDArray[np.bool_]]:
    f = dict(zip(FACTORS, factors.T[:, :, None, None], strict=True))
    head = _placed(f, size)
    scalp_in = np.float32(0.94)
    skull_in = scalp_in - (0.075 + 0.025 * f["skull_thickness"])
    brain = inside(skull_in - head.radius, head.step)
    tissue = _tissue(f, head, cortex=skull_in - 0.035)
    scalp = (0.80 + 0.12 * f["scalp_brightness"]) * inside(head.radius - scalp_in, head.step)
    shell = inside(1 - head.radius, head.step) * (np.float32(0.06) + scalp)
    bias = 1 + 0.16 * (f["bias_x"] * head.page_x + f["bias_y"] * head.page_y)
    image = (shell * (1 - brain) + tissue * brain) * bias
    return np.clip(image, 0, 1).astype(np.float32), head.radius < skull_in


def _placed(f: Mapping[str, FloatArray], size: int) -> _Head:
    """Return the head's own frame: shifted, rotated, and divided by the half axes."""
    pixel = np.float32(2 / size)
    edge = 0.75 * pixel  # width of every edge: sharp to look at, smooth to differentiate
    axis = (np.arange(size, dtype=np.float32) + 0.5) * pixel - 1
    page_x, page_y = axis[None, None, :], axis[None, :, None]
    turn = 0.22 * f["rotation"]
    cos, sin = np.cos(turn), np.sin(turn)
    dx, dy = page_x - 0.05 * f["shift_x"], page_y - 0.05 * f["shift_y"]
    scale = 0.80 + 0.07 * f["size"]
    half_x = scale * (0.84 + 0.07 * f["aspect"])
    half_y = scale * (1.04 - 0.04 * f["aspect"])
    x = (cos * dx + sin * dy) / half_x
    y = (cos * dy - sin * dx) / half_y
    radius = np.sqrt(x * x + y * y + np.float32(1e-4))
    return _Head(page_x=page_x, page_y=page_y, x=x, y=y, radius=radius, step=edge / scale)


def _tissue(f: Mapping[str, FloatArray], head: _Head, *, cortex: FloatArray) -> FloatArray:
    """Return grey and white matter in fluid, as if the brain filled the page."""
    grey, white = _folded(f, head, cortex)
    inner_x = head.x - 0.07 * f["asymmetry"] * (1 - head.y * head.y)  # the midline bows
    # Never narrower than a pixel, which would alias and make a rough manifold of a smooth one.
    thin = np.maximum(0.022, head.step)
    fissure = 0.022 / thin * np.exp(-((inner_x / thin) ** 2)) * inside(head.y * head.y - 0.18, 0.04)
    ventricles = _ventricles(f, inner_x, head)
    nuclei = np.exp(-(((inner_x - 0.27) / 0.10) ** 2)) + np.exp(-(((inner_x + 0.27) / 0.10) ** 2))
    nuclei = nuclei * np.exp(-(((head.y - 0.10) / 0.17) ** 2))
    level_grey = 0.53 - 0.06 * f["contrast"]
    level_white = 0.70 + 0.06 * f["contrast"]
    fluid = np.float32(0.17)
    matter = level_grey + (level_white - level_grey) * white * (1 - 0.75 * nuclei)
    found: FloatArray = fluid + (matter - fluid) * grey * (1 - fissure) * (1 - ventricles)
    return found


def _folded(
    f: Mapping[str, FloatArray], head: _Head, cortex: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return grey and white matter: the number of folds is fixed, depth and place vary."""
    angle = np.arctan2(head.x, head.y)
    phase = 0.25 * f["fold_phase"]
    # The number of folds is fixed; 15 + 9 is odd enough to look alive.
    fold = np.cos(15 * angle + 6 * phase) + 0.7 * np.cos(9 * angle - 5 * phase + 1)
    depth = 0.032 + 0.022 * f["fold_depth"]
    grey = inside(cortex - depth * (1 - 0.6 * fold) - head.radius, head.step)
    thickness = 0.13 + 0.06 * f["cortex_thickness"]
    white = inside(cortex - thickness + 1.3 * depth * fold - head.radius, 1.5 * head.step)
    return grey, white


def _ventricles(f: Mapping[str, FloatArray], x: FloatArray, head: _Head) -> FloatArray:
    """Return both: ellipses that lean away from the midline at ``x`` = 0."""
    lean = 0.30 + 0.45 * f["ventricle_spread"]
    swell = 0.30 + 0.09 * f["ventricle_size"]
    left, right = (
        _ventricle(x, head.y, swell * (1 + side * 0.22 * f["asymmetry"]), lean, head.step, side)
        for side in (1, -1)
    )
    return left + right


def inside(distance: NDArray[Any], width: Any) -> FloatArray:
    """Logistic edge: 1 far inside (positive distance), 0 far outside."""
    found: FloatArray = (0.5 + 0.5 * np.tanh((0.5 / width) * distance)).astype(np.float32)
    return found


def _ventricle(
    x: NDArray[Any], y: NDArray[Any], swell: Any, lean: Any, step: Any, side: int
) -> FloatArray:
    cx = side * x - 0.06 - 0.25 * swell
    # The horns bend outwards at the front and at the back.
    along = y + 0.02
    across = cx - np.sin(lean) * along * along
    distance = 1 - np.sqrt((across / (0.32 * swell)) ** 2 + (along / (1.05 * swell)) ** 2 + 1e-4)
    return inside(0.32 * swell * distance, step)
