"""A table on disk becomes rows of text, whatever wrote it.

Spreadsheets and databases export tables in many encodings and with several delimiters. What is
recognised: UTF-8 with or without byte order mark, UTF-16 and UTF-32, else Windows-1252 (of which
Latin-1 is a part); comma, semicolon, tab or ``|``; a first line ``sep=;`` as Excel writes it; lines
of comment before the column names, and other lines above them. Parquet is read by pyarrow, of the
extra ``research``.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normalis.errors import DataError
from normalis.errors.extras import require

__all__ = ["SUFFIXES", "Table", "cell_text", "read_table"]

SUFFIXES = (".csv", ".tsv", ".psv", ".txt", ".parquet")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DELIMITERS = ",;\t|"
_ABOVE = 20  # lines that may stand above the column names

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its column names as they stand there, and its rows.

    Attributes:
        file: where it lies.
        names: of the columns.
        line: of the column names, counted from 1.
        rows: each with its line, and the text of each column.
        encoding: of the text; ``parquet`` for a Parquet.
    """

    file: Path
    names: tuple[str, ...]
    line: int
    rows: tuple[tuple[int, Row], ...]
    encoding: str


def read_table(file: Path, *, is_head: Callable[[Sequence[str]], bool]) -> Table:
    """Read a table.

    Args:
        file: by its suffix a Parquet, else text.
        is_head: whether some cells are the names of the columns; of the first lines the first
            that are is taken, else the first line.

    Raises:
        DataError: if it cannot be read; the message names the line.
    """
    try:
        return _parquet(file) if file.suffix.lower() == ".parquet" else _text(file, is_head)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{file}: the table cannot be read ({error})") from error


def cell_text(value: Any) -> str:
    """Return a cell as text; missing values and Parquet's numbers are cells too."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    return str(value).strip()


def _parquet(file: Path) -> Table:
    pq = require("pyarrow.parquet", extra="research", why=f"{file}: reading a Parquet table")
    import pyarrow as pa

    try:
        table = pq.read_table(file)
    except pa.ArrowException as error:
        raise DataError(f"{file}: the table cannot be read ({error})") from error
    names = tuple(str(name) for name in table.column_names)
    rows = tuple(enumerate(table.rename_columns(list(names)).to_pylist(), start=2))
    return Table(file=file, names=names, line=1, rows=rows, encoding="parquet")


def _text(file: Path, is_head: Callable[[Sequence[str]], bool]) -> Table:
    text, encoding = _decode(file.read_bytes(), file)
    lines = list(io.StringIO(text, newline=""))  # splitlines would divide names at odd characters
    first, delimiter = 0, None
    if lines and (said := re.fullmatch(r'"?sep=(.)"?\s*', lines[0])):
        first, delimiter = 1, said[1]
    while first < len(lines) and (not lines[first].strip() or lines[first].lstrip()[0] == "#"):
        first += 1
    parsed = _parse(lines, first, delimiter)
    head = next((i for i, (_, cells) in enumerate(parsed[:_ABOVE]) if is_head(cells)), 0)
    line, names = parsed[head] if parsed else (1, [])
    while names and not names[-1].strip() and len(names) > 1:
        names = names[:-1]
    body = [(at, cells) for at, cells in parsed[head + 1 :] if not _is_comment(cells, len(names))]
    rows = tuple((at, _row(cells, names, at, file)) for at, cells in body)
    return Table(file=file, names=tuple(names), line=line, rows=rows, encoding=encoding)


def _decode(raw: bytes, file: Path) -> tuple[str, str]:
    """Return the text and its encoding."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return raw.decode(encoding), encoding
    if raw[:512].count(0) > 0:
        # Text in UTF-16 without a mark has a zero in every second byte, of a known side.
        head = raw[: 512 if len(raw) > 512 else len(raw) // 2 * 2]
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) < 0.4 * len(head) / 2 or min(even, odd) > 0.1 * len(head) / 2:
            raise DataError(f"{file}: the table cannot be read: its bytes are not text")
        encoding = "utf-16-le" if odd > even else "utf-16-be"
        return raw.decode(encoding), encoding
    try:
        return raw.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    head = raw[:4096]
    usual = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    if usual < 0.6 * len(head):
        raise DataError(
            f"{file}: the table cannot be read: its bytes are not text in UTF-8, UTF-16 or "
            "Windows-1252; save it as CSV in UTF-8"
        )
    try:
        return raw.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:
        return raw.decode("latin-1"), "Latin-1"


def _parse(lines: list[str], first: int, delimiter: str | None) -> list[tuple[int, list[str]]]:
    """Return the non-empty rows of cells, each with the number of its line."""
    chosen = delimiter or max(_DELIMITERS, key=lambda one: _fit(lines[first : first + 50], one))
    return [(first + at, cells) for at, cells in _cells(lines[first:], chosen) if any(cells)]


def _cells(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=delimiter)
    for cells in reader:
        yield reader.line_num, [cell.strip() for cell in cells]


def _fit(lines: list[str], delimiter: str) -> tuple[float, int]:
    """Say how well a delimiter divides some lines: the share of equal widths, and the width."""
    try:
        widths = Counter(len(cells) for _, cells in _cells(lines, delimiter) if any(cells))
    except csv.Error:
        return 0.0, 0
    width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
    return (count / sum(widths.values()), width) if width > 1 else (0.0, 0)


def _is_comment(cells: list[str], width: int) -> bool:
    return cells[0].startswith("#") and len(cells) != width


def _row(cells: list[str], names: list[str], line: int, file: Path) -> Row:
    if (len(cells) != len(names) and any(cells[len(names) :])) or len(cells) < len(names):
        raise DataError(
            f"{file}, line {line}: must have {len(names)} columns as the first line has, "
            f"got {len(cells)}"
        )
    return dict(zip(names, cells, strict=False))
