"""Numbers with their nouns, as messages and pages say them: 1 study, 2 studies."""

from __future__ import annotations

__all__ = ["counted", "verb"]

_IRREGULAR = {"series": "series", "copy": "copies", "study": "studies", "entry": "entries"}


def counted(number: int, thing: str) -> str:
    """Return a number and its noun.

    Args:
        number: of things.
        thing: the noun in the singular; of several words the first is the noun where the second is
            ``of``, else the last.

    Example:
        >>> counted(1, "study"), counted(2, "normal image"), counted(3, "group of copies")
        ('1 study', '2 normal images', '3 groups of copies')
    """
    return f"{number} {thing if number == 1 else _several(thing)}"


def _several(thing: str) -> str:
    first, of, rest = thing.partition(" of ")
    *before, noun = first.split(" ")
    return " ".join([*before, _IRREGULAR.get(noun, f"{noun}s")]) + of + rest


def verb(number: int, one: str, several: str) -> str:
    """Return the form of a verb for a number of things: it is, they are."""
    return one if number == 1 else several
