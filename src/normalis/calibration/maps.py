"""Anomaly maps -> calibrated maps: each place is judged by what normal images have there.

The largest value of a raw map is a poor judge of an image. A light strip in a black margin, the
tip of a nose at the edge of the field of view, or the edge of a network's padding can be fifty
times as high as a tumour, and a handful of normal images with such a thing would set the level
above which anything is coloured: no lesion would be. So, with m(u) a map's value at the place u::

    scale(u) = max(typical, local(u))
    x(u)     = m(u) / scale(u)
    map(u)   = smooth( margin(u) · x(u) / (1 + x(u) / 2) )

* ``typical`` is the height that the highest place of a normal image reaches in half of the units
  (patients, volumes, groups of copies; an image where it stands alone);
* ``local`` is the 4-norm of what held-out normal images have at and around the place. Where they
  are much higher than a typical image's highest place, a place counts less, as much as they are;
* one place contributes at most 2, however high it is; what makes an area stand out is its size;
* the outer 5 % of the image counts less, down to nothing at the edge: padding, resampling and the
  field of view end there;
* a Gaussian of one 32nd of the side joins neighbouring places.

**The promise is exact, and costs no image.** A new image is judged by all K held-out units; a
held-out image by the *other* held-out units, so that all are judged by images that they are not
part of. Let P be the K units and a new normal one, exchangeable. If every element of P were judged
by the K others, the rank of the new one among the K + 1 would be uniform. Its own value is just
that. A held-out unit's value here lacks the new unit among its judges; but ``typical`` (an order
statistic counted from above) and ``local`` (a sum over units, always divided by K + 1) can only
grow when a unit is added, and a calibrated map can only fall when they grow. So the held-out
values are at least as high as exchangeable ones, and a level set on them is exceeded no more often
than it says. ``tests/test_map_calibration.py`` shows it on simulated images.

Maps of several methods are on one scale after this, since 1 means the same for all: see `join`.

Place by place standardisation is common (PaDiM: Defard et al., ICPR 2020); leave-one-out scores
with a monotone statistic are the argument of the jackknife+ and of full conformal prediction
(Barber, Candès, Ramdas and Tibshirani, Annals of Statistics 49, 2021; Vovk, Gammerman and Shafer,
2005) where no inequality is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError, SettingsError
from normalis.errors.arguments import check_kind

__all__ = ["BOUND", "MapScale", "MapSettings", "border", "fit_map_scale", "join"]

#: No place of a calibrated map is higher.
BOUND = 2.0
_POWER = 4  # of `local`: heavy tails weigh, as they do in a maximum
_TINY = 1e-12  # a map that is zero everywhere has no scale

Maps = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """What does not depend on images.

    Attributes:
        left_out: share of the side at each edge that counts nothing, in [0, 0.4].
        taper: share of the side over which, from there inwards, a place comes to count fully.
        smoothing: standard deviation of the Gaussian, as a share of the side.
        around: standard deviation of the Gaussian that joins normal images' neighbouring places.
    """

    left_out: float = 0.0
    taper: float = 0.05
    smoothing: float = 1 / 32
    around: float = 1 / 32

    def __post_init__(self) -> None:
        for name in ("left_out", "taper", "smoothing", "around"):
            check_kind(name, getattr(self, name), "number")
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(
                    f"{name} must be a share from 0 to 1, got {getattr(self, name)}"
                )
        if not 0 <= self.left_out <= 0.4:
            raise SettingsError(
                "the margin left out of maps must be a share of the image's side from 0 to 0.4, "
                f"got {self.left_out}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class MapScale:
    """What turns a method's maps into calibrated ones. Make it with `fit_map_scale`.

    Attributes:
        scale: (H, W) what a place is measured in.
        settings: margin and smoothing.
    """

    scale: NDArray[np.float64]
    settings: MapSettings

    def apply(self, maps: ArrayLike) -> Maps:
        """Return the calibrated map (H, W) of a map, or those (N, H, W) of several.

        Raises:
            MetricError: if the maps have another size, or a value that is not finite.
        """
        return _calibrated(_checked(maps, self.scale.shape), self.scale, self.settings)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        return {"scale": self.scale}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self.settings)

    @classmethod
    def restore(cls, settings: Mapping[str, Any], state: Mapping[str, Any]) -> MapScale:
        """Return what `to_dict` and `state` described.

        Raises:
            SettingsError: if they describe no scale.
        """
        scale = np.asarray(state["scale"], dtype=np.float64)
        if scale.ndim != 2 or not (np.isfinite(scale) & (scale > 0)).all():
            raise SettingsError("a stored scale of maps is damaged; fit again")
        return cls(scale=scale, settings=MapSettings(**settings))


def fit_map_scale(
    maps: ArrayLike, unit: ArrayLike, settings: MapSettings | None = None
) -> tuple[MapScale, Maps]:
    """Learn what normal images have at each place.

    Args:
        maps: (n, H, W) of normal images that the method was not fitted on.
        unit: (n,) patient, volume or group of each image.
        settings: None for the defaults.

    Returns:
        The scale by all units, for new images; and (n, H, W) the calibrated maps of these images,
        each by the units that it is not of: levels and p-values are set on them. Of one unit
        alone, its own.

    Raises:
        MetricError: if there is no image, the lengths differ, or a value is not finite.
    """
    chosen = settings or MapSettings()
    raw = _checked(maps, None)
    member = np.unique(np.asarray(unit), return_inverse=True)[1]
    if raw.ndim != 3 or not len(raw) or member.shape != raw.shape[:1]:
        raise MetricError(
            "calibrating maps needs at least one map and one unit for each, got maps of shape "
            f"{raw.shape} and units of shape {member.shape}"
        )
    count = int(member.max()) + 1
    highest = _highest_by_unit(raw, member, chosen)
    total = np.zeros(raw.shape[1:])
    for k in range(count):
        total += _power_mean(raw[member == k], chosen)
    own = np.empty(raw.shape, np.float32)
    for k in range(count):
        mine = member == k
        others = np.delete(highest, k) if count > 1 else highest
        left = total - _power_mean(raw[mine], chosen) if count > 1 else total
        own[mine] = _calibrated(raw[mine], _scale(left, others, count), chosen)
    return MapScale(scale=_scale(total, highest, count), settings=chosen), own


def join(maps: Sequence[Maps], shape: tuple[int, int]) -> Maps:
    """Return the highest of several methods' calibrated maps at each place.

    The maximum of maps that are each judged by other units is judged by other units too: with the
    held-out images' joined maps it is calibrated as one map is.

    Args:
        maps: one (N, h, w) per method, each of its own size.
        shape: (H, W) of the result.
    """
    highest: Maps = np.max([_resized(one, shape) for one in maps], axis=0)
    return highest


def border(shape: tuple[int, int], share: float = 0.05) -> NDArray[np.bool_]:
    """Return which places (H, W) lie in the outer share of the image, counted from each edge."""
    return _from_edge(shape) < share


def _scale(total: NDArray[Any], highest: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Return max(typical, local); ``highest`` and ``total`` are of all or of all but one unit."""
    rank = min(max(1, count // 2), len(highest))
    typical = np.sort(highest)[::-1][rank - 1]
    local = (np.maximum(total, 0) / (count + 1)) ** (1 / _POWER)
    return np.asarray(np.maximum(np.maximum(typical, local), _TINY))


def _highest_by_unit(
    maps: Maps, member: NDArray[np.intp], settings: MapSettings
) -> NDArray[np.float64]:
    """Return how high the highest place of each unit's images is, on average, smoothed."""
    weighted = _smooth(maps * _margin(maps.shape[1:], settings), settings.smoothing)
    return np.bincount(member, weighted.max(axis=(1, 2))) / np.bincount(member)


def _power_mean(maps: Maps, settings: MapSettings) -> NDArray[np.float64]:
    """Return the mean fourth power (H, W) of a unit's maps, joined with that of places around."""
    mean = (maps.astype(np.float64) ** _POWER).mean(axis=0)
    return np.asarray(_smooth(mean, settings.around), np.float64)


def _calibrated(maps: Maps, scale: NDArray[Any], settings: MapSettings) -> Maps:
    x = maps / scale.astype(np.float32)
    bounded = x / (1 + x / np.float32(BOUND))
    return np.asarray(_smooth(bounded * _margin(maps.shape[-2:], settings), settings.smoothing))


def _smooth(maps: NDArray[Any], share: float) -> NDArray[Any]:
    from scipy.ndimage import gaussian_filter

    height, width = maps.shape[-2:]
    sigma = (*(0,) * (maps.ndim - 2), share * height, share * width)
    return np.asarray(gaussian_filter(maps, sigma, mode="nearest"))


def _margin(shape: tuple[int, ...], settings: MapSettings) -> NDArray[np.float32]:
    inside = _from_edge((shape[-2], shape[-1])) - settings.left_out
    return np.clip(inside / max(settings.taper, _TINY), 0, 1).astype(np.float32)


@cache
def _from_edge(shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return how far each pixel's centre lies from the nearest edge, as a share of that side."""
    along = [np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / n for n in shape]
    found: NDArray[np.float64] = np.minimum(along[0][:, None], along[1][None])
    return found


def _checked(maps: ArrayLike, shape: tuple[int, ...] | None) -> Maps:
    """Return maps as float32 without negative values, which mean nothing anomalous."""
    values = np.asarray(maps, dtype=np.float32)
    if shape is not None and values.shape[-2:] != shape:
        raise MetricError(f"maps must be {shape}, as those calibrated on, got {values.shape}")
    if not np.isfinite(values).all():
        raise MetricError("maps must be finite, got NaN or infinity")
    return np.maximum(values, 0)


def _resized(maps: Maps, shape: tuple[int, int]) -> Maps:
    from PIL import Image

    if maps.shape[1:] == shape:
        return maps
    size = (shape[1], shape[0])
    how = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(one).resize(size, how)) for one in maps])
