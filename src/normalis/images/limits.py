"""How much one file may claim, checked before memory is taken.

A file of half a kilobyte can claim gigabytes: compressed zeros, or a header alone. Every reader
compares what a header claims with these bounds first, so that such a file is one line in
``skipped.csv`` and not the end of the run. Honest files of everyday size lie far below; a larger
one gets the bound and the remedy as its reason.
"""

from __future__ import annotations

from pathlib import Path

from normalis.errors import UnreadableImageError

__all__ = [
    "MAX_IMAGES",
    "MAX_INFLATED",
    "MAX_KEPT",
    "MAX_STREAMED",
    "MAX_VALUES",
    "check_images",
    "check_values",
]

MAX_VALUES = 50_000_000
"""Values of one image, samples times pixels: a full-field mammogram has 22 million."""

MAX_IMAGES = 10_000
"""Slices, frames or pages of one file: a whole-body CT has 3,000."""

MAX_INFLATED = 512 * 2**20
"""Bytes that a compressed file may become where all of it must be held at once."""

MAX_STREAMED = 3 * 2**29
"""Bytes that a compressed file may become where it is read slice by slice."""

MAX_KEPT = 2**30
"""Bytes of one file's resized images, which are scored together."""


def check_values(path: Path, *lengths: int) -> None:
    """Refuse an image that claims too many values.

    Args:
        path: the file, for the message.
        *lengths: height, width and samples.

    Raises:
        UnreadableImageError: if there are more than `MAX_VALUES`, or a length is not positive.
    """
    count = 1
    for length in lengths:
        count *= length
    if min(lengths) < 1 or count > MAX_VALUES:
        claimed = " x ".join(map(str, lengths))
        raise UnreadableImageError(
            path,
            f"its header claims {claimed} pixels, beyond the limit of {MAX_VALUES:,} values "
            "an image; if that is right, save it smaller",
        )


def check_images(path: Path, count: int, *, what: str) -> None:
    """Refuse a file that claims too many images.

    Args:
        path: the file, for the message.
        count: what it claims.
        what: ``slices``, ``frames`` or ``pages``.

    Raises:
        UnreadableImageError: if there are more than `MAX_IMAGES`, or none.
    """
    if not 1 <= count <= MAX_IMAGES:
        raise UnreadableImageError(
            path,
            f"its header claims {count} {what}, beyond the limit of {MAX_IMAGES:,} a file; "
            "if that is right, split it into several files",
        )
