"""False-positive rates of groups of patients, lesions found by size, and what maps colour."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.metrics import Interval, find_lesions, lesion_sensitivity, share
from normalis.metrics.pixels import Maps

__all__ = ["highest_in_lesion", "images_coloured", "lesions_found", "rates_by_group"]

_SIZES = (1, 10, 30, 100, 300)  # lower ends of the classes of lesions, in pixels
_MANY = 6  # a numeric column of more values is cut into quarters


def rates_by_group(
    columns: Mapping[str, list[Any]],
    labels: NDArray[np.bool_],
    flags: NDArray[Any] | None,
    member: NDArray[Any],
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, int]]]:
    """Return the false-positive rate of normal images by value of each header column."""
    rates: dict[str, dict[str, Interval]] = {}
    sizes: dict[str, dict[str, int]] = {}
    if flags is None or labels.all():
        return rates, sizes
    for column, values in columns.items():
        names = _binned(values)
        groups = {n: (names == n) & ~labels for n in dict.fromkeys(names.tolist())}
        groups = {n: chosen for n, chosen in groups.items() if chosen.any()}
        if len(groups) > 1:
            rates[column] = {n: share(flags[c], groups=member[c]) for n, c in groups.items()}
            sizes[column] = {n: int(c.sum()) for n, c in groups.items()}
    return rates, sizes


def _binned(values: list[Any]) -> NDArray[Any]:
    """Name each value; cut a numeric column of many values into quarters."""
    known = [v for v in values if v is not None and v == v]  # NaN differs from itself
    numeric = all(isinstance(v, (int, float, np.number)) for v in known)
    if not numeric or len(set(known)) <= _MANY:
        return np.array([str(v) if v is not None and v == v else "unknown" for v in values])
    edges = np.unique(np.quantile(np.array(known, dtype=float), [0, 0.25, 0.5, 0.75, 1]))
    texts = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    places = [
        None if v is None or v != v else int(np.searchsorted(edges[1:-1], v, side="right"))
        for v in values
    ]
    return np.array(["unknown" if p is None else texts[p] for p in places])


def lesions_found(
    maps: Maps | None, masks: Maps | None, level: float | None, member: NDArray[Any]
) -> tuple[Mapping[str, float], ...]:
    """Return lesions found by size at the calibrated level, with intervals by unit."""
    if maps is None or masks is None or level is None:
        return ()
    lesions = find_lesions(maps, masks)
    rows = []
    threshold = _above(level)
    for row in lesion_sensitivity(lesions, threshold=threshold, edges=_SIZES):
        inside = (lesions.size >= row["min_size"]) & (lesions.size < row["max_size"])
        if row["n"]:
            hits = lesions.peak[inside] >= threshold
            one = share(hits, groups=member[lesions.image[inside]])
        else:
            one = Interval.bare(float("nan"), 0)
        rows.append({**row, "low": one.low, "high": one.high, "n_units": one.n_units})
    return tuple(rows)


def images_coloured(
    maps: Maps | None, level: float | None, labels: NDArray[np.bool_], member: NDArray[Any]
) -> dict[str, Interval]:
    """Return the share of normal and of anomalous images with a place above the level."""
    if maps is None or level is None:
        return {}
    coloured = np.array([np.max(one) >= _above(level) for one in maps])
    classes = {"normal": ~labels, "anomalous": labels}
    return {
        name: share(coloured[chosen], groups=member[chosen])
        for name, chosen in classes.items()
        if chosen.any()
    }


def highest_in_lesion(
    maps: Maps | None, masks: Maps | None, member: NDArray[Any]
) -> tuple[Mapping[str, float], ...]:
    """Return how often an image's highest place lies in its lesion, by pixels of its mask."""
    if maps is None or masks is None:
        return ()
    size = np.array([int(np.sum(mask)) for mask in masks])
    pairs = zip(maps, masks, strict=True)
    hit = np.array([bool(np.ravel(mask)[np.argmax(one)]) for one, mask in pairs])
    rows = []
    for low, high in pairwise((*_SIZES, np.inf)):
        chosen = (size >= low) & (size < high)
        if chosen.any():
            one = share(hit[chosen], groups=member[chosen])
            found = {"value": one.value, "low": one.low, "high": one.high, "n_units": one.n_units}
            rows.append({"min_size": low, "max_size": high, "n": int(chosen.sum()), **found})
    return tuple(rows)


def _above(level: float) -> float:
    """A pixel is coloured strictly above the level, as a score is flagged strictly above its."""
    return float(np.nextafter(level, np.inf))
