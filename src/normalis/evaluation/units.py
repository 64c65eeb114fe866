"""Which test images are independent of each other, and comparisons that respect it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError
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
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    given = [list(n) for n in namings if n is not None]
    if not given or len({len(n) for n in given}) != 1:
        raise MetricError(
            f"groups need names of equal length, got lengths {[len(n) for n in given]}"
        )
    size = len(given[0])
    rows, columns, nodes = [], [], size
    for naming in given:
        number: dict[str, int] = {}
        for image, name in enumerate(naming):
            if name is not None:
                rows.append(image)
                columns.append(number.setdefault(str(name), nodes + len(number)))
        nodes += len(number)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(nodes, nodes))
    member = connected_components(graph, directed=False)[1][:size]
    _, first, inverse = np.unique(member, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


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
