"""Normal images whose masks mark something: the label or the mask is wrong.

A data set may give every image a mask, that of a normal one being empty. One that marks a region
contradicts the label, and a model that is trained on such an image learns the lesion as normal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from normalis.datasets.base import Sample
from normalis.errors import DataError
from normalis.images.ahead import map_ahead
from normalis.images.masks import marks_something, read_masks_of_array

__all__ = ["marked_normals", "refuse_marked"]

_NAMED = 3


def marked_normals(samples: Sequence[Sample]) -> list[str]:
    """Return the images that are labelled or taken as normal and have a mask that is not empty.

    Args:
        samples: of any split; masks of anomalous ones, and of test images without a label, are not
            read.

    Returns:
        Their names. A mask that cannot be read counts as one that marks something, since it is
        not known to be empty; its name says so.
    """
    kept = [s for s in samples if s.mask is not None and _counts_as_normal(s)]
    in_arrays: dict[tuple[Path, str], list[int]] = defaultdict(list)
    for sample in kept:
        if sample.index is not None:
            in_arrays[sample.path, sample.array or "test"].append(sample.index)
    found = [name for name in map_ahead(_of_file, [s for s in kept if s.index is None]) if name]
    for (path, array), rows in in_arrays.items():
        found += _of_array(path, array, rows)
    return found


def _counts_as_normal(sample: Sample) -> bool:
    return sample.is_anomalous is False or (sample.is_anomalous is None and sample.split != "test")


def _of_file(sample: Sample) -> str | None:
    for mask in filter(None, (sample.mask, *sample.more_masks)):
        try:
            if marks_something(mask):
                return sample.path.name
        except DataError as error:
            return f"{sample.path.name} (its mask cannot be read: {error})"
    return None


def _of_array(path: Path, array: str, rows: Sequence[int]) -> list[str]:
    masks = read_masks_of_array(path, rows, array=array)
    return [f"{array} {row}" for row, mask in zip(rows, masks, strict=True) if mask.any()]


def refuse_marked(samples: Sequence[Sample]) -> None:
    """Refuse to learn from images whose masks say that they are not normal.

    Raises:
        DataError: naming some of them.
    """
    found = marked_normals(samples)
    if not found:
        return
    named = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
    raise DataError(
        f"{len(found)} of the normal training images have a mask that marks something ({named}): "
        "if it is a lesion, the image is not normal, and belongs to the test as anomalous; if the "
        "masks are of something else, such as an organ, take them out of the data set or rename "
        "the column mask"
    )
