"""The pictures that ``score`` left, as small WebP for the page or for a folder beside it.

A strip of ``thumbnails/`` holds image, reconstruction and level of the anomaly map side by side in
grey. The first two become one lossy WebP. The map becomes a small lossless one, since the noise of
lossy compression would paint specks where nothing is anomalous. Beside the page it is coloured: a
browser lets no script read the pixels of a file. ``pictures/`` has each image large, and its map on
its own scale.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normalis.calibration.colours import ColourScale
from normalis.output.overlays import heat, numbered
from normalis.report.contours import contour_path
from normalis.report.sources import Cases

__all__ = [
    "EMBEDDED",
    "Large",
    "Picture",
    "find_large",
    "find_pictures",
    "palette",
    "read_large",
    "read_picture",
]

#: Pictures beyond so many make a page that a browser opens slowly: they go into a folder beside it.
EMBEDDED = 2000
_PHOTO_QUALITY = 70
#: Side of the embedded map: about the resolution at which models work.
_MAP = 80
_LEVELS = 0xF8  # 32 steps are finer than the eye tells apart in the colour scale


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One case's pictures, base64 of WebP.

    Attributes:
        photo: the image, and beside it the reconstruction where there is one.
        level: the anomaly map, 0 where nothing is painted.
        rebuilt: whether ``photo`` holds a reconstruction.
        contour: SVG path around what the map paints, in thousandths of the image's sides.
    """

    photo: str
    level: str
    rebuilt: bool
    contour: str


@dataclass(frozen=True, kw_only=True)
class Large:
    """One case's large pictures, base64 of WebP.

    Attributes:
        photo: the image.
        own: its map on its own scale.
    """

    photo: str
    own: str


def find_pictures(
    folder: Path,
    cases: Cases,
    wanted: Sequence[int],
    named: Mapping[str, Any] | None = None,
) -> dict[int, Path]:
    """Return the strip of each wanted case, where there is one.

    ``score.json`` names them. Without it the longest tail of the path that names a strip is taken,
    for the strips keep the tree of the scored folder.

    Args:
        folder: output folder of ``score``.
        cases: the scored images.
        wanted: positions in ``cases``.
        named: position as text -> name, as ``score.json`` has it.
    """
    root = folder / "thumbnails"
    there = {p.relative_to(root).as_posix() for p in root.rglob("*.png")} if root.is_dir() else {}
    if named is not None:
        told = {i: str(named.get(str(i))) for i in wanted}
        return {i: root / name for i, name in told.items() if name in there}
    found = {}
    for i in wanted:
        number = numbered(cases.place[i])
        parts = PurePath(cases.path[i]).parts
        names = (_strip_name("/".join(parts[k:]), number) for k in range(len(parts)))
        name = next((n for n in names if n in there), None)
        if name is not None:
            found[i] = root / name
    return found


def _strip_name(path: str, number: str) -> str:
    """Return how ``score`` names the strip of a file: an image that is a PNG keeps its name."""
    return path if path.endswith(".png") and not number else f"{path}{number}.png"


def find_large(folder: Path, strips: Mapping[int, Path]) -> dict[int, Path]:
    """Return the large picture of each case that has one, by its strip.

    Both are named after the image, and an ending that a name has already is not repeated.
    """
    root = folder / "pictures"
    there = {p.relative_to(root).as_posix() for p in root.rglob("*.webp")} if root.is_dir() else {}
    found = {}
    for i, strip in strips.items() if there else ():
        name = strip.relative_to(folder / "thumbnails").as_posix()
        bare = name.removesuffix(".png")
        names = f"{name}.webp", bare if bare.endswith(".webp") else f"{bare}.webp"
        chosen = next((n for n in names if n in there), None)
        if chosen is not None:
            found[i] = root / chosen
    return found


def read_picture(file: Path, *, coloured: bool = False) -> Picture | None:
    """Return a strip's pictures, None if the file is no readable strip.

    Args:
        file: the strip.
        coloured: whether the map is painted already, else it is grey.
    """
    try:
        with Image.open(file) as opened:
            strip = np.asarray(opened.convert("L"))
    except (OSError, ValueError, SyntaxError):
        return None
    side = strip.shape[0]
    if strip.shape[1] != 3 * side:
        return None
    image, rebuilt, level = strip[:, :side], strip[:, side : 2 * side], strip[:, 2 * side :]
    # A method without reconstructions has the image in its place.
    has_rebuilt = not np.array_equal(image, rebuilt)
    photo = Image.fromarray(strip[:, : 2 * side] if has_rebuilt else image)
    return Picture(
        photo=_encode(photo.convert("RGB"), quality=_PHOTO_QUALITY, method=3),
        level=_encode_map(Image.fromarray(level), coloured=coloured),
        rebuilt=has_rebuilt,
        contour=contour_path(level),
    )


def read_large(file: Path, *, coloured: bool = False) -> Large | None:
    """Return the large pictures of ``pictures/NAME.webp``; None if they cannot be read."""
    own = file.with_name(f"{file.name.removesuffix('.webp')}.map.png")
    try:
        with Image.open(own) as opened:
            level = opened.convert("L")
        photo = file.read_bytes()
        with Image.open(io.BytesIO(photo)) as opened:
            opened.verify()
    except (OSError, ValueError, SyntaxError):
        return None
    return Large(
        photo=base64.b64encode(photo).decode("ascii"),
        own=_encode_map(level, coloured=coloured),
    )


def palette() -> NDArray[np.uint8]:
    """Return RGBA of each of the 256 levels of a map (256, 4), as overlays are painted."""
    colours, opacity = heat(np.linspace(0, 1, 256), ColourScale(quiet=0.0, full=1.0))
    alpha = (255 * opacity).round().astype(np.uint8)[:, None]
    return np.concatenate([colours, alpha], axis=1)


def _encode_map(level: Image.Image, *, coloured: bool) -> str:
    """Return a map, small and in few levels."""
    small = level.resize((_MAP, _MAP), Image.Resampling.BOX)
    coarse = np.asarray(small) & _LEVELS
    picture = Image.fromarray(palette()[coarse]) if coloured else Image.fromarray(coarse)
    return _encode(
        picture if coloured else picture.convert("RGB"), lossless=True, quality=60, method=3
    )


def _encode(image: Image.Image, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
