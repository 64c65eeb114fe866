"""The distance to the most similar normal images, by pooled features of a frozen network.

    v = mean over places of a, b, c, g,    score = mean_j |(v - v_j) / s|,    j = 1 .. k nearest

A frozen network trained on photographs turns an image into 496 numbers: the mean of each feature
of four taps. s is each number's spread over normal images. No training loop: a pass over the
normal images, which are kept as numbers (2 kB an image).

The map says where the distance comes from. With u_j the direction from v_j to v, the distance is
the mean over places p of (f_p - v_j) u_j, an exact sum; its negative parts, places that make the
image more alike, are shown as 0, and taps are resized. It is an attribution, not a detector of
small lesions: `spade` compares place by place.

Reference: Bergman, Cohen and Hoshen, "Deep nearest neighbor anomaly detection", arXiv:2002.10445
(2020); Tan and Le, "EfficientNet", ICML 2019, for the network.

Use: on radiographs and wherever the whole image looks unlike, first of all methods on features;
blind to lesions that change few places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from normalis.errors import DataError
from normalis.models.base import Footprint, check_at_least
from normalis.models.features import BATCH, FeatureModel, FeatureSettings, random_subset, resized

__all__ = ["FeatureKNN", "FeatureKNNSettings", "nearest"]

_CHUNK = 4096  # kept images per step of a search, so that memory stays flat
_SPARE = 8  # candidates beyond k, so that rounding loses none
_FLAT = 1e-6  # added to a spread: a feature that never varies


@dataclass(frozen=True, kw_only=True)
class FeatureKNNSettings(FeatureSettings):
    """Settings of the nearest normal images by pooled features.

    Args:
        neighbours: k, over which the distance is averaged.
    """

    neighbours: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, neighbours=self.neighbours)


def nearest(v: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of a bank, nearest first: distances and numbers, (B, k) each.

    Candidates are found by products, which are fast and lose the digits of small distances; their
    distances are then computed from the differences.

    Args:
        v: (B, D) float32.
        bank: (N, D) float32, N of at least k.
        k: how many.
    """
    found = [_candidates(v, some, k + _SPARE) for some in bank.split(_CHUNK)]
    starts = range(0, len(bank), _CHUNK)
    numbers = torch.cat([f + start for f, start in zip(found, starts, strict=True)], 1)
    distances = (v[:, None] - bank[numbers]).square().sum(2).sqrt()
    best = distances.topk(k, dim=1, largest=False)
    return best.values, numbers.gather(1, best.indices)


def _candidates(v: Tensor, bank: Tensor, k: int) -> Tensor:
    squared = bank.square().sum(1) - 2 * v @ bank.T
    return squared.topk(min(k, len(bank)), dim=1, largest=False).indices


class FeatureKNN(FeatureModel):
    """Mean distance of pooled features to the nearest normal images."""

    judges_whole = True

    Settings: ClassVar[Any] = FeatureKNNSettings

    def footprint(self, images: int) -> Footprint:
        """Return what the kept numbers take: 4 bytes per feature and image."""
        kept = min(images, max(self.settings.bank, self.settings.neighbours))
        return Footprint(run=4 * kept * self.width, fit=12 * kept * self.width, kept=kept)

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Keep the pooled features of normal images (N, C, S, S)."""
        if len(x) < self.settings.neighbours:
            raise DataError(
                f"feature-knn needs at least neighbours = {self.settings.neighbours} images, got "
                f"{len(x)}"
            )
        kept = random_subset(len(x), max(self.settings.bank, self.settings.neighbours), seed)
        bank = torch.cat([self.pooled(x[some]) for some in kept.split(BATCH)])
        scale = bank.std(0, correction=0) + _FLAT
        self.arrays = {"bank": bank / scale, "scale": scale, "rows": kept.to(x.device)}
        return self

    @property
    def kept_images(self) -> Tensor:
        """Numbers (M,) of the images that `similar` can name, ascending."""
        return self.fitted("rows")

    def similar(self, x: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the normal images most similar to x, nearest first.

        Args:
            x: (B, C, S, S) in [-1, 1].
            k: how many; None for ``neighbours``.

        Returns:
            Numbers (B, k) of the images among those that `fit` was given, distances (B, k).
        """
        bank, rows = self.fitted("bank"), self.fitted("rows")
        count = min(self.settings.neighbours if k is None else k, len(bank))
        distances, numbers = nearest(self.pooled(x) / self.fitted("scale"), bank, count)
        return rows[numbers], distances

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the mean distance to the nearest normal images (B,)."""
        bank = self.fitted("bank")
        v = self.pooled(x) / self.fitted("scale")
        return nearest(v, bank, self.settings.neighbours)[0].mean(1)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return each place's part in the distance, 0 where it is negative (B, S, S)."""
        bank, scale = self.fitted("bank"), self.fitted("scale")
        maps = self.maps(x)
        v = torch.cat([m.mean((2, 3)) for m in maps.values()], 1) / scale
        distance, numbers = nearest(v, bank, self.settings.neighbours)
        difference = v[:, None] - bank[numbers]
        u = difference / distance.clamp_min(_FLAT)[..., None]
        widths = [m.shape[1] for m in maps.values()]
        total = x.new_zeros(len(x), x.shape[2], x.shape[3])
        for m, s, of_u, of_v in zip(
            maps.values(), scale.split(widths), u.split(widths, 2),
            bank[numbers].split(widths, 2), strict=True,
        ):  # fmt: skip
            part = torch.einsum("bchw,bc->bhw", m / s[:, None, None], of_u.mean(1))
            part = part - (of_u * of_v).sum(2).mean(1)[:, None, None]
            total += resized(part, x.shape[2])
        return total.clamp_min(0)
