"""Names of maps and pictures: those of the images, kept apart and short enough.

``a.png.npy``, ``a.dcm_0003.npy`` of a frame, ``x.npz_validation_0003.npy`` of an array other than
``test``, ``a.nii.nii.gz`` of a volume. An ending that a name has already is not repeated, unless
two names would become one: then a hash of the whole name is added to both. One is added, too, where
a name would be longer than file systems take.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from normalis.files import ANY_NAME, NAME_BYTES, short_name
from normalis.output.overlays import numbered

__all__ = ["clashing", "picture_name"]

SUFFIXES = (".npy", ".png", ".nii.gz")
_LONGEST_PATH = 3000  # bytes; Linux takes 4096 with the output folder's own
_NUMBERED = re.compile(r"(.+?)(_[^_/]+)?_\d{4,}", re.DOTALL)


def picture_name(inside: PurePath, place: str, suffix: str, *, is_odd: bool = False) -> PurePath:
    """Return the name of an image's map or picture, relative to the folder of its kind.

    Args:
        inside: the image, relative to the scored folder.
        place: slice or row within the file, as in ``scores.csv``.
        suffix: of the map or picture.
        is_odd: whether the name alone could be taken for another's (`clashing`).
    """
    stem, number = inside.name, numbered(place)
    if is_odd:
        stem = f"{stem}~{_digest(inside)}"
    ending = "" if stem.endswith(suffix) and not number else suffix
    room = NAME_BYTES - len(f"{number}{ending}".encode())
    name = f"{short_name(stem, most=room)}{number}{ending}"
    if len(str(inside).encode("utf-8", ANY_NAME)) > _LONGEST_PATH:
        return PurePath(f"~{_digest(inside, 32)}{number}{suffix}")
    return inside.with_name(name)


def _digest(inside: PurePath, length: int = 8) -> str:
    return hashlib.sha256(inside.as_posix().encode("utf-8", ANY_NAME)).hexdigest()[:length]


def clashing(images: Iterable[str]) -> frozenset[str]:
    """Return the images whose maps or pictures would have one name, or a folder's.

    Names that differ in their case, or in how an umlaut is written, are one on many systems.

    Args:
        images: relative to the scored folder, with forward slashes.
    """
    names = set(images)
    folders = {_same(str(parent)) for name in names for parent in PurePath(name).parents}
    known = defaultdict(set)
    for name in names:
        known[_same(name)].add(name)
    odd: set[str] = set()
    for suffix in SUFFIXES:
        by_key = defaultdict(set)
        for name in names:
            by_key[_same(name if name.endswith(suffix) else name + suffix)].add(name)
        for key, group in by_key.items():
            is_number = any(base in known for base in _bases(key, suffix))
            if len(group) > 1 or key in folders or is_number:
                odd |= group
        for folder in folders:
            for base in _bases(folder, suffix):
                odd |= known.get(base, set())
    return frozenset(odd)


def _bases(key: str, suffix: str) -> Iterator[str]:
    """Yield the images whose frame or row a name might be of."""
    found = _NUMBERED.fullmatch(key.removesuffix(suffix)) if key.endswith(suffix) else None
    if found is not None:
        yield found[1]
        yield found[1] + (found[2] or "")


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
