"""Structured report, TID 1500: for each region its score, p-value and place, for machines.

A measurement group without a region leaves a much-used viewer blank, wherever it stands, so every
group has one: the areas above the level, else the highest place of the most anomalous image, and
what is known of the patient stands in each of them. Images without a region are in the evidence.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normalis.images.objects import OUR_NAME
from normalis.pacs.cases import Region, ScoredImage, ScoredStudy
from normalis.pacs.marks import (
    DESCRIPTIONS,
    SERIES_NUMBERS,
    algorithm,
    anomaly,
    code,
    declare_codes,
    equipment,
    mark,
    measure,
    stable_uid,
)

__all__ = ["build", "groups_of"]

#: Regions of one study at most: the highest; a reader has no use for hundreds.
MAX_REGIONS = 20


def build(study: ScoredStudy) -> list[Any]:
    """Return one report of a study; none where no image has any region."""
    import highdicom as hd

    chosen = groups_of(study)
    if not chosen:
        return []
    content = hd.sr.MeasurementReport(
        observation_context=_observer(study.model),
        procedure_reported=code("363679005", "Imaging procedure", "SCT"),
        imaging_measurements=[_group(study, image, region, n) for image, region, n in chosen],
        title=code("126000", "Imaging Measurement Report", "DCM"),
        referenced_images=_library(study),
    )
    made = hd.sr.ComprehensiveSR(
        evidence=[image.source for image in _unique(study)],
        content=content[0],
        series_number=SERIES_NUMBERS["sr"],
        series_instance_uid=hd.UID(),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        device_serial_number=study.model,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=DESCRIPTIONS["sr"],
        **equipment(),
    )
    made.PreliminaryFlag = "PRELIMINARY"
    declare_codes(made)
    return [mark(made, "sr", model=study.model, source=study.first, key=())]


def _observer(model: str) -> Any:
    """Return who observed: this program, with a model of that hash."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=hd.UID(stable_uid("device", model)),
                name=OUR_NAME,
                manufacturer_name=OUR_NAME,
                model_name=OUR_NAME,
                serial_number=model,
            ),
        )
    )


def groups_of(study: ScoredStudy) -> list[tuple[ScoredImage, Region, int]]:
    """Return the regions that are told, each with its image and its number there."""
    found = [
        (image, region, number)
        for image in study.images
        for number, region in enumerate(image.regions, 1)
        if region.above
    ]
    if not found:
        first = study.images[0]
        found = [(first, region, 1) for region in first.regions[:1]]
    return sorted(found, key=lambda one: -(one[1].peak or 0.0))[:MAX_REGIONS]


def _unique(study: ScoredStudy) -> list[ScoredImage]:
    """Return one image of each instance: frames of one file are evidence once."""
    return list({image.source.SOPInstanceUID: image for image in reversed(study.images)}.values())


def _library(study: ScoredStudy) -> list[Any] | None:
    """Return the images for the image library, which has no form for functional groups."""
    sources = [image.source for image in _unique(study)]
    return [s for s in sources if "SharedFunctionalGroupsSequence" not in s] or None


def _group(study: ScoredStudy, image: ScoredImage, region: Region, number: int) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    source = image.source
    name = f"{OUR_NAME} {image.place} region {number}"
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=hd.UID(stable_uid(study.model, source.SOPInstanceUID, image.frame or 0, number)),
            identifier=name,
        ),
        referenced_region=hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=_box(region, source),
            source_image=hd.sr.SourceImageForRegion(
                referenced_sop_class_uid=source.SOPClassUID,
                referenced_sop_instance_uid=source.SOPInstanceUID,
                referenced_frame_numbers=None if image.frame is None else [image.frame],
            ),
        ),
        finding_type=anomaly(),
        measurements=_measurements(study, image, region),
        qualitative_evaluations=None
        if image.flagged is None
        else [
            hd.sr.QualitativeEvaluation(
                name=measure("flagged"), value=codes.SCT.Yes if image.flagged else codes.SCT.No
            )
        ],
    )


def _measurements(study: ScoredStudy, image: ScoredImage, region: Region) -> list[Any]:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    values = {
        "score": image.score,
        "p_value": image.p_value,
        "peak": region.peak,
        "area_p_value": region.p_value,
        "patient_p_value": study.patient_p_value,
        "calibration_units": study.calibration_units,
    }
    who = algorithm(study.model)
    return [
        hd.sr.Measurement(
            name=measure(name),
            value=float(f"{value:.6g}"),
            unit=codes.UCUM.NoUnits,
            algorithm_id=who,
        )
        for name, value in values.items()
        if value is not None
    ]


def _box(region: Region, source: Any) -> np.ndarray[Any, Any]:
    """Return the closed outline (5, 2) of a region; 0 is the outer corner of the first pixel."""
    left, right = region.left, min(region.right, float(source.Columns))
    top, bottom = region.top, min(region.bottom, float(source.Rows))
    corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    found: np.ndarray[Any, Any] = np.clip(
        np.array(corners, float), 0, [float(source.Columns), float(source.Rows)]
    )
    return found
