"""What ``findings.csv`` says of each case, as the page draws it over the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from normalis.errors import RunError
from normalis.files import read_csv
from normalis.report.sources import Cases

__all__ = ["read_marks"]

_MOST = 12  # areas drawn on one picture; the table has all


def read_marks(folder: Path, cases: Cases) -> list[list[list[float | None]]]:
    """Return the findings of each case, the highest first.

    Each is ``[left, top, right, bottom, peak_x, peak_y, above, p, area_px, area_mm2, at_border]``,
    places as shares of the image's width and height.

    Args:
        folder: output folder of ``score``.
        cases: the scored images.

    Raises:
        RunError: if findings.csv is damaged.
    """
    file = folder / "findings.csv"
    found: dict[tuple[str, str], list[list[float | None]]] = {}
    if file.is_file():
        try:
            for row in read_csv(file):
                found.setdefault((row["path"], row["slice"]), []).append(_mark(row))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{file}: cannot be read ({error!r}); restore or remove it") from error
    keys = zip(cases.path, cases.place, strict=True)
    return [found.get(key, [])[:_MOST] for key in keys]


def _mark(row: dict[str, str]) -> list[float | None]:
    wide, high = float(row["image_width"]), float(row["image_height"])
    places: list[tuple[str, float]] = [
        ("left", wide), ("top", high), ("right", wide), ("bottom", high), ("peak_x", wide),
        ("peak_y", high),
    ]  # fmt: skip
    shares: list[Any] = [round(float(row[name]) / size, 4) for name, size in places]
    rest = ("p_value", "area_px", "area_mm2")
    numbers = [float(row[name]) if row[name] else None for name in rest]
    return [*shares, int(row["above"]), *numbers, int(row["at_border"])]
