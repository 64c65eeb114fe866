"""The panel: several methods that look at an image together, with one score, one map, one p-value.

::

    place     the members whose score is a reading of their map: ae-u, spade
              J_p = exp(sum_m w_m log m_p / sum_m w_m)         the joined map
              r   = mean of the highest 2 % of the places of J, smoothed, less at the border
    whole     the members that judge the image as a whole: feature-knn, feature-gaussian
              r_m = the member's own score

An autoencoder knows how bright a place should be; features of a frozen network know texture and
layout. Where both are surprised at the same place, there is something: a geometric mean asks for
that, and needs no common scale. A member's weight is fixed by what its map is, 1 for a distance and
1/4 for a squared error over its variance, whose tail is long (`AnomalyModel.map_weight`). The
border's margin (5 %) and the smoothing (S / 32) are those of `normalis.calibration.maps`, fixed
too, so that the reading of an image depends on that image alone.

How the readings become one score and one p-value is `normalis.calibration.panel`.

Each member sees images at its own size, made from the one that was decoded; members on the same
network share its pass (`normalis.backbones`). A member that cannot be fitted, of too few images or
of features that never vary, is left out, with its reason in `Panel.left_out`.

What was chosen here was chosen on development sets, with their labels: docs/results.md counts what
was tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from normalis import models, scorers
from normalis.calibration.panel import JOINED, Readings, surprise
from normalis.errors import DataError, SettingsError
from normalis.models.base import AnomalyModel, CompositeModel, DirectModel, ModelSettings
from normalis.scorers.base import Scorer, reduce_map

__all__ = ["MEMBERS", "Panel", "PanelSettings"]

#: The members of the default panel.
MEMBERS = ("ae-u", "feature-knn", "feature-gaussian", "spade")

_GRID = 64  # pixels of a side of the joined map, at most
_READING = "top:0.02"
_MARGIN = 0.05  # share of the side over which a place comes to count fully
_SMOOTHING = 1 / 32  # of the side
_LEAST = 1e-12  # a map of 0 has no logarithm
_KEPT = "normal_readings"


@dataclass(frozen=True, kw_only=True)
class PanelSettings(ModelSettings):
    """Settings of a panel.

    Args:
        image_size: side S at which images are decoded; members make their own size from it.
        members: methods, joined by ``+``.
        backbone: of the members on features; empty for their own.
    """

    image_size: int = 128
    members: str = "+".join(MEMBERS)
    backbone: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            if name == "panel" or not name:
                raise SettingsError(f"members must be methods joined by +, got {self.members!r}")
            models.model_class(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The methods."""
        return tuple(self.members.split("+"))


class Panel(CompositeModel):
    """Several methods with one map and one score."""

    Settings: ClassVar[type[ModelSettings]] = PanelSettings
    has_latent = True  # of its members that are networks

    def __init__(self, settings: PanelSettings) -> None:
        self.settings: PanelSettings = settings
        self.left_out: dict[str, str] = {}
        self.arrays: dict[str, Tensor] = {}
        self._members: dict[str, tuple[AnomalyModel, Scorer]] = {}
        for number, name in enumerate(settings.names):
            key = name if settings.names.count(name) == 1 else f"{name} {number + 1}"
            cls = models.model_class(name)
            self._members[key] = self._built(name), scorers.build(scorers.default_scorer(cls))
        for _, scorer in self._members.values():
            if scorer.needs_fit:
                raise SettingsError(f"no member of a panel may need a fitted scorer: {scorer}")

    def _built(self, name: str) -> AnomalyModel:
        s, cls = self.settings, models.model_class(name)
        options: dict[str, Any] = dict(cls.default_options)
        if s.backbone and "backbone" in cls.Settings.__dataclass_fields__:
            options["backbone"] = s.backbone
        side = min(cls.default_image_size(options), s.image_size)
        width = {"latent_dim": s.latent_dim} if cls.has_latent else {}
        return models.build(name, image_size=side, channels=s.channels, **width, **options)

    # --- its members ---

    def parts(self) -> Mapping[str, AnomalyModel]:
        """Return the members by name."""
        return {name: model for name, (model, _) in self._members.items()}

    def seen_by_part(self, name: str, x: Tensor) -> Tensor:
        """Return images (B, C, S, S) of any range at the size that a member sees."""
        side = self._members[name][0].settings.image_size
        if side == x.shape[-1]:
            return x
        return F.interpolate(
            x, size=(side, side), mode="bilinear", antialias=True, align_corners=False
        )

    def leave_out(self, name: str, reason: str) -> None:
        """Go on without a member.

        Raises:
            DataError: if it is the last one.
        """
        del self._members[name]
        self.left_out[name] = reason
        if not self._members:
            reasons = "; ".join(f"{who}: {why}" for who, why in self.left_out.items())
            raise DataError(f"no member of the panel could be fitted: {reasons}")
        names = [key.partition(" ")[0] for key in self._members]
        self.settings = replace(self.settings, members="+".join(names))

    @property
    def _places(self) -> list[str]:
        return [name for name, (model, _) in self._members.items() if not model.judges_whole]

    @property
    def readings(self) -> Readings:
        """What the columns of `read` are."""
        places = self._places
        names, kinds = list(places), ["place" if len(places) == 1 else ""] * len(places)
        if len(places) > 1:
            names, kinds = [JOINED, *names], ["place", *kinds]
        whole = [name for name in self._members if name not in places]
        return Readings(names=(*names, *whole), kinds=(*kinds, *["whole"] * len(whole)))

    # --- what it says of images ---

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the readings (V, B) of images (B, C, S, S) in [-1, 1], and the maps (B, S, S)."""
        whole, places, maps, weights = [], [], [], []
        for name, (model, scorer) in self._members.items():
            score, shown = scorer.read(model, self.seen_by_part(name, x), maps=name in self._places)
            if shown is None:
                whole.append(score)
                continue
            places.append(score)
            maps.append(shown)
            weights.append(model.map_weight)
        if not maps:  # the members have maps of their own, if no map that they are read by
            maps = [m.anomaly_map(self.seen_by_part(k, x)) for k, (m, _) in self._members.items()]
            weights = [1.0] * len(maps)
        joined = _joined(maps, weights, min(_GRID, x.shape[-1]))
        if len(places) > 1:
            places.insert(0, reduce_map(_read_of(joined), _READING))
        readings = torch.stack([value.double() for value in (*places, *whole)])
        return readings, _resized(joined, x.shape[-1])

    def referred(self, readings: NDArray[np.float64]) -> Self:
        """Return the same panel, which measures by the readings (V, n) of normal images."""
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))
        other.arrays = {_KEPT: torch.from_numpy(np.array(readings, np.float64))}
        return other

    def surprise(self, readings: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the score (B,) of readings (V, B), zeros before it has any to measure by."""
        if _KEPT not in self.arrays:
            return np.zeros(readings.shape[1])
        known = np.isfinite(readings).all(0)  # an image far from all others may overflow a member
        scores = np.full(readings.shape[1], np.nan)
        held = self.arrays[_KEPT].cpu().numpy()
        scores[known] = surprise(readings[:, known], held, self.readings)[0]
        return scores

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the score (B,)."""
        return self.score_and_map(x)[0]

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the joined map (B, S, S)."""
        return self.read(x)[1]

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and joined maps (B, S, S)."""
        readings, joined = self.read(x)
        return torch.from_numpy(self.surprise(readings.cpu().numpy())).to(x.device), joined

    def reconstruct(self, x: Tensor) -> Tensor | None:
        """Return what the first member that rebuilds images makes of x, at the size of x."""
        for name, (model, _) in self._members.items():
            rebuilt = model.reconstruct(self.seen_by_part(name, x))
            if rebuilt is not None:
                return _resized(rebuilt, x.shape[-1])
        return None

    def similar(self, x: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
        """Return the numbers (B, k) of the most similar normal images and their distances.

        None if no member knows them.
        """
        name = self._names_similar
        if name is None:
            return None
        found: tuple[Tensor, Tensor] = self._similar(name).similar(self.seen_by_part(name, x), k)
        return found

    @property
    def kept_images(self) -> Tensor | None:
        """Numbers (M,) of the images that `similar` can name, ascending; None if none."""
        name = self._names_similar
        return None if name is None else self._similar(name).kept_images

    @property
    def _names_similar(self) -> str | None:
        """The first member that knows which normal images are most similar."""
        return next((k for k, (m, _) in self._members.items() if hasattr(m, "similar")), None)

    def _similar(self, name: str) -> Any:
        return self._members[name][0]

    # --- state ---

    def state(self) -> dict[str, Tensor]:
        """Return the arrays of all members, each after its number."""
        found = dict(self.arrays)
        for number, (model, _) in enumerate(self._members.values()):
            found |= {f"{number}.{k}": v for k, v in model.state().items()}
        return found

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the arrays of `state`."""
        self.arrays = {k: v for k, v in state.items() if k == _KEPT}
        for number, (model, _) in enumerate(self._members.values()):
            mine = f"{number}."
            own = {k.removeprefix(mine): v for k, v in state.items() if k.startswith(mine)}
            model.load_state(own)
            if isinstance(model, torch.nn.Module):
                model.eval()

    def to(self, device: torch.device | str) -> Self:
        """Move the members to a device; return self."""
        for model, _ in self._members.values():
            if isinstance(model, torch.nn.Module):
                model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            elif isinstance(model, DirectModel):
                model.to(device)
        return self


def _joined(maps: Sequence[Tensor], weights: Sequence[float], side: int) -> Tensor:
    """Return the weighted geometric mean of maps (B, h, w) at a common side."""
    logs = [_resized(m.float(), side).clamp_min(_LEAST).log() for m in maps]
    total = torch.stack([w * one for w, one in zip(weights, logs, strict=True)]).sum(0)
    return (total / sum(weights)).exp()


def _read_of(joined: Tensor) -> Tensor:
    """Return maps (B, h, h) with less at the border, smoothed."""
    side = joined.shape[-1]
    along = (torch.arange(side, device=joined.device) + 0.5) / side
    inside = (torch.minimum(along, 1 - along) / _MARGIN).clamp(max=1)
    return _smoothed(joined * torch.minimum(inside[:, None], inside[None]), _SMOOTHING * side)


def _smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Return maps (B, h, w) after a Gaussian, the border's values continued beyond it."""
    reach = math.ceil(4 * sigma)
    steps = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    weight = (-0.5 * (steps / sigma).square()).exp()
    weight = weight / weight.sum()
    x = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    x = F.conv2d(x, weight.view(1, 1, 1, -1))
    return F.conv2d(x, weight.view(1, 1, -1, 1))[:, 0]


def _resized(maps: Tensor, side: int) -> Tensor:
    """Bring maps (B, h, w) or images (B, C, h, w) to a side, bilinearly."""
    if maps.shape[-1] == side:
        return maps
    flat = maps[:, None] if maps.dim() == 3 else maps
    out = F.interpolate(
        flat, size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return out[:, 0] if maps.dim() == 3 else out
