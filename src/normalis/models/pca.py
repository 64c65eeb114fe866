"""Baseline: principal components, the best linear autoencoder.

    z = Wᵀ (x - m),    x_hat = m + W z,    map = (x_hat - x)²

W holds the ``latent_dim`` leading principal directions of the normal images. They are exact: from
the eigenvectors of the smaller of the covariance (P x P) and the Gram matrix (N x N), in float64.
A linear autoencoder trained to convergence spans the same subspace (Baldi and Hornik, 1989).

Reference: Bishop, "Pattern Recognition and Machine Learning" (2006), section 12.1.

Use: first, since it takes seconds; what the non-linear network adds is the difference to it.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from normalis.errors import DataError
from normalis.models.base import DirectModel

__all__ = ["PCA", "principal_directions"]


def principal_directions(centred: Tensor, count: int) -> Tensor:
    """Return the leading principal directions: (N, P) with column means 0 -> (count, P).

    Orthonormal rows in falling order of variance; each one's largest entry is positive.
    """
    rows = centred.double()
    n, p = rows.shape
    if n < p:
        _, vectors = torch.linalg.eigh(rows @ rows.T)
        directions = vectors[:, -count:].T @ rows
    else:
        _, vectors = torch.linalg.eigh(rows.T @ rows)
        directions = vectors[:, -count:].T
    # Gram vectors lose orthogonality where the variance is small; QR restores it.
    basis = torch.linalg.qr(directions.flip(0).T).Q.T
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    found: Tensor = (basis * largest.sign()).float()
    return found


class PCA(DirectModel):
    """Squared residual of the principal subspace."""

    has_latent = True

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Find mean and principal directions of normal images (N, C, H, W)."""
        flat, d = x.flatten(1), self.settings.latent_dim
        if d > min(len(flat) - 1, flat.shape[1]):
            raise DataError(
                f"pca needs more images than latent_dim and at least as many pixels, got {len(x)} "
                f"images of {flat.shape[1]} values and latent_dim {d}: lower latent_dim"
            )
        mean = flat.mean(0)
        self.arrays = {"mean": mean, "directions": principal_directions(flat - mean, d)}
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Project: (B, C, H, W) -> (B, latent_dim)."""
        directions = self.fitted("directions")
        return (x.flatten(1) - self.fitted("mean")) @ directions.T

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim) -> (B, C, S, S)."""
        s = self.settings
        flat = self.fitted("mean") + z @ self.fitted("directions")
        return flat.view(-1, s.channels, s.image_size, s.image_size)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the point of the subspace nearest to x."""
        return self.decode(self.encode(x))

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the squared residual per pixel (B, H, W)."""
        return (x - self.reconstruct(x)).square().mean(1)
