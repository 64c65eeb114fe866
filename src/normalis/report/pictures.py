"""The strips that ``score`` left in ``thumbnails/`` as small data URIs.

A strip holds image, reconstruction and level of the anomaly map side by side in grey. The first
two become one lossy WebP. The map becomes a small lossless one, since the noise of lossy
compression would paint specks where nothing is anomalous.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from normalis.output.overlays import numbered
from normalis.report.sources import Cases

__all__ = ["EMBEDDED", "Picture", "find_pictures", "read_picture"]

#: Pictures beyond so many make a page that a browser opens slowly; the most anomalous are kept.
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
    """

    photo: str
    level: str
    rebuilt: bool


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


def read_picture(file: Path) -> Picture | None:
    """Return a strip's pictures, None if the file is no readable strip."""
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
    small = Image.fromarray(level).resize((_MAP, _MAP), Image.Resampling.BOX)
    coarse = Image.fromarray(np.asarray(small) & _LEVELS)
    return Picture(
        photo=_encode(photo, quality=_PHOTO_QUALITY, method=3),
        level=_encode(coarse, lossless=True, quality=60, method=3),
        rebuilt=has_rebuilt,
    )


def _encode(image: Image.Image, **options: object) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="WEBP", **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
