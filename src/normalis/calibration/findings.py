"""Calibrated maps -> findings: where an image stands out, how large that is, and how rare.

A finding is a connected area (corners touch) of a calibrated map (`normalis.calibration.maps`)
above the level that 1 in 20 normal images reaches anywhere. Where nothing is above it, the highest
place is told all the same, as what made the image rank where it does: ``above`` is then False, and
its area is what reaches three quarters of its height.

Places are in the image's own pixels, not the model's: x to the right, y downwards, from the upper
left corner of the picture. Areas are counted on the map stretched over the image, and are no finer
than the map is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.calibration.maps import border

__all__ = ["Finding", "find_areas", "highest_at_border", "with_p_values"]

_FINEST = 256  # pixels of a side that areas are counted on at most: a map is never so fine
_AROUND = 0.75  # of its height: what belongs to a highest place that is below the level


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One area of an image.

    Attributes:
        number: 1 for the highest area of its image.
        above: whether it exceeds the level.
        x: of its centre of gravity, in pixels of the image.
        y: likewise, downwards.
        left: of the box around it.
        top: likewise.
        right: likewise; the first column to its right.
        bottom: likewise; the first row below it.
        area_px: pixels of the image.
        area_mm2: square millimetres; None where the spacing of pixels is not known.
        peak: highest value of the calibrated map inside.
        peak_x: where that is, in pixels of the image.
        peak_y: likewise.
        at_border: whether that lies in the outer 5 % of the image.
        p_value: share of normal images that are as high anywhere; None without calibration.
    """

    number: int
    above: bool
    x: float
    y: float
    left: int
    top: int
    right: int
    bottom: int
    area_px: float
    area_mm2: float | None
    peak: float
    peak_x: float
    peak_y: float
    at_border: bool
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def find_areas(
    calibrated: NDArray[Any],
    level: float,
    *,
    shape: tuple[int, int],
    spacing: tuple[float, float] | None = None,
) -> list[Finding]:
    """Return the areas of a map above a level, the highest first; at least the highest place.

    Args:
        calibrated: (h, w) a calibrated map.
        level: areas are above it.
        shape: (H, W) of the image.
        spacing: millimetres from row to row and from column to column of the image's pixels,
            measured along the image (of an oblique volume: in its own plane).

    Returns:
        The findings, numbered from 1; none where the map is zero everywhere.
    """
    from scipy.ndimage import label

    fine = _stretched(np.asarray(calibrated, np.float32), shape)
    highest = float(fine.max())
    if not highest > 0:
        return []
    above = highest > level
    labels, _ = label(fine > (level if above else _AROUND * highest), np.ones((3, 3)))
    if not above:  # the area of the highest place alone
        labels = (labels == labels.flat[fine.argmax()]).astype(labels.dtype)
    ranked = sorted(_areas(fine, labels, shape, spacing), key=lambda one: -one.peak)
    return [replace(one, number=i, above=above) for i, one in enumerate(ranked, 1)]


def highest_at_border(maps: NDArray[Any], share: float = 0.05) -> NDArray[np.bool_]:
    """Return of each map (N, h, w) whether its highest place lies in the outer share of the image.

    There padding, resampling and the field of view end; what is highest there may be no disease.
    """
    flat = maps.reshape(len(maps), -1)
    return np.asarray(border(maps.shape[1:], share).ravel()[flat.argmax(axis=1)])


def _areas(
    fine: NDArray[np.float32],
    labels: NDArray[Any],
    shape: tuple[int, int],
    spacing: tuple[float, float] | None,
) -> Iterator[Finding]:
    from scipy.ndimage import find_objects

    down, right = shape[0] / fine.shape[0], shape[1] / fine.shape[1]  # image pixels of a fine one
    outer = border(fine.shape)
    for number, box in enumerate(find_objects(labels), 1):
        inside = labels[box] == number
        rows, columns = np.nonzero(inside)
        values = np.where(inside, fine[box], -np.inf)
        top, left = box[0].start, box[1].start
        i, j = np.unravel_index(values.argmax(), values.shape)
        i, j = i + top, j + left
        area = len(rows) * down * right
        yield Finding(
            number=0,
            above=True,
            x=_rounded((columns.mean() + left + 0.5) * right),
            y=_rounded((rows.mean() + top + 0.5) * down),
            left=int(np.floor(left * right)),
            top=int(np.floor(top * down)),
            right=int(np.ceil(box[1].stop * right)),
            bottom=int(np.ceil(box[0].stop * down)),
            area_px=_rounded(area),
            area_mm2=None if spacing is None else _rounded(area * spacing[0] * spacing[1]),
            peak=float(values.max()),
            peak_x=_rounded((j + 0.5) * right),
            peak_y=_rounded((i + 0.5) * down),
            at_border=bool(outer[i, j]),
        )


def _stretched(calibrated: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the map over the image's geometry, or over a coarser one of the same proportions."""
    factor = min(1.0, _FINEST / max(shape))
    size = max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))
    if size[::-1] == calibrated.shape:
        return calibrated
    return np.asarray(Image.fromarray(calibrated).resize(size, Image.Resampling.BILINEAR))


def _rounded(value: float) -> float:
    return round(float(value), 2)


def with_p_values(findings: Iterable[Finding], p_values: NDArray[np.float64]) -> list[Finding]:
    """Return the findings with the p-values of their peaks, in the same order."""
    return [replace(one, p_value=float(p)) for one, p in zip(findings, p_values, strict=True)]
