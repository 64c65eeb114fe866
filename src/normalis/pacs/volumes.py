"""Series whose slices lie in the patient's space, for objects that cover a whole series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from normalis.pacs.cases import ScoredImage, ScoredStudy, has_geometry
from normalis.studies.geometry import stack_of

__all__ = ["ORGAN_MODALITIES", "series_with_maps"]

#: Modalities whose regions and maps viewers show; on a radiograph they crash one of them.
ORGAN_MODALITIES = ("CT", "MR", "PT")


def series_with_maps(study: ScoredStudy) -> Iterator[list[ScoredImage]]:
    """Yield the images of each CT or MR series that have a map and a place in space, in order."""
    series: dict[str, list[ScoredImage]] = defaultdict(list)
    for image in study.images:
        usable = image.frame is None and image.anomaly_map is not None
        if usable and image.source.Modality in ORGAN_MODALITIES and has_geometry(image.source):
            series[str(image.source.SeriesInstanceUID)].append(image)
    for _, images in sorted(series.items()):
        shapes = {(int(i.source.Rows), int(i.source.Columns)) for i in images}
        if len(shapes) == 1:
            order = stack_of(
                [i.source.ImagePositionPatient for i in images],
                [i.source.ImageOrientationPatient for i in images],
            ).order
            yield [images[k] for k in order]
