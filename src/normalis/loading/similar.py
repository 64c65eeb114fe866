"""Small pictures of normal images, kept to be shown beside images that resemble them.

A method that judges an image by the most similar normal ones (`Panel`, `SPADE`, `FeatureKNN`) can
name them: this is what the image should look like, and here it differs. A run then keeps a small
picture of each normal image in the method's bank: `SIDE` pixels of a side, 8 bits, 9 kB in grey
and 28 kB in colour, of at most as many images as the bank holds (5,000 by default).

They are pictures of other people. A run keeps no name, path, patient or date of them, only the
number of each among the images trained on; ``keep_similar=False`` keeps no picture at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from normalis.errors import RunError

__all__ = ["SHOWN", "SIDE", "SimilarImages", "SimilarNormals", "can_name_similar"]

#: Side of a kept picture, in pixels, unless the model sees images smaller than that.
SIDE = 96
#: Most similar normal images that `normalis score` names of each image.
SHOWN = 3

_PREFIX = "similar."
_PIECE = 256  # images that are made small at once


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarNormals:
    """The most similar normal images of N images, nearest first.

    Attributes:
        numbers: (N, k) number of each among the normal images that were trained on, from 0.
        distances: (N, k) of the features of whole images, 0 for the image itself.
        pictures: (N, k, C, s, s) uint8, C = 1 or 3.
    """

    numbers: NDArray[np.int64]
    distances: NDArray[np.float64]
    pictures: NDArray[np.uint8]


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarImages:
    """Pictures of the normal images that a model can name.

    Attributes:
        rows: (M,) as the model numbers them, ascending.
        numbers: (M,) among the normal images that were trained on; differs from ``rows`` where
            the model saw a part of them.
        pixels: (M, C, s, s) uint8.
    """

    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]
    pixels: NDArray[np.uint8]

    @classmethod
    def of(cls, model: Any, pixels: NDArray[Any], seen: NDArray[Any] | None = None) -> Self | None:
        """Keep pictures of the images in a fitted model's bank; None if it names none.

        Args:
            model: fitted on the images.
            pixels: (N, C, S, S) ``uint8``, or float with nominal range [0, 1].
            seen: numbers of the images that the model was fitted on; None for all.
        """
        if not can_name_similar(model):
            return None
        rows = model.kept_images.cpu().numpy().astype(np.int64)
        numbers = rows if seen is None else np.asarray(seen, np.int64)[rows]
        parts = [_small(pixels[numbers[i : i + _PIECE]]) for i in range(0, len(rows), _PIECE)]
        return cls(rows=rows, numbers=numbers, pixels=np.concatenate(parts))

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places here of images as the model numbers them, of any shape."""
        return np.searchsorted(self.rows, rows)

    def picture(self, number: int) -> NDArray[np.uint8]:
        """Return the picture (C, s, s) of an image by its number."""
        found: NDArray[np.uint8] = self.pixels[int(np.searchsorted(self.numbers, number))]
        return found

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, as a run holds them."""
        return {f"{_PREFIX}{name}": value for name, value in vars(self).items()}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]]) -> Self | None:
        """Return what `state` held, None where a run keeps no pictures.

        Raises:
            RunError: if they do not belong together.
        """
        pixels = arrays.get(f"{_PREFIX}pixels")
        if pixels is None:
            return None
        rows, numbers = arrays[f"{_PREFIX}rows"], arrays[f"{_PREFIX}numbers"]
        square = pixels.ndim == 4 and pixels.dtype == np.uint8 and pixels.shape[1] in (1, 3)
        if not square or not rows.shape == numbers.shape == pixels.shape[:1]:
            raise RunError("the pictures of similar normal images do not fit their numbers")
        return cls(rows=rows, numbers=numbers, pixels=pixels)


def can_name_similar(model: Any) -> bool:
    """Return whether a fitted model can name the normal images most similar to one."""
    return hasattr(model, "similar") and getattr(model, "kept_images", None) is not None


def _small(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return images at most `SIDE` pixels wide, in 8 bits."""
    x = torch.from_numpy(np.ascontiguousarray(pixels))
    x = x.float() if x.dtype == torch.uint8 else x.float() * 255
    if x.shape[-1] > SIDE:
        x = F.interpolate(
            x, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        )
    found: NDArray[np.uint8] = x.round().clamp(0, 255).to(torch.uint8).numpy()
    return found
