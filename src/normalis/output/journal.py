"""What an interrupted scoring has done: a line of JSON for each image, in ``progress.jsonl``.

A line is written once the image's map is on disk, with the size and the times of its file. A
scoring that goes on keeps what is of the same model and the same files, and does the rest again:
files that have changed, and those whose maps have vanished.

Images that were scored together are noted together, and a last line says that all are there. A part
that was cut off is scored again as a whole: networks round differently in the last digit in batches
of another size, and a scoring that goes on ends with the numbers of one that nobody stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from normalis.errors import RunError
from normalis.files import write_atomically

__all__ = ["END", "Journal", "stamp"]

#: What ends the last line of a file.
END = "end"

_TOGETHER = b'["together"]\n'  # ends the lines of images that were scored together


def stamp(path: Path) -> str:
    """Return what changes with a file's contents: size and times; empty if it is not there."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


class Journal:
    """The lines of one scoring.

    Args:
        folder: the output folder.
    """

    NAME = "progress.jsonl"

    def __init__(self, folder: Path) -> None:
        self.file = folder / self.NAME
        self._started = time.time_ns()

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from."""
        return self.identity is not None

    @property
    def identity(self) -> str | None:
        """What the scoring is of; None if there is none, or nothing of it can be read."""
        head = next(self._lines(), None)
        return head[0] if head else None

    def begin(self, identity: str) -> None:
        """Start with no lines."""
        head = _line([identity, "path", "slice", "patient_id", "anomaly_score"])
        write_atomically(self.file, lambda p: p.write_bytes(head))

    def note(self, rows: Sequence[tuple[Path, Sequence[str]]]) -> None:
        """Add the lines of images that were scored together.

        Args:
            rows: file and cells of each image; the first cell names what was scored, the last is
                `END` with the last image of it.

        Raises:
            RunError: if the disk is full; what was noted stays.
        """
        stamps = {path: self._stamp(path) for path in {path for path, _ in rows}}
        try:
            with self.file.open("ab") as stream:
                lines = [_line([stamps[path], *cells]) for path, cells in rows]
                stream.write(b"".join([*lines, _TOGETHER]))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise RunError(
                f"{self.file}: cannot be written ({error.strerror or error}); what was scored is "
                "kept. Free space and run the same command again"
            ) from error

    def _stamp(self, path: Path) -> str:
        """Return a file's stamp; one that changed after it may have been read equals no other."""
        found = stamp(path)
        times = [int(part) for part in found.split()[1:]]
        return "changed" if times and max(times) >= self._started else found

    def rows(self) -> Iterator[list[str]]:
        """Yield the cells of each image, as they were noted."""
        for line in _after_first(self._lines()):
            yield line[1:]

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the stamp of each file or array entry that is done."""
        for first, *cells in _after_first(self._lines()):
            if cells[-1] == END:
                yield cells[0], first

    def keep(self, wanted: Callable[[str, list[list[str]]], bool]) -> set[str]:
        """Leave only what is complete and wanted; return the names of it.

        Args:
            wanted: called with the stamp and the lines of all images of one file or array entry.
        """
        kept, dropped = set(), self._is_cut()
        pending: dict[str, list[list[str]]] = {}
        for first, *cells in _after_first(self._lines()):
            lines = pending.setdefault(cells[0], [])
            lines.append(cells)
            if cells[-1] == END:
                if wanted(first, pending.pop(cells[0])):
                    kept.add(cells[0])
                else:
                    dropped = True
        if pending or dropped:
            self._rewrite(kept)
        return kept

    def _rewrite(self, kept: set[str]) -> None:
        def write(path: Path) -> None:
            with path.open("wb") as stream:
                for number, line in enumerate(self._lines()):
                    if number == 0 or line[1] in kept:
                        stream.write(_line(line))
                stream.write(_TOGETHER)

        write_atomically(self.file, write)

    def _is_cut(self) -> bool:
        whole = sum(len(_line(line)) for line in self._lines())
        with self.file.open("rb") as stream:
            ends = sum(raw == _TOGETHER for raw in stream)
        return whole + ends * len(_TOGETHER) != self.file.stat().st_size

    def _lines(self) -> Iterator[list[str]]:
        """Yield whole lines of whole parts, up to the first that was cut off or damaged."""
        if not self.file.is_file():
            return
        part: list[list[str]] = []
        with self.file.open("rb") as stream:
            for number, raw in enumerate(stream):
                if raw == _TOGETHER:
                    yield from part
                    part = []
                    continue
                line = _parsed(raw, least=3 if number else 1)
                if line is None:
                    return
                if number:
                    part.append(line)
                else:
                    yield line

    def remove(self) -> None:
        """End: all is in the tables."""
        self.file.unlink(missing_ok=True)


def _after_first(lines: Iterator[list[str]]) -> Iterator[list[str]]:
    next(lines, None)
    return lines


def _parsed(raw: bytes, *, least: int) -> list[str] | None:
    """Return the cells of a line; None if it was cut off, or is no list of texts."""
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    whole = isinstance(line, list) and len(line) >= least and _are_texts(line)
    return line if whole else None


def _are_texts(line: list[object]) -> bool:
    return all(isinstance(cell, str) for cell in line)


def _line(cells: Sequence[str]) -> bytes:
    # Escaped, so that names of any bytes are kept and no name ends a line.
    return json.dumps(list(cells), separators=(",", ":")).encode("ascii") + b"\n"
