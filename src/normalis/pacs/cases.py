"""A study as it was scored: its images with their headers, scores, maps and findings.

This is all that the builders of DICOM objects know; `read_studies` makes it from the folder that
``normalis score`` wrote, and a service makes it from what it has just scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Region", "ScoredImage", "ScoredStudy", "has_geometry", "tall_grey"]


@dataclass(frozen=True, kw_only=True)
class Region:
    """One area of an image that stands out.

    Attributes:
        left: of the box around it, in pixels of the image; 0 is the outer edge of the first column.
        top: likewise, downwards.
        right: likewise; the outer edge of the last column.
        bottom: likewise.
        peak: highest value of the calibrated map inside, None where there is no such map.
        p_value: share of normal images that are as high anywhere, None without calibration.
        above: whether it exceeds the level that 1 in 20 normal images reaches.
    """

    left: float
    top: float
    right: float
    bottom: float
    peak: float | None = None
    p_value: float | None = None
    above: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredImage:
    """One image of a study.

    Attributes:
        source: its data set, with pixels.
        frame: number of the frame, from 1; None of a single-frame image.
        score: higher is more anomalous.
        p_value: None without calibration.
        flagged: None where nothing can be certified.
        anomaly_map: (H, W) at the image's own size, None where no map was written.
        level: value of the map that 1 in 20 normal images reaches anywhere.
        full: value at which colour is at its end.
        regions: what stands out, the highest first.
    """

    source: Any
    frame: int | None = None
    score: float
    p_value: float | None = None
    flagged: bool | None = None
    anomaly_map: NDArray[np.float32] | None = None
    level: float = 1.0
    full: float = 2.0
    regions: tuple[Region, ...] = ()

    @property
    def place(self) -> str:
        """Series, instance and frame, for words in a picture; no name or id of a person."""
        said = f"series {self.source.get('SeriesNumber', '?')}"
        said += f" image {self.source.get('InstanceNumber', '?')}"
        return said if self.frame is None else f"{said} frame {self.frame}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredStudy:
    """The scored images of one study.

    Attributes:
        uid: Study Instance UID.
        model: hash of the model, the same for all that one run scores.
        images: the most anomalous first.
        patient_p_value: of the patient, None where it is not known.
        calibration_units: normal patients or groups that calibrate p-values.
        fpr: share of normals that may be flagged.
        notes: what does not hold for this study, and why.
    """

    uid: str
    model: str
    images: tuple[ScoredImage, ...]
    patient_p_value: float | None = None
    calibration_units: int | None = None
    fpr: float = 0.05
    notes: tuple[str, ...] = field(default=())

    @property
    def flagged(self) -> bool | None:
        """Whether the study as a whole is rarer than the rate; None where that is not known.

        Too few normal patients to certify the rate have no p-value as small.
        """
        return None if self.patient_p_value is None else self.patient_p_value <= self.fpr + 1e-9

    @property
    def first(self) -> Any:
        """Header of the most anomalous image, from which patient and study are copied."""
        return self.images[0].source


def has_geometry(source: Any) -> bool:
    """Whether an image lies in the patient's space, as regions and maps of CT and MR need."""
    return all(
        source.get(name)
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID")
    )


def _shown_range(data: Any) -> tuple[float, float]:
    """Return what is black and what is white after the window, as `apply_voi_lut` gives it.

    It is the same for all slices of a series, so that their pictures compare.
    """
    if data.get("VOILUTSequence"):
        return 0.0, 2.0 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
    ends = np.array([-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1] if signed else [0, 2.0**bits - 1])
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    if slope is not None and intercept is not None:
        ends = ends * float(slope) + float(intercept)
    return float(ends[0]), float(ends[1])


def tall_grey(image: ScoredImage) -> NDArray[np.uint8]:
    """Return the pixels (H, W) in grey as they are shown, 0 to 255."""
    from pydicom.pixels import apply_voi_lut

    data = image.source
    stored = data.pixel_array
    if image.frame is not None and int(data.get("NumberOfFrames") or 1) > 1:
        stored = stored[image.frame - 1]
    values = np.asarray(stored, float)
    if values.ndim == 3:
        values = values @ np.array([0.299, 0.587, 0.114])
        low, high = 0.0, 2.0 ** int(data.BitsStored) - 1
    elif data.get("WindowCenter") is not None or "VOILUTSequence" in data:
        slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
        if slope is not None and intercept is not None:
            values = values * float(slope) + float(intercept)
        if data.get("VOILUTSequence"):  # a table is looked up by whole numbers
            values = np.rint(values).astype(np.int32)
        values = np.asarray(apply_voi_lut(values, data), float)
        low, high = _shown_range(data)
    else:
        low, high = np.percentile(values, (0.5, 99.5))
    grey = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    if str(data.get("PhotometricInterpretation")) == "MONOCHROME1":
        grey = 1 - grey
    found: NDArray[np.uint8] = (255 * grey).round().astype(np.uint8)
    return found
