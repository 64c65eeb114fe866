"""The header index: what DICOM headers say of every file, without its pixels.

`read_header` takes a few milliseconds a file. Besides the attributes of `ATTRIBUTES` an entry knows
what follows from several of them or from the other files of its series:

* ``plane``: axial, coronal, sagittal or oblique, from Image Orientation (Patient);
* ``slices``: images of its series, frames counted;
* ``thickness``: slice thickness, mm.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normalis.images.objects import equipment_of, why_left_aside
from normalis.images.remarks import collected
from normalis.studies.geometry import Stack, plane_of, stack_of

__all__ = ["ATTRIBUTES", "Entry", "Series", "index_files", "read_header", "series_of"]

log = logging.getLogger("normalis.studies")

#: Attribute -> name in tables. Whatever `--where` may ask for is an attribute of the header.
ATTRIBUTES: dict[str, str] = {
    "PatientID": "patient_id",
    "StudyInstanceUID": "study_uid",
    "SeriesInstanceUID": "series_uid",
    "SOPInstanceUID": "sop_uid",
    "SOPClassUID": "sop_class",
    "AccessionNumber": "accession_number",
    "StudyDate": "study_date",
    "Modality": "modality",
    "BodyPartExamined": "body_part",
    "ViewPosition": "view",
    "ImageLaterality": "laterality",
    "SeriesDescription": "series_description",
    "SeriesNumber": "series_number",
    "InstanceNumber": "instance_number",
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "model",
    "StationName": "station",
    "PatientSex": "sex",
    "PatientAge": "age",
}
_GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient")
_MORE = (
    "Laterality", "ImageType", "ContributingEquipmentSequence", "NumberOfFrames", "SliceThickness",
    "SpacingBetweenSlices", "StudyDescription", "ProtocolName", "SequenceName", "EchoTime",
    "RepetitionTime", "MagneticFieldStrength", "KVP", "ConvolutionKernel", "ContrastBolusAgent",
    "InstitutionName", "SoftwareVersions", "PatientPosition", "Rows", "Columns",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SeriesDate",
    "ScanningSequence", "AcquisitionNumber", "TemporalPositionIdentifier", "PixelSpacing",
    "ImagerPixelSpacing", "FrameOfReferenceUID", "PresentationIntentType", "PixelPresentation",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the header of one file says.

    Attributes:
        path: the file.
        values: keyword -> value, as text or number.
        columns: the names of `ATTRIBUTES` -> value as text; absent ones are left out.
        frames: images in the file.
        position: Image Position (Patient) of a single image, mm.
        orientation: Image Orientation (Patient) of a single image.
        aside: why it is no image to learn from or to score; None if it is one.
    """

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    frames: int = 1
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    aside: str | None = None

    @property
    def plane(self) -> str | None:
        """Direction of the slice, None where the header does not say."""
        return plane_of(self.orientation)


@dataclass(frozen=True, kw_only=True)
class Series:
    """The images of one series.

    Attributes:
        uid: Series Instance UID; a file without one is a series of its own, named by its path.
        entries: in the order in space where that is known, else by instance number.
        stack: how they lie.
    """

    uid: str
    entries: tuple[Entry, ...]
    stack: Stack

    @property
    def images(self) -> int:
        """Images of the series, frames counted."""
        return sum(entry.frames for entry in self.entries)


def read_header(path: Path) -> Entry | None:
    """Read one header; None if the file is no DICOM.

    Whatever goes wrong with a header is left to the reader of its pixels, which says it better.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    wanted = [*ATTRIBUTES, *_GEOMETRY, *_MORE]
    with collected(path):
        try:
            with path.open("rb") as stream:
                head = stream.read(132)
                if head[128:132] != b"DICM" and head[:1] not in (b"\x08", b"\x02"):
                    return None
                stream.seek(0)
                no_dicm = head[128:] != b"DICM"
                data = pydicom.dcmread(
                    stream, stop_before_pixels=True, specific_tags=wanted, force=no_dicm
                )
        except (InvalidDicomError, OSError, ValueError, EOFError, KeyError, RuntimeError):
            return None
        return _entry(path, data) if len(data) else None


def _entry(path: Path, data: Any) -> Entry:
    values: dict[str, Any] = {}
    for keyword in (*ATTRIBUTES, *_MORE):
        value = _plain(data, keyword)
        if value not in (None, ""):
            values[keyword] = value
    if "ImageLaterality" not in values and "Laterality" in values:
        values["ImageLaterality"] = values["Laterality"]
    position, orientation = (_numbers(data, name) for name in _GEOMETRY)
    if orientation is None:
        position, orientation = _of_first_frame(data)
    return Entry(
        path=path,
        values=values,
        columns={name: str(values[key]) for key, name in ATTRIBUTES.items() if key in values},
        frames=max(1, _count(values.get("NumberOfFrames"))),
        position=position,
        orientation=orientation,
        aside=why_left_aside(
            str(values.get("SOPClassUID", "")),
            str(values.get("ImageType", "")).split("\\"),
            equipment_of(data),
        ),
    )


def index_files(
    paths: Iterable[Path], *, progress: Callable[[int, int], None] | None = None
) -> dict[Path, Entry]:
    """Read the headers of files; those that are no DICOM are left out.

    Args:
        paths: the files.
        progress: called as ``progress(done, total)``.
    """
    files = list(dict.fromkeys(paths))
    found: dict[Path, Entry] = {}
    with ThreadPoolExecutor(4, thread_name_prefix="normalis-headers") as pool:
        for done, (path, entry) in enumerate(
            zip(files, pool.map(read_header, files), strict=True), 1
        ):
            if entry is not None:
                found[path] = entry
            if progress is not None:
                progress(done, len(files))
    log.info("%d of %d files are DICOM", len(found), len(files))
    return found


def series_of(entries: Iterable[Entry]) -> dict[str, Series]:
    """Group entries by series, each in its order in space."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[str(entry.values.get("SeriesInstanceUID") or entry.path)].append(entry)
    return {uid: _series(uid, group) for uid, group in groups.items()}


def _series(uid: str, group: Sequence[Entry]) -> Series:
    by_number = sorted(group, key=lambda e: (_count(e.values.get("InstanceNumber")), str(e.path)))
    stack = stack_of([e.position for e in by_number], [e.orientation for e in by_number])
    return Series(uid=uid, entries=tuple(by_number[i] for i in stack.order), stack=stack)


def _plain(data: Any, keyword: str) -> Any:
    """Return an attribute as text or number; None where it is absent or unreadable."""
    try:
        value = data.get(keyword)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    if value is None or keyword.endswith("Sequence"):
        return None
    if isinstance(value, str | int | float):
        return value.strip() if isinstance(value, str) else value
    try:
        return "\\".join(str(part) for part in value)
    except TypeError:
        return str(value)


def _numbers(data: Any, keyword: str) -> tuple[float, ...] | None:
    try:
        value = data.get(keyword)
        return None if value is None or value == "" else tuple(float(v) for v in value)
    except (ValueError, TypeError, KeyError):
        return None


def _of_first_frame(data: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return position and orientation of the first frame of an enhanced multi-frame object."""
    found: dict[str, tuple[float, ...] | None] = {}
    for group in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in (data.get(group) or [])[:1]:
            for sequence, keyword in (
                ("PlanePositionSequence", "ImagePositionPatient"),
                ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ):
                for inner in (item.get(sequence) or [])[:1]:
                    found.setdefault(keyword, _numbers(inner, keyword))
    return found.get("ImagePositionPatient"), found.get("ImageOrientationPatient")


def _count(value: Any) -> int:
    try:
        return int(float(str(value)))
    except (ValueError, OverflowError):
        return 0
