"""Which images are the same picture: exact, re-encoded, mirrored or shifted copies.

``scan`` correlates all pairs in O(N) memory; ``inside`` tells copies from images that merely share
an outline; ``shifted`` finds copies that were moved.
"""

from normalis.duplicates.inside import SAME_INSIDE, fine_detail
from normalis.duplicates.scan import (
    THRESHOLDS,
    Scan,
    codes,
    duplicate_groups,
    likeness_groups,
    pixel_digests,
    scan,
    unit_rows,
)
from normalis.duplicates.shifted import find_shifted

__all__ = [
    "SAME_INSIDE",
    "THRESHOLDS",
    "Scan",
    "codes",
    "duplicate_groups",
    "find_shifted",
    "fine_detail",
    "likeness_groups",
    "pixel_digests",
    "scan",
    "unit_rows",
]
