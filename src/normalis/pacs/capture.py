"""Secondary Capture: what every viewer shows. The image, and beside it the map over it, with words.

The words are burned in: score, p-value, where the image is, and that this is research. No name and
no id of a person stands in the pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.calibration.colours import ColourScale
from normalis.output.overlays import over, resize_map
from normalis.pacs.cases import ScoredImage, ScoredStudy, tall_grey
from normalis.pacs.marks import DESCRIPTIONS, SERIES_NUMBERS, WORDS, code, equipment, mark

__all__ = ["build", "picture"]

PICTURES = 3
_HEIGHT = 512
_HEADER = 46
_INK, _WARNING, _EDGE = (255, 255, 255), (255, 190, 0), (0, 220, 255)


def build(study: ScoredStudy, *, pictures: int = PICTURES) -> list[Any]:
    """Return one picture for each of the most anomalous images of a study."""
    return [_capture(study, image, i) for i, image in enumerate(study.images[:pictures], 1)]


def _capture(study: ScoredStudy, image: ScoredImage, number: int) -> Any:
    import highdicom as hd
    from pydicom.dataset import Dataset

    source = image.source
    rows, columns = source.get("PatientOrientation") or _orientation(source)
    made = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=source,
        pixel_array=picture(image),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=(str(rows), str(columns)),
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBERS["sc"],
        sop_instance_uid=hd.UID(),
        instance_number=number,
        manufacturer=equipment()["manufacturer"],
        series_description=DESCRIPTIONS["sc"],
    )
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.BurnedInAnnotation = "YES"
    made.ConversionType = "WSD"
    made.DerivationDescription = f"Anomaly map of normalis over the source image. {WORDS}"
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if image.frame is not None:
        reference.ReferencedFrameNumber = image.frame
    purpose = code("121322", "Source of Image Processing Operation", "DCM")
    reference.PurposeOfReferenceCodeSequence = [purpose]
    made.SourceImageSequence = [reference]
    made.SecondaryCaptureDeviceManufacturer = equipment()["manufacturer"]
    made.SecondaryCaptureDeviceManufacturerModelName = equipment()["manufacturer_model_name"]
    made.SecondaryCaptureDeviceSoftwareVersions = equipment()["software_versions"]
    key = (source.SOPInstanceUID, image.frame or 0)
    return mark(made, "sc", model=study.model, source=source, key=key)


def _orientation(source: Any) -> tuple[str, str]:
    """Return the directions of rows and columns in letters, from the geometry if any."""
    directions = source.get("ImageOrientationPatient")
    if not directions:
        return "L", "P"
    letters = (("R", "L"), ("A", "P"), ("F", "H"))
    said = []
    for vector in (directions[:3], directions[3:]):
        axis = int(np.argmax(np.abs([float(v) for v in vector])))
        said.append(letters[axis][int(float(vector[axis]) > 0)])
    return said[0], said[1]


def picture(image: ScoredImage) -> NDArray[np.uint8]:
    """Return the picture of an image (H, W, 3): itself, its map over it, words above."""
    from PIL import Image, ImageDraw, ImageFont

    grey = tall_grey(image)
    width = max(1, round(grey.shape[1] * _HEIGHT / grey.shape[0]))
    shown = np.asarray(Image.fromarray(grey).resize((width, _HEIGHT), Image.Resampling.BILINEAR))
    painted = np.repeat(shown[..., None], 3, 2)
    if image.anomaly_map is not None:
        scale = ColourScale(quiet=image.level, full=max(image.full, image.level + 1e-9))
        stretched = resize_map(image.anomaly_map, (_HEIGHT, width))
        painted = over(shown[None] / np.float32(255), stretched, scale)
    canvas = Image.new("RGB", (2 * width, _HEIGHT + _HEADER))
    canvas.paste(Image.fromarray(shown).convert("RGB"), (0, _HEADER))
    canvas.paste(Image.fromarray(painted), (width, _HEADER))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    draw.text((6, 3), _words(image), fill=_INK, font=font)
    draw.text((6, 23), WORDS, fill=_WARNING, font=font)
    _outline(draw, image, grey.shape, width)
    return np.asarray(canvas)


def _words(image: ScoredImage) -> str:
    said = "" if image.p_value is None else f"   p = {image.p_value:.3g}"
    seen = any(region.above for region in image.regions) or image.anomaly_map is None
    none = "" if seen else "   no place stands out"
    return f"normalis   score {image.score:.4g}{said}   {image.place}{none}"


def _outline(draw: Any, image: ScoredImage, shape: tuple[int, ...], width: int) -> None:
    across, down = width / shape[1], _HEIGHT / shape[0]
    for region in (found for found in image.regions if found.above):
        box = (
            width + region.left * across,
            _HEADER + region.top * down,
            width + region.right * across,
            _HEADER + region.bottom * down,
        )
        draw.rectangle(box, outline=_EDGE, width=2)
