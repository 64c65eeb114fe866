"""The most similar normal images, and place by place where an image differs from them.

    y_1 .. y_K        the K normal images nearest by pooled features (`feature-knn`)
    map_p = mean of the n smallest |f_p(x) - f_q(y_k)|,    k = 1 .. K, q within one cell of p
    score = mean of the highest cells of the map (reading=map), or the distance to the 5 nearest
            images (reading=image)

f_p are the features of a frozen network at cell p of a grid of one cell per 8 pixels, each tap's
scaled to length 1: what a cell looks like counts, not how strongly. Comparing with all normal
images hides what the position of a slice or the build of a patient explains; comparing with the
most similar ones alone is also what radiologists ask of an explanation: this is the most similar
normal image, and here they differ (`SPADE.similar`).

Kept of each normal image are its pooled features and its grid, projected on the principal
directions of the cells, in half precision: 26 kB an image by default, of at most ``bank`` images.

Reference: Cohen and Hoshen, "Sub-image anomaly detection with deep pyramid correspondences",
arXiv:2005.02357 (2020); here with unit vectors, a window of one cell and no pyramid.

Use: for lesions, wherever normal images are roughly aligned; with the network's deep taps (c+g) and
``share=1`` also for diffuse disease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from normalis.errors import DataError, SettingsError
from normalis.models.base import Footprint, check_at_least, check_one_of
from normalis.models.feature_knn import nearest
from normalis.models.features import BATCH, FeatureModel, FeatureSettings, random_subset, resized

__all__ = ["SPADE", "SPADESettings", "compare"]

_FLAT = 1e-6  # added to a spread: a feature that never varies
_FOR_DIRECTIONS = 200  # images whose cells fix the principal directions
_INSTEAD = 5  # nearest images of reading=image, as in feature-knn


@dataclass(frozen=True, kw_only=True)
class SPADESettings(FeatureSettings):
    """Settings of the comparison with the most similar normal images.

    Args:
        taps: that are compared place by place, joined by ``+``; empty for the default network's
            ``a+b+c`` and for all of another. The images are always found by all taps.
        bank: normal images that are kept at most; of more, a random subset drawn by the seed.
        neighbours: K, the most similar images that one is compared with.
        nearest: n, cells over which the smallest distances are averaged.
        window: cells in each direction in which an image may be displaced.
        stride: pixels per cell of the grid.
        dims: principal directions of the cells that are kept; 0 keeps the features themselves.
        reading: ``map``, or ``image`` for the distance of pooled features.
        share: of the cells, the highest, whose mean is the score of ``reading=map``.
    """

    bank: int = 3000
    neighbours: int = 30
    nearest: int = 3
    window: int = 1
    stride: int = 8
    dims: int = 64
    reading: str = "map"
    share: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, neighbours=self.neighbours, nearest=self.nearest, stride=self.stride)
        check_at_least(0, window=self.window, dims=self.dims)
        check_one_of(("map", "image"), reading=self.reading)
        if not 0 < self.share <= 1:
            raise SettingsError(f"share must be in (0, 1], got {self.share!r}")
        if self.image_size < self.stride:
            raise SettingsError(
                f"stride must be at most image_size = {self.image_size}, got {self.stride}"
            )


def compare(cells: Tensor, others: Tensor, *, window: int, nearest: int) -> Tensor:
    """Return how far each cell is from the most similar cells at its place in other images.

    Args:
        cells: (h, w, D) float32 of one image.
        others: (K, h, w, D) float32.
        window: cells in each direction in which the place may be displaced.
        nearest: how many of the smallest distances are averaged.

    Returns:
        (h, w) mean of the smallest distances.
    """
    h, w, _ = cells.shape
    reach = 2 * window + 1
    rows = F.pad(others, (0, 0, 0, 0, window, window)).unfold(1, reach, 1)  # K h w D reach
    squares = F.pad(others.square().sum(3), (0, 0, window, window), value=float("inf"))
    squares = squares.unfold(1, reach, 1).permute(1, 3, 0, 2)  # h reach K w
    # A row of cells against three rows of the others at once, as a product of matrices.
    products = torch.bmm(cells, rows.permute(1, 3, 4, 0, 2).flatten(2))
    squared = squares[:, None] - 2 * products.view(h, w, reach, len(others), w)
    at = squared.new_full((h, w, reach, reach, len(others)), float("inf"))
    for dx in range(-window, window + 1):
        there = squared.diagonal(dx, 1, 4).permute(0, 3, 1, 2)  # h, w - |dx|, reach, K
        first = max(0, -dx)
        at[:, first : first + there.shape[1], dx + window] = there
    least = at.flatten(2).topk(nearest, dim=2, largest=False).values
    return (least + cells.square().sum(2, keepdim=True)).clamp_min(0).sqrt().mean(2)


class SPADE(FeatureModel):
    """Distance, place by place, to the most similar normal images."""

    map_weight = 1.0

    Settings: ClassVar[Any] = SPADESettings

    @property
    def taps(self) -> list[str]:
        """Names of the taps that are compared place by place."""
        if not self.settings.taps and self.settings.backbone == SPADESettings.backbone:
            return ["a", "b", "c"]
        return super().taps

    @property
    def _all(self) -> list[str]:
        return [tap.name for tap in self.backbone().taps]

    @property
    def _side(self) -> int:
        return int(-(-self.settings.image_size // self.settings.stride))

    @property
    def _depth(self) -> int:
        """Numbers that are kept of a cell."""
        return min(self.settings.dims or self.width, self.width)

    def footprint(self, images: int) -> Footprint:
        """Return what the kept grids and pooled features take."""
        kept = min(images, self.settings.bank)
        pooled = sum(tap.channels for tap in self.backbone().taps)
        each = 2 * self._side**2 * self._depth + 4 * pooled
        return Footprint(run=kept * each, fit=2 * kept * each, kept=kept)

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Keep pooled features and grids of normal images (N, C, S, S)."""
        s = self.settings
        if len(x) < 2 or len(x) * (2 * s.window + 1) ** 2 < s.nearest:
            raise DataError(f"spade needs at least 2 images, and nearest cells, got {len(x)}")
        kept = random_subset(len(x), max(2, s.bank), seed)
        directions = self._directions(x[random_subset(len(x), _FOR_DIRECTIONS, seed)])
        pooled, grids = [], []
        for some in kept.split(BATCH):
            pooled.append(self.pooled(x[some], self._all))
            grids.append((self._cells(x[some]) @ directions).half())
        bank = torch.cat(pooled)
        scale = bank.std(0, correction=0) + _FLAT
        self.arrays = {
            "bank": bank / scale,
            "scale": scale,
            "rows": kept.to(x.device),
            "grids": torch.cat(grids),
            "directions": directions,
        }
        return self

    def _cells(self, x: Tensor) -> Tensor:
        """Return the grid of unit vectors (B, h, w, D), each tap's of equal length."""
        maps = self.maps(x, self._asked)
        parts = []
        for name in self.taps:
            m = maps[name]
            finer = m.shape[2] > self._side
            m = F.adaptive_avg_pool2d(m, self._side) if finer else resized(m, self._side)
            parts.append(F.normalize(m, dim=1))
        found: Tensor = torch.cat(parts, 1).permute(0, 2, 3, 1) / len(parts) ** 0.5
        return found

    @property
    def _asked(self) -> list[str]:
        """All taps at once, so that images and places share one pass."""
        return list(dict.fromkeys([*self._all, *self.taps]))

    def _directions(self, x: Tensor) -> Tensor:
        """Return the principal directions of the cells (D, depth); unlike axes they lose least."""
        total = torch.zeros(self.width, self.width, dtype=torch.float64, device=x.device)
        for some in x.split(BATCH):
            cells = self._cells(some).flatten(0, 2).double()
            total += cells.T @ cells
        vectors = torch.linalg.eigh(total).eigenvectors
        found: Tensor = vectors[:, -self._depth :].float().contiguous()
        return found

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
        numbers, distances = self._similar(x, self.settings.neighbours if k is None else k)
        return self.fitted("rows")[numbers], distances

    def _similar(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        bank = self.fitted("bank")
        maps = self.maps(x, self._asked)
        v = torch.cat([maps[name].mean((2, 3)) for name in self._all], 1)
        distances, numbers = nearest(v / self.fitted("scale"), bank, min(k, len(bank)))
        return numbers, distances

    def _grid(self, x: Tensor) -> Tensor:
        """Return the map, a number per cell (B, h, w)."""
        s, grids = self.settings, self.fitted("grids")
        numbers, _ = self._similar(x, s.neighbours)
        cells = self._cells(x) @ self.fitted("directions")
        return torch.stack(
            [
                compare(one, grids[chosen].float(), window=s.window, nearest=s.nearest)
                for one, chosen in zip(cells, numbers, strict=True)
            ]
        )

    def _read(self, x: Tensor, grid: Tensor | None) -> Tensor:
        if self.settings.reading == "image":
            return self._similar(x, _INSTEAD)[1].mean(1)
        cells = (self._grid(x) if grid is None else grid).flatten(1)
        count = max(1, round(self.settings.share * cells.shape[1]))
        return cells.topk(count, dim=1).values.mean(1)

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the mean of the highest cells, or the distance of pooled features (B,)."""
        return self._read(x, None)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the distance at each place (B, S, S), resized from the grid."""
        return resized(self._grid(x), x.shape[2])

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, S, S) of one comparison."""
        grid = self._grid(x)
        return self._read(x, grid), resized(grid, x.shape[2])
