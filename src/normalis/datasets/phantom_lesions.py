"""Lesions in phantoms, and their masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.phantom_drawing import FloatArray, inside
from normalis.errors import SettingsError

__all__ = ["LESIONS", "add_lesions"]

LESIONS: tuple[str, ...] = ("bright", "dark", "ring", "diffuse", "texture")


def add_lesions(
    images: NDArray[Any],
    *,
    kind: str,
    scale_px: float,
    contrast: float,
    seed: int,
    brain: NDArray[np.bool_] | None = None,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Put one lesion into each image.

    Args:
        images: (N, S, S) in [0, 1].
        kind: ``bright`` or ``dark`` blob, ``ring`` (bright rim, dark core), ``diffuse`` (no edge),
            or ``texture`` (changed pattern, same mean).
        scale_px: radius in pixels; for ``diffuse`` the radius at half its height.
        contrast: largest change of intensity, in units of the range.
        seed: of place and shape.
        brain: (N, S, S), where lesions may lie. By default the part of the page that is brain in
            every phantom.

    Returns:
        New images (N, S, S), clipped to [0, 1], and masks (N, S, S): where the lesion has at least
        half its strength.

    Raises:
        SettingsError: if the kind is unknown, or scale or contrast is not positive.
    """
    images = np.asarray(images, dtype=np.float32)
    if kind not in LESIONS:
        raise SettingsError(f"kind must be one of {', '.join(LESIONS)}, got {kind!r}")
    if images.ndim != 3:
        raise SettingsError(f"images must be (N, S, S), got {images.shape}")
    if not (scale_px > 0 and contrast > 0):
        raise SettingsError(
            f"scale_px and contrast must be positive, got {scale_px} and {contrast}"
        )
    rng = np.random.default_rng(seed)
    brain = _common_brain(images.shape) if brain is None else np.asarray(brain, dtype=bool)
    distance = _distance(rng, brain, scale_px)
    profile, body = _profiles(kind, distance, scale_px, rng)
    masks = (body >= 0.5) & brain
    change = np.where(brain, np.float32(contrast) * profile, 0)
    return np.clip(images + change, 0, 1).astype(np.float32), masks


def _common_brain(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Ellipse that is inside the brain whatever the factors; its half axes were measured."""
    y, x = ((np.arange(s, dtype=np.float32) + 0.5) * 2 / s - 1 for s in shape[1:])
    ellipse = (x[None, :] / 0.40) ** 2 + (y[:, None] / 0.54) ** 2 < 1
    return np.broadcast_to(ellipse, shape)


def _distance(rng: np.random.Generator, brain: NDArray[np.bool_], scale_px: float) -> FloatArray:
    """Distance from a random point of each brain, in units of a wobbling radius: 1 is the edge."""
    n, height, width = brain.shape
    weights = rng.random(brain.shape, dtype=np.float32) * brain
    centre = weights.reshape(n, -1).argmax(axis=1)  # a uniform draw among the brain's pixels
    cy, cx = (c[:, None, None] for c in np.unravel_index(centre, (height, width)))
    dy = np.arange(height, dtype=np.float32)[None, :, None] - cy
    dx = np.arange(width, dtype=np.float32)[None, None, :] - cx
    angle = np.arctan2(dy, dx)
    wobble = np.ones_like(angle)
    for order in (2, 3, 5):
        phase = rng.uniform(0, 2 * np.pi, size=(n, 1, 1))
        depth = rng.uniform(0, 0.3 / order, size=(n, 1, 1))
        wobble += depth * np.cos(order * angle + phase)
    found: FloatArray = (np.sqrt(dy * dy + dx * dx) / (scale_px * wobble)).astype(np.float32)
    return found


def _profiles(
    kind: str, distance: FloatArray, scale_px: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Signed change of intensity in [-1, 1], and the lesion's body in [0, 1]."""
    body = inside(1 - distance, max(0.08, 0.5 / scale_px))
    if kind == "diffuse":
        body = np.exp2(-(distance**2)).astype(np.float32)
    if kind == "dark":
        return -body, body
    if kind == "ring":
        rim = np.exp(-(((distance - 0.8) / 0.22) ** 2))
        core = inside(0.6 - distance, 0.12)
        return (rim - 0.6 * core).astype(np.float32), body
    if kind == "texture":
        return body * _pattern(distance.shape, max(0.8, 0.2 * scale_px), rng), body
    return body, body


def _pattern(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> FloatArray:
    """Band-passed noise with values in [-1, 1]."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal(shape, dtype=np.float32)
    band = gaussian_filter(noise, (0, sigma, sigma)) - gaussian_filter(
        noise, (0, 2 * sigma, 2 * sigma)
    )
    found: FloatArray = np.tanh(1.5 * band / band.std()).astype(np.float32)
    return found
