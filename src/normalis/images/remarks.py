"""What the decoders remark on files: kept back while a file is read, and told by kind.

pydicom warns of every value that breaks the standard, once a value: thousands of lines for one
export. They are no errors; a file that cannot be read has its own reason. So they are collected,
each kind once with the files that it is about, for whoever called to say in a line.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

__all__ = ["Remark", "collected", "note", "package_of", "taken"]

_log = logging.getLogger("normalis.images")

#: Packages whose remarks are kept, and such whose warnings say nothing of a file.
_KEPT = ("pydicom", "highdicom", "PIL", "nibabel", "pylibjpeg")
_NOISY = rf"({'|'.join(_KEPT)})(\.|$)"
_NOTHING = r"(numpy|gdcm|jpeg_ls|openjpeg|rle|normalis\.images)(\.|$)"
_LOGGERS = ("nibabel", "nibabel.global", "PIL", "PIL.TiffImagePlugin", "pydicom", "pylibjpeg")
_LONGEST = 160  # characters of a remark


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Remarks of one kind.

    Attributes:
        package: who says it.
        text: the first one, in full unless it is very long.
        files: those of which it was said, with whatever values, the first one first; none where no
            file was being read.
    """

    package: str
    text: str
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        if not self.files:
            return f"{self.package}: {self.text}"
        several = f"{len(self.files)} files, for instance " if len(self.files) > 1 else ""
        return f"{self.package}: {self.text} (in {several}{self.files[0]})"


_lock = threading.Lock()
_found: dict[tuple[str, str], Remark] = {}
_files: dict[tuple[str, str], dict[Path, None]] = {}
_users = 0
_saved: Any = None
_reading = threading.local()


def note(package: str, text: str) -> None:
    """Keep a remark; its file is the one that this thread is reading."""
    said = " ".join(text.split())
    kind = package, re.sub(r"'[^']*'|\"[^\"]*\"|[\d.]+", "", said.split(": '")[0])
    path: Path | None = getattr(_reading, "path", None)
    with _lock:
        is_new = kind not in _found
        if is_new:
            short = said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…"
            _found[kind] = Remark(package=package, text=short)
        if path is not None:
            _files.setdefault(kind, {})[path] = None
    if is_new:
        _log.info("%s: %s (%s)", package, said, path or "no file")


def taken() -> tuple[Remark, ...]:
    """Return what was remarked since the last call, and forget it."""
    with _lock:
        found = tuple(replace(r, files=tuple(_files.get(kind, ()))) for kind, r in _found.items())
        _found.clear()
        _files.clear()
    return found


def package_of(filename: str) -> str | None:
    """Return whose source file a warning comes from; None if its remarks are not kept."""
    parts = PurePath(filename).parts
    return next((name for name in _KEPT if name in parts), None)


class _Silence(logging.Filter):
    """Drops what a decoder logs while a file is read: its reason says it, with the file's name."""

    def filter(self, record: logging.LogRecord) -> bool:
        return _users == 0


for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_Silence())


@contextmanager
def collected(path: Path) -> Iterator[None]:
    """Collect the decoders' warnings while a file is read, in whichever thread; nobody else's.

    ``warnings.catch_warnings`` alone is not safe here: threads that overlap would restore each
    other's filters. The first to enter changes them, the last to leave restores them.

    Args:
        path: the file that is being read.
    """
    global _users, _saved
    before, _reading.path = getattr(_reading, "path", None), path
    with _lock:
        if _users == 0:
            _saved = warnings.catch_warnings()
            _saved.__enter__()
            _collect()
        _users += 1
    try:
        yield
    finally:
        _reading.path = before
        with _lock:
            _users -= 1
            if _users == 0:
                _saved.__exit__(None, None, None)


def _collect() -> None:
    usual = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], filename: str, *more: Any) -> None:
        package = package_of(filename)
        if package is not None and getattr(_reading, "path", None) is not None:
            note(package, str(message))
        else:
            usual(message, category, filename, *more)

    warnings.filterwarnings("always", module=_NOISY)
    warnings.filterwarnings("ignore", module=_NOTHING)
    warnings.showwarning = shown  # type: ignore[assignment]
