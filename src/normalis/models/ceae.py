"""The context-encoding autoencoder: it rebuilds an image from which a square was erased.

    loss = mean (decode(encode(erase(x))) - x)²    over the whole image,    map = (x_hat - x)²

In training each image loses one square of 2.4 % of its area (10 x 10 of 64 x 64 pixels), filled
with -1, black; scoring sees the whole image. One square and its size are the authors' code;
Zimmerer et al. combine this with a variational autoencoder.

Reference: Pathak et al., "Context encoders: Feature learning by inpainting", CVPR 2016; Zimmerer
et al., "Context-encoding variational autoencoder for unsupervised anomaly detection", 2018.

Use: a cheap regulariser of `ae`; where lesions are dark holes it learns to fill them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from normalis.errors import SettingsError
from normalis.models.backbone import EncoderDecoder
from normalis.models.base import ModelSettings

__all__ = ["CeAE", "CeAESettings"]


@dataclass(frozen=True, kw_only=True)
class CeAESettings(ModelSettings):
    """Settings of the context-encoding autoencoder.

    Args:
        erased_share: of the image's area, in (0, 1).
        fill: what the erased square holds; -1 is black.
    """

    erased_share: float = 0.024
    fill: float = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.erased_share < 1:
            raise SettingsError(f"erased_share must be in (0, 1), got {self.erased_share}")

    @property
    def side(self) -> int:
        """Side of the erased square, in pixels."""
        return max(1, round(math.sqrt(self.erased_share) * self.image_size))


class CeAE(EncoderDecoder):
    """Autoencoder trained to fill in an erased square."""

    Settings: ClassVar[Any] = CeAESettings

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return row and column of each image's square, (B, 2) integers."""
        places = self.settings.image_size - self.settings.side + 1
        return {"corner": torch.randint(places, (len(x), 2), generator=generator)}

    def erase(self, x: Tensor, corner: Tensor) -> Tensor:
        """Return x with one square per image filled in; corner is (B, 2)."""
        line = torch.arange(self.settings.image_size, device=x.device)
        offset = line - corner[:, :, None]  # (B, 2, S)
        inside = (offset >= 0) & (offset < self.settings.side)
        square = inside[:, None, 0, :, None] & inside[:, None, 1, None, :]
        return torch.where(square, self.settings.fill, x)

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error against the image as it was."""
        x_hat = self(self.erase(x, draws["corner"]))
        return {"reconstruction": (x_hat.float() - x).square().mean()}
