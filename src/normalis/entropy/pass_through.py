"""Lesion pass-through: how much of a known lesion a reconstruction contains.

    s = ⟨x̂(x + δ) - x̂(x), δ⟩ / ‖δ‖²,     o = ‖x̂(x + δ) - x̂(x) - s δ‖² / ‖δ‖²

s is 0 where the model restores the healthy image and 1 where it rebuilds the lesion; below 0 it
answers a lesion by its opposite. o is the energy of what changes besides, at right angles to δ: a
change that is no part of the lesion. For a projection (PCA) s is the same for every image and
o = s (1 - s).

It makes measurable what Cai, Chen and Cheng (MICCAI 2024), Proposition 2(2), ask of an ideal
autoencoder: that it loses what is no part of normal images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import DataError

__all__ = ["PassThrough", "pass_through"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PassThrough:
    """What a reconstruction does with a lesion, for each of N images.

    Attributes:
        along: (N,) s, the share of the lesion that is rebuilt.
        across: (N,) o, energy of the rest of the change over the lesion's energy.
    """

    along: NDArray[np.float64]
    across: NDArray[np.float64]


def pass_through(healthy: ArrayLike, lesioned: ArrayLike, lesion: ArrayLike) -> PassThrough:
    """Compare reconstructions of the same images without and with a lesion.

    Args:
        healthy: (N, ...) x̂(x).
        lesioned: (N, ...) x̂(x + δ), in the same units.
        lesion: (N, ...) δ, what was added, in the same units.

    Raises:
        DataError: if shapes differ or a lesion is zero everywhere.

    Example:
        >>> x, delta = np.zeros((1, 2)), np.array([[3.0, 4.0]])
        >>> found = pass_through(x, x + 0.5 * delta, delta)
        >>> float(found.along[0]), float(found.across[0])
        (0.5, 0.0)
    """
    before, after, delta = (np.asarray(a, dtype=np.float64) for a in (healthy, lesioned, lesion))
    if not before.shape == after.shape == delta.shape or before.ndim < 2:
        raise DataError(
            f"reconstructions and lesions must all be (N, ...), got {before.shape}, {after.shape} "
            f"and {delta.shape}"
        )
    change, flat = (a.reshape(len(a), -1) for a in (after - before, delta))
    energy = (flat**2).sum(axis=1)
    if not (energy > 0).all():
        raise DataError(f"{int((energy <= 0).sum())} lesions are zero everywhere; leave them out")
    share = (change * flat).sum(axis=1) / energy
    rest = ((change - share[:, None] * flat) ** 2).sum(axis=1) / energy
    return PassThrough(along=share, across=rest)
