"""The line around what a map paints, as an SVG path."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray

__all__ = ["contour_path"]

_UNIT = 1000  # of the path along each side
_MOST = 20  # lines of one image; the longest are kept
_SMOOTH = 0.35  # of a pixel that a point may lie off the line


def contour_path(level: NDArray[Any]) -> str:
    """Return closed lines around the areas of a map (H, W) that are above 0, "" if none is.

    Coordinates are thousandths of the width and of the height.
    """
    if not (level > 0).any():
        return ""
    # With a margin of nothing, lines close where an area touches the edge.
    areas = (np.pad(level, 1) > 0).astype(np.float32)
    generator = contour_generator(z=areas, name="serial", line_type=LineType.Separate)
    lines = cast("list[NDArray[np.float64]]", generator.lines(0.5))
    longest = sorted(lines, key=len, reverse=True)[:_MOST]
    scale = _UNIT / np.array(level.shape[::-1])
    return "".join(_closed((_simplified(line) - 0.5) * scale) for line in longest)


def _simplified(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the points of a line (N, 2) without which it would lie more than `_SMOOTH` off.

    Douglas and Peucker, The Canadian Cartographer 10(2), 1973.
    """
    kept = np.zeros(len(line), dtype=bool)
    kept[[0, -1]] = True
    parts = [(0, len(line) - 1)]
    while parts:
        first, last = parts.pop()
        far = _distances(line[first : last + 1])
        worst = first + int(far.argmax())
        if far.max() > _SMOOTH:
            kept[worst] = True
            parts += [(first, worst), (worst, last)]
    return line[kept]


def _distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far points (N, 2) are from the straight line between the first and the last."""
    offsets = points - points[0]
    along = offsets[-1]
    length = float(np.hypot(*along)) or np.inf  # of a closed line 0: from its one end
    share = np.clip(offsets @ along / length**2, 0, 1)
    found: NDArray[np.float64] = np.hypot(*(offsets - share[:, None] * along).T)
    return found


def _closed(points: NDArray[Any]) -> str:
    inside = np.clip(points.round().astype(int), 0, _UNIT)
    return "M" + "L".join(f"{x} {y}" for x, y in inside[:-1]) + "Z"
