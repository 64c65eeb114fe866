"""What lies at the edges of some images and not of most: bars, bright margins, burned-in text.

A margin is quiet in most images of a set. Where a few have something there, a model that learned
the quiet ones rebuilds it badly, and it scores higher than disease does. Three kinds, each found by
comparing an image with the others of its set, at the audit's 64 pixels:

* **bars**: rows or columns of one value from an edge on, deeper than in most images (letterboxes,
  collimation, a field of view that ends in the image);
* **a margin unlike the others**: a quarter of the outer ring is far from the set's median ring, by
  a tenth of the range and by five median deviations (bright or textured margins);
* **marks**: three or more small things that stand alone on an even background near the edge
  (text, side markers, rulers).

What a fifth of the images or more have is the set's own look and is not told. Small letters in a
bright or uneven surrounding are not seen at this size, nor are marks over the anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "Margins", "look_at_margins"]

#: Kind -> how a sentence names it.
KINDS = {
    "bars": "bars of one value at an edge (letterbox, collimation)",
    "unlike": "a bright or textured margin",
    "marks": "small marks on the background near the edge (text, side markers)",
}
_FLAT = 0.012  # of the range: three grey levels of 255, what compression does to a bar
_DEEPER = 0.08  # of the side, than the set's median
_RING = 0.08  # of the side: the margin
_DEVIATES, _SHARE = 0.1, 0.25
_BACKGROUND, _EVEN = 0.06, 0.7  # the ring is even if this share lies so close to its median
_STANDS_OUT, _LARGEST, _NEAR, _FEWEST = 0.12, 14, 0.25, 3
_LINE = 8  # pixels: a line of text that has run together is not thicker
_FEW = 0.2  # of the images; what more have is the look of the set
_LEAST = 20  # images, without which "most" means nothing


@dataclass(frozen=True, eq=False, kw_only=True)
class Margins:
    """Which of N images have something at their edges that most have not.

    Attributes:
        found: kind -> (N,) bool.
        share: of the side, how deep the bars reach in nine of ten images that have them; what
            leaving out a margin would take. 0 without bars.
    """

    found: dict[str, NDArray[np.bool_]]
    share: float

    @property
    def any(self) -> NDArray[np.bool_]:
        """(N,) whether an image has any of it."""
        found: NDArray[np.bool_] = np.any(list(self.found.values()), axis=0)
        return found


def look_at_margins(pixels: NDArray[np.floating]) -> Margins:
    """Find images whose edges are unlike those of most.

    Args:
        pixels: (N, S, S) in [0, 1].
    """
    x = np.asarray(pixels, np.float32)
    if len(x) < _LEAST:
        return Margins(found={kind: np.zeros(len(x), bool) for kind in KINDS}, share=0.0)
    depth = _bars(x)
    deeper = depth - np.median(depth, axis=0) >= _DEEPER
    found: dict[str, NDArray[np.bool_]] = {
        "bars": np.any(deeper, axis=1),
        "unlike": _unlike(x),
        "marks": np.array([_marks(one) for one in x]) >= _FEWEST,
    }
    found = {kind: has if has.mean() < _FEW else np.zeros_like(has) for kind, has in found.items()}
    deep = depth[found["bars"]].max(axis=1, initial=0)
    return Margins(found=found, share=float(np.quantile(deep, 0.9)) if deep.size else 0.0)


def _bars(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (N, 4) how far rows of one value reach from each edge, as shares of the side."""
    side = x.shape[1]
    depth = np.empty((len(x), 4))
    for k in range(4):
        turned = np.rot90(x, k, (1, 2))
        value = np.median(turned[:, 0], axis=1)[:, None, None]
        even = (np.abs(turned - value) <= _FLAT).mean(axis=2) >= 0.98
        ends = np.concatenate([even, np.zeros((len(x), 1), bool)], axis=1)
        depth[:, k] = ends.argmin(axis=1) / side
    return depth


def _unlike(x: NDArray[np.float32]) -> NDArray[np.bool_]:
    ring = x[:, _outer(x.shape[1], _RING)]
    middle = np.median(ring, axis=0)
    spread = 1.4826 * np.median(np.abs(ring - middle), axis=0)
    far = np.abs(ring - middle) > np.maximum(_DEVIATES, 5 * spread)
    return np.asarray(far.mean(axis=1) > _SHARE)


def _marks(image: NDArray[np.float32]) -> int:
    """Count small things near the edge that stand alone on an even background."""
    from scipy.ndimage import binary_dilation, find_objects, label

    ring = image[_outer(len(image), _RING)]
    background = np.median(ring)
    if (np.abs(ring - background) < _BACKGROUND).mean() < _EVEN:
        return 0
    bright = image - background > _STANDS_OUT
    corners = np.ones((3, 3))
    labels, _ = label(binary_dilation(bright, corners), corners)  # two pixels apart is one thing
    near, count = _outer(len(image), _NEAR), 0
    for number, box in enumerate(find_objects(labels), 1):
        own = bright[box] & (labels[box] == number)
        size = int(own.sum())
        if size and near[box][own].all():
            thin = min(own.shape) <= _LINE
            count += 1 if size <= _LARGEST else 2 * thin  # several letters
    return count


def _outer(side: int, share: float) -> NDArray[np.bool_]:
    edge = np.minimum(np.arange(side), np.arange(side)[::-1])
    return np.minimum(edge[:, None], edge[None]) < round(share * side)
