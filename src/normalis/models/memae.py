"""The autoencoder that may only rebuild from a memory of normal codes.

    w = normalise(shrink(softmax(M z))),    z_hat = Mᵀ w,    x_hat = decode(z_hat)
    loss = mean (x_hat - x)² + 0.0002 H(w),    H(w) = -Σ w log w,    map = (x_hat - x)²

M holds 25 slots of size d; shrink sets weights of at most 0.0025 to zero. As in the authors' code
the weights come from the inner product of code and slot, where Gong et al. use the cosine.

Numerical trap: the gradient of w log w is infinite at the exact zeros that shrinking makes, and
infinity times the zero gradient behind it is not a number; hence w log(w + 1e-12). The addressing
runs in float32 under autocast: bfloat16 has too few digits for a threshold of 0.0025.

Reference: Gong et al., "Memorizing normality to detect anomaly: Memory-augmented deep autoencoder
for unsupervised anomaly detection", ICCV 2019; its size as in the authors' code.

Use: where a plain autoencoder rebuilds the lesions too well; sensitive to the number of slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.backbone import Decoder, Encoder
from normalis.models.base import Autoencoder, ModelSettings, check_at_least

__all__ = ["MemAE", "MemAESettings"]

_TINY = 1e-12  # far below a weight that survives shrinking, far above float32's underflow


@dataclass(frozen=True, kw_only=True)
class MemAESettings(ModelSettings):
    """Settings of the memory-augmented autoencoder.

    Args:
        slots: codes in memory.
        shrinkage: weights up to this become zero; below 1 / slots, or none would remain.
        entropy_weight: of the addressing weights' entropy in the loss.
    """

    slots: int = 25
    shrinkage: float = 0.0025
    entropy_weight: float = 0.0002

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, slots=self.slots)
        check_at_least(0, shrinkage=self.shrinkage, entropy_weight=self.entropy_weight)
        if self.shrinkage >= 1 / self.slots:
            raise SettingsError(
                f"shrinkage must be below 1 / slots = {1 / self.slots:g}, got {self.shrinkage}: "
                "equal weights would all become zero"
            )


class MemAE(Autoencoder):
    """Memory-augmented autoencoder; `encode` gives the code before the memory is read."""

    Settings: ClassVar[Any] = MemAESettings

    def __init__(self, settings: MemAESettings) -> None:
        super().__init__(settings)
        self.encoder = Encoder.of(settings)
        self.decoder = Decoder.of(settings)
        bound = 1 / math.sqrt(settings.latent_dim)
        memory = torch.empty(settings.slots, settings.latent_dim).uniform_(-bound, bound)
        self.memory = nn.Parameter(memory)

    def encode(self, x: Tensor) -> Tensor:
        """Compress: (B, C, H, W) -> (B, latent_dim), before the memory is read."""
        z: Tensor = self.encoder(x)
        return z

    def address(self, z: Tensor) -> Tensor:
        """Return the weight of every slot: (B, latent_dim) -> (B, slots), rows sum to 1."""
        with torch.autocast(z.device.type, enabled=False):
            weights = torch.softmax(z.float() @ self.memory.T, 1)
            kept = torch.where(weights > self.settings.shrinkage, weights, 0.0)
            return F.normalize(kept, p=1, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Read the memory and rebuild: (B, latent_dim) -> (B, C, H, W)."""
        x_hat: Tensor = self.decoder(self.address(z) @ self.memory)
        return x_hat

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error and the weighted entropy of the addressing."""
        weights = self.address(self.encode(x))
        x_hat = self.decoder(weights @ self.memory)
        entropy = -(weights * (weights + _TINY).log()).sum(1).mean()
        return {
            "reconstruction": (x_hat.float() - x).square().mean(),
            "entropy": self.settings.entropy_weight * entropy,
        }
