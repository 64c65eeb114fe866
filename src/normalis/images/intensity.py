"""The map from a file's own units to [0, 1], fixed once when a model is fitted.

.. math:: y = (x - low) / (high - low)

Nothing is clipped: a value outside the range of the training images is what an anomaly looks like.
Eight-bit images never go through a rule: their 0..255 is [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError, SettingsError

__all__ = ["IntensityRule"]

_MOST_VALUES = 20_000_000  # values looked at for percentiles; more change nothing but the time


@dataclass(frozen=True, kw_only=True)
class IntensityRule:
    """A linear map of native units to [0, 1].

    Attributes:
        low: the value that becomes 0.
        high: the value that becomes 1.
        source: where the two come from, in words, for the run's record.
        voi: whether values are those after a DICOM's own window; then every deep image must have
            one. False: modality units, such as HU.
        units: in which the training images are (`normalis.images.units`); None where that was not
            kept, as in runs of earlier versions.
    """

    low: float
    high: float
    source: str = "given"
    voi: bool = False
    units: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise SettingsError(
                f"an intensity range must be low < high and finite, got {self.low}..{self.high}"
            )

    @classmethod
    def from_pixels(
        cls, pixels: NDArray[Any], *, percentiles: tuple[float, float] = (0.5, 99.5), **named: Any
    ) -> IntensityRule:
        """Take the range from percentiles of training images.

        Args:
            pixels: (N, ...) values in native units, of normal training images only.
            percentiles: of all values together. The default leaves out single hot pixels.
            named: further attributes, ``voi``.

        Raises:
            DataError: if all values are the same, so that there is no range.
        """
        values = pixels.ravel()
        values = values[:: max(1, -(-values.size // _MOST_VALUES))]
        low, high = (float(v) for v in np.percentile(values, percentiles))
        if low == high:  # a few bright pixels on a constant ground
            low, high = float(values.min()), float(values.max())
        if low == high:
            raise DataError(
                f"training images must vary in intensity, but all {values.size} values are {low:g}"
            )
        source = f"percentiles {percentiles[0]:g} and {percentiles[1]:g} of the training images"
        return cls(low=low, high=high, source=source, **named)

    @property
    def is_of_training(self) -> bool:
        """Whether the range is what training images span, and not one that a user asked for."""
        return self.source.startswith(("percentiles", "float array"))

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Map native units to [0, 1], keeping what lies outside."""
        scale = np.float32(1.0 / (self.high - self.low))
        return (pixels.astype(np.float32) - np.float32(self.low)) * scale

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IntensityRule:
        """Undo `to_dict`."""
        units = values.get("units")
        return cls(**{**values, "units": None if units is None else tuple(units)})
