"""The nested autoencoder: one training whose latent can be read at every width.

    z = encode(x),    x_hat = decode(z · 1[i < k]),    k ~ uniform {1, 2, 4, ..., d} for each image
    loss = mean (x_hat - x)²,    map = (decode(encode(x) · 1[i < r]) - x)²,    r = ``read_dim``

With ``balance`` each error counts as a share of what its width reaches, e_k its running mean:

    loss = mean (e_d / e_k) (x_hat - x)²

Otherwise the narrow widths, whose errors are several times as large, take most of the gradient.

Training keeps the first k coordinates of each image's latent vector and zeroes the rest, so that
one decoder serves every width and earlier coordinates must carry what matters more. A fitted model
is read at any width by `at`, which trains nothing: the curve of the error against the latent
dimension costs one fit.

Deviations: Rippel et al. draw k from a geometric distribution over every width and stop training
coordinates that have converged ("unit sweeping"); here the widths are the powers of two up to d
(and d itself), as in Kusupati et al., equally likely, and everything is trained throughout. Batch
normalisation in the decoder shares its statistics among all widths.

Reference: Rippel, Gelbart and Adams, "Learning ordered representations with nested dropout", ICML
2014; Kusupati et al., "Matryoshka representation learning", NeurIPS 2022.

Use: to see how scores change with the latent dimension without training a model for each. With
balanced widths and twice the epochs each ranks about as a plain `ae` of that width does, except at
d = 1 (docs/explanation/selection.md).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from normalis.errors import SettingsError
from normalis.models.backbone import Decoder, Encoder
from normalis.models.base import Autoencoder, ModelSettings

_FOLLOW = 0.1  # share of a running error that one batch replaces

__all__ = ["NestedAE", "NestedAESettings", "truncate", "widths_up_to"]


@dataclass(frozen=True, kw_only=True)
class NestedAESettings(ModelSettings):
    """Settings of the nested autoencoder.

    Args:
        latent_dim: the largest width; the others are read from the same model.
        read_dim: width r at which images are rebuilt and scored, 0 for ``latent_dim``.
        balance: whether errors count relative to what their width reaches.
    """

    latent_dim: int = 128
    read_dim: int = 0
    balance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.read_dim <= self.latent_dim:
            raise SettingsError(
                f"read_dim must be 1 to latent_dim = {self.latent_dim}, or 0 for all of it, "
                f"got {self.read_dim}"
            )


def widths_up_to(latent_dim: int) -> tuple[int, ...]:
    """Return the widths of training: powers of two up to latent_dim, and latent_dim itself."""
    powers = (2**i for i in range(latent_dim.bit_length()))
    return tuple(sorted({*powers, latent_dim}))


def truncate(z: Tensor, kept: Tensor | int) -> Tensor:
    """Zero all but the first coordinates.

    Args:
        z: (B, latent_dim).
        kept: how many to keep, one number or one for each row (B,).
    """
    kept = torch.as_tensor(kept, device=z.device).reshape(-1, 1)
    return z * (torch.arange(z.shape[1], device=z.device) < kept)


class NestedAE(Autoencoder):
    """Autoencoder with ordered latent coordinates."""

    Settings: ClassVar[Any] = NestedAESettings
    errors: Tensor

    def __init__(self, settings: NestedAESettings) -> None:
        super().__init__(settings)
        self.encoder = Encoder.of(settings)
        self.decoder = Decoder.of(settings)
        widths = len(widths_up_to(settings.latent_dim))
        self.register_buffer("errors", torch.ones(widths), persistent=settings.balance)

    @property
    def read_dim(self) -> int:
        """Width at which images are rebuilt and scored."""
        return int(self.settings.read_dim or self.settings.latent_dim)

    def at(self, read_dim: int) -> Self:
        """Return this model read at another width; the weights are shared, not copied.

        Args:
            read_dim: 1 to latent_dim.

        Raises:
            SettingsError: if there is no such width.
        """
        if read_dim < 1:
            raise SettingsError(f"read_dim must be at least 1, got {read_dim}")
        other = copy.copy(self)
        other.settings = replace(self.settings, read_dim=read_dim)
        return other

    def encode(self, x: Tensor) -> Tensor:
        """Compress, zero beyond ``read_dim``: (B, C, H, W) -> (B, latent_dim)."""
        return truncate(self.encoder(x), self.read_dim)

    def decode(self, z: Tensor) -> Tensor:
        """Rebuild: (B, latent_dim) -> (B, C, H, W)."""
        x_hat: Tensor = self.decoder(z)
        return x_hat

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return how many coordinates each image keeps, (B,)."""
        widths = torch.tensor(widths_up_to(self.settings.latent_dim))
        drawn = torch.randint(len(widths), (len(x),), generator=generator)
        return {"kept": widths[drawn]}

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error at the widths drawn, balanced among them if asked for."""
        x_hat = self.decode(truncate(self.encoder(x), draws["kept"]))
        errors = (x_hat.float() - x).square().mean((1, 2, 3))
        if self.settings.balance:
            errors = errors * self._weights(errors.detach(), draws["kept"])
        return {"reconstruction": errors.mean()}

    def _weights(self, errors: Tensor, kept: Tensor) -> Tensor:
        """Follow the mean error of each width; return e_d / e_k of each image (B,)."""
        widths = torch.tensor(widths_up_to(self.settings.latent_dim), device=errors.device)
        member = (kept.to(errors.device)[:, None] == widths).float()  # (B, K)
        count = member.sum(0)
        seen = (member * errors[:, None]).sum(0) / count.clamp_min(1)
        self.errors = torch.where(count > 0, torch.lerp(self.errors, seen, _FOLLOW), self.errors)
        return self.errors[-1] / self.errors[member.argmax(1)]
