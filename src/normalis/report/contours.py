"""The line around what a map paints, as an SVG path."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["contour_path"]

_UNIT = 1000  # of the path along each side
_MOST = 20  # lines of one image; the longest are kept
_SMOOTH = 0.35  # of a pixel that a point may lie off the line


def contour_path(level: NDArray[Any]) -> str:
    """Return closed lines around the areas of a map (H, W) that are above 0, "" if none is.

    Coordinates are thousandths of the width and of the height.
    """
    if not level.any():
        return ""
    from skimage.measure import approximate_polygon, find_contours

    # With a margin of nothing, lines close where an area touches the edge.
    lines = find_contours((np.pad(level, 1) > 0).astype(np.float32), 0.5)
    longest = sorted(lines, key=len, reverse=True)[:_MOST]
    scale = _UNIT / np.array(level.shape)
    return "".join(_closed((approximate_polygon(line, _SMOOTH) - 0.5) * scale) for line in longest)


def _closed(points: NDArray[Any]) -> str:
    inside = np.clip(points.round().astype(int), 0, _UNIT)
    return "M" + "L".join(f"{x} {y}" for y, x in inside[:-1]) + "Z"
