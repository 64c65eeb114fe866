"""Where an estimate means something, and what happens outside: NaN and a warning, never a number.

An entropy estimator always returns a figure, also where the figure says nothing: a k-nearest-
neighbour entropy of 64 dimensions from 1,000 images looks like any other. The estimators of this
package state their limits in their docstrings and enforce them here. A *malformed* argument (a
wrong shape, a NaN) is a mistake of the caller and raises; data *outside the limits* are a fact
about the data, and a table of many estimates should survive it.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import DataError, SettingsError

__all__ = ["ValidityWarning", "as_matrix", "positive", "undefined"]


class ValidityWarning(UserWarning):
    """An estimate was asked for outside its limits; NaN was returned, or the caveat is told."""


def undefined(reason: str) -> float:
    """Warn that an estimate is outside its limits, and return NaN in its place.

    Args:
        reason: what must hold, what was given, and what to do.
    """
    warnings.warn(reason, ValidityWarning, stacklevel=3)
    return math.nan


def as_matrix(x: ArrayLike, name: str = "x") -> NDArray[np.float64]:
    """Return samples as a finite (N, d) float64 array with N >= 2; a vector counts as (N, 1).

    Raises:
        DataError: if the shape is another, or a value is not finite.
    """
    matrix = np.asarray(x, dtype=np.float64)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or len(matrix) < 2 or matrix.shape[1] < 1:
        raise DataError(f"{name} must be (N, d) with N >= 2, got shape {np.shape(x)}")
    if not np.isfinite(matrix).all():
        raise DataError(f"{name} must be finite, got NaN or infinity; leave such rows out")
    return matrix


def positive(value: float, name: str) -> float:
    """Return a setting that must be a finite number above zero.

    Raises:
        SettingsError: if it is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise SettingsError(f"{name} must be a finite number above 0, got {value}")
    return float(value)
