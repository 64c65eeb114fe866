"""Grayscale presentation states: outlines over the source, switched on and off (on request)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from normalis.images.objects import OUR_NAME
from normalis.pacs.cases import Region, ScoredImage, ScoredStudy
from normalis.pacs.marks import DESCRIPTIONS, SERIES_NUMBERS, equipment, mark, stable_uid
from normalis.pacs.structured_report import groups_of

__all__ = ["build"]

_LAYER = "NORMALIS"


def build(study: ScoredStudy) -> list[Any]:
    """Return one presentation state per series that has a region."""
    series: dict[str, list[tuple[ScoredImage, Region, int]]] = defaultdict(list)
    for image, region, number in groups_of(study):
        if image.frame is None:
            key = str(image.source.SeriesInstanceUID)
            series[key].append((image, region, number))
    return [_state(study, told, n) for n, (_, told) in enumerate(sorted(series.items()), 1)]


def _state(study: ScoredStudy, told: list[tuple[ScoredImage, Region, int]], number: int) -> Any:
    import highdicom as hd

    sources = list({image.source.SOPInstanceUID: image.source for image, *_ in told}.values())
    layer = hd.pr.GraphicLayer(
        _LAYER, 1, description="normalis, research", display_color=hd.color.CIELabColor(80, 20, 80)
    )
    annotations = []
    for source in sources:
        mine = [one for one in told if one[0].source is source]
        annotations.append(
            hd.pr.GraphicAnnotation(
                referenced_images=[source],
                graphic_layer=layer,
                graphic_objects=[_outline(study, *one) for one in mine],
                text_objects=[_words(mine[0][0])],
            )
        )
    made = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=sources,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBERS["pr"],
        sop_instance_uid=hd.UID(),
        instance_number=number,
        device_serial_number=study.model,
        content_label=_LAYER,
        content_description="normalis regions, research use only",
        graphic_annotations=annotations,
        graphic_layers=[layer],
        content_creator_name="normalis^AI",
        **equipment(),
    )
    made.SeriesDescription = DESCRIPTIONS["pr"]
    key = (sources[0].SeriesInstanceUID,)
    return mark(made, "pr", model=study.model, source=sources[0], key=key)


def _outline(study: ScoredStudy, image: ScoredImage, region: Region, number: int) -> Any:
    import highdicom as hd

    left, right, top, bottom = region.left, region.right, region.top, region.bottom
    corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    limits = [float(image.source.Columns), float(image.source.Rows)]
    return hd.pr.GraphicObject(
        hd.pr.GraphicTypeValues.POLYLINE,
        np.clip(np.array(corners, float), 0, limits),
        units="PIXEL",
        tracking_id=f"{OUR_NAME} {number}",
        tracking_uid=hd.UID(stable_uid(study.model, image.source.SOPInstanceUID, 0, number)),
    )


def _words(image: ScoredImage) -> Any:
    import highdicom as hd

    said = "" if image.p_value is None else f" p={image.p_value:.3g}"
    width = min(float(image.source.Columns), 200.0)
    return hd.pr.TextObject(
        f"normalis{said} RESEARCH", bounding_box=(1.0, 1.0, width, 21.0), units="PIXEL"
    )
