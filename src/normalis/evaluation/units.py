"""Which test images are independent of each other, and comparisons that respect it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import DataError, MetricError
from normalis.loading.units import connected
from normalis.metrics import Comparison, auroc, delong, paired_bootstrap

__all__ = ["compare", "independent_units"]


def independent_units(*namings: Sequence[Any] | None) -> NDArray[np.int64]:
    """Number the groups of images that no naming separates.

    Args:
        *namings: (N,) names such as patients, or groups of duplicates; two images with one name
            belong together, and so do their groups. An entry None joins nothing; None for a whole
            naming that is unknown.

    Returns:
        (N,) numbers from 0.

    Raises:
        MetricError: if no naming is given or their lengths differ.

    Example:
        >>> independent_units(["a", "a", "b", None], [None, 1, 1, None]).tolist()
        [0, 0, 0, 1]
    """
    try:
        return connected(*namings)
    except DataError as error:
        raise MetricError(str(error)) from error


def compare(
    first: ArrayLike,
    second: ArrayLike,
    is_anomalous: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare the AUROC of two methods on the same images.

    DeLong's test if all images are independent, else a paired bootstrap of whole groups.

    Raises:
        MetricError: if a class is empty or the input is refused.
    """
    if groups is None or np.unique(np.asarray(groups)).size == np.asarray(groups).size:
        return delong(first, second, is_anomalous)
    return paired_bootstrap(auroc, first, second, is_anomalous, groups=groups, seed=seed)
