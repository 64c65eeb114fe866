"""A map after the steps of the comparison on brain MR, slice by slice or volume by volume.

::

    map'(x) = keep(median(map(x) [x > x_hat] [inside, eroded] [x >= its quantile]))

    positive         only where the image is brighter than its reconstruction
    erode            only in the foreground, its rim of so many pixels left out
    prior_quantile   only where the image is at least as bright as this share of itself
    median           median over a window of so many pixels
    min_area         components of fewer pixels are dropped

Each may be switched off: False, or 0. The slices of one file (NIfTI, multi-frame DICOM) are a
volume wherever the file is known: their quantile is one, the median's window a cube, and
components reach across slices (26 neighbours); ``min_area`` then counts voxels. Other images are
processed one by one. The erosion is by slice, by a cross of 3 x 3.

Components are those of pixels above a threshold, which has a share ``rate`` of the pixels of normal
images above it: no lesion is looked at. The normal images that p-values are made of go through the
same steps.

Deviations. The study has a mask of the brain; here the foreground is what differs from an even
background, if the margin has one, by 6 % of the image's range, with its holes filled. Where an
image ends is no rim. Its lengths are of 128 x 128 pixels, 12 for the rim and 5 for the window; the
defaults here are of 64 x 64. Its threshold is the one with the best Dice on the test images.

Reference: Baur, Denner, Wiestler, Navab and Albarqouni, "Autoencoders for unsupervised anomaly
segmentation in brain MR images: A comparative study", Medical Image Analysis 69 (2021),
arXiv:2004.03271.

Use: for lesions brighter than their surroundings, as on FLAIR; for dark ones ``positive=false`` and
``prior_quantile=0``, or they are removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from normalis.errors import SettingsError
from normalis.models.base import AnomalyModel, check_at_least
from normalis.scorers import build
from normalis.scorers.base import (
    Scorer,
    ScorerSettings,
    by_batch,
    reduce_map,
    why_no_reconstruction,
)

__all__ = ["PostProcessed", "PostProcessedSettings", "foreground", "without_small"]

#: As the audit has it: a margin is of background if this share of it is alike, up to a share of
#: the image's range.
_MARGIN, _EVEN, _ALIKE = 0.08, 0.7, 0.06
_PASS = 64  # images through the network at a time


@dataclass(frozen=True, kw_only=True)
class PostProcessedSettings(ScorerSettings):
    """Settings of the chain.

    Args:
        part: the scorer whose map is processed.
        positive: whether only what is brighter than its reconstruction counts.
        erode: pixels of the foreground's rim that are left out.
        prior_quantile: share of the image's pixels, the darkest, that do not count; below 1.
        median: odd side of the window, in pixels.
        min_area: least number of pixels of a component.
        rate: share of the pixels of normal images above the threshold of components.
    """

    part: str = "l1"
    positive: bool = True
    erode: int = 6
    prior_quantile: float = 0.9
    median: int = 3
    min_area: int = 8
    rate: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, erode=self.erode, median=self.median, min_area=self.min_area)
        if self.median and not self.median % 2:
            raise SettingsError(f"median must be odd, or 0 for none, got {self.median}")
        if not 0 <= self.prior_quantile < 1:
            raise SettingsError(f"prior_quantile must be in [0, 1), got {self.prior_quantile!r}")
        if not 0 < self.rate < 1:
            raise SettingsError(f"rate must be in (0, 1), got {self.rate!r}")
        if self.part in ("postprocessed", "combination"):
            raise SettingsError(f"part must be a scorer with a map of its own, got {self.part!r}")


class PostProcessed(Scorer):
    """Another scorer's map after the chain."""

    Settings: ClassVar[type[ScorerSettings]] = PostProcessedSettings
    joins_slices = True

    def __init__(self, settings: ScorerSettings | None = None) -> None:
        super().__init__(settings)
        self.part = build(self.settings.part)
        self.needs_fit = self.part.needs_fit or self.settings.min_area > 0
        self.needs_gradients = self.part.needs_gradients

    def supports(self, model: AnomalyModel) -> str | None:
        """Say what its part lacks, or that there is nothing to be brighter than."""
        reason = self.part.supports(model)
        of_its_own = type(self.part).reference is not Scorer.reference
        if reason or not self.settings.positive or of_its_own:
            return reason
        return why_no_reconstruction(model)

    def fit(self, model: AnomalyModel, x: Tensor) -> Self:
        """Fit the part, and take the threshold of components from normal images (N, C, H, W)."""
        self.check_supports(model)
        self.part.fit(model, x)
        if self.settings.min_area:
            found = torch.cat(list(by_batch(lambda b: self._until_components(model, b), model, x)))
            level = np.quantile(found.cpu().numpy(), 1 - self.settings.rate)
            self.arrays = {"threshold": torch.tensor(float(level))}
        return self

    def _until_components(self, model: AnomalyModel, x: Tensor) -> Tensor:
        return self._processed(model, x, [], components=False)

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the map after the chain (B, H, W), each image by itself."""
        self.check(model)
        return self._processed(model, x, [])

    def read_volumes(
        self, model: AnomalyModel, x: Tensor, volumes: Sequence[int], *, maps: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return scores and maps of images some of which are slices of one volume.

        Args:
            model: fitted.
            x: (B, C, H, W), the slices of a volume in order.
            volumes: how many images in a row belong together, their sum B; 1 stands for an image.
            maps: whether maps are asked for.
        """
        self.check(model)
        found = self._processed(model, x, volumes)
        return reduce_map(found, self.settings.reduction), found if maps else None

    def _processed(
        self, model: AnomalyModel, x: Tensor, volumes: Sequence[int], *, components: bool = True
    ) -> Tensor:
        raw = torch.cat([self._brighter(model, part) for part in x.split(_PASS)])
        maps = raw.float().cpu().numpy().copy()
        images = x.float().mean(1).cpu().numpy()
        for some in _groups(len(x), volumes):
            self._chain(maps, images, some)
            if components and self.settings.min_area:
                level = float(self.arrays["threshold"])
                maps[some] = without_small(maps[some], level, self.settings.min_area)
        return torch.from_numpy(maps).to(x.device)

    def _brighter(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the part's map, where asked for only of what is brighter than expected."""
        found = self.part.anomaly_map(model, x)
        if not self.settings.positive:
            return found
        expected = self.reference(model, x)
        if expected is None:
            raise SettingsError(f"{type(model).__name__} does not reconstruct images")
        brighter: Tensor = found * ((x - expected).mean(1) > 0)
        return brighter

    def reference(self, model: AnomalyModel, x: Tensor) -> Tensor | None:
        """Return what the part compares images with."""
        return self.part.reference(model, x)

    def _chain(self, maps: NDArray[Any], images: NDArray[Any], some: slice) -> None:
        """Apply all but the last step, in place, to what belongs together."""
        s = self.settings
        if s.erode:
            cross = ndimage.generate_binary_structure(2, 1)
            for i in range(some.start, some.stop):
                inside = ndimage.binary_erosion(
                    foreground(images[i]), cross, s.erode, border_value=1
                )
                maps[i] *= inside
        if s.prior_quantile:
            maps[some] *= images[some] >= np.quantile(images[some], s.prior_quantile)
        if s.median > 1:
            depth = s.median if some.stop - some.start > 1 else 1
            window = (depth, s.median, s.median)
            maps[some] = ndimage.median_filter(maps[some], size=window, mode="mirror")

    def state(self) -> dict[str, Tensor]:
        """Return the threshold, and the part's fitted arrays under its name."""
        return self.arrays | {f"part.{k}": v for k, v in self.part.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the arrays of `state`."""
        self.arrays = {k: v for k, v in state.items() if not k.startswith("part.")}
        of_part = {k: v for k, v in state.items() if k.startswith("part.")}
        self.part.load_state({k.removeprefix("part."): v for k, v in of_part.items()})


def _groups(n: int, volumes: Sequence[int]) -> Iterator[slice]:
    """Yield the rows that belong together."""
    start = 0
    for length in volumes or [1] * n:
        yield slice(start, start + length)
        start += length


def foreground(image: NDArray[Any]) -> NDArray[np.bool_]:
    """Return what of an image (H, W) is not an even background, holes filled.

    Where the margin is not even, as in most radiographs, there is no background.
    """
    edge = np.minimum(*(np.minimum(i, i.max() - i) for i in np.indices(image.shape)))
    margin = image[edge < max(1, round(_MARGIN * len(image)))]
    level, alike = np.median(margin), _ALIKE * (image.max() - image.min())
    if (np.abs(margin - level) <= alike).mean() < _EVEN:
        return np.ones(image.shape, np.bool_)
    inside: NDArray[np.bool_] = ndimage.binary_fill_holes(np.abs(image - level) > alike)
    return inside


def without_small(maps: NDArray[Any], threshold: float, least: int) -> NDArray[Any]:
    """Return maps (N, H, W) with 0 in components above a threshold of fewer than so many voxels.

    Neighbours share a face, an edge or a corner, across slices too.
    """
    labels, count = ndimage.label(maps > threshold, structure=np.ones((3, 3, 3)))
    small = np.bincount(labels.ravel(), minlength=count + 1) < least
    small[0] = False
    return np.where(small[labels], 0, maps)
