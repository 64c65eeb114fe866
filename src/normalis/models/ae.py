"""The plain autoencoder, the paper's baseline and subject, with three pixel losses.

    x_hat = decode(encode(x)),    loss = mean map,    map = (x_hat - x)² | |x_hat - x| | 1 - SSIM

Layers as in `normalis.models.backbone`. SSIM has a window of 11 pixels on images in [0, 1]
(`normalis.models.ssim`). Deviation: the authors' code clips both images to [0, 1] before SSIM,
this does not, and its loss averages the map after resizing to the image, as its score does.

Reference: Cai, Chen and Cheng, "Rethinking Autoencoders for Medical Anomaly Detection from A
Theoretical Perspective", MICCAI 2024, Eq. (1); for SSIM Bergmann et al., "Improving unsupervised
defect segmentation by applying structural similarity to autoencoders", VISAPP 2019.

Use: the reference for everything else; `loss=ssim` where structure matters more than brightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from normalis.models.backbone import EncoderDecoder
from normalis.models.base import ModelSettings, check_one_of
from normalis.models.ssim import dissimilarity

__all__ = ["AE", "AESettings", "error_map"]


@dataclass(frozen=True, kw_only=True)
class AESettings(ModelSettings):
    """Settings of the autoencoder.

    Args:
        loss: ``l2`` (the paper's), ``l1`` or ``ssim``; of training and of the anomaly map.
    """

    loss: str = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(("l2", "l1", "ssim"), loss=self.loss)


def error_map(x: Tensor, x_hat: Tensor, loss: str = "l2") -> Tensor:
    """Return the error per pixel, averaged over channels: (B, C, H, W) twice -> (B, H, W)."""
    if loss == "ssim":
        return dissimilarity(x, x_hat).mean(1)
    error = x - x_hat.float()
    return (error.abs() if loss == "l1" else error.square()).mean(1)


class AE(EncoderDecoder):
    """Autoencoder trained on, and read by, one pixel loss."""

    Settings: ClassVar[Any] = AESettings
    stackable = "any width"

    def losses(self, x: Tensor, **draws: Tensor) -> dict[str, Tensor]:
        """Return the mean of the error map."""
        return {"reconstruction": error_map(x, self(x), self.settings.loss).mean()}

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the error that the model was trained on, per pixel (B, H, W)."""
        return error_map(x, self.reconstruct(x), self.settings.loss)
