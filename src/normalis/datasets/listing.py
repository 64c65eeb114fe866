"""Which files of a folder may be images, in an order that people expect.

Nothing is opened: the bytes decide later what a file is. Left out are hidden files, the resource
forks that macOS puts into archives (``__MACOSX``), and files whose suffix says that they are no
image; those are counted, so that a listing can say what it left aside.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from normalis.errors import DataError

__all__ = ["NOT_IMAGES", "Listing", "folders_in", "list_images", "natural_key", "quote_some"]

NOT_IMAGES = frozenset(
    {".csv", ".json", ".jsonl", ".parquet", ".sqlite", ".toml", ".tsv", ".xml", ".yaml", ".yml"}
    | {".doc", ".docx", ".htm", ".html", ".md", ".pdf", ".txt", ".xls", ".xlsx"}
    | {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}
    | {".h5", ".mat", ".npy", ".npz", ".pkl", ".pt", ".pth", ".safetensors"}
    | {".cfg", ".db", ".ini", ".log", ".py", ".sh", ".url"}
)

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Listing:
    """Files of a folder.

    Attributes:
        images: files that may be images, in natural order of their path.
        aside: number of files left out, by suffix.
    """

    images: tuple[Path, ...]
    aside: Counter[str]

    def notes(self) -> tuple[str, ...]:
        """Say what was left out, in at most one sentence."""
        if not self.aside:
            return ()
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.aside.items()))
        return (f"Left aside files that are not images: {kinds}.",)


def natural_key(text: str) -> tuple[object, ...]:
    """Sort key by which ``slice_2`` comes before ``slice_10``."""
    parts = _DIGITS.split(text)
    numbers = ((int(part), len(part)) for part in parts[1::2])
    # The text itself breaks the tie between "1" and "01" in different places of one path.
    return (*(x for pair in zip(parts[::2], [*numbers, (0, 0)], strict=True) for x in pair), text)


def quote_some(names: Iterable[object], *, limit: int = 3) -> str:
    """Join the first few names for a message: ``a, b, c and 5 more``."""
    items = [str(name) for name in names]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def folders_in(folder: Path) -> dict[str, Path]:
    """Return the visible sub-folders of a folder by name, in natural order."""
    with _scan(folder) as entries:
        names = [e.name for e in entries if _is_visible(e.name) and e.is_dir()]
    return {name: folder / name for name in sorted(names, key=natural_key)}


def list_images(folder: Path) -> Listing:
    """List the files below a folder that may be images.

    Folders behind symbolic links are followed once, so that a loop of links ends.

    Args:
        folder: where to start.

    Returns:
        The files and what was left out.

    Raises:
        DataError: if the folder cannot be read.
    """
    found: list[str] = []
    aside: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting = [str(folder)]
    links: list[str] = []
    while waiting or links:
        # Links last and in order: of two ways to a folder the same one is taken every time.
        current = waiting.pop() if waiting else links.pop(links.index(min(links)))
        status = Path(current).stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with _scan(current) as entries:
            for entry in entries:
                if not _is_visible(entry.name):
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(entry.path)
                elif (suffix := _suffix(entry.name)) in NOT_IMAGES:
                    aside[suffix] += 1
                elif entry.is_file():
                    found.append(entry.path)
    return Listing(tuple(map(Path, sorted(found, key=natural_key))), aside)


def _scan(folder: str | Path) -> os.ScandirIterator[str]:  # type: ignore[name-defined]
    try:
        return os.scandir(os.fspath(folder))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _suffix(name: str) -> str:
    # A compressed volume ends in .gz and is an image all the same.
    lower = name.lower()
    return "" if lower.endswith(".nii.gz") else PurePath(lower).suffix
