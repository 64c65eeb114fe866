"""A Gaussian of frozen features at each place of the image.

    map_p = (f_p - m_p)' S_p^-1 (f_p - m_p),    score = mean of the highest cells of the map

f_p are ``dims`` of the network's features at cell p of a grid of one cell per 8 pixels, drawn at
random once, as the authors do; m_p and S_p are their mean and covariance over the normal images at
that very place. Each feature is divided by its spread there, and S_p shrunk towards a multiple of
the identity by the amount of Ledoit and Wolf, each place by its own; else fewer images than
features have no inverse.

What is kept does not grow with the number of images: a mean and a matrix per cell, 9.5 MB by
default.

Reference: Defard et al., "PaDiM: a patch distribution modeling framework for anomaly detection and
localization", ICPR workshops 2021, arXiv:2011.08785.

Use: on images that are aligned to a cell or two, such as radiographs in one view (``share=1``, the
mean, reads diffuse disease best); not on slices from many positions, where `spade` is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from normalis.errors import DataError, SettingsError
from normalis.models.base import Footprint, check_at_least
from normalis.models.features import BATCH, FeatureModel, FeatureSettings, random_subset, resized

__all__ = ["PaDiM", "PaDiMSettings", "shrunk_covariance"]

_FLAT = 1e-6  # of a spread or a variance: a feature that never varies
_ROWS = 16  # places at a time while matrices are inverted, so that memory stays flat


@dataclass(frozen=True, kw_only=True)
class PaDiMSettings(FeatureSettings):
    """Settings of the Gaussian at each place.

    Args:
        taps: whose features are used; empty for the default network's ``b+c`` and for all of
            another.
        bank: normal images that the Gaussians are estimated from at most.
        dims: features that are drawn of those of all taps, at most 512.
        stride: pixels per cell of the grid.
        share: of the cells, the highest, whose mean is the score; 1 is the mean of the map.
    """

    bank: int = 2000
    dims: int = 96
    stride: int = 8
    share: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, dims=self.dims, stride=self.stride)
        if self.dims > 512:
            raise SettingsError(f"dims must be at most 512, got {self.dims}: memory grows as dims²")
        if not 0 < self.share <= 1:
            raise SettingsError(f"share must be in (0, 1], got {self.share!r}")
        if self.image_size < self.stride:
            raise SettingsError(
                f"stride must be at most image_size = {self.image_size}, got {self.stride}"
            )


def shrunk_covariance(centred: Tensor) -> Tensor:
    """Return Ledoit and Wolf's covariance of each of several samples at once.

    Args:
        centred: (P, N, D) with means 0 over N.

    Returns:
        (P, D, D), what `sklearn.covariance.LedoitWolf` gives for each.
    """
    _, n, d = centred.shape
    s = centred.transpose(1, 2) @ centred / n
    mean = s.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(d, dtype=s.dtype, device=s.device)
    target = mean[:, None, None] * eye
    distance = (s - target).square().sum((1, 2)) / d
    noise = (centred.square().sum(2).square().mean(1) - s.square().sum((1, 2))) / (n * d)
    weight = torch.where(distance > 0, (noise / distance).clamp(0, 1), torch.ones_like(noise))
    return torch.lerp(s, target, weight[:, None, None])


class PaDiM(FeatureModel):
    """Squared Mahalanobis distance at each place."""

    Settings: ClassVar[Any] = PaDiMSettings

    @property
    def taps(self) -> list[str]:
        """Names of the taps that are read."""
        if not self.settings.taps and self.settings.backbone == PaDiMSettings.backbone:
            return ["b", "c"]
        return super().taps

    @property
    def _side(self) -> int:
        return int(-(-self.settings.image_size // self.settings.stride))

    @property
    def _depth(self) -> int:
        found: int = min(self.settings.dims, self.width)
        return found

    def footprint(self, images: int) -> Footprint:
        """Return what means and matrices take, and the features that they are estimated from."""
        kept, cells, d = min(images, self.settings.bank), self._side**2, self._depth
        return Footprint(run=4 * cells * d * (d + 1), fit=2 * kept * cells * d, kept=0)

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Estimate mean and covariance at each place over normal images (N, C, S, S)."""
        if len(x) < 2:
            raise DataError(f"padim needs at least 2 images, got {len(x)}")
        drawn = random_subset(self.width, self._depth, seed).to(x.device)
        kept = random_subset(len(x), max(2, self.settings.bank), seed)
        cells = torch.cat([self._cells(x[some], drawn).half() for some in kept.split(BATCH)])
        places = cells.flatten(1, 2).transpose(0, 1)  # P, N, D
        found = [self._gaussian(some) for some in places.split(_ROWS)]
        mean, white = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.arrays = {"drawn": drawn, "mean": mean, "whitening": white}
        return self

    @staticmethod
    def _gaussian(places: Tensor) -> tuple[Tensor, Tensor]:
        """Return means (P, D) and W (P, D, D) with W' W the inverse covariance."""
        rows = places.double()
        mean, spread = rows.mean(1), rows.std(1, correction=0)
        spread = torch.where(spread > 0, spread, spread.mean(1, keepdim=True).clamp_min(_FLAT))
        covariance = shrunk_covariance((rows - mean[:, None]) / spread[:, None])
        # Of few images that agree, not even the shrunk matrix need have an inverse.
        eye = torch.eye(rows.shape[2], dtype=rows.dtype, device=rows.device)
        root = torch.linalg.cholesky(covariance + _FLAT * eye)
        white = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
        return mean.float(), (white / spread[:, None]).float()

    def _cells(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Return the drawn features on the grid, (B, h, w, D)."""
        parts = []
        for m in self.maps(x).values():
            finer = m.shape[2] > self._side
            parts.append(F.adaptive_avg_pool2d(m, self._side) if finer else resized(m, self._side))
        return torch.cat(parts, 1)[:, drawn].permute(0, 2, 3, 1)

    def _grid(self, x: Tensor) -> Tensor:
        """Return the squared distance of each cell (B, h, w)."""
        mean, white = self.fitted("mean"), self.fitted("whitening")
        cells = self._cells(x, self.fitted("drawn")).flatten(1, 2).transpose(0, 1)  # P, B, D
        squared = torch.bmm(cells - mean[:, None], white.transpose(1, 2)).square().sum(2)
        found: Tensor = squared.T.unflatten(1, (self._side, self._side))
        return found

    def _read(self, grid: Tensor) -> Tensor:
        cells = grid.flatten(1)
        count = max(1, round(self.settings.share * cells.shape[1]))
        return cells.topk(count, dim=1).values.mean(1)

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the mean of the highest cells (B,)."""
        return self._read(self._grid(x))

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the squared distance at each place (B, S, S), resized from the grid."""
        return resized(self._grid(x), x.shape[2])

    def score_and_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, S, S) of one pass."""
        grid = self._grid(x)
        return self._read(grid), resized(grid, x.shape[2])
