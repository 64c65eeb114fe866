"""Scores that know nothing of medicine: what a method must beat before its AUROC means anything.

A class difference that one of these functions can read (a brighter scanner, a file of another
size, an image that also lies in the training set) is a confound: a method may live on it. All are
pure functions of arrays; none sees a label, and nothing is tuned. Larger means more anomalous,
though for `mean_intensity`, `contrast` and `foreground_area` either direction is a fair question,
and `pixel_scores` therefore gives both.

For a flattened image x and training images with mean m, principal directions W::

    mean image     mean (x - m)^2
    PCA            mean ((I - W W^T) (x - m))^2
    nearest        min over training images y of mean (x - y)^2

Reference: Bishop, "Pattern Recognition and Machine Learning" (2006), section 12.1 (PCA); Otsu,
"A threshold selection method from gray-level histograms" (1979).
"""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError

__all__ = [
    "contrast",
    "foreground_area",
    "foreground_threshold",
    "mean_image_residual",
    "mean_intensity",
    "nearest_training",
    "pca_residual",
    "pixel_scores",
    "property_scores",
]

_BLOCK = 1024  # rows per matrix product: 1024 x 1024 float32 products take 4 MiB
_FITTED = 2500  # images that PCA is fitted on, at least, where there are more
_FEW = 10  # values of a number that may as well be names
_MAX_BITS = 4  # most common values of one property that become a score each


def mean_intensity(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of each image.

    Args:
        x: (N, ...) images; ``uint8`` counts as [0, 1].

    Returns:
        (N,) means.
    """
    return _by_block(x, lambda rows: rows.mean(axis=1, dtype=np.float64))


def contrast(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return the standard deviation of each image of ``x``, (N, ...) -> (N,)."""
    return _by_block(x, lambda rows: rows.std(axis=1, dtype=np.float64))


def foreground_threshold(train: NDArray[Any]) -> float:
    """Return Otsu's threshold of the training images' intensities, in [0, 1] units.

    Args:
        train: (N, ...) images; a thousand, evenly spread, are enough for a histogram.
    """
    every = max(1, len(train) // 1000)
    return _otsu_threshold(_rows(train[::every]))


def _otsu_threshold(values: NDArray[Any], *, bins: int = 256) -> float:
    """Return the threshold that parts values into two classes of least variance within each.

    Otsu: A threshold selection method from gray-level histograms. IEEE Transactions on Systems,
    Man, and Cybernetics 9(1), 1979; the centre of a bin, as scikit-image has it.

    Args:
        values: of any shape; equal values are their own threshold.
        bins: of the histogram between the least and the largest value.
    """
    least, most = float(values.min()), float(values.max())
    if least == most:
        return least
    counts, edges = np.histogram(values, bins=bins, range=(least, most))
    centres = (edges[1:].astype(np.float64) + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    sums = np.cumsum(counts * centres)
    mean_below = sums / below
    mean_above = np.cumsum((counts * centres)[::-1])[::-1] / above
    between = below[:-1] * above[1:] * np.square(mean_below[:-1] - mean_above[1:])
    return float(centres[int(np.argmax(between))])


def foreground_area(x: NDArray[Any], *, threshold: float) -> NDArray[np.float64]:
    """Return the share of pixels of each image that are brighter than ``threshold``, in [0, 1]."""
    return _by_block(x, lambda rows: (rows > threshold).mean(axis=1, dtype=np.float64))


def mean_image_residual(x: NDArray[Any], train: NDArray[Any]) -> NDArray[np.float64]:
    """Return each image's mean squared distance from the mean training image."""
    mean = _mean_image(train)
    return _by_block(x, lambda rows: np.square(rows - mean).mean(axis=1, dtype=np.float64))


def pca_residual(
    x: NDArray[Any], train: NDArray[Any], *, components: int = 16, seed: int = 0
) -> NDArray[np.float64]:
    """Return the mean squared residual of each image outside the leading principal directions.

    Args:
        x: (N, ...) images.
        train: (M, ...) training images of the same shape.
        components: number of directions kept; fewer where ``train`` has fewer images or pixels.
        seed: of the randomised solver.

    Returns:
        (N,) residuals.
    """
    from sklearn.decomposition import PCA

    # A few thousand images determine 16 directions; more only cost time and memory.
    rows = _rows(train[:: max(1, len(train) // _FITTED)])
    count = min(components, *rows.shape)
    pca = PCA(n_components=count, svd_solver="randomized", random_state=seed).fit(rows)

    def residual(block: NDArray[np.float32]) -> NDArray[np.float64]:
        centred = block - pca.mean_
        inside = centred @ pca.components_.T @ pca.components_
        found: NDArray[np.float64] = np.square(centred - inside).mean(axis=1, dtype=np.float64)
        return found

    return _by_block(x, residual)


def nearest_training(
    x: NDArray[Any], train: NDArray[Any], *, block: int = _BLOCK
) -> NDArray[np.float64]:
    """Return each image's mean squared distance from its nearest training image.

    Args:
        x: (N, ...) images.
        train: (M, ...) training images of the same shape.
        block: rows per matrix product; memory grows with its square, not with M.

    Returns:
        (N,) distances. A copy's is 0 up to float32 rounding.
    """
    mean = _mean_image(train)  # centring keeps the difference of large numbers below accurate
    best = np.full(len(x), np.inf)
    for start in range(0, len(train), block):
        theirs = _rows(train[start : start + block]) - mean
        theirs_norm = np.square(theirs).sum(axis=1)
        for at in range(0, len(x), block):
            ours = _rows(x[at : at + block]) - mean
            squared = np.square(ours).sum(axis=1)[:, None] + theirs_norm - 2 * ours @ theirs.T
            here = best[at : at + block]
            np.minimum(here, squared.min(axis=1), out=here)
    found: NDArray[np.float64] = np.maximum(best, 0.0) / mean.size
    return found


def pixel_scores(x: NDArray[Any], train: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return every baseline score that reads pixels.

    Args:
        x: (N, ...) test images, ``uint8`` or float with nominal range [0, 1].
        train: (M, ...) normal training images of the same shape and range.

    Returns:
        Name -> (N,) scores. The three without a natural direction come twice, as ``NAME`` and as
        ``NAME_reversed`` (its negative).

    Raises:
        DataError: if the shapes differ, or there is no training image.
    """
    if not len(train) or x.shape[1:] != train.shape[1:]:
        raise DataError(
            "baseline scores need training images of the test images' shape, got "
            f"{len(train)} training images of shape {train.shape[1:]} and test images of shape "
            f"{x.shape[1:]}; load both with the same settings"
        )
    both = {
        "mean_intensity": mean_intensity(x),
        "contrast": contrast(x),
        "foreground_area": foreground_area(x, threshold=foreground_threshold(train)),
    }
    scores = {}
    for name, value in both.items():
        scores[name] = value
        scores[f"{name}_reversed"] = -value
    scores["mean_image_residual"] = mean_image_residual(x, train)
    scores["pca16_residual"] = pca_residual(x, train)
    scores["nearest_training"] = nearest_training(x, train)
    return scores


def property_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Return scores that read only what a file's header, listing or size says.

    A numeric property is a score as it is (missing values become the median). Each of the most
    common values of a text, or of a number that takes ten values at most, is one bit,
    ``PROPERTY=VALUE``. Properties that are the same for all images, and values that nearly never
    or nearly always occur, say nothing and are left out.

    Args:
        rows: one mapping per image, property -> value; keys may be missing.

    Returns:
        Name -> (N,) scores, without regard to direction.
    """
    names = dict.fromkeys(key for row in rows for key in row)
    scores: dict[str, NDArray[np.float64]] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        distinct = len(set(map(_text, values)))
        if distinct < 2:
            continue
        numeric = _numeric(values)
        if numeric is not None:
            scores[name] = numeric
        if numeric is None or distinct <= _FEW:
            scores.update(_bits(name, values))
    return scores


def _bits(name: str, values: Sequence[Any]) -> dict[str, NDArray[np.float64]]:
    """Return one indicator for each common value; of two values one says it all."""
    texts = np.array([_text(value) for value in values])
    least = max(2, round(0.01 * len(values)))
    common = [(text, n) for text, n in Counter(texts.tolist()).most_common(_MAX_BITS) if n >= least]
    if len(common) == 2 and common[0][1] + common[1][1] == len(values):
        common = common[1:]
    bits = {f"{name}={text}": (texts == text).astype(np.float64) for text, _ in common}
    return {key: bit for key, bit in bits.items() if len(values) - bit.sum() >= least}


def _numeric(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """Return the values as numbers, gaps filled by the median; None if most are not numbers."""
    is_number = [isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values]
    if 2 * sum(is_number) <= len(values):
        return None
    found = [float(v) if ok else np.nan for v, ok in zip(values, is_number, strict=True)]
    column = np.array(found, dtype=np.float64)
    column[~np.isfinite(column)] = np.nan
    if np.isnan(column).all():
        return None
    return np.where(np.isnan(column), np.nanmedian(column), column)


def _text(value: Any) -> str:
    """Return a value as the short text that a table shows."""
    if value is None:
        return "missing"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rows(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return images as float32 rows; 8-bit values become [0, 1]."""
    rows = np.asarray(x).reshape(len(x), -1).astype(np.float32)
    return rows / np.float32(255) if x.dtype == np.uint8 else rows


def _by_block(x: NDArray[Any], score: Any) -> NDArray[np.float64]:
    """Apply a function of float rows block by block, so that memory does not grow with N."""
    parts = [score(_rows(x[at : at + _BLOCK])) for at in range(0, len(x), _BLOCK)]
    return np.concatenate(parts) if parts else np.empty(0)


def _mean_image(train: NDArray[Any]) -> NDArray[np.float32]:
    """Return the mean of the training images, (pixels,)."""
    total = np.zeros(int(np.prod(train.shape[1:])))
    for at in range(0, len(train), _BLOCK):
        total += _rows(train[at : at + _BLOCK]).sum(axis=0, dtype=np.float64)
    return (total / len(train)).astype(np.float32)
