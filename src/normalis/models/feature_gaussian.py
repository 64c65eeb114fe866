"""How far pooled features of a frozen network lie from a Gaussian of the normal images.

    v = mean over places of a, b, c, g,    score = (v - m)' C^-1 (v - m)

m is the mean and C the covariance of the 496 numbers over normal images, shrunk towards a multiple
of the identity by the amount that Ledoit and Wolf derive, without which fewer images than numbers
have no inverse. Unlike an autoencoder's error it counts both what lies within the directions of
normal variation and what lies outside, so there is no dimension to choose.

The map is an attribution: the score is the mean over places p of (f_p - m)' C^-1 (v - m), an
exact sum, whose negative parts are shown as 0.

Reference: Rippel, Mertens and Merhof, "Modeling the distribution of normal data in pre-trained deep
features for anomaly detection", ICPR 2020; Ledoit and Wolf, "A well-conditioned estimator for
large-dimensional covariance matrices", J. Multivariate Analysis 88 (2004).

Use: beside `feature-knn`, and rather than it where normal images are many and of one kind.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from normalis.errors import DataError
from normalis.models.base import Footprint
from normalis.models.features import BATCH, FeatureModel, random_subset, resized

__all__ = ["FeatureGaussian", "whitening"]


def whitening(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and W (D, D), so that |W (v - mean)|^2 is the squared Mahalanobis distance.

    Args:
        rows: (N, D), N of at least 2; the covariance is Ledoit and Wolf's.
    """
    from sklearn.covariance import LedoitWolf

    values = rows.double().cpu().numpy()
    spread = values.std(0)
    spread[spread == 0] = 1.0  # a feature that never varies
    found = LedoitWolf().fit(values / spread)
    root = torch.linalg.cholesky(torch.from_numpy(found.precision_))
    w = root.T / torch.from_numpy(spread)
    return rows.double().mean(0).float(), w.float().to(rows.device)


class FeatureGaussian(FeatureModel):
    """Squared Mahalanobis distance of pooled features."""

    judges_whole = True

    def footprint(self, images: int) -> Footprint:
        """Return what the whitening matrix takes, and the covariance's estimate."""
        kept, d = min(images, max(2, self.settings.bank)), self.width
        return Footprint(run=4 * d * (d + 1), fit=20 * kept * d + 32 * d * d, kept=0)

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Find mean and covariance of the pooled features of normal images (N, C, S, S)."""
        if len(x) < 2:
            raise DataError(f"feature-gaussian needs at least 2 images, got {len(x)}")
        kept = random_subset(len(x), max(2, self.settings.bank), seed)
        pooled = torch.cat([self.pooled(x[some]) for some in kept.split(BATCH)])
        mean, w = whitening(pooled)
        self.arrays = {"mean": mean, "whitening": w}
        return self

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance (B,)."""
        return self._white(self.pooled(x)).square().sum(1)

    def _white(self, v: Tensor) -> Tensor:
        return (v - self.fitted("mean")) @ self.fitted("whitening").T

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return each place's part in the distance, 0 where it is negative (B, S, S)."""
        maps, mean = self.maps(x), self.fitted("mean")
        v = torch.cat([m.mean((2, 3)) for m in maps.values()], 1)
        pull = self._white(v) @ self.fitted("whitening")  # C^-1 (v - m)
        widths = [m.shape[1] for m in maps.values()]
        total = x.new_zeros(len(x), x.shape[2], x.shape[3])
        for m, of_pull, of_mean in zip(
            maps.values(), pull.split(widths, 1), mean.split(widths), strict=True
        ):
            part = torch.einsum("bchw,bc->bhw", m - of_mean[:, None, None], of_pull)
            total += resized(part, x.shape[2])
        return total.clamp_min(0)
