"""The most similar normal images of each case, for the page, from ``similar.csv``.

They are pictures of other people. Nothing is shown where the run keeps none
(``fit --no-keep-similar``) or the scoring wrote none (``score --no-similar``).
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from normalis.report.sources import Source

__all__ = ["EMBEDDED", "similar_data"]

#: Pictures of normal images that one page holds, about 2 kB each; those of the first cases.
EMBEDDED = 2000
_QUALITY = 75


def similar_data(source: Source) -> dict[str, Any] | None:
    """Return what the page shows of similar normal images, None if there is nothing.

    Args:
        source: a scoring.

    Returns:
        ``of``: of each case, nearest first, [place in ``pictures`` or -1, number of the normal
        image, distance]; ``pictures``: base64 of WebP, each once.
    """
    cases = source.cases
    if cases is None or not any(cases.similar):
        return None
    places: dict[int, int] = {}
    pictures: list[str] = []
    of: list[list[list[float]]] = [[] for _ in range(len(cases))]
    for i in map(int, cases.order):
        for number, distance in cases.similar[i]:
            if number not in places:
                text = _read(source.folder, number) if len(pictures) < EMBEDDED else ""
                places[number] = len(pictures) if text else -1
                pictures += [text] if text else []
            of[i].append([places[number], number, distance])
    return {"of": of, "pictures": pictures}


def _read(folder: Path, number: int) -> str:
    """Return the picture of a normal image, empty if it cannot be read."""
    try:
        with Image.open(folder / "similar" / f"{number:04d}.png") as picture:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, format="WEBP", quality=_QUALITY, method=3)
    except (OSError, ValueError, SyntaxError):
        return ""
    return base64.b64encode(buffer.getvalue()).decode("ascii")
