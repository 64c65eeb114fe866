"""Which files of a folder may be images, in an order that people expect.

Nothing is opened: the bytes decide later what a file is. Left out are hidden files, the resource
forks that macOS puts into archives (``__MACOSX``), and files whose suffix says that they are no
image; those are counted, so that a listing can say what it left aside.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from normalis.errors import DataError
from normalis.errors.words import counted

__all__ = [
    "IMAGES",
    "NOT_IMAGES",
    "STORES",
    "TABLES",
    "Listing",
    "folders_in",
    "is_file",
    "is_output",
    "list_images",
    "natural_key",
    "quote_some",
    "stem_of",
    "suffix_of",
]

#: Suffixes of tables of other programs, which are not read.
STORES = frozenset(
    {".accdb", ".arrow", ".db", ".dbf", ".dta", ".feather", ".mdb", ".numbers", ".orc", ".rdata"}
    | {".rds", ".sav", ".sqlite", ".sqlite3", ".xlsb", ".xlsm"}
)

#: Suffixes of tables and lists, which may say what the images beside them are.
TABLES = STORES | frozenset(
    {".csv", ".tsv", ".psv", ".parquet", ".xls", ".xlsx", ".ods", ".txt", ".json"}
    | {".jsonl", ".ndjson", ".yaml", ".yml", ".xml", ".toml", ".lst"}
)

NOT_IMAGES = frozenset(
    {
        ".csv",
        ".json",
        ".jsonl",
        ".lst",
        ".ndjson",
        ".ods",
        ".parquet",
        ".psv",
        ".sqlite",
        ".toml",
        ".tsv",
        ".xml",
        ".yaml",
        ".yml",
    }
    | {".doc", ".docx", ".htm", ".html", ".md", ".pdf", ".txt", ".xls", ".xlsx"}
    | {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}
    | {".h5", ".mat", ".npy", ".npz", ".pkl", ".pt", ".pth", ".safetensors"}
    | {".cfg", ".ini", ".log", ".py", ".sh", ".url"}
    | STORES
)

#: Suffixes that images usually have; "" is that of a NIfTI's `.nii.gz`, and of many DICOMs.
IMAGES = frozenset({"", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".nii"})

_OF_LABELS = re.compile(
    r"(^|[^a-z])(labels?|annotations?|meta ?data|manifest|diagnos[ei]s|ground.?truth|targets?"
    r"|findings?|classes|splits?)([^a-z]|$)|\.(csv|tsv|psv|xlsx?|jsonl?|txt|parquet)\.\w+$"
)

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Listing:
    """Files of a folder.

    Attributes:
        images: files that may be images, in natural order of their path.
        aside: number of files left out, by suffix.
        others: those files that may be tables or lists of images, in natural order.
        outputs: folders that normalis itself wrote, which are never listed as images.
        broken: entries that are neither file nor folder, or cannot be read, with the reason.
    """

    images: tuple[Path, ...]
    aside: Counter[str]
    others: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    broken: tuple[tuple[Path, str], ...] = ()

    def notes(self) -> tuple[str, ...]:
        """Say what was left out, in a sentence for each reason."""
        notes = []
        if self.aside:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.aside.items()))
            notes.append(f"Left aside files that are not images: {kinds}.")
        if self.outputs:
            named = quote_some(folder.name for folder in self.outputs)
            notes.append(
                f"Left aside {counted(len(self.outputs), 'folder')} that normalis itself wrote "
                f"(runs, scores, maps, pictures): {named}."
            )
        if self.broken:
            path, reason = self.broken[0]
            notes.append(
                f"Left aside as no readable file or folder: {counted(len(self.broken), 'entry')}, "
                f"{path.name} ({reason})" + (", ..." if len(self.broken) > 1 else "") + "."
            )
        return tuple(notes)

    def without(self, chosen: Iterable[Path]) -> Listing:
        """Return the listing without some of its images."""
        gone = set(chosen)
        return dataclasses.replace(self, images=tuple(p for p in self.images if p not in gone))


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
        names = [e.name for e in entries if _is_visible(e.name) and _kind(e)[0] == "folder"]
    return {name: folder / name for name in sorted(names, key=natural_key)}


def is_file(path: Path) -> bool:
    """Whether there is a file; a name that no file can have is no error but no file."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, a loop of links, a zero byte
        return False


def is_output(folder: str | Path) -> bool:
    """Whether normalis itself wrote this folder: a run, or the scores of one."""
    try:
        names = {entry.name for entry in Path(folder).iterdir()}
    except OSError:
        return False
    if "score.json" in names and "scores.csv" in names:
        return True
    if {"model.json", "model.safetensors"} <= names:
        return True
    return any(
        file in names and _is_of_scores(Path(folder, file))
        for file in ("scores.csv", "progress.jsonl", "progress.csv")
    )


def _is_of_scores(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return b"anomaly_score" in stream.read(1 << 12)
    except OSError:
        return False


def stem_of(path: PurePath) -> str:
    """Return a file's name without its suffix, of ``.nii.gz`` without both."""
    name = path.name
    return name[:-7] if name.lower().endswith(".nii.gz") else path.stem


def suffix_of(name: str) -> str:
    """Return a name's suffix in lower case; none for ``.nii.gz``, which is an image."""
    # A compressed volume ends in .gz and is an image all the same.
    lower = name.lower()
    return "" if lower.endswith(".nii.gz") else PurePath(lower).suffix


def list_images(folder: Path) -> Listing:
    """List the files below a folder that may be images.

    Folders behind symbolic links are followed once, so that a loop of links ends. Folders that
    normalis wrote are left out, as is what cannot be read: one bad entry ends no listing.

    Args:
        folder: where to start.

    Returns:
        The files and what was left out.

    Raises:
        DataError: if the folder itself cannot be read.
    """
    walk = _Walk()
    waiting, links = [str(folder)], list[str]()
    while waiting or links:
        # Links last and in order: of two ways to a folder the same one is taken every time.
        current = waiting.pop() if waiting else links.pop(links.index(min(links)))
        for path, is_link in walk.visit(current, is_first=current == str(folder)):
            (links if is_link else waiting).append(path)
    in_order = sorted(walk.found, key=natural_key)
    return Listing(
        images=tuple(map(Path, in_order)),
        aside=walk.aside,
        others=tuple(map(Path, sorted(walk.others, key=natural_key))),
        outputs=tuple(map(Path, sorted(walk.outputs, key=natural_key))),
        broken=tuple(sorted(walk.broken)),
    )


class _Walk:
    """What a listing finds, folder by folder."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.others: list[str] = []
        self.outputs: list[str] = []
        self.aside: Counter[str] = Counter()
        self.broken: list[tuple[Path, str]] = []
        self._seen: set[tuple[int, int]] = set()

    def visit(self, folder: str, *, is_first: bool) -> list[tuple[str, bool]]:
        """Sort the entries of one folder; return its sub-folders and whether each is a link."""
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in self._seen:
                return []
            self._seen.add((status.st_dev, status.st_ino))
            if not is_first and is_output(folder):
                self.outputs.append(folder)
                return []
            with _scan(folder) as entries:
                visible = [entry for entry in entries if _is_visible(entry.name)]
        except (OSError, DataError) as error:
            if is_first:
                raise
            self.broken.append((Path(folder), _why(error)))
            return []
        return [(entry.path, entry.is_symlink()) for entry in visible if self._sort(entry)]

    def _sort(self, entry: os.DirEntry[str]) -> bool:
        """Take in one entry; return whether it is a folder."""
        kind, why = _kind(entry)
        if kind == "folder":
            return True
        suffix = suffix_of(entry.name)
        if kind != "file":
            self.broken.append((Path(entry.path), why))
        elif suffix in NOT_IMAGES:
            self.aside[suffix] += 1
            if suffix in TABLES or _OF_LABELS.search(entry.name.lower()):
                self.others.append(entry.path)
        else:
            self.found.append(entry.path)
        return False


def _kind(entry: os.DirEntry[str]) -> tuple[str, str]:
    """Return whether an entry is a file or a folder, or why it is neither."""
    try:
        if entry.is_dir():
            return "folder", ""
        if entry.is_file():
            return "file", ""
        return "", "a broken link" if entry.is_symlink() else "neither a file nor a folder"
    except OSError as error:
        return "", _why(error)


def _why(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _scan(folder: str | Path) -> os.ScandirIterator[str]:  # type: ignore[name-defined]
    try:
        return os.scandir(os.fspath(folder))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror})") from error


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db", "desktop.ini")
