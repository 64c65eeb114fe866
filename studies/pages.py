"""Put measured tables into a page of the documentation, between their markers.

A page holds ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what stands between them is replaced.
A table that is longer than a reader wants to scroll, or that is folded away, becomes a CSV file in
``docs/data`` with a link in its place.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["LONGEST", "fill", "folded", "publish"]

#: Rows of a table that stays on its page.
LONGEST = 24

_FOLDED = re.compile(
    r"<details>\n<summary>(?P<summary>.*?)</summary>\n(?P<body>.*?)</details>", re.DOTALL
)
_TABLE = re.compile(r"(?:^\|.*\n?)+", re.MULTILINE)


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Mark lines of Markdown as what only a few readers want: `publish` makes them a file."""
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>"]


def fill(page: Path, parts: Mapping[str, str], *, longest: int = LONGEST) -> None:
    """Replace each named part of a page, and print it.

    Raises:
        SystemExit: if the page has no place for one; nothing is written then.
    """
    text = page.read_text(encoding="utf-8")
    for name, body in parts.items():
        print(body, end="\n\n")
        shown = publish(page, name, body, longest=longest)
        block = f"<!-- {name} -->\n\n{shown}\n\n<!-- end of {name} -->"
        pattern = rf"<!-- {re.escape(name)} -->.*<!-- end of {re.escape(name)} -->"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if not count:
            raise SystemExit(f"{page.name} has no place for {name!r}")
    page.write_text(text, encoding="utf-8")


def publish(page: Path, name: str, body: str, *, longest: int = LONGEST) -> str:
    """Return a part of a page as it is shown; its long and folded tables are written as CSV.

    Args:
        page: of docs/ROOM; files go to docs/data.
        name: of the part, for the files' names.
        body: Markdown.
        longest: rows of a table that stays.
    """
    stem = f"{page.stem}_{re.sub(r'[^a-z0-9]+', '_', name.lower())}"
    data = page.parents[1] / "data"

    def of_folded(found: re.Match[str]) -> str:
        file = data / f"{stem}_details.csv"
        return _link(found["summary"], _write(file, list(_tables(found["body"]))), file)

    def of_table(found: re.Match[str]) -> str:
        rows = _cells(found[0])
        if len(rows) - 1 <= longest:
            return found[0]
        of_table.number += 1
        file = data / f"{stem}{of_table.number if of_table.number > 1 else ''}.csv"
        return _link("The table", _write(file, [("", rows)]), file) + "\n"

    of_table.number = 0
    return _TABLE.sub(of_table, _FOLDED.sub(of_folded, body))


def _link(what: str, rows: int, file: Path) -> str:
    return f"{what}: [{file.name}](../data/{file.name}), {rows} rows."


def _tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each table with the line above it."""
    last = 0
    for found in _TABLE.finditer(text):
        above = [line for line in text[last : found.start()].splitlines() if line.strip()]
        yield (above[-1] if above else "").replace("*", "").strip(), _cells(found[0])
        last = found.end()


def _cells(table: str) -> list[list[str]]:
    """Return a table's rows, its head first, without the line below the head."""
    lines = [line for line in table.splitlines() if not re.fullmatch(r"[|\s:-]+", line)]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [[cell.replace("`", "").replace("**", "") for cell in row] for row in rows]


def _write(file: Path, tables: Sequence[tuple[str, list[list[str]]]]) -> int:
    """Write tables below each other, each with its title in a column; return how many rows."""
    columns = list(dict.fromkeys(column for _, rows in tables for column in rows[0]))
    titled = any(title for title, _ in tables)
    file.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, [*(["part"] if titled else []), *columns], restval="")
        writer.writeheader()
        for title, (head, *rows) in tables:
            for row in rows:
                line = dict(zip(head, row, strict=True))
                writer.writerow({"part": title, **line} if titled else line)
                count += 1
    return count
