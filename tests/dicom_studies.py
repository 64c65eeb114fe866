"""Small DICOM studies that a checker finds no fault with: DX, CR, CT, MR and enhanced MR."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CLASSES = {
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
}
NOW = datetime(2026, 3, 1, 10, 30)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def study(patient: str = "P1") -> dict[str, str]:
    """Return the attributes that all files of one study share."""
    return {
        "PatientName": "Doe^Jane", "PatientID": patient, "PatientBirthDate": "19810101",
        "PatientSex": "F", "PatientAge": "045Y", "StudyInstanceUID": generate_uid(),
        "StudyID": "S1", "AccessionNumber": "A0001", "StudyDate": NOW.strftime("%Y%m%d"),
        "StudyTime": NOW.strftime("%H%M%S"), "ReferringPhysicianName": "",
        "StudyDescription": "Test study",
    }  # fmt: skip


def image(
    kind: str,
    pixels: np.ndarray,
    shared: dict[str, str],
    *,
    series: str,
    number: int = 1,
    instance: int = 1,
    description: str = "",
    position: tuple[float, ...] = (0.0, 0.0, 0.0),
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float] = (1.0, 1.0),
    thickness: float = 5.0,
    frame_uid: str = "",
    **changes: object,
) -> Dataset:
    """Return one image (H, W) of 12 bit as a data set with pixels."""
    data = Dataset()
    for name, value in shared.items():
        setattr(data, name, value)
    data.SOPClassUID, data.SOPInstanceUID = CLASSES[kind], generate_uid()
    data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = series, number, instance
    data.SeriesDescription = description or kind
    data.Modality = kind
    for name in ("SeriesDate", "ContentDate", "AcquisitionDate"):
        setattr(data, name, shared["StudyDate"])
    for name in ("SeriesTime", "ContentTime", "AcquisitionTime"):
        setattr(data, name, shared["StudyTime"])
    data.Manufacturer, data.ManufacturerModelName = "tests", "phantom"
    data.DeviceSerialNumber, data.SoftwareVersions, data.InstitutionName = "0", "1", ""
    data.BodyPartExamined = "CHEST" if kind in ("DX", "CR") else "HEAD"
    {"DX": _radiograph, "CR": _computed, "CT": _slice, "MR": _slice}[kind](
        data, position, orientation, spacing, thickness, frame_uid
    )
    _pixels(data, pixels)
    for name, value in changes.items():
        setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def _pixels(data: Dataset, pixels: np.ndarray) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.PixelData = np.ascontiguousarray(pixels.astype("<u2")).tobytes()
    data["PixelData"].VR = "OW"


def _radiograph(data: Dataset, *_: object) -> None:
    data.ImageType, data.PresentationIntentType = ["ORIGINAL", "PRIMARY"], "FOR PRESENTATION"
    data.PixelIntensityRelationship, data.PixelIntensityRelationshipSign = "LOG", -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"
    data.PresentationLUTShape, data.LossyImageCompression = "IDENTITY", "00"
    data.BurnedInAnnotation, data.ImagerPixelSpacing = "NO", [0.2, 0.2]
    data.DetectorType, data.DetectorConfiguration, data.ImageLaterality = "DIRECT", "AREA", "U"
    data.ViewPosition, data.PatientOrientation, data.PositionerType = "PA", ["L", "F"], "NONE"
    data.AnatomicRegionSequence = [code("51185008", "SCT", "Chest")]
    data.ViewCodeSequence = [code("399348003", "SCT", "postero-anterior")]
    data.AcquisitionContextSequence = []


def _computed(data: Dataset, *_: object) -> None:
    data.ImageType, data.PatientOrientation = ["ORIGINAL", "PRIMARY"], ["L", "F"]
    data.ViewPosition, data.ImagerPixelSpacing = "AP", [0.2, 0.2]


def _slice(
    data: Dataset,
    position: tuple[float, ...],
    orientation: tuple[float, ...],
    spacing: tuple[float, float],
    thickness: float,
    frame_uid: str,
) -> None:
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = frame_uid or generate_uid(), ""
    data.ImagePositionPatient = [round(float(v), 5) for v in position]
    data.ImageOrientationPatient = [round(float(v), 6) for v in orientation]
    data.PixelSpacing, data.SliceThickness = list(spacing), thickness
    data.PatientPosition = "HFS"
    if data.Modality == "CT":
        data.ImageType, data.KVP, data.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 120, 1
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = -1024, 1, "HU"
        return
    data.ImageType, data.ScanningSequence = ["ORIGINAL", "PRIMARY", "OTHER"], "SE"
    data.SequenceVariant, data.ScanOptions, data.MRAcquisitionType = "SK", "", "2D"
    data.RepetitionTime, data.EchoTime, data.EchoTrainLength = 9000, 120, 16
    data.MagneticFieldStrength = 1.5


def lesion_slices(size: int = 48, slices: int = 5, seed: int = 0) -> np.ndarray:
    """Return (slices, size, size): a bright disc, in the middle slice a brighter square in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    head = ((y - size / 2) ** 2 + (x - size / 2) ** 2 < (0.4 * size) ** 2) * 1200.0
    volume = np.repeat(head[None], slices, 0) + rng.normal(60, 8, (slices, size, size))
    a, b = size // 4, size // 4 + size // 6
    volume[slices // 2, a:b, a + 6 : b + 6] = 3000
    return np.clip(volume, 0, 4095)


def series(kind: str, volume: np.ndarray, shared: dict[str, str], **given: object) -> list[Dataset]:
    """Return the slices of one series, evenly spaced along the normal of its orientation."""
    orientation = np.array(given.pop("orientation", AXIAL), float)
    origin = np.array(given.pop("position", (0.0, 0.0, 0.0)), float)
    gap = float(given.get("thickness", 5.0))
    normal = np.cross(orientation[:3], orientation[3:])
    uid, frame = generate_uid(), generate_uid()
    return [
        image(
            kind, pixels, shared, series=uid, instance=i + 1, frame_uid=frame,
            position=tuple(origin + i * gap * normal), orientation=tuple(orientation), **given,
        )
        for i, pixels in enumerate(volume)
    ]  # fmt: skip


def write(folder: Path, datasets: list[Dataset]) -> list[Path]:
    """Write data sets as files; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, data in enumerate(datasets):
        paths.append(folder / f"{data.Modality}_{data.SeriesNumber:02d}_{i:03d}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths
