"""Baseline: how bright the image is.

    bright    map = (1 + x) / 2
    dark      map = (1 - x) / 2
    both      map = |x - b|,    score = |mean x - b|

b is the mean intensity of the normal images; averages are over channels. ``bright`` and ``dark``
learn nothing and rank images in opposite order: where one of them separates the classes, so does
the exposure of the images, and a method's AUROC has to be read beside it.

Reference: Meissen, Kaissis and Rueckert, "Challenging current semi-supervised anomaly segmentation
methods for brain MRI", BrainLes 2021, where thresholded FLAIR intensity beats most methods.

Use: as a check for a confound, and as a floor for bright lesions on FLAIR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from normalis.models.base import DirectModel, ModelSettings, check_one_of

__all__ = ["Intensity", "IntensitySettings"]


@dataclass(frozen=True, kw_only=True)
class IntensitySettings(ModelSettings):
    """Settings of the intensity baseline.

    Args:
        sign: whether ``bright`` or ``dark`` is anomalous, or ``both``.
    """

    sign: str = "bright"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(("bright", "dark", "both"), sign=self.sign)


class Intensity(DirectModel):
    """Mean intensity, or its distance from what is normal."""

    Settings: ClassVar[Any] = IntensitySettings

    def fit(self, x: Tensor, *, seed: int = 0) -> Self:
        """Take the mean intensity of normal images (N, C, H, W)."""
        self.arrays = {"brightness": x.mean()}
        return self

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Return the intensity, its complement, or its distance from normal (B, H, W)."""
        normal = self.fitted("brightness")
        if self.settings.sign == "both":
            return (x - normal).abs().mean(1)
        return ((1 + x if self.settings.sign == "bright" else 1 - x) / 2).mean(1)

    def anomaly_score(self, x: Tensor) -> Tensor:
        """Return the mean of the map; for ``both`` the distance of the means (B,)."""
        if self.settings.sign == "both":
            return (x.flatten(1).mean(1) - self.fitted("brightness")).abs()
        return super().anomaly_score(x)
