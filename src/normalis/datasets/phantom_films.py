"""Generated DICOM films, to try what needs a header without anybody's images.

The pictures are generated head slices, not chests; files and headers are as an export has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.atomic import new_folder
from normalis.datasets.phantom import PhantomSettings, add_lesions, generate

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["write_films"]

_DX = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage, for presentation
_VIEWS = ("PA", "AP")
_BITS = 12


def write_films(
    folder: str | Path,
    *,
    patients: int = 120,
    with_lesions: int = 0,
    image_size: int = 64,
    seed: int = 0,
) -> Path:
    """Write DX files of 12 bit: one folder a patient, a PA and an AP view of each.

    Args:
        folder: new folder; it appears when all files are written.
        patients: how many; their ids differ between seeds.
        with_lesions: of these patients, the last ones, have a lesion.
        image_size: side in pixels.
        seed: of the pictures and the lesions.

    Returns:
        The folder.

    Raises:
        DataError: if the folder exists and is not empty.
        SettingsError: if a number is out of its range.
    """
    settings = PhantomSettings(image_size=image_size, noise=0.02, seed=seed)
    drawn = generate(2 * patients, settings)
    images, first = drawn.images.copy(), 2 * (patients - with_lesions)
    if with_lesions:
        images[first:], _ = add_lesions(
            images[first:], kind="bright", scale_px=image_size / 11, contrast=0.35, seed=seed,
            brain=drawn.brain[first:],
        )  # fmt: skip
    target = Path(folder)
    with new_folder(target) as work:
        for i in range(patients):
            _write_patient(work, f"GENERATED{seed:02d}{i:04d}", images[2 * i : 2 * i + 2])
    return target


def _write_patient(work: Path, patient: str, images: NDArray[np.float32]) -> None:
    from pydicom.uid import generate_uid

    study = generate_uid()
    (work / patient).mkdir()
    for number, (view, pixels) in enumerate(zip(_VIEWS, images, strict=True), 1):
        film = _film(pixels, PatientID=patient, PatientName=patient, StudyInstanceUID=study,
                     ViewPosition=view, SeriesNumber=number, InstanceNumber=1)  # fmt: skip
        film.save_as(work / patient / f"IM{number:04d}", enforce_file_format=True)


def _film(pixels: NDArray[np.float32], **values: Any) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    uid = generate_uid()
    film.SOPClassUID, film.file_meta.MediaStorageSOPClassUID = _DX, UID(_DX)
    film.SOPInstanceUID, film.file_meta.MediaStorageSOPInstanceUID = uid, uid
    film.SeriesInstanceUID, film.Modality, film.BodyPartExamined = generate_uid(), "DX", "HEAD"
    film.StudyDate, film.StudyTime, film.StudyID, film.AccessionNumber = "20260301", "", "", ""
    film.PatientBirthDate, film.PatientSex, film.ReferringPhysicianName = "", "", ""
    film.ImageType, film.PresentationIntentType = ["ORIGINAL", "PRIMARY"], "FOR PRESENTATION"
    film.Manufacturer, film.BurnedInAnnotation = "generated", "NO"
    for name, value in values.items():
        setattr(film, name, value)
    film.Rows, film.Columns, film.SamplesPerPixel = *pixels.shape, 1
    film.PhotometricInterpretation, film.PixelRepresentation = "MONOCHROME2", 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, _BITS, _BITS - 1
    most = 2**_BITS - 1
    film.WindowCenter, film.WindowWidth = most / 2, most
    film.RescaleIntercept, film.RescaleSlope, film.RescaleType = 0, 1, "US"
    film.PixelData = np.rint(most * np.clip(pixels, 0, 1)).astype("<u2").tobytes()
    film["PixelData"].VR = "OW"
    return film
