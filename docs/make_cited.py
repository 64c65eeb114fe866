"""Write the generated parts of docs/reference/cited.md from docs/data/cited.csv.

    python docs/make_cited.py                    # the page, from the table that is there
    python docs/make_cited.py --results RESULTS  # the table first, from a results folder's records

RESULTS is what `normalis research reproduce cited --out RESULTS` fills. Its records are not
committed, the table names them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from normalis.files import write_csv
from normalis.research.cited import SETS
from normalis.research.cited_table import (
    CSV_COLUMNS,
    Entry,
    cited_csv,
    cited_entries,
    cited_markdown,
    most_trained,
    read_cited,
)
from normalis.research.reproduce import figure3

HERE = Path(__file__).resolve().parent
PAGE, TABLE = HERE / "reference" / "cited.md", HERE / "data" / "cited.csv"
RESULTS = HERE.parent / "results"
#: What every row is compared with.
REFERENCE = "AE, d = 16"
_BLOCK = re.compile(r"(<!-- seen: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def beside(entry: Entry, other: Entry) -> str:
    """Say how a row's AUROC lies to another one's, and whether their intervals meet."""
    mine, its = entry.figures["auroc"], other.figures["auroc"]
    away = f"{abs(mine.mean - its.mean):.1f}"
    if away == "0.0":
        return "as the AE"
    side = "above" if mine.mean > its.mean else "below"
    ends = (mine.low, mine.high, its.low, its.high)
    if None in ends:
        return f"{away} {side} the AE"
    meets = mine.low <= its.high and its.low <= mine.high  # type: ignore[operator]
    return f"{away} {side} the AE" + (", intervals meet" if meets else "")


def seen(names: Sequence[str], entries: Sequence[Entry]) -> str:
    """Return one line a row: what it reached on each set, and what failed."""
    known = {(e.name, e.system.name): e for e in most_trained(entries)}
    lines = []
    for row in names:
        mine = [e for (_, system), e in known.items() if system == row]
        parts = [_seen_on(e, known[e.name, REFERENCE]) for e in mine]
        lines.append(f"* {row}: {'; '.join(parts) or 'no record yet'}.")
    return "\n".join(lines) + "\n"


def _seen_on(entry: Entry, reference: Entry) -> str:
    if entry.failed:
        return f"`{entry.name}` failed ({entry.failed})"
    auroc = entry.figures["auroc"]
    text = f"`{entry.name}` **{auroc.mean:.1f}**"
    text += "" if auroc.low is None else f" [{auroc.low:.1f}, {auroc.high:.1f}]"
    said = [] if entry is reference else [beside(entry, reference)]
    if pixels := entry.figures.get("pixel_average_precision"):
        said.append(f"pixel AP {pixels.mean:.1f}")
    if entry.epochs is not None:
        said.append(f"{entry.epochs} epochs {entry.recipe}")
    return text + (f" ({'; '.join(said)})" if said else "")


def argument(entries: Sequence[Entry]) -> str:
    """Return the paper's autoencoder against all rows, a line per set."""
    best = {c.dataset: max(zip(c.auroc, c.latent_dims, strict=True)) for c in figure3(RESULTS)}
    head = ["set", REFERENCE, "AE, best d in hindsight", "best without a network", "panel",
            "cited rows", "above the AE", "of these, intervals apart", "above its best d",
            "best cited row"]  # fmt: skip
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"]]
    chosen = most_trained(entries)
    for name in dict.fromkeys(e.name for e in chosen):
        mine = [e for e in chosen if e.name == name and e.seeds]
        lines.append([name, *_line(mine, best.get(name))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _line(mine: Sequence[Entry], best: tuple[float, int] | None) -> list[str]:
    def auroc(entry: Entry) -> float:
        return entry.figures["auroc"].mean

    (reference,) = (e for e in mine if e.system.name == REFERENCE)
    cited = [e for e in mine if e.system.group == "cited"]
    plain = max((e for e in mine if e.system.group == "baseline"), key=auroc)
    ours = [f"{auroc(e):.1f}" for e in mine if e.system.group == "ours"]
    above = [e for e in cited if auroc(e) > auroc(reference)]
    apart = [e for e in above if "intervals meet" not in beside(e, reference)]
    first = max(cited, key=auroc)
    return [
        f"{auroc(reference):.1f}",
        "" if best is None else f"{100 * best[0]:.1f} (d = {best[1]})",
        f"{auroc(plain):.1f} ({plain.system.name})", ", ".join(ours), str(len(cited)),
        str(len(above)), str(len(apart)),
        "" if best is None else str(sum(auroc(e) > 100 * best[0] for e in cited)),
        f"{auroc(first):.1f} ({first.system.name})",
    ]  # fmt: skip


def filled(page: str, entries: Sequence[Entry], *, with_argument: bool = True) -> str:
    """Return the page with all that is generated from the table.

    Args:
        page: its text.
        entries: of the table.
        with_argument: whether the part that reads the records in results/ is made too.
    """
    page = _BLOCK.sub(lambda m: m[1] + seen(m[2].split("; "), entries) + m[3], page)
    parts: dict[str, Callable[[Sequence[Entry]], str]] = {"table": cited_markdown}
    if with_argument:
        parts["argument"] = argument
    for name, make in parts.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = make(entries)
        page = block.sub(lambda m, text=text: f"{m[1]}\n{text}\n{m[2]}", page)
    return page


def main() -> None:
    """Write the table, if records are given, and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, help="results folder to write the table from")
    given = parser.parse_args()
    if given.results:
        entries = [e for e in cited_entries(given.results) if e.name in SETS]
        write_csv(TABLE, CSV_COLUMNS, cited_csv(entries))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), read_cited(TABLE)), encoding="utf-8")


if __name__ == "__main__":
    main()
