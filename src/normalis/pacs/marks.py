"""What all our DICOM objects share: stable UIDs, codes, equipment, and the research words.

A UID follows from the model, the source and the kind of object, so that a resend replaces what was
sent before. The Contributing Equipment Sequence names normalis: by it the tool knows its own
results and never scores them (`normalis.images.objects`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from normalis import __version__
from normalis.images.objects import OUR_NAME

__all__ = [
    "DESCRIPTIONS",
    "SERIES_NUMBERS",
    "WORDS",
    "algorithm",
    "anomaly",
    "code",
    "declare_codes",
    "equipment",
    "mark",
    "measure",
    "stable_uid",
]

#: Burned into pictures and stated in every description.
WORDS = "RESEARCH USE ONLY - NOT FOR DIAGNOSIS"
#: Designator of the codes that no public scheme has.
SCHEME = "99NORMALIS"
#: From 9001 on, so that no viewer hangs our series first.
SERIES_NUMBERS = {"sc": 9001, "pr": 9002, "pm": 9003, "seg": 9004, "sr": 9005}
DESCRIPTIONS = {
    "sc": "normalis: pictures (research)",
    "pr": "normalis: outlines (research)",
    "pm": "normalis: map (research)",
    "seg": "normalis: regions (research)",
    "sr": "normalis: scores (research)",
}
#: Attributes of the source that highdicom's classes do not copy. Without the body part a checker
#: asks for a laterality, since it cannot know that the part is not paired.
_COPIED = (
    "BodyPartExamined", "Laterality", "StudyDescription", "PatientAge", "PatientWeight",
    "PatientSize",
)  # fmt: skip


def stable_uid(*parts: object) -> str:
    """Return the UID that these parts always give: ``2.25.`` and a UUID of their names."""
    name = "/".join((OUR_NAME, *map(str, parts)))
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def code(value: str, meaning: str, scheme: str = SCHEME) -> Any:
    """Return a coded concept."""
    from highdicom.sr.coding import CodedConcept

    return CodedConcept(value, scheme, meaning)


def anomaly() -> Any:
    """Return what is found: a deviation, not a disease."""
    return code("ANOMALY", "Deviation from learned normal appearance")


_MEASURES = {
    "score": ("ANOMSCORE", "Anomaly score"),
    "p_value": ("PVALUE", "Conformal p-value among normal images"),
    "patient_p_value": ("PATIENTPVALUE", "Conformal p-value among normal patients"),
    "calibration_units": ("CALUNITS", "Normal patients or groups that calibrate the p-value"),
    "area_p_value": ("AREAPVALUE", "Conformal p-value of the highest place"),
    "peak": ("PEAK", "Highest value of the calibrated map"),
    "flagged": ("FLAGGED", "Above the threshold"),
}


def measure(name: str) -> Any:
    """Return the concept of one of our measurements."""
    value, meaning = _MEASURES[name]
    return code(value, meaning)


def algorithm(model: str) -> Any:
    """Return who measured: normalis, its version, and the model's hash."""
    import highdicom as hd

    return hd.sr.AlgorithmIdentification(
        name=OUR_NAME, version=__version__, parameters=[f"model {model}"]
    )


def equipment() -> dict[str, Any]:
    """Return what highdicom's classes ask of the maker of an object."""
    return {
        "manufacturer": OUR_NAME,
        "manufacturer_model_name": OUR_NAME,
        "software_versions": __version__,
    }


def declare_codes(dataset: Any) -> None:
    """State who is responsible for our private codes."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator = SCHEME
    item.CodingSchemeName = "normalis private codes"
    item.CodingSchemeResponsibleOrganization = OUR_NAME
    there = list(dataset.get("CodingSchemeIdentificationSequence", []))
    dataset.CodingSchemeIdentificationSequence = [item, *there]


def mark(dataset: Any, kind: str, *, model: str, source: Any, key: Sequence[object]) -> Any:
    """Give an object its stable UIDs, its equipment, and what it shares with its source.

    Args:
        dataset: a new object; changed in place.
        kind: a key of `SERIES_NUMBERS`.
        model: hash of the model.
        source: header of an image of the study.
        key: what tells this object from others of its kind, model and study.
    """
    from pydicom.dataset import Dataset

    study = source.StudyInstanceUID
    dataset.SeriesInstanceUID = stable_uid(model, study, kind, "series")
    dataset.SOPInstanceUID = stable_uid(model, study, kind, "instance", *key)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesDescription = DESCRIPTIONS[kind]
    for axis in (*dataset.get("DimensionOrganizationSequence", ()),
                 *dataset.get("DimensionIndexSequence", ())):  # fmt: skip
        axis.DimensionOrganizationUID = stable_uid(model, study, kind, "dimensions", *key)
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code("109102", "Processing Equipment", "DCM")]
    item.Manufacturer = item.ManufacturerModelName = OUR_NAME
    item.SoftwareVersions = __version__
    item.ContributionDateTime = datetime.now().strftime("%Y%m%d%H%M%S")
    item.ContributionDescription = f"model {model}"
    dataset.ContributingEquipmentSequence = [item]
    for name in _COPIED:
        if source.get(name) and name not in dataset:
            setattr(dataset, name, source.get(name))
    return dataset
