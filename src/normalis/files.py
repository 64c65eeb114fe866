r"""Files that appear whole or not at all, with names and texts of any bytes.

A file is written under a temporary name beside its place and renamed. The temporary name says
whose it is and is locked while it is written, so that what a killed process left can be told from
what another one is writing, and removed.

A file's name may be any bytes. Python keeps those that are not UTF-8 as lone surrogates; tables are
written with the bytes as they were, and what people read shows them as ``\xfc``.
"""

from __future__ import annotations

import codecs
import csv
import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from normalis.errors import RunError

__all__ = [
    "ANY_NAME",
    "NAME_BYTES",
    "ClaimedError",
    "as_utf8",
    "exclusive",
    "is_temporary",
    "order_of",
    "plain",
    "read_csv",
    "remove_temporaries",
    "safe_cell",
    "short_name",
    "visible",
    "write_atomically",
    "write_csv",
    "write_json",
]

#: ``errors=`` of every text file of ours that may hold names.
ANY_NAME = "normalis.any-name"
#: The longest name of a file that common file systems take.
NAME_BYTES = 255

_TEMPORARY = re.compile(r"\.normalis-[0-9a-f]{8}-[a-z0-9_]{8}\.tmp")
#: Of a temporary file whose lock cannot be asked for, in seconds.
_OLD = 24 * 3600
#: What a file system answers that lacks permissions, or a way to wait for the disk.
_LACKS = {
    getattr(errno, name)
    for name in ("EPERM", "EACCES", "EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOTTY")
    if hasattr(errno, name)
}


class ClaimedError(RunError):
    """Another process is working on the same run or experiment."""


# --- texts ----------------------------------------------------------------------------------------


def _bytes_of(error: UnicodeError) -> tuple[bytes | str, int]:
    """Encode lone surrogates: bytes of a name as they were, others spelt out."""
    if isinstance(error, UnicodeDecodeError):
        return codecs.lookup_error("surrogateescape")(error)
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = b""
    for character in error.object[error.start : error.end]:
        code = ord(character)
        found += bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else b"\\u%04x" % code
    return found, error.end


codecs.register_error(ANY_NAME, _bytes_of)

#: Control characters, marks that turn the direction of a text around, and lone surrogates.
_LONE = re.compile("[\ud800-\udfff]")
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""Return a text as people may read it: what cannot be seen, or would act, is spelt out.

    Example:
        >>> visible("a\x1b[2J\r\udcfc")
        'a\\x1b[2J\\r\\xfc'
    """
    return _UNSEEN.sub(_spelt, text)


def as_utf8(text: str) -> str:
    """Return a text without what no UTF-8 holds, for files that know no other bytes."""
    return text if text.isascii() else _LONE.sub(_spelt, text)


def _spelt(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return known.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def short_name(name: str, *, most: int = NAME_BYTES) -> str:
    """Return a name of at most so many bytes; a longer one ends in a hash of the whole."""
    whole = name.encode("utf-8", ANY_NAME)
    if len(whole) <= most:
        return name
    mark = f"~{hashlib.sha256(whole).hexdigest()[:12]}"
    # A character that was cut is left out.
    return whole[: most - len(mark)].decode("utf-8", "ignore") + mark


# --- writing --------------------------------------------------------------------------------------


def write_atomically(path: Path, write: Callable[[Path], object], *, tidy: bool = True) -> None:
    """Write a file under a temporary name beside it, then rename it.

    Args:
        path: where the file shall appear, whole or not at all.
        write: writes to the path that it is given.
        tidy: whether to look for what a killed process left of the same file. False where a
            folder holds many and is looked through once.

    Raises:
        RunError: if the folder cannot be written to, or the disk is full; what was there stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if tidy:
            remove_temporaries(path.parent, of=path)
        with _temporary(path) as temporary:
            write(temporary)
            _settle(temporary)
            temporary.replace(path)
    except OSError as error:
        raise RunError(_why_not(path, error)) from error
    except UnicodeEncodeError as error:
        raise RunError(f"{path!r}: is no name of a file ({error.reason})") from error


def _why_not(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    advice = "Free space or choose another output folder"
    if error.errno == errno.ENAMETOOLONG:
        advice = "Choose an output folder with a shorter name, or shorten the names of the files"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "Choose an output folder that you may write to"
    return f"{path}: cannot be written ({reason}); nothing there was changed. {advice}"


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a new file beside another, locked, and removed at the end if it is still there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=".tmp")
    try:
        _lock(handle)
        yield Path(name)
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    digest = hashlib.sha256(path.name.encode("utf-8", ANY_NAME)).hexdigest()
    return f".normalis-{digest[:8]}-"


def _lock(handle: int) -> bool:
    """Lock an open file; False if another process has, or if there is no such thing here."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _settle(path: Path) -> None:
    """Wait until a file is on disk, and give it the permissions of an ordinary new file.

    Shares and file systems in user space often can do neither, which harms nothing that was
    written.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _LACKS:
            raise
    with suppress(OSError):  # mkstemp made it private, which is the worst that is left
        path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- what killed processes leave ------------------------------------------------------------------


def is_temporary(name: str) -> bool:
    """Return whether a file's name is that of one being written, or of what was left of it."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path, *, of: Path | None = None) -> None:
    """Remove what killed processes left in a folder and below.

    Args:
        folder: where to look; with ``of`` not below.
        of: the file that was being written; None for all.
    """
    for file in _temporaries(folder, of):
        if _is_left(file):
            with suppress(OSError):
                file.unlink()


def _temporaries(folder: Path, of: Path | None) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    start = ".normalis-" if of is None else _prefix(of)
    for entry in entries:
        if entry.name.startswith(start) and is_temporary(entry.name):
            yield Path(entry.path)
        elif of is None and entry.is_dir(follow_symlinks=False):
            yield from _temporaries(Path(entry.path), None)


def _is_left(file: Path) -> bool:
    """Return whether nobody writes a temporary file any more."""
    try:
        with file.open("rb+") as opened:
            return _lock(opened.fileno()) or time.time() - file.stat().st_mtime > _OLD
    except OSError:
        return False


# --- tables and values ----------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as JSON, atomically; floats keep every digit."""
    text = json.dumps(value, indent=1, allow_nan=True, default=plain) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def plain(value: Any) -> Any:
    """Turn NumPy scalars and arrays into plain values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a plain value")


#: What a spreadsheet would take for a formula, and what we put a quote in front of already.
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def safe_cell(value: Any) -> Any:
    """Return a cell that no spreadsheet computes and no terminal obeys; `read_csv` undoes it."""
    if isinstance(value, float | int) or value is None:
        return value
    text = str(value)
    quote = "'" if _looks_like_a_formula(text) else ""
    return quote + _without_controls(text)


#: What a terminal would obey; tabs and ends of lines are left to CSV.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WRITTEN = re.compile(r"\\x([0-9a-f]{2})")


def _without_controls(text: str) -> str:
    r"""Return a text with its control characters written as ``\x1b``.

    Where a text has some, or what looks like one so written, its backslashes are ``\x5c``, so that
    it can be read back.
    """
    if _CONTROL.search(text) is None and _WRITTEN.search(text) is None:
        return text
    text = text.replace("\\", r"\x5c")
    return _CONTROL.sub(lambda found: rf"\x{ord(found[0]):02x}", text)


def _looks_like_a_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and _NUMBER.fullmatch(text) is None


def _uncell(text: str) -> str:
    text = _WRITTEN.sub(lambda found: chr(int(found[1], 16)), text)
    return text[1:] if text[:1] == "'" and _looks_like_a_formula(text[1:]) else text


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    r"""Write a table as CSV, atomically.

    A text that a spreadsheet would compute, such as ``=1+1`` or ``+1``, gets a quote in front, and
    characters that a terminal would obey are written as ``\x1b``. Names that are not UTF-8 keep
    their bytes.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors=ANY_NAME) as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([safe_cell(value) for value in row] for row in rows)

    write_atomically(path, write)


def order_of(names: Iterable[Sequence[object]]) -> str:
    """Return a hash of what names the rows of a table, which another order changes."""
    found = hashlib.sha256()
    for cells in names:
        found.update("\0".join([*map(str, cells), "\n"]).encode("utf-8", ANY_NAME))
    return found.hexdigest()[:16]


def read_csv(path: Path, *, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return the rows of a table that `write_csv` wrote, texts as they were.

    Args:
        path: the table.
        columns: which it must have.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such table.
    """
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        try:
            rows = list(csv.reader(file))
        except csv.Error as error:
            raise ValueError(str(error)) from error
    rows = [row for row in rows if row]
    head = rows[0] if rows else []
    if missing := [name for name in columns if name not in head]:
        raise ValueError(f"there is no column {missing[0]!r}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise ValueError(f"row {number} has {len(row)} cells for {len(head)} columns")
    return [dict(zip(head, map(_uncell, row), strict=True)) for row in rows[1:]]


# --- one at a time --------------------------------------------------------------------------------


@contextmanager
def exclusive(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the system frees it if the process dies.

    Args:
        path: the lock file; it is removed at the end.
        what: what is being protected, for the message.

    Raises:
        ClaimedError: if another process holds the lock.
        RunError: if the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ClaimedError(
            f"{what} is being written by another process; wait for it or choose another folder"
        ) from error
    except OSError as error:
        raise RunError(
            f"{path.parent}: cannot be written ({error.strerror or error}); choose another folder"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held, so that nobody else's is removed
            path.unlink()
        lock.release()
