"""Segmentation of CT and MR: what is above the level that 1 in 20 normal images reaches.

Every slice of the series is in it, empty ones too: viewers count on that. On radiographs a
segmentation is valid and crashes a much-used viewer, so none is made there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normalis import __version__
from normalis.images.objects import OUR_NAME
from normalis.output.overlays import resize_map
from normalis.pacs.cases import ScoredImage, ScoredStudy
from normalis.pacs.marks import (
    DESCRIPTIONS,
    SERIES_NUMBERS,
    WORDS,
    anomaly,
    code,
    declare_codes,
    equipment,
    mark,
    stable_uid,
)
from normalis.pacs.volumes import series_with_maps

__all__ = ["build"]


def build(study: ScoredStudy) -> list[Any]:
    """Return one segmentation per series that has anything above the level."""
    made = []
    for number, images in enumerate(series_with_maps(study), 1):
        mask = np.stack([_mask(image) for image in images])
        if mask.any():
            made.append(_segmentation(study, images, mask, number))
    return made


def _mask(image: ScoredImage) -> np.ndarray[Any, Any]:
    shape = (int(image.source.Rows), int(image.source.Columns))
    assert image.anomaly_map is not None  # series_with_maps leaves others out
    return (resize_map(image.anomaly_map, shape) > image.level).astype(np.uint8)


def _segmentation(
    study: ScoredStudy, images: list[ScoredImage], mask: np.ndarray[Any, Any], number: int
) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources = [image.source for image in images]
    series = sources[0].SeriesInstanceUID
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Deviation",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=anomaly(),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=OUR_NAME,
            family=code("123110", "Artificial Intelligence", "DCM"),
            version=__version__,
            source=OUR_NAME,
            parameters={"model": study.model},
        ),
        tracking_id=OUR_NAME,
        tracking_uid=hd.UID(stable_uid(study.model, series, "segment")),
    )
    made = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBERS["seg"],
        sop_instance_uid=hd.UID(),
        instance_number=number,
        device_serial_number=study.model,
        content_label="NORMALIS",
        content_description=f"Above the level of normal images. {WORDS}"[:64],
        series_description=DESCRIPTIONS["seg"],
        omit_empty_frames=False,
        **equipment(),
    )
    declare_codes(made)
    return mark(made, "seg", model=study.model, source=sources[0], key=(series,))
