"""Several readings of an image -> one surprise, and one p-value that stays exact.

A panel reads each image several times: how unlike the whole image is, and how high its highest
places are. Readings r_v of different kinds have different scales, so each is first measured by what
a *set of images* P has::

    z_v   = (log r_v - median) / spread,      spread: of the upper half, 80 % quantile - median
    z_k   = the mean of z_v over the readings v of one kind k, measured by P in the same way
    g     = (sum_k max(z_k, 0)^3)^(1/3)  +  0.001 sum_k z_k

Readings of one kind err together, so they are averaged: a second copy changes nothing. Kinds are
joined by a 3-norm, near the larger of the two: a disease that one of them cannot see should not be
diluted by it. Nothing saturates: twice as far is more surprising, however far. The last term orders
images that are less surprising than the median.

**The p-value.** Let P be the K held-out units and the new image together, measured by itself: its
medians, its spreads, its g. g is then a symmetric function of P, and if the new image is a normal
one ::

    p = #{a in P : g_P(a) >= g_P(new)} / (K + 1)

is at most alpha with a probability of at most alpha: no held-out image is spent on the scales. This
is full conformal prediction (Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*,
2005) with a scale in place of a model. Of units with several images each image weighs 1 / n_k in
the count, as in `normalis.calibration.conformal`. It is exact where units have one image each, and
for patients as a whole (`panel_patient_p_values`). For one image of a patient who has several, P
holds all images of the held-out patients and one of the new one: what that leaves unequal is one
image's influence on a median of n + 1, and docs/explanation/calibration.md shows that the rates
hold.

The *score* of an image, which ranks images and does not depend on which others are scored with it,
is g by the medians and spreads of the held-out images alone. It orders images as p does, except for
steps of about 1/(K + 1) where the new image itself moves a median.

Sums of ranks or of logarithms of p-values (Fisher, *Statistical Methods for Research Workers*,
1925; Heard and Rubin-Delanchy, Biometrika 105, 2018) end at the largest held-out image: beyond it
all images would tie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError

__all__ = ["JOINED", "Readings", "panel_p_values", "panel_patient_p_values", "surprise"]

Floats = NDArray[np.float64]

#: The name of the reading of several members' maps together.
JOINED = "joined map"

_UPPER, _NORMAL = 0.8, 0.8416212335729143  # a quantile, and the standard normal's
_POWER = 3
_BELOW = 1e-3  # weight of what orders images that surprise nobody
_LEAST = 1e-30  # a reading of 0 has no logarithm
_FLAT = 1e-6  # least spread of a logarithm: a reading that is the same for all
_AT_ONCE = 4_000_000  # numbers sorted at a time: 32 MB
_TIE = 1e-9  # relative: sums in another order differ in the last digit


@dataclass(frozen=True, kw_only=True)
class Readings:
    """The columns of a panel's readings.

    Attributes:
        names: (V,) the member whose reading a column is, or `JOINED`.
        kinds: (V,) kind of each; an empty kind is shown and does not count.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.kinds) or not any(self.kinds):
            raise MetricError(
                "readings need a name and a kind each, and one that counts; got "
                f"{len(self.names)} names and kinds {self.kinds}"
            )

    @property
    def members(self) -> list[int]:
        """Columns that are one member's own."""
        return [i for i, name in enumerate(self.names) if name != JOINED]

    def most_surprised(self, z: Floats) -> list[str]:
        """Return the member that each image surprises most, of z (V, M) of `surprise`."""
        return [self.names[self.members[i]] for i in z[self.members].argmax(0)]

    @property
    def counted(self) -> dict[str, list[int]]:
        """Kind -> columns that count."""
        found: dict[str, list[int]] = {}
        for i, kind in enumerate(self.kinds):
            if kind:
                found.setdefault(kind, []).append(i)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"names": list(self.names), "kinds": list(self.kinds)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Readings:
        """Return what `to_dict` described."""
        return cls(names=tuple(stored["names"]), kinds=tuple(stored["kinds"]))


def surprise(new: ArrayLike, held: ArrayLike, readings: Readings) -> tuple[Floats, Floats]:
    """Return how surprising images are by the scale of held-out images.

    Args:
        new: (V, M) readings.
        held: (V, n) readings of the held-out images.
        readings: what the columns are.

    Returns:
        (M,) g, and (V, M) z of each reading.
    """
    theirs, ours = _logs(new, readings), _logs(held, readings)
    z, z_held = _measured(theirs, ours), _measured(ours, ours)
    kinds = [
        _measured(z[columns].mean(0), z_held[columns].mean(0))
        for columns in readings.counted.values()
    ]
    return _joined(np.stack(kinds)), z


def panel_p_values(
    new: ArrayLike, held: ArrayLike, unit: NDArray[np.int64], readings: Readings
) -> Floats:
    """Return the p-value (M,) of each new image, as if it were the only one.

    Args:
        new: (V, M) readings.
        held: (V, n) readings of the held-out images.
        unit: (n,) number of each one's unit.
        readings: what the columns are.
    """
    theirs, ours = _logs(new, readings), _logs(held, readings)
    weight = np.append(1.0 / np.bincount(unit)[unit], 1.0)
    step = max(1, _AT_ONCE // max(1, ours.size))
    p = np.empty(theirs.shape[1])
    for start in range(0, theirs.shape[1], step):
        some = theirs[:, start : start + step].T  # (B, V)
        held_out = np.broadcast_to(ours, (len(some), *ours.shape))
        g = _of_set(np.concatenate([held_out, some[:, :, None]], axis=2), readings)
        p[start : start + step] = ((g >= _just_below(g[:, -1:])) * weight).sum(1)
    found: Floats = np.minimum(p / round(weight.sum()), 1.0)
    return found


def panel_patient_p_values(
    new: ArrayLike,
    patient: NDArray[np.int64],
    held: ArrayLike,
    unit: NDArray[np.int64],
    readings: Readings,
) -> Floats:
    """Return the p-value of each new patient's most surprising image.

    Args:
        new: (V, M) readings.
        patient: (M,) number of each image's patient, from 0 without a gap.
        held: (V, n) readings of the held-out images.
        unit: (n,) number of each one's unit.
        readings: what the columns are.
    """
    theirs, ours = _logs(new, readings), _logs(held, readings)
    count = int(unit.max(initial=-1)) + 1
    p = np.empty(int(patient.max(initial=-1)) + 1)
    for number in range(p.size):
        mine = theirs[:, patient == number]
        g = _of_set(np.concatenate([ours, mine], axis=1)[None], readings)[0]
        largest = np.full(count + 1, -np.inf)
        np.maximum.at(largest, np.append(unit, np.full(mine.shape[1], count)), g)
        p[number] = np.mean(largest >= _just_below(largest[-1]))
    return p


def _of_set(logs: Floats, readings: Readings) -> Floats:
    """Return g (B, n) of sets of images by their own scales: logs (B, V, n)."""
    z = _measured(logs, logs)
    means = [z[:, columns].mean(1) for columns in readings.counted.values()]
    return _joined(np.stack([_measured(mean, mean) for mean in means]))


def _joined(kinds: Floats) -> Floats:
    """Return g of z (k, ...) by kind."""
    seen = np.maximum(kinds, 0.0)
    top = np.maximum(seen.max(0), _FLAT)  # powers of very large numbers would overflow
    norm = top * ((seen / top) ** _POWER).sum(0) ** (1 / _POWER)
    return np.asarray(norm + _BELOW * kinds.sum(0))


def _measured(values: Floats, by: Floats) -> Floats:
    """Return values (..., M) on the scale of others (..., n)."""
    ranked = np.sort(by, axis=-1)
    middle, upper = (ranked[..., [math.ceil(share * by.shape[-1]) - 1]] for share in (0.5, _UPPER))
    return np.asarray((values - middle) / np.maximum((upper - middle) / _NORMAL, _FLAT))


def _just_below(g: Floats) -> Floats:
    return np.asarray(g - _TIE * np.maximum(np.abs(g), 1.0))


def _logs(values: ArrayLike, readings: Readings) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or len(found) != len(readings.names):
        raise MetricError(
            f"this panel has {len(readings.names)} readings of an image "
            f"({', '.join(readings.names)}), got an array of shape {found.shape}"
        )
    if not np.isfinite(found).all():
        raise MetricError("readings must be finite, got NaN or infinity")
    return np.asarray(np.log(np.maximum(found, _LEAST)))
