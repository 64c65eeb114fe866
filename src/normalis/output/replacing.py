"""A finished scoring that is scored anew is there, old or new, until the new one is complete.

The new one is written into ``.new`` inside the folder. When it is complete the old files move to
``.old``, ``.new`` becomes ``.ready``, and what is in it moves into place. Each step is a rename,
and whoever works in the folder next goes on from wherever that stopped. Files that are not of a
scoring, such as a page or notes, stay where they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from normalis.errors import RunError
from normalis.output.journal import Journal

__all__ = ["NEW", "OWN", "is_being_replaced", "put_in_place", "remove_own"]

#: What `normalis score` writes into its folder.
OWN = (
    "maps", "overlays", "thumbnails", "pictures", "findings.csv", "series.csv", "patients.csv",
    "aside.csv", "skipped.csv", "score.json", "scores.csv", "similar", "similar.csv",
)  # fmt: skip
NEW, _READY, _OLD = ".new", ".ready", ".old"


def is_being_replaced(folder: Path) -> bool:
    """Return whether a new scoring is complete and has not yet taken the old one's place."""
    return (folder / _READY).is_dir() or _is_complete(folder / NEW)


def _is_complete(new: Path) -> bool:
    return (new / "scores.csv").is_file() and not (new / Journal.NAME).exists()


def put_in_place(folder: Path) -> bool:
    """Let a new scoring that is complete take the old one's place; return whether there was one.

    Raises:
        RunError: if the folder cannot be written to; to call it again goes on.
    """
    try:
        if not is_being_replaced(folder):
            shutil.rmtree(folder / _OLD, ignore_errors=True)
            return False
        if not (folder / _READY).is_dir():
            _move(folder, folder / _OLD)
            (folder / NEW).replace(folder / _READY)
        _move(folder / _READY, folder)
        shutil.rmtree(folder / _READY)
        shutil.rmtree(folder / _OLD, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}); the new scores lie there "
            "complete: run the same command again"
        ) from error
    return True


def _move(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in OWN:
        if (source / name).exists():
            (source / name).replace(target / name)


def remove_own(folder: Path) -> None:
    """Remove a scoring, finished or not, and nothing else."""
    (folder / Journal.NAME).unlink(missing_ok=True)
    for name in OWN:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
