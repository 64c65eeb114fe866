"""The one colour scale of all pictures of a model, fixed on held-out normal images.

Below ``quiet``, the level that the largest value of a normal image's map exceeds in 1 of 20 images,
nothing is painted; at ``full`` the colour is at its end. The scale is fixed on calibrated maps
(`normalis.calibration.maps`), each unit of images weighing the same. Of runs from before there
were such maps, on smoothed ones: the largest value of a raw map is a matter of single edge pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.calibration.levels import EPS, smallest_level
from normalis.calibration.maps import BOUND
from normalis.errors import SettingsError

__all__ = ["ColourScale"]

_MOST = 0.7  # of the way from the quiet level to the bound, where the colour ends
SMOOTHING = 1 / 64  # one pixel of the paper's 64 x 64


@dataclass(frozen=True, kw_only=True)
class ColourScale:
    """The one scale of all pictures of a model, in units of its anomaly map.

    Attributes:
        quiet: below it nothing is painted.
        full: here and above the colour is at its end.
        rate: share of normal images whose map exceeds ``quiet`` anywhere; None if the normal
            images held out were too few to say.
        held_out: whether those images were held out. Of training images, which a model rebuilds
            better than new ones, the share is no promise.
        smoothing: standard deviation of the Gaussian, as a share of the map's side.
    """

    quiet: float
    full: float
    rate: float | None = None
    held_out: bool = True
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        values = (self.quiet, self.full, self.smoothing)
        if not all(isinstance(v, Real) and np.isfinite(float(v)) for v in values):
            raise SettingsError(f"a colour scale must be of finite numbers, got {values}")

    def smooth(self, anomaly_map: NDArray[Any]) -> NDArray[np.float32]:
        """Return a map (S, S), or maps (N, S, S), as pictures show it."""
        from scipy.ndimage import gaussian_filter

        if self.smoothing == 0:
            return np.asarray(anomaly_map, np.float32)
        sigma = self.smoothing * anomaly_map.shape[-1]
        along = (*(0,) * (anomaly_map.ndim - 2), sigma, sigma)
        return np.asarray(gaussian_filter(anomaly_map, along), np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_maps(
        cls,
        maps: NDArray[Any],
        rate: float = 0.05,
        *,
        unit: ArrayLike | None = None,
        held_out: bool = True,
    ) -> ColourScale:
        """Fix the scale from raw maps (n, S, S) of normal images; arguments as in `from_maxima`."""
        blank = cls(quiet=0.0, full=1.0, smoothing=SMOOTHING)
        maxima = blank.smooth(maps).max(axis=(1, 2))
        fixed = cls.from_maxima(maxima, rate, unit=unit, held_out=held_out)
        return replace(fixed, smoothing=SMOOTHING)

    @classmethod
    def from_calibrated(
        cls,
        maps: NDArray[Any],
        rate: float = 0.05,
        *,
        unit: ArrayLike | None = None,
        held_out: bool = True,
    ) -> ColourScale:
        """Fix the scale from calibrated maps (n, H, W) of `normalis.calibration.maps`.

        They are smooth already, and none is higher than `BOUND`: the colour ends most of the way
        there. Other arguments as in `from_maxima`.
        """
        maxima = np.asarray(maps).max(axis=(1, 2))
        fixed = cls.from_maxima(maxima, rate, unit=unit, held_out=held_out)
        return replace(fixed, full=fixed.quiet + _MOST * max(BOUND - fixed.quiet, 0.1))

    @classmethod
    def from_maxima(
        cls,
        maxima: NDArray[np.floating],
        rate: float = 0.05,
        *,
        unit: ArrayLike | None = None,
        held_out: bool = True,
    ) -> ColourScale:
        """Fix the scale from the largest map value of each held-out normal image.

        Args:
            maxima: (n,), one value per image.
            rate: share of fresh normal images (each of a new unit) that may exceed ``quiet``;
                guaranteed by the conformal argument of `normalis.calibration.conformal` where the
                units are at least 1 / rate - 1. Of fewer the level that this share of *these*
                images exceeds serves, each unit weighing the same, and ``rate`` is None.
            unit: (n,) patient, volume or group of each image; None if each is its own.
            held_out: False for training images.
        """
        values = np.asarray(maxima, dtype=float)
        names = np.arange(values.size) if unit is None else np.asarray(unit)
        member = np.unique(names, return_inverse=True)[1]
        count = int(member.max()) + 1
        certified = rate * (count + 1) >= 1 - EPS
        allowed = rate * (count + 1) - 1 if certified else rate * count
        quiet = smallest_level(values, 1 / np.bincount(member)[member], allowed)
        full = max(3 * quiet, 1e-12)
        return cls(quiet=quiet, full=full, rate=rate if certified else None, held_out=held_out)
