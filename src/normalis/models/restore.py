"""A U-Net that restores corrupted normal images, told how strong the corruption is.

    x~ = x + a M (y - x)  or  x + a M s k,    loss = mean (f(x~, a) - x)²
    map = mean over a of |x - f(x, a)|,    a = 0.1, 0.3, 0.5, 0.7, 0.9

M is a random smooth shape with soft edges within the foreground, a in [0, 1] the severity. The
corruption is either a patch of another normal image y of the batch, or a shift s k (s = ±1) of
those pixels in the shape whose brightness is alike; four images in ten stay as they are. The map
is the mean over assumed severities, each in a single step, on the foreground.

Deviations from DISYRE: a smaller network of the same kind (that of `dae`, with the severity turned
into a scale and a shift of each level), shifts of at most 0.6 of the range [-1, 1], the training of
all other methods instead of 100 000 steps, and no moving average of the weights.

Corruptions are a guess of what lesions look like: the choice of a method by synthetic anomalies
flatters one that was trained on some.

Reference: Naval Marimont, Siomos, Baugh et al., "Ensembled cold-diffusion restorations for
unsupervised anomaly detection", MICCAI 2024, arXiv:2407.06635; Tan et al., "Detecting outliers with
foreign patch interpolation", MELBA 2022, for the patches.

Use: brain MR and other aligned images without pretrained weights; slow on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalis.errors import SettingsError
from normalis.models.dae import DAE, DAESettings

__all__ = ["Restore", "RestoreSettings"]

_SEVERITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
_GRID = 8  # points of the noise that shapes are cut from
_LARGEST_SHIFT = 0.6  # of the range [-1, 1]
_ALIKE = 0.25  # brightness around the chosen one within which pixels are shifted


@dataclass(frozen=True, kw_only=True)
class RestoreSettings(DAESettings):
    """Settings of the restoration; those of noise mean nothing to it.

    Args:
        depth: levels of the network, of which each but the last halves the image.
        clean_share: of the images of a step that stay as they are.
    """

    depth: int = 4
    clean_share: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.clean_share < 1:
            raise SettingsError(f"clean_share must be in [0, 1), got {self.clean_share!r}")


class Restore(DAE):
    """U-Net trained to undo corruptions of known severity."""

    Settings: ClassVar[Any] = RestoreSettings

    def __init__(self, settings: RestoreSettings) -> None:
        super().__init__(settings)
        widths = [shape[0] for shape in self.shapes]
        self.embedding = nn.Sequential(nn.Linear(2, 32), nn.SiLU())
        self.modulation = nn.ModuleList(nn.Linear(32, 2 * width) for width in widths)

    def forward(self, x: Tensor, severity: Tensor | None = None) -> Tensor:
        """Restore images (B, C, H, W) of some severity (B,); without one, the mean over several."""
        if severity is None:
            rebuilt = [self(x, x.new_full((len(x),), a)) for a in _SEVERITIES]
            return torch.stack(rebuilt).mean(0)
        said = self.embedding(torch.stack([severity, severity.square()], 1))
        levels: list[Tensor] = []
        for block, modulation in zip(self.down, self.modulation, strict=True):
            y = block(F.avg_pool2d(levels[-1], 2) if levels else x)
            scale, shift = modulation(said)[:, :, None, None].chunk(2, 1)
            levels.append(y * (1 + scale) + shift)
        return self._ascend(levels)

    def draw(self, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return shape, severity, kind, sign, brightness and who stays clean of each image."""
        n = len(x)
        return {
            "field": torch.randn(n, 1, _GRID, _GRID, generator=generator),
            "severity": torch.rand(n, generator=generator),
            "dice": torch.rand(n, 4, generator=generator),
        }

    def corrupt(self, x: Tensor, field: Tensor, severity: Tensor, dice: Tensor) -> Tensor:
        """Return x with the corruptions of `draw` on it.

        Args:
            x: (B, C, H, W) normal images in [-1, 1].
            field: (B, 1, g, g) noise that the shapes are cut from.
            severity: (B,) in [0, 1].
            dice: (B, 4) in [0, 1]: who stays clean, the kind, the sign, the brightness.
        """
        clean, kind, sign, place = (d.view(-1, 1, 1, 1) for d in dice.T)
        smooth = F.interpolate(field, size=x.shape[2:], mode="bicubic", align_corners=True)
        shape = torch.sigmoid(8 * (smooth - 1))  # about a sixth of the image, with soft edges
        inside = x > x.amin((1, 2, 3), keepdim=True)
        shape = shape * inside * (clean >= self.settings.clean_share)
        foreign = x.roll(1, 0) - x
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        alike = (-((x - (low + place * (high - low))) / _ALIKE).square()).exp()
        biased = _LARGEST_SHIFT * torch.where(sign < 0.5, -1.0, 1.0) * alike
        change = torch.where(kind < 0.5, foreign, biased)
        corrupted: Tensor = x + severity.view(-1, 1, 1, 1) * shape * change
        return corrupted

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error against the image without corruption."""
        x_hat = self(self.corrupt(x, **draws), draws["severity"])
        return {"reconstruction": (x_hat.float() - x).square().mean()}

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the mean absolute change over severities on the foreground (B, H, W)."""
        changes = [(x - self(x, x.new_full((len(x),), a))).abs().mean(1) for a in _SEVERITIES]
        inside = (x > x.amin((1, 2, 3), keepdim=True)).any(1)
        return torch.stack(changes).mean(0) * inside
