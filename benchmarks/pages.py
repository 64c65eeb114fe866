"""Put measured tables into a page of the documentation, between their markers.

A page holds ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what stands between them is replaced.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["fill", "folded"]


def folded(summary: str, lines: Sequence[str]) -> list[str]:
    """Fold lines of Markdown away below a summary that a click opens."""
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "", "</details>"]


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Replace each named part of a page, and print it.

    Raises:
        SystemExit: if the page has no place for one; nothing is written then.
    """
    text = page.read_text(encoding="utf-8")
    for name, body in parts.items():
        print(body, end="\n\n")
        block = f"<!-- {name} -->\n\n{body}\n\n<!-- end of {name} -->"
        pattern = rf"<!-- {re.escape(name)} -->.*<!-- end of {re.escape(name)} -->"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if not count:
            raise SystemExit(f"{page.name} has no place for {name!r}")
    page.write_text(text, encoding="utf-8")
