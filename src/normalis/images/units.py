"""In which units the grey values of an image are, and what may stand beside what.

Every reader puts one of these words into an image's header under ``units``:

``8 bit``
    0 to 255, shown as they are.
``windowed``
    a DICOM's own window or VOI LUT was applied: 0 to 1 is what is shown.
``HU``, ``rescaled``, ``rescaled (WORD)``
    a DICOM's modality transform was applied; WORD is the header's own.
``raw``
    whole numbers as stored, of which nothing says what they mean.
``float``, ``own``
    numbers of which the format says no more: floats of an array or TIFF, voxels of a NIfTI.

Equal numbers in different units are different tissue, so a model is scored in the units that it was
fitted in. What can be turned exactly is turned (a windowed image is on the scale of 8 bit), what
cannot is refused with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "SHOWN",
    "UNSTATED",
    "are_comparable",
    "in_words",
    "listed",
    "mixture",
    "units_of",
    "units_of_dtype",
]

SHOWN = frozenset({"8 bit", "windowed"})
"""Units in which 0 to 1 is what a viewer shows."""

UNSTATED = frozenset({"float", "own"})
"""Units of which the format says no more."""

_EXAMPLES = 3
_WORDS = {
    "windowed": "seen through their own DICOM window",
    "raw": "raw stored values of more than 8 bits",
    "float": "floating-point numbers",
    "own": "in units of their own that nothing names",
    "HU": "in HU (rescaled)",
}


def in_words(units: str) -> str:
    """Return units as a reader of a message understands them."""
    return _WORDS.get(units, units)


def units_of(header: Mapping[str, Any], dtype: np.dtype[Any]) -> str:
    """Return the units of an image: the reader's word, else what its dtype tells."""
    return str(header.get("units") or units_of_dtype(dtype))


def units_of_dtype(dtype: np.dtype[Any]) -> str:
    """Return the units of an array's rows."""
    if dtype == np.uint8:
        return "8 bit"
    return "float" if dtype.kind == "f" else "raw"


def are_comparable(units: str, known: Iterable[str]) -> bool:
    """Return whether values in some units may be mapped by a rule fitted on others.

    Args:
        units: of a new image.
        known: of the training images.
    """
    seen = set(known)
    if units in seen:
        return True
    if units in SHOWN:
        return False
    measured = seen - SHOWN
    return bool(measured) and (units in UNSTATED or bool(measured & UNSTATED))


def listed(names: Sequence[str]) -> str:
    """Return some names and how many more there are."""
    shown = ", ".join(names[:_EXAMPLES])
    more = len(names) - _EXAMPLES
    return shown if more <= 0 else f"{shown} and {more} more"


def mixture(units: Sequence[str], names: Sequence[str]) -> str | None:
    """Return a sentence on images in units that cannot stand side by side, None if all can.

    Args:
        units: of each image.
        names: of each image.
    """
    count = Counter(units)
    order = [kind for kind, _ in count.most_common()]
    apart = [k for k in order[1:] if not (are_comparable(k, order[:1]) or set(order) <= SHOWN)]
    if not apart:
        return None
    parts = [f"{count[order[0]]} images are {in_words(order[0])}"]
    for kind in apart:
        examples = [n for u, n in zip(units, names, strict=True) if u == kind]
        parts.append(f"{count[kind]} {in_words(kind)} ({listed(list(dict.fromkeys(examples)))})")
    bare = "raw" in count and any(u == "HU" or u.startswith("rescaled") for u in count)
    missing = " (the raw ones state no Rescale Slope and Intercept)" if bare else ""
    return (
        f"grey values are in different units: {', '.join(parts)}{missing}. Equal numbers then mean "
        "different things, and a model learns the difference as normal; convert the images to one "
        "kind, or fit on one kind alone"
    )
