"""How the slices of a series lie in space, from their positions and orientations alone.

The header's own spacing between slices is often wrong; positions along the normal are not.
With row and column directions r, c the normal is n = r x c; slice k lies at d_k = n . p_k. The
shear is the angle between n and the line through the first and the last position: a tilted gantry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Stack", "plane_of", "stack_of"]

_EVEN = 0.02  # of the median gap; scanners round positions
_STRAIGHT_DEG = 1.0
_FEWEST = 3


def plane_of(orientation: ArrayLike | None) -> str | None:
    """Return ``axial``, ``coronal``, ``sagittal`` or ``oblique``; None where nothing is known.

    Args:
        orientation: (6,) Image Orientation (Patient): row and column direction, in the patient's
            coordinates (left, posterior, superior).
    """
    if orientation is None:
        return None
    values = np.asarray(orientation, float)
    if values.shape != (6,) or not np.isfinite(values).all():
        return None
    normal = np.abs(np.cross(values[:3], values[3:]))
    length = np.linalg.norm(normal)
    if length < 1e-3:
        return None
    axis = int(normal.argmax())
    if normal[axis] / length < np.cos(np.radians(40)):
        return "oblique"
    return ("sagittal", "coronal", "axial")[axis]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Slices in their order in space.

    Attributes:
        order: (n,) indices of the slices, by position along the normal.
        gaps_mm: (n - 1,) distances between neighbours along the normal.
        shear_deg: angle between the normal and the line of positions.
        verdict: ``even``, ``uneven``, ``tilted``, ``repeats``, ``few`` or ``unplaced``.
    """

    order: NDArray[np.int64]
    gaps_mm: NDArray[np.float64]
    shear_deg: float
    verdict: str

    @property
    def is_volume(self) -> bool:
        """Whether the slices are an even, straight stack."""
        return self.verdict == "even"

    def sentence(self) -> str:
        """Say in words how the slices lie."""
        if self.verdict in ("few", "unplaced"):
            what = {"few": f"fewer than {_FEWEST} slices", "unplaced": "no position in the header"}
            return what[self.verdict]
        low, high = float(self.gaps_mm.min()), float(self.gaps_mm.max())
        return {
            "even": f"a volume, {np.median(self.gaps_mm):.3g} mm between slices",
            "uneven": f"gaps vary from {low:.3g} to {high:.3g} mm",
            "tilted": f"tilted by {self.shear_deg:.0f} degrees, gaps {low:.3g} to {high:.3g} mm",
            "repeats": "several slices at one position: a time series or several contrasts",
        }[self.verdict]


def stack_of(
    positions: Sequence[ArrayLike | None], orientations: Sequence[ArrayLike | None]
) -> Stack:
    """Order the slices of one series and say how they lie.

    Args:
        positions: n times (3,) Image Position (Patient), mm; None where the header has none.
        orientations: n times (6,) Image Orientation (Patient).
    """
    count = len(positions)
    known = all(p is not None for p in positions) and all(o is not None for o in orientations)
    if count < _FEWEST or not known:
        return _unordered(count, "few" if count < _FEWEST else "unplaced")
    at = np.array([np.asarray(p, float) for p in positions])
    directions = np.array([np.asarray(o, float) for o in orientations])
    normal = np.cross(directions[0, :3], directions[0, 3:])
    length = np.linalg.norm(normal)
    if length < 1e-6 or not np.allclose(directions, directions[0], atol=1e-3):
        return _unordered(count, "unplaced")
    along = at @ (normal / length)
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    line = at[order[-1]] - at[order[0]]
    cosine = float(line @ normal / max(float(np.linalg.norm(line) * length), 1e-9))
    shear = float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) if line.any() else 0.0
    return Stack(order=order, gaps_mm=gaps, shear_deg=shear, verdict=_verdict(gaps, shear))


def _verdict(gaps: NDArray[np.float64], shear: float) -> str:
    middle = float(np.median(gaps))
    if middle <= 0 or gaps.min() < 0.01 * middle:
        return "repeats"
    if shear > _STRAIGHT_DEG:
        return "tilted"
    return "even" if np.abs(gaps - middle).max() <= _EVEN * middle else "uneven"


def _unordered(count: int, verdict: str) -> Stack:
    return Stack(order=np.arange(count), gaps_mm=np.zeros(0), shear_deg=0.0, verdict=verdict)
