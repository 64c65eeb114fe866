"""Parametric Map of CT and MR: the values of the anomaly map, slice by slice (on request)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.output.overlays import resize_map
from normalis.pacs.cases import ScoredImage, ScoredStudy
from normalis.pacs.marks import (
    DESCRIPTIONS,
    SERIES_NUMBERS,
    anomaly,
    declare_codes,
    equipment,
    mark,
)
from normalis.pacs.volumes import series_with_maps

__all__ = ["build"]


def build(study: ScoredStudy) -> list[Any]:
    """Return one map per series that lies in the patient's space."""
    return [_map(study, images, n) for n, images in enumerate(series_with_maps(study), 1)]


def _map(study: ScoredStudy, images: list[ScoredImage], number: int) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources = [image.source for image in images]
    values = _values(images)
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="normalis anomaly map",
        unit=codes.UCUM.NoUnits,
        value_range=(float(values.min()), float(values.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=anomaly(),
    )
    made = hd.pm.ParametricMap(
        source_images=sources,
        pixel_array=values,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBERS["pm"],
        sop_instance_uid=hd.UID(),
        instance_number=number,
        device_serial_number=study.model,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[_window(images[0])],
        content_label="NORMALIS",
        content_description="Anomaly map, research use only",
        series_description=DESCRIPTIONS["pm"],
        **equipment(),
    )
    declare_codes(made)
    key = (sources[0].SeriesInstanceUID,)
    return mark(made, "pm", model=study.model, source=sources[0], key=key)


def _values(images: list[ScoredImage]) -> NDArray[np.float32]:
    """Return the maps (N, H, W) at the size of the first image."""
    first = images[0].source
    shape = (int(first.Rows), int(first.Columns))
    return np.stack([resize_map(i.anomaly_map, shape) for i in images if i.anomaly_map is not None])


def _window(image: ScoredImage) -> Any:
    """Return the window of the pictures: from the level to where their colours end."""
    import highdicom as hd

    return hd.VOILUTTransformation(
        window_center=(image.level + image.full) / 2,
        window_width=max(image.full - image.level, 1e-3),
        voi_lut_function="LINEAR_EXACT",  # the only linear one of a width below 1
    )
