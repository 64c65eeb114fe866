"""Result objects as they may leave the hospital: under pseudonyms, without what tells a person.

Only objects that normalis made can be changed so: it is known which attributes they have, and what
stands in each. Of texts, names, dates and times all but those that normalis itself writes are
emptied or removed, wherever they stand; UIDs become other UIDs, the same in all objects and tables
of one key. Pixels stay as they are. It is not a tool to de-identify images.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from normalis.errors import DataError
from normalis.images.objects import OUR_NAME, equipment_of
from normalis.output.pseudonyms import Pseudonyms

__all__ = ["METHOD", "Leaving", "as_it_is", "leaving", "pseudonymous"]

Leaving = Callable[[Any], Any]

#: Stands in the De-identification Method of what was changed, which is never changed again.
METHOD = "normalis pseudonyms"
_STANDARD = "1.2.840.10008."  # UIDs of classes, syntaxes and code tables, which name nobody
_PERSON = ("PatientID", "PatientName", "AccessionNumber")
_EMPTIED = ("PatientBirthDate", "ReferringPhysicianName", "StudyDate", "StudyID", "StudyTime")
_TEXT = ("AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT", "UN")
#: Texts, names and times that normalis writes itself, or that are codes of the standard.
_OURS = frozenset(
    (
        "AlgorithmName", "AlgorithmParameters", "AlgorithmSource", "AlgorithmVersion",
        "CodeMeaning", "CodeValue", "CodingSchemeDesignator", "CodingSchemeName",
        "CodingSchemeResponsibleOrganization", "CodingSchemeVersion", "ContentCreatorName",
        "ContentDate", "ContentDescription", "ContentTime", "ContextGroupVersion",
        "ContributionDateTime", "ContributionDescription", "DateOfSecondaryCapture",
        "DateTime", "DeidentificationMethod", "DerivationDescription", "DeviceSerialNumber",
        "DimensionDescriptionLabel", "GraphicLayerDescription", "InstanceCreationDate",
        "InstanceCreationTime", "LUTExplanation", "LUTLabel", "LongCodeValue", "Manufacturer",
        "ManufacturerModelName", "PresentationCreationDate", "PresentationCreationTime",
        "RescaleType", "SecondaryCaptureDeviceManufacturer",
        "SecondaryCaptureDeviceManufacturerModelName", "SecondaryCaptureDeviceSoftwareVersions",
        "SegmentAlgorithmName", "SegmentDescription", "SegmentLabel", "SeriesDescription",
        "SoftwareVersions", "StackID", "TextValue", "TimeOfSecondaryCapture",
        "TimezoneOffsetFromUTC", "TrackingID", "UnformattedTextValue",
    )
)  # fmt: skip
#: Present but empty where the standard asks for them in this form.
_EMPTY_TEXT = ("PositionReferenceIndicator",)


def as_it_is(dataset: Any) -> Any:
    """Return an object with the true ids, for the hospital's own PACS."""
    return dataset


def leaving(file: Path | None) -> Leaving:
    """Return what changes objects that leave.

    Args:
        file: of the key of pseudonyms; None leaves objects as they are.

    Raises:
        SettingsError: if the file holds no key, or others may read it.
    """
    if file is None:
        return as_it_is
    names = Pseudonyms(file)
    return lambda dataset: pseudonymous(dataset, names)


def pseudonymous(dataset: Any, names: Pseudonyms) -> Any:
    """Return a copy of a result object under pseudonyms.

    Args:
        dataset: that normalis made.
        names: of the key.

    Raises:
        DataError: if normalis did not make it.
    """
    if OUR_NAME not in equipment_of(dataset):
        raise DataError("only objects that normalis made are put under pseudonyms")
    if METHOD in str(dataset.get("DeidentificationMethod", "")):
        return dataset
    changed = deepcopy(dataset)
    _change(changed, names)
    changed.PatientIdentityRemoved = "YES"
    changed.DeidentificationMethod = METHOD
    changed.file_meta.MediaStorageSOPInstanceUID = changed.SOPInstanceUID
    changed.preamble = b"\0" * 128
    return changed


def _change(dataset: Any, names: Pseudonyms) -> None:
    for element in list(dataset):
        name = element.keyword
        if element.tag.is_private:
            del dataset[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                _change(item, names)
        elif element.VR == "UI":
            element.value = _uids(element.value, names)
        elif name in _PERSON:
            element.value = names.person(str(element.value))
        elif name in _EMPTIED or name in _EMPTY_TEXT:
            element.value = ""
        elif element.VR in _TEXT and name not in _OURS:
            del dataset[element.tag]


def _uids(value: Any, names: Pseudonyms) -> Any:
    if value and not isinstance(value, str):
        return [_uids(one, names) for one in value]
    uid = str(value or "")
    return uid if uid.startswith(_STANDARD) else names.uid(uid)
