"""A folder of pictures beside a page, for sets that one file would make too large."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from normalis.errors import RunError

__all__ = ["Beside"]

_MARK = "made_by_normalis_report.txt"
_NOTE = "Pictures of the page beside this folder. Keep both together.\n"


class Beside:
    """Writes ``NAME_files/`` beside ``NAME.html``; an older one of ours is replaced when done.

    Args:
        page: the page.
    """

    def __init__(self, page: Path) -> None:
        self.folder = page.with_name(f"{page.stem}_files")
        self._new = page.with_name(f".{page.stem}_files.new")

    @property
    def url(self) -> str:
        """What names of pictures are appended to, relative to the page."""
        from urllib.parse import quote

        return f"{quote(self.folder.name)}/"

    def __enter__(self) -> Self:
        if self.folder.exists() and not (self.folder / _MARK).is_file():
            raise RunError(
                f"{self.folder}: must be free for the pictures of the page, holds something else; "
                "choose another --out"
            )
        try:
            shutil.rmtree(self._new, ignore_errors=True)
            self._new.mkdir(parents=True)
            (self._new / _MARK).write_text(_NOTE, encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def keep(self, name: str, base64_text: str) -> str:
        """Write a picture; return its name."""
        try:
            (self._new / name).write_bytes(base64.b64decode(base64_text))
        except OSError as error:
            raise self._unwritable(error) from error
        return name

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"{self.folder}: cannot be written ({error.strerror or error})")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._new.rename(self.folder)
        else:
            shutil.rmtree(self._new, ignore_errors=True)
