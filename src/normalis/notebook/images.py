"""What users hand over, as images in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from normalis.errors import DataError
from normalis.loading.arrays import Loaded, from_array, load
from normalis.loading.held_out import as_dataset, is_array, samples_to_score

if TYPE_CHECKING:
    from normalis.fitted import FittedDetector

__all__ = ["images_of", "only"]


def images_of(fitted: FittedDetector, x: Any) -> Loaded:
    """Read images as a detector reads them.

    Raises:
        DataError: if one cannot be read.
    """
    if is_array(x):
        return from_array(x, fitted.image_settings, rule=fitted.rule, fit_rule=False)
    samples = samples_to_score(fitted.select(as_dataset(x)))
    loaded = load(samples, fitted.image_settings, rule=fitted.rule, fit_rule=False)
    if loaded.skipped:
        path, reason = loaded.skipped[0]
        raise DataError(
            f"{len(loaded.skipped)} of the images cannot be read; the first is {path}: {reason}. "
            "Remove them, or score the folder with `normalis score`, which skips and reports"
        )
    return loaded


def only(loaded: Loaded, index: int) -> Loaded:
    """Return one of the images."""
    part = slice(index, index + 1)
    return replace(loaded, pixels=loaded.pixels[part], rows=loaded.rows[part])
