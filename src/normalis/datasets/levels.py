"""What the independent units of a data set are, and what they are called."""

from __future__ import annotations

from typing import Literal

__all__ = ["LEAST_UNITS", "NAMES", "Level", "plural"]

Level = Literal["image", "patient", "study", "group", "file"]

#: Units below which none is held out: one to calibrate with, and two to learn from.
LEAST_UNITS = 3

#: What one unit and several are called.
NAMES: dict[str, tuple[str, str]] = {
    "image": ("image", "images"),
    "patient": ("patient", "patients"),
    "study": ("study", "studies"),
    "group": ("group of near duplicates", "groups of near duplicates"),
    "file": ("file", "files"),
}


def plural(count: int, level: str) -> str:
    """Return a number of units with their name.

    Example:
        >>> plural(1, "study"), plural(2, "study")
        ('1 study', '2 studies')
    """
    one, several = NAMES[level]
    return f"{count} {one if count == 1 else several}"
