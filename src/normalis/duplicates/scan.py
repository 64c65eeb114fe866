"""Which images are the same picture: exact, re-encoded, mirrored or shifted copies, in O(N) memory.

The measure is the normalised cross-correlation of two images a and b, flattened, with means
removed; it is unchanged by brightness and contrast (b -> s b + t, s > 0)::

    ncc(a, b) = (a - mean a) . (b - mean b) / (|a - mean a| |b - mean b|)

A constant image has no direction: its ncc is 0, or 1 with an equal constant image. All N^2 / 2
values come from float32 matrix products, block by block, and only their maxima, the groups and the
greedy choice are kept.

*Sides.* A data set has two sides, what a method is fitted on (training and validation) and what it
is tested on. A near duplicate on the other side is a leak, one on the same side is a repetition.
Two images of *different known* patients are never near duplicates: chest X-rays look alike.

*Outlines.* Where fine detail is given (`normalis.duplicates.inside`), two images that correlate as
a whole and not inside their outline are look-alikes, not near duplicates.

Reference: Lewis, "Fast normalized cross-correlation" (1995).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.duplicates.inside import SAME_INSIDE, Fine, correlations
from normalis.errors import DataError

__all__ = [
    "Scan",
    "codes",
    "duplicate_groups",
    "likeness_groups",
    "pixel_digests",
    "scan",
    "unit_rows",
]

_BLOCK = 2048  # rows: a block of values then takes 16 MiB

_LOOKS_ALIKE = 0.9  # below this nobody takes two images for copies
_PERFECT = 0.999  # from here on the whole image says enough

Pixels = NDArray[Any]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


#: Correlations from which images may be grouped, see `likeness_groups`.
THRESHOLDS = (0.95, 0.98, 0.99, 0.995, 0.999)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scan:
    """What all pairwise correlations of N images come to.

    Attributes:
        across: (N,) highest ncc with an image of the other side that may be of the same patient,
            look-alikes left out; -1 where the other side has none.
        duplicate: (N,) index of that image; -1 where there is none.
        other_patient: (N,) highest ncc with an image of the other side that is of a different known
            patient, or that differs inside the outline.
        within: (N,) highest ncc with another image of the same side.
        group: (N,) number of the connected group of near duplicates at ``threshold``, by either
            side.
        distinct: (N,) whether no earlier distinct image of the same side is a near duplicate at
            ``threshold`` (greedy, in listing order).
        threshold: ncc from which two images count as near duplicates in ``group`` and ``distinct``.
    """

    across: Floats
    duplicate: Indices
    other_patient: Floats
    within: Floats
    group: Indices
    distinct: Flags
    threshold: float


def codes(values: Sequence[Any]) -> Indices:
    """Number equal values equally, from 0 in order of appearance; None becomes -1."""
    numbers: dict[Any, int] = {}
    out = [-1 if v is None else numbers.setdefault(v, len(numbers)) for v in values]
    return np.array(out, dtype=np.int64)


def duplicate_groups(
    pixels: Pixels, *, threshold: float = 0.95, patients: Indices | None = None
) -> Indices:
    """Number images so that those connected by near duplicates share a number.

    Args:
        pixels: (N, H, W) or (N, C, H, W) images.
        threshold: ncc from which two images are near duplicates.
        patients: (N,) number of each image's patient, -1 where unknown; images of different known
            patients are no duplicates of each other.

    Returns:
        (N,) group numbers, from 0.
    """
    height, width = pixels.shape[-2:]
    step = max(1, min(height, width) // 64)
    small = pixels.reshape(len(pixels), -1, height, width)
    small = small[..., : height // step * step, : width // step * step]
    small = small.reshape(len(pixels), small.shape[1], height // step, step, width // step, step)
    grey = small.mean(axis=(1, 3, 5), dtype=np.float32)
    one_side = np.zeros(len(grey), bool)
    return scan(grey, one_side, threshold=threshold, patients=patients).group


def likeness_groups(pixels: Pixels, first: Indices | None = None) -> Indices:
    """Group near duplicates, at the lowest threshold that leaves no group dominant.

    Well aligned images resemble each other without being copies: at a correlation of 0.95 all of
    them may hang together in one chain, which says nothing of where they came from. The threshold
    then rises until no group holds more than a tenth of the images; what remains at none of
    `THRESHOLDS` is identical pixels.

    Args:
        pixels: (N, H, W) or (N, C, H, W) images.
        first: (N,) the groups at the first threshold, if they are known already.

    Returns:
        (N,) group numbers, from 0.
    """
    for threshold in THRESHOLDS:
        known = first is not None and threshold == THRESHOLDS[0]
        groups = first if known else duplicate_groups(pixels, threshold=threshold)
        if groups is not None and np.bincount(groups).max() <= max(2, len(pixels) / 10):
            return groups
    return codes(pixel_digests(pixels))


def pixel_digests(pixels: Pixels) -> list[bytes]:
    """Return a digest of each image's pixels: equal digests, identical pixels."""
    return [hashlib.blake2b(x.tobytes(), digest_size=16).digest() for x in pixels]


def unit_rows(pixels: Pixels) -> Floats:
    """Return images as rows of mean 0 and length 1, whose products are correlations.

    Args:
        pixels: (N, ...) images of any intensity range.

    Returns:
        (N, P); a constant image becomes zeros.
    """
    rows = np.asarray(pixels).reshape(len(pixels), -1).astype(np.float32)
    mean = rows.mean(axis=1, keepdims=True)
    rows -= mean
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    # What float32 leaves of a constant's difference from its own mean is rounding, not contrast.
    flat = length <= 1e-5 * np.abs(mean) * np.sqrt(rows.shape[1])
    return np.where(flat, np.float32(0), rows / np.where(flat, np.float32(1), length))


def scan(
    pixels: Pixels,
    is_test: Flags,
    *,
    patients: Indices | None = None,
    mirrored: bool = False,
    fine: Fine | None = None,
    threshold: float = 0.95,
    block: int = _BLOCK,
    progress: Callable[[float], None] | None = None,
) -> Scan:
    """Correlate every image with every other one.

    Args:
        pixels: (N, H, W) images, in listing order.
        is_test: (N,) the side of each.
        patients: (N,) number of each image's patient, -1 where unknown; None where all are.
        mirrored: compare each image with the left-right mirror image of the others.
        fine: (N, H * W) of `fine_detail`: images that differ in it are look-alikes, though they
            stay in one group; None compares the images as a whole only.
        threshold: ncc from which two images count as near duplicates in ``group`` and ``distinct``.
        block: rows per matrix product; memory grows with its square, not with N.
        progress: called with the share that is done, in [0, 1].

    Returns:
        The maxima, groups and greedy choice.

    Raises:
        DataError: if the arrays do not belong together.
    """
    n = len(pixels)
    who = np.full(n, -1) if patients is None else patients
    if pixels.ndim != 3 or is_test.shape != (n,) or who.shape != (n,):
        raise DataError(
            "scan needs (N, H, W) images with one side and patient each, got shapes "
            f"{pixels.shape}, {is_test.shape}, {who.shape}"
        )
    state = _State(n, threshold)
    blocks = list(_blocks(is_test, block))
    flat = _constants(pixels)
    done, total = 0, max(1, len(blocks) * (len(blocks) + 1) // 2)
    for at, later in enumerate(blocks):
        shown = pixels[later]
        rows = unit_rows(shown[:, :, ::-1] if mirrored else shown)
        for earlier in blocks[: at + 1]:
            ncc = rows @ unit_rows(pixels[earlier]).T
            equal = flat[later][:, None] == flat[earlier]  # NaN, the mark of texture, equals none
            ncc[equal] = 1
            differ = (who[later][:, None] != who[earlier]) & (who[earlier] >= 0)
            differ &= (who[later] >= 0)[:, None]
            outline = None
            if fine is not None:
                ours = _mirror(fine[later], pixels.shape[1:]) if mirrored else fine[later]
                outline = _only_outlines(ncc, ours, fine[earlier])
            far = bool(is_test[later[0]] != is_test[earlier[0]])
            state.add(later, earlier, ncc, differ, far, outline)
            done += 1
            if progress is not None:
                progress(done / total)
    return state.result()


def _only_outlines(ncc: Floats, ours: Fine, theirs: Fine) -> Flags:
    """Return the pairs that correlate as a whole, though neither perfectly nor in fine detail."""
    near = (ncc >= _LOOKS_ALIKE) & (ncc < _PERFECT)
    return near & (correlations(ours, theirs, near) < SAME_INSIDE)


def _mirror(fine: Fine, shape: tuple[int, ...]) -> Fine:
    return fine.reshape(len(fine), *shape)[:, :, ::-1].reshape(len(fine), -1)


class _State:
    """The running maxima of `scan`; memory O(N)."""

    def __init__(self, n: int, threshold: float) -> None:
        none = np.full(n, -1, np.float32)
        self.across, self.other_patient, self.within = none, none.copy(), none.copy()
        self.duplicate = np.full(n, -1)
        self.group = np.arange(n)
        self.repeats = np.zeros(n, bool)
        self.threshold = threshold

    def add(
        self,
        later: Indices,
        earlier: Indices,
        ncc: Floats,
        differ: Flags,
        far: bool,
        outline: Flags | None = None,
    ) -> None:
        """Take in one block of correlations; ``later is earlier`` on the diagonal."""
        if later is earlier:
            np.fill_diagonal(ncc, -1)
        first, second = np.nonzero((ncc >= self.threshold) & ~differ)
        self._join(later[first], earlier[second])
        if outline is not None:
            differ = differ | outline
        if far:
            alike = np.where(differ, ncc, np.float32(-1))
            _raise(self.other_patient, later, alike.max(axis=1))
            _raise(self.other_patient, earlier, alike.max(axis=0))
        ncc[differ] = -1
        if far:
            self._raise_across(later, earlier, ncc)
            self._raise_across(earlier, later, ncc.T)
        else:
            _raise(self.within, later, ncc.max(axis=1))
            _raise(self.within, earlier, ncc.max(axis=0))
            self._choose(later, earlier, ncc >= self.threshold)

    def _raise_across(self, ours: Indices, theirs: Indices, ncc: Floats) -> None:
        at = ncc.argmax(axis=1)
        best = ncc[np.arange(len(ours)), at]
        better = best > self.across[ours]
        self.across[ours[better]] = best[better]
        self.duplicate[ours[better]] = theirs[at[better]]

    def _choose(self, later: Indices, earlier: Indices, near: Flags) -> None:
        """Mark images that repeat an earlier one which itself repeats none."""
        if later is not earlier:
            self.repeats[later] |= near[:, ~self.repeats[earlier]].any(axis=1)
            return
        repeats = self.repeats[later]
        for row in np.flatnonzero(near.any(axis=1)):
            repeats[row] |= bool((near[row, :row] & ~repeats[:row]).any())
        self.repeats[later] = repeats

    def _join(self, first: Indices, second: Indices) -> None:
        """Merge the groups of pairs; the pairs themselves are not kept."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not len(first):
            return
        n = len(self.group)
        links = np.unique(np.stack([self.group[first], self.group[second]]), axis=1)
        graph = coo_array((np.ones(links.shape[1], bool), (links[0], links[1])), shape=(n, n))
        merged = connected_components(graph, directed=False)[1]
        self.group = merged[self.group]

    def result(self) -> Scan:
        return Scan(
            across=self.across,
            duplicate=self.duplicate,
            other_patient=self.other_patient,
            within=self.within,
            group=codes(self.group.tolist()),
            distinct=~self.repeats,
            threshold=self.threshold,
        )


def _blocks(is_test: Flags, size: int) -> Iterator[Indices]:
    """Yield indices block by block, the fitted side first; no block holds both sides."""
    for side in (~is_test, is_test):
        index = np.flatnonzero(side)
        for at in range(0, len(index), size):
            yield index[at : at + size]


def _constants(pixels: Pixels) -> NDArray[np.float64]:
    """Return each constant image's value, and NaN for the others."""
    value = [float(x.flat[0]) if x.min() == x.max() else np.nan for x in pixels]
    return np.array(value, dtype=np.float64)


def _raise(target: Floats, at: Indices, value: Floats) -> None:
    """Raise ``target`` at distinct places to ``value`` where that is larger."""
    target[at] = np.maximum(target[at], value)
