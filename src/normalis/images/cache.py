"""Decoded images kept between runs, so that the second run starts at once.

An entry is one ``.npz`` in the user's cache folder, named by the hash of everything that its
content depends on. It is written under a temporary name and renamed: another process sees it whole
or not at all. When the folder exceeds its limit the entries used longest ago are removed. A cache
that cannot be read or written is as good as none, never an error.

The folder is ``$NORMALIS_CACHE``, else ``$XDG_CACHE_HOME/normalis``, else ``~/.cache/normalis``;
it holds patients' images and is readable by its owner only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_LIMIT", "ArrayCache", "cache_folder", "cache_key", "stamp"]

DEFAULT_LIMIT = 2 * 1024**3  # bytes
_VERSION = 3  # of what an entry holds; raise it when decoding changes its result
_DECODERS = (
    "pillow",
    "pydicom",
    "nibabel",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-rle",
    "python-gdcm",
    "pyjpegls",
)
# A file changed twice within one tick of the file system's clock keeps its time stamp, so that a
# stamp this young proves nothing (git's "racy" problem). Such files are decoded anew.
_YOUNG_S = 0.1
_ABANDONED_S = 24 * 3600


def cache_folder() -> Path:
    """Return the folder that entries lie in; it may not exist yet."""
    if own := os.environ.get("NORMALIS_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "normalis"
    return Path("~/.cache/normalis").expanduser()


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return (size, modified, changed) of a file, times in ns; None if it is too young to tell.

    A file that is not there has the size -1, so that its return is a change as well.
    The time of change also moves when permissions do, or when a file is replaced by one whose
    modification time was set back.
    """
    try:
        found = path.stat()
    except OSError:
        return -1, 0, 0
    newest = max(found.st_mtime_ns, found.st_ctime_ns) / 1e9
    if time.time() - newest < _YOUNG_S:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def cache_key(settings: Mapping[str, Any], files: Iterable[Any]) -> str:
    """Hash what decoded images depend on: settings, the files' stamps, the decoders' versions."""
    content = {
        "version": _VERSION,
        "decoders": {name: _installed(name) for name in _DECODERS},
        "settings": dict(settings),
        "files": list(files),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class ArrayCache:
    """A folder of named sets of arrays, with a limit on their size.

    Args:
        folder: None means `cache_folder`.
        limit: bytes of all entries together.
    """

    def __init__(self, folder: Path | None = None, *, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = cache_folder() if folder is None else folder
        self.limit = limit

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Return an entry's arrays, None if there is none or it is damaged."""
        path = self._path(key)
        try:
            # opened here, since np.load leaves a damaged file open
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as entry:
                arrays = {name: entry[name] for name in entry.files}
            os.utime(path)  # used now: the last to be removed
            return arrays
        except FileNotFoundError:
            return None
        except Exception:  # a damaged zip raises almost anything; whatever it is, decode anew
            self._remove(path)
            return None

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Write an entry; say whether it was written."""
        if sum(a.nbytes for a in arrays.values()) > self.limit:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(key, arrays)
            self._make_room()
        except OSError:
            return False
        return True

    def _write(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            Path(name).replace(self._path(key))
        except BaseException:
            self._remove(Path(name))
            raise

    def _make_room(self) -> None:
        """Remove the entries used longest ago until the rest fits."""
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process may remove it first
                found = path.stat()
                if path.suffix == ".tmp" and time.time() - found.st_mtime > _ABANDONED_S:
                    self._remove(path)
                elif path.suffix == ".npz":
                    entries.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                return
            self._remove(path)
            total -= size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    @staticmethod
    def _remove(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
