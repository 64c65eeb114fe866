"""Which test images training has seen: as files, as pixels, nearly, mirrored, or shifted.

`normalis.duplicates` correlates; this says what the correlations come to for the two sides of a
data set, training with validation against test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.audit.inventory import Fact
from normalis.duplicates import (
    Scan,
    codes,
    find_shifted,
    fine_detail,
    likeness_groups,
    pixel_digests,
    scan,
)

__all__ = ["THRESHOLDS", "Copies", "Progress", "compare_images"]

Progress = Callable[[str, float], None]
THRESHOLDS = (0.999, 0.95)


@dataclass(frozen=True, eq=False, kw_only=True)
class Copies:
    """Which images have a duplicate on the other side (training and validation against test).

    Attributes:
        by_bytes: (N,) whether a file on the other side has the same bytes.
        by_pixels: (N,) whether an image on the other side has the same pixels after resizing.
        plain: correlations of the images as they lie.
        mirrored: correlations with left-right mirror images.
        shifted: (N,) highest correlation of a test image that has no other near duplicate with a
            training image moved by up to four pixels; -1 where nothing came near.
        shifted_duplicate: (N,) index of that training image, or -1.
        group: (N,) groups of near duplicates, see `normalis.duplicates.likeness_groups`.
    """

    by_bytes: NDArray[np.bool_]
    by_pixels: NDArray[np.bool_]
    plain: Scan
    mirrored: Scan
    shifted: NDArray[np.float32]
    shifted_duplicate: NDArray[np.int64]
    group: NDArray[np.int64]

    def has_duplicate(
        self, threshold: float, *, mirrored: bool = False, shifted: bool = False
    ) -> NDArray[np.bool_]:
        """Return (N,) whether an image has a duplicate at ``threshold`` on the other side.

        Args:
            threshold: least correlation; identical files and pixels count always.
            mirrored: count mirror images too.
            shifted: count shifted images too (of test images only).
        """
        found = self.by_bytes | self.by_pixels | (self.plain.across >= threshold)
        if mirrored:
            found |= self.mirrored.across >= threshold
        if shifted:
            found |= self.shifted >= threshold
        return found


def compare_images(
    pixels: NDArray[Any], facts: Sequence[Fact], *, progress: Progress | None = None
) -> Copies:
    """Find the copies among images.

    Args:
        pixels: (N, H, W) images.
        facts: N entries; side, patient and digest are read.
        progress: as in `audit`.
    """
    tell = progress or (lambda stage, share: None)
    is_test = np.array([fact.is_test for fact in facts], dtype=bool)
    who = codes([fact.patient_id for fact in facts])
    fine = fine_detail(pixels)
    given: dict[str, Any] = {"patients": who, "fine": fine}
    plain = scan(pixels, is_test, **given, progress=lambda s: tell("copies", s))
    mirrored = scan(
        pixels, is_test, mirrored=True, **given, progress=lambda s: tell("mirrored copies", s)
    )
    textured = pixels.reshape(len(pixels), -1)
    constant = textured.min(axis=1) == textured.max(axis=1)  # blank slices are everyone's
    digests = [
        None if blank else d for blank, d in zip(constant, pixel_digests(pixels), strict=True)
    ]
    found = Copies(
        by_bytes=_on_both_sides([fact.digest for fact in facts], is_test),
        by_pixels=_on_both_sides(digests, is_test),
        plain=plain,
        mirrored=mirrored,
        shifted=np.full(len(pixels), -1, np.float32),
        shifted_duplicate=np.full(len(pixels), -1),
        group=likeness_groups(pixels, plain.group),
    )
    tell("shifted copies", 0.0)
    open_cases = is_test & ~found.has_duplicate(THRESHOLDS[-1], mirrored=True)
    test, train = np.flatnonzero(open_cases), np.flatnonzero(~is_test)
    if len(train) and len(test):
        ncc, near = find_shifted(
            pixels[test],
            pixels[train],
            patients=(who[test], who[train]),
            fine=(fine[test], fine[train]),
        )
        found.shifted[test] = ncc
        found.shifted_duplicate[test] = np.where(near >= 0, train[near], -1)
    tell("shifted copies", 1.0)
    return found


def _on_both_sides(digests: Sequence[Any], is_test: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (N,) whether an image's digest also occurs on the other side."""
    sides: tuple[set[Any], set[Any]] = (set(), set())
    for digest, test in zip(digests, is_test, strict=True):
        sides[int(test)].add(digest)
    both = (sides[0] & sides[1]) - {None}
    return np.array([digest in both for digest in digests], dtype=bool)
