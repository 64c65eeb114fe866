"""How images become arrays, and what is known of those that have: the words of loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from normalis.datasets.base import Sample
from normalis.errors import SettingsError
from normalis.images.decoding import (
    Recipe,
)
from normalis.images.intensity import IntensityRule
from normalis.images.reader import check_slicing
from normalis.studies.where import parse_all

if TYPE_CHECKING:
    from normalis.loading.units import Units

__all__ = ["ImageSettings", "Loaded", "Row"]


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images become arrays.

    Attributes:
        image_size: edge of the square, a multiple of 16 from 16 to 1024.
        channels: 1 (grey) or 3 (colour).
        plane: of the slices of NIfTI volumes: ``axial``, ``coronal``, ``sagittal``.
        slice_range: relative positions between which a NIfTI volume's slices are read.
        window: (low, high) in native units that become 0 and 1, for images deeper than 8 bit;
            None takes percentiles of the training images.
        percentiles: which ones; the default leaves out single hot pixels.
        margin: share of the side at each edge that is blanked in every image, in [0, 0.4]: what
            lies there, text or the edge of a film, is then neither learned nor scored.
        where: rules that headers or columns must fulfil (`normalis.studies.where`), the same when
            fitting and when scoring.
    """

    image_size: int = 64
    channels: int = 1
    plane: str = "axial"
    slice_range: tuple[float, float] = (0.0, 1.0)
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    margin: float = 0.0
    where: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 0.4:
            raise SettingsError(
                f"margin must be a share of the image's side from 0 to 0.4, got {self.margin}"
            )
        if self.image_size % 16 or not 16 <= self.image_size <= 1024:
            raise SettingsError(
                f"image_size must be a multiple of 16 from 16 to 1024, got {self.image_size}"
            )
        if self.channels not in (1, 3):
            raise SettingsError(f"channels must be 1 (grey) or 3 (colour), got {self.channels}")
        check_slicing(self.plane, self.slice_range)
        window, percentiles = self.window, self.percentiles
        if window is not None and not (len(window) == 2 and window[0] < window[1]):
            raise SettingsError(f"window must be (low, high) with low < high, got {window}")
        if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise SettingsError(f"percentiles must be 0 <= low < high <= 100, got {percentiles}")
        parse_all(self.where)

    def recipe(self, *, voi: bool) -> Recipe:
        """Return what decoding depends on; voi as in `images.read_frames`."""
        return Recipe(
            image_size=self.image_size,
            channels=self.channels,
            plane=self.plane,
            slice_range=self.slice_range,
            voi=voi,
        )

    def fixed_rule(self) -> IntensityRule | None:
        """Return the rule that a window of the user's own means, None without one."""
        if self.window is None:
            return None
        low, high = self.window
        return IntensityRule(low=low, high=high, source="window given by the user", voi=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """What is known of one loaded image: a file, or one frame or slice of it.

    Attributes:
        sample: the data set's entry.
        path: the file.
        slice_index: frame or slice in the file; None for a single image.
        patient_id: the data set's, else the header's.
        is_anomalous: None where nobody said.
        mask: file of the ground-truth region.
        kind: name of the anomaly.
        header: the file's header, with the data set's own columns over it, except where a column
            has the name of something that this package reads from the header itself.
        original_shape: (H, W) in the file.
    """

    sample: Sample
    path: Path
    slice_index: int | None
    patient_id: str | None
    is_anomalous: bool | None
    mask: Path | None
    kind: str | None
    header: Mapping[str, Any] = field(default_factory=dict)
    original_shape: tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Loaded:
    """Images ready for a model.

    Attributes:
        pixels: (N, C, S, S): ``uint8`` if every image is 8-bit, else ``float32`` with the nominal
            range [0, 1]; `to_unit` makes one of both.
        rows: N entries, in the order of the samples.
        skipped: (path, reason) of the files that could not be read.
        rule: the map of deeper values to [0, 1]; None where every image is 8-bit.
        units: which images are independent; None until `loading.held_out` has asked.
        notes: what should be known of the grey values before a result is trusted.
    """

    pixels: NDArray[Any]
    rows: list[Row]
    skipped: list[tuple[Path, str]]
    rule: IntensityRule | None
    units: Units | None = None
    notes: tuple[str, ...] = ()
