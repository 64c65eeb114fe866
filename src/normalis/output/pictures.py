"""Pictures of a scored image for the page's viewer: the image itself, large, and its own map.

::

    pictures/NAME.webp      the image at its own geometry, at most `LARGEST` pixels a side
    pictures/NAME.map.png   the calibrated map from its lowest place (0) to its highest (255)

The map is relative to the image alone, so that it says where an image stands out most even if all
of it is quiet; ``thumbnails/`` has the map on the scale that all images share.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.output.overlays import grey
from normalis.storage import write_atomically

if TYPE_CHECKING:
    from normalis.output.image_files import ImageFiles
    from normalis.scoring import Detail

__all__ = ["LARGEST", "large_picture", "own_scale", "write_pictures"]

#: Longest side of a picture, in pixels: as much as a screen shows beside its map.
LARGEST = 1024
_QUALITY = 80


def large_picture(pixels: NDArray[Any]) -> Image.Image:
    """Return (C, H, W) pixels with nominal range [0, 1] as a picture, never enlarged."""
    picture = Image.fromarray(grey(pixels))
    if len(pixels) == 1:
        picture = picture.convert("L")
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return picture


def own_scale(anomaly_map: NDArray[Any]) -> Image.Image:
    """Return a map (S, S) in grey from its own lowest value to its highest; a flat one is black."""
    low, high = float(np.min(anomaly_map)), float(np.max(anomaly_map))
    level = (np.asarray(anomaly_map, np.float64) - low) / max(high - low, 1e-12)
    return Image.fromarray((255 * np.clip(level, 0, 1)).round().astype(np.uint8))


def write_pictures(files: ImageFiles, seen: Detail, calibrated: NDArray[np.float32]) -> None:
    """Write both pictures of an image.

    Args:
        files: names the files.
        seen: the image at full size.
        calibrated: (S, S) its calibrated map.
    """
    target = files.name("pictures", seen.row, ".map.png")  # the longer of the two names
    path = target.with_name(f"{target.name.removesuffix('.map.png')}.webp")
    picture = large_picture(seen.original)
    write_atomically(path, partial(_save_webp, picture=picture), tidy=False)
    own = own_scale(calibrated)
    write_atomically(target, lambda p: own.save(p, format="PNG"), tidy=False)


def _save_webp(path: Path, picture: Image.Image) -> None:
    picture.save(path, format="WEBP", quality=_QUALITY, method=3)
