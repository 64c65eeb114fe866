"""Which training image a test image shows, moved by a few pixels.

The magnitude of a Fourier transform does not change when the picture moves, so candidates are the
images with the most similar log-magnitude spectrum; phase correlation then finds the shift, and the
ncc of the overlap, at the best half pixel, decides.

Reference: Kuglin and Hines, "The phase correlation image alignment method" (1975).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.duplicates.inside import SAME_INSIDE, Fine
from normalis.duplicates.scan import unit_rows

__all__ = ["find_shifted"]

_BLOCK = 2048
_FREQUENCIES = 16  # of 32 at 64 x 64: the upper half is mostly the codec's and the resampling's
_CANDIDATES = 3
_MIN_SPECTRUM = 0.85  # spectra of unrelated images of one kind correlate up to about 0.84
_MAX_SHIFT = 4
_PERFECT = 0.999  # from here on the whole image says enough

Pixels = NDArray[Any]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def find_shifted(
    test: Pixels,
    train: Pixels,
    *,
    patients: tuple[Indices, Indices] | None = None,
    fine: tuple[Fine, Fine] | None = None,
    block: int = _BLOCK,
) -> tuple[Floats, Indices]:
    """Find the training image that a test image shows, moved by up to four pixels.

    Args:
        test: (N, S, S) images.
        train: (M, S, S) images.
        patients: numbers of the patients of both, -1 where unknown; pairs of different known
            patients are left out.
        fine: of both, of `fine_detail`; pairs that differ in it are left out.
        block: rows per matrix product.

    Returns:
        (N,) highest ncc of the overlap, -1 where no candidate has a similar spectrum, and (N,)
        index of that training image, -1 likewise.
    """
    value, index = _candidates(test, train, patients, block)
    row, place = np.nonzero(value >= _MIN_SPECTRUM)
    col = index[row, place]
    ncc = _align(test, train, row, col)
    if fine is not None:
        shape = test.shape[1:]
        details = [x.reshape(-1, *shape).astype(np.float32) for x in fine]
        inside = _align(test, train, row, col, compare=(details[0], details[1]))
        known = np.any(fine[0][row], axis=1) & np.any(fine[1][col], axis=1)
        ncc[known & (inside < SAME_INSIDE) & (ncc < _PERFECT)] = -1
    best = np.full(len(test), -1, np.float32)
    duplicate = np.full(len(test), -1)
    order = np.argsort(ncc)  # of several writes to one place the last, and largest, stays
    best[row[order]], duplicate[row[order]] = ncc[order], col[order]
    return best, duplicate


def _spectra(x: Pixels, block: int) -> Floats:
    """Return unit rows of log-magnitude spectra, which a shift hardly changes."""
    k = min(_FREQUENCIES, min(x.shape[1:]) // 2 - 1)
    parts = [np.empty((0, (2 * k + 1) * (k + 1)), np.float32)]
    for at in range(0, len(x), block):
        f = np.log1p(np.abs(_transform(x[at : at + block])[:, :, : k + 1]))
        parts.append(unit_rows(np.concatenate([f[:, : k + 1], f[:, -k:]], axis=1)))
    return np.concatenate(parts)


def _transform(x: Pixels) -> NDArray[np.complexfloating]:
    """Return the Fourier transform under a Hann window, which hides the edges' jump."""
    from scipy.fft import rfft2

    x = np.asarray(x, np.float32)
    window = np.outer(np.hanning(x.shape[1]), np.hanning(x.shape[2])).astype(np.float32)
    found: NDArray[np.complexfloating] = rfft2((x - x.mean(axis=(1, 2), keepdims=True)) * window)
    return found


def _candidates(
    test: Pixels, train: Pixels, patients: tuple[Indices, Indices] | None, block: int
) -> tuple[Floats, Indices]:
    """Return correlation and index of the training images with the most similar spectra."""
    ours, theirs = _spectra(test, block), _spectra(train, block)
    best = np.full((len(test), _CANDIDATES), -1, np.float32)
    index = np.zeros((len(test), _CANDIDATES), np.int64)
    for at in range(0, len(test), block):
        here = slice(at, at + block)
        for start in range(0, len(train), block):
            value = ours[here] @ theirs[start : start + block].T
            if patients is not None:
                a, b = patients[0][here, None], patients[1][start : start + block]
                value[(a != b) & (a >= 0) & (b >= 0)] = -1
            both = np.concatenate([best[here], value], axis=1)
            top = np.argpartition(both, -_CANDIDATES, axis=1)[:, -_CANDIDATES:]
            known = np.take_along_axis(index[here], np.minimum(top, _CANDIDATES - 1), axis=1)
            index[here] = np.where(top < _CANDIDATES, known, top - _CANDIDATES + start)
            best[here] = np.take_along_axis(both, top, axis=1)
    return best, index


def _align(
    test: Pixels,
    train: Pixels,
    row: Indices,
    col: Indices,
    compare: tuple[Pixels, Pixels] | None = None,
) -> Floats:
    """Return the ncc of each pair's overlap after the shift that phase correlation finds.

    Args:
        test: images.
        train: images.
        row: of the test image of each pair.
        col: of its training image.
        compare: images to correlate in place of those that the shift is found by.
    """
    ours, theirs = compare or (test, train)
    out = np.full(len(row), -1, np.float32)
    for at in range(0, len(row), 512):
        first, second = row[at : at + 512], col[at : at + 512]
        dy, dx = _shifts(test[first], train[second])
        for y, x in np.unique(np.stack([dy, dx]), axis=1).T:
            same = np.flatnonzero((dy == y) & (dx == x))
            a, b = ours[first[same]], theirs[second[same]]
            out[at + same] = _best_half(_overlap(a, y, x), _overlap(b, -y, -x))
    return out


def _best_half(a: Pixels, b: Pixels) -> Floats:
    """Return the ncc of each pair after the best shift of b by half a pixel or none.

    A shift by whole pixels of a large file is a broken one after resizing.
    """
    ours = unit_rows(a[:, 1:-1, 1:-1])
    best = np.full(len(a), -1, np.float32)
    b = np.asarray(b, np.float32)
    for y, x in itertools.product((-1, 0, 1), repeat=2):
        down = (b + np.roll(b, y, axis=1)) / 2  # the mean of two neighbours lies between them
        moved = (down + np.roll(down, x, axis=2)) / 2
        theirs = unit_rows(moved[:, 1:-1, 1:-1])  # what rolled over the edge is cut off
        np.maximum(best, (ours * theirs).sum(axis=1), out=best)
    return best


def _shifts(a: Pixels, b: Pixels) -> tuple[Indices, Indices]:
    """Return by how many rows and columns each a lies below and right of b."""
    from scipy.fft import irfft2

    cross = _transform(a) * np.conj(_transform(b))
    cross /= np.maximum(np.abs(cross), 1e-9)
    peak = irfft2(cross, s=a.shape[1:])
    m, width = _MAX_SHIFT, 2 * _MAX_SHIFT + 1
    peak = np.roll(peak, (m, m), axis=(1, 2))[:, :width, :width].reshape(len(a), -1)
    dy, dx = np.divmod(peak.argmax(axis=1), width)
    return dy - m, dx - m


def _overlap(x: Pixels, dy: int, dx: int) -> Pixels:
    """Return the part of images shifted by (dy, dx) that shows what the unshifted ones show."""
    height, width = x.shape[1:]
    rows = slice(max(dy, 0), height + min(dy, 0))
    return x[:, rows, slice(max(dx, 0), width + min(dx, 0))]
