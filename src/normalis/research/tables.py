"""Comparisons with the paper as rows, CSV, LaTeX, HTML, Markdown; the figure with matplotlib.

One table per data set. A number of ours stands with its deviation over seeds, or with the interval
of a bootstrap over test images where there is one seed. ``*`` marks a difference from the paper
beyond sampling error; `normalis.research.reproduce` says how that is asked.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalis.research.reproduce import (
    PARTS,
    TITLES,
    TWIN,
    Cell,
    Comparison,
    Curve,
    compare,
    figure3,
)
from normalis.storage import write_atomically, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CSV_COLUMNS",
    "csv_rows",
    "difference",
    "draw",
    "figure_rows",
    "fill_in",
    "notes",
    "to_html",
    "to_latex",
    "to_markdown",
    "wide",
    "write_all",
    "write_figure",
]

CSV_COLUMNS = (
    "dataset", "row", "metric", "seeds", "mean", "deviation", "low", "high", "paper_mean",
    "paper_deviation", "difference", "within_sampling_error", "asked_by", "fit_s",
)  # fmt: skip
_HEADS = {"table1": "d", "table2": "method", "methods": "method"}
_MINUS = "−"


def csv_rows(comparison: Comparison) -> list[list[Any]]:
    """Return a row per number, for CSV; see `CSV_COLUMNS`."""
    return [
        [
            c.dataset, c.row, c.metric, len(c.values), _digits(c.mean), _digits(c.deviation),
            _digits(c.low), _digits(c.high), *(c.paper or (None, None)), _digits(c.difference),
            c.within, c.asked, _digits(c.fit_s),
        ]
        for c in comparison.cells
    ]  # fmt: skip


def _digits(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)


def _ours(cell: Cell) -> str:
    """Return our number: mean ± deviation of several seeds, else value and interval."""
    if cell.deviation is not None:
        return f"{cell.mean:.1f} ± {cell.deviation:.1f}"
    if math.isnan(cell.low):
        return f"{cell.mean:.1f}"
    return f"{cell.mean:.1f} [{cell.low:.1f}, {cell.high:.1f}]"


def _paper(cell: Cell) -> str:
    """Return the paper's number, empty where it has none."""
    return "" if cell.paper is None else f"{cell.paper[0]:.1f} ± {cell.paper[1]:.1f}"


def difference(cell: Cell) -> str:
    """Return the signed difference, marked where it is beyond sampling error."""
    if cell.difference is None:
        return ""
    text = f"{cell.difference:+.1f}".replace("-", _MINUS)
    return text + ("*" if cell.within is False else "" if cell.within else "?")


def wide(comparison: Comparison, dataset: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and rows of one data set's table.

    Columns of the paper are left out where it has no number for the data set.
    """
    cells = [c for c in comparison.cells if c.dataset == dataset]
    metrics = list(dict.fromkeys(c.metric for c in cells))
    known = {c.metric for c in cells if c.paper is not None}
    head = [_HEADS[comparison.name], "seeds"]
    for metric in metrics:
        head += [TITLES[metric], *(["paper", "difference"] if metric in known else [])]
    head.append("fit, s")
    rows = []
    for row in dict.fromkeys(c.row for c in cells):
        mine = {c.metric: c for c in cells if c.row == row}
        first = next(iter(mine.values()))
        line = [row, str(len(first.values))]
        for metric in metrics:
            cell = mine[metric]
            line.append(_ours(cell))
            line += [_paper(cell), difference(cell)] if metric in known else []
        rows.append([*line, f"{first.fit_s:.0f}" if first.fit_s >= 1 else f"{first.fit_s:.2f}"])
    return head, rows


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader must know to read the tables, one sentence each."""
    cells = comparison.cells
    found = ["In percent."]
    if any(len(c.values) == 1 for c in cells):
        found.append(
            "[low, high]: 95 % bootstrap interval over test images (patients where known), one "
            "seed; it is wider than what separates two runs on the same images."
        )
    if any(len(c.values) > 1 for c in cells):
        found.append("±: standard deviation over seeds.")
    if any(c.paper for c in cells):
        found.append(
            "* beyond sampling error: Welch's test at 5 % with several seeds (the paper's taken "
            "as three runs), outside the bootstrap interval with one; ? cannot be asked of one "
            "seed without an interval."
        )
    if any(c.metric == "auroc_without_twins" for c in cells):
        found.append(
            "AUROC without twins: the same models, without the test images that correlate by "
            f"{TWIN} or more with a training image; few and unusual normal ones remain."
        )
    if any(c.row.endswith("(no network)") for c in cells):
        found.append("(no network): the best of the baselines by AUROC, for comparison.")
    if any(c.metric == "best_dice" for c in cells):
        found.append("Best Dice chooses its threshold with the labels it is scored on.")
    if comparison.missing:
        found.append(f"No record yet: {', '.join(comparison.missing)}.")
    return found


def to_markdown(comparison: Comparison) -> str:
    """Return all tables as Markdown."""
    if not comparison.cells:
        return "No records yet."
    parts = []
    for dataset in comparison.datasets:
        head, rows = wide(comparison, dataset)
        lines = [f"**{dataset}**", "", _bar(head), _bar(["---"] + ["---:"] * (len(head) - 1))]
        parts.append("\n".join([*lines, *map(_bar, rows)]))
    return "\n\n".join([*parts, " ".join(notes(comparison))])


def _bar(values: Sequence[str]) -> str:
    return f"| {' | '.join(v.replace('*', chr(92) + '*') for v in values)} |"


def to_latex(comparison: Comparison) -> str:
    """Return all tables as LaTeX ``tabular`` environments, for ``booktabs``."""
    parts = []
    for dataset in comparison.datasets:
        head, rows = wide(comparison, dataset)
        body = [r"\toprule", _ampersands(head), r"\midrule", *map(_ampersands, rows)]
        parts.append(
            f"% {dataset}\n\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n"
            + "\n".join([*body, r"\bottomrule"])
            + "\n\\end{tabular}"
        )
    return "\n\n".join([*parts, *(f"% {note}" for note in notes(comparison))]) + "\n"


def _ampersands(values: Sequence[str]) -> str:
    signs = {"±": r"$\pm$", _MINUS: "$-$", "_": r"\_", "%": r"\%"}
    return " & ".join("".join(signs.get(c, c) for c in v) for v in values) + r" \\"


def to_html(comparison: Comparison) -> str:
    """Return all tables as an HTML fragment."""
    parts = []
    for dataset in comparison.datasets:
        head, rows = wide(comparison, dataset)
        body = "\n".join(f"<tr>{_tags('td', row)}</tr>" for row in rows)
        parts.append(
            f"<table>\n<caption>{html.escape(dataset)}</caption>\n"
            f"<thead><tr>{_tags('th', head)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )
    return "\n".join([*parts, f"<p>{html.escape(' '.join(notes(comparison)))}</p>"]) + "\n"


def _tags(tag: str, values: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values)


def write_all(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write a table as CSV, LaTeX, HTML fragment and Markdown; return the files."""
    base = Path(folder) / comparison.name
    write_csv(base.with_suffix(".csv"), CSV_COLUMNS, csv_rows(comparison))
    texts = {".tex": to_latex, ".html": to_html, ".md": to_markdown}
    for suffix, render in texts.items():
        _write_text(base.with_suffix(suffix), render(comparison))
    return [base.with_suffix(s) for s in (".csv", *texts)]


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def fill_in(page: str, results: str | Path) -> str:
    """Return a Markdown page with every generated part drawn anew from records.

    A part stands between ``<!-- table1 -->`` and ``<!-- end of table1 -->``; names are those of
    `normalis.research.reproduce.PARTS`.

    Args:
        page: the page's text.
        results: the results folder.
    """
    for name in PARTS:
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start in page and end in page:
            before, _, rest = page.partition(start)
            after = rest.partition(end)[2]
            text = _points(results) if name == "figure3" else to_markdown(compare(name, results))
            page = f"{before}{start}\n\n{text}\n\n{end}{after}"
    return page


def _points(results: str | Path) -> str:
    """Return the figure's points as a Markdown table."""
    head = ["data set", "d", "seeds", "train normal", "test normal", "test anomalous", "AUROC"]
    rows = [[str(v) for v in row] for row in figure_rows(figure3(results))]
    return "\n".join([_bar(head), _bar(["---"] + ["---:"] * (len(head) - 1)), *map(_bar, rows)])


FIGURE_COLUMNS = (
    "dataset", "latent_dim", "seeds", "train_normal", "test_normal", "test_anomalous", "auroc",
)  # fmt: skip


def figure_rows(curves: Sequence[Curve]) -> list[list[Any]]:
    """Return a row per point of the figure; see `FIGURE_COLUMNS`."""
    return [
        [c.dataset, d, c.n_seeds[i], *(round(v[i], 6) for v in c.errors.values()),
         round(100 * c.auroc[i], 2)]
        for c in curves
        for i, d in enumerate(c.latent_dims)
    ]  # fmt: skip


def draw(curves: Sequence[Curve], *, hidden_dim: int = 1024) -> Figure:
    """Draw Figure 3: mean squared error against latent dimension, a panel per data set.

    Args:
        curves: of `normalis.research.reproduce.figure3`.
        hidden_dim: D; the paper's Proposition 1 is about D / 2, which is marked.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(4.6 * max(1, len(curves)), 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(curves)), squeeze=False)[0]
    # Okabe and Ito's colours and different markers: readable without colour vision.
    styles = {"train normal": ("#0072B2", "o"), "test normal": ("#009E73", "s"),
              "test anomalous": ("#D55E00", "^")}  # fmt: skip
    for panel, curve in zip(panels, curves, strict=False):
        for name, (colour, marker) in styles.items():
            panel.plot(
                curve.latent_dims, curve.errors[name], color=colour, marker=marker,
                markersize=4, linewidth=1.4, label=name,
            )  # fmt: skip
        panel.axvline(hidden_dim / 2, color="0.6", linestyle="--", linewidth=1)
        panel.annotate(
            "D / 2", (hidden_dim / 2, 1), xycoords=("data", "axes fraction"), xytext=(-4, -4),
            textcoords="offset points", ha="right", va="top", color="0.4", fontsize=8,
        )  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        ticks = [d for d in curve.latent_dims if d & (d - 1) == 0]
        panel.set_xticks(ticks, [str(d) for d in ticks], fontsize=8)
        panel.minorticks_off()
        panel.set(title=curve.dataset, xlabel="latent dimension d")
        panel.set_ylabel("mean squared error (images in [−1, 1])")
        panel.grid(alpha=0.25)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def write_figure(curves: Sequence[Curve], folder: str | Path) -> list[Path]:
    """Write the figure as SVG and PNG and its points as CSV; return the files."""
    base = Path(folder) / "figure3"
    from matplotlib import rc_context

    figure = draw(curves)
    formats = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}
    with rc_context({"svg.hashsalt": "normalis"}):  # equal records, equal file
        for suffix, options in formats.items():
            write_atomically(
                base.with_suffix(f".{suffix}"),
                lambda p, f=suffix, o=options: figure.savefig(p, format=f, **o),  # type: ignore[misc]
            )
    write_csv(base.with_suffix(".csv"), FIGURE_COLUMNS, figure_rows(curves))
    return [base.with_suffix(s) for s in (".svg", ".png", ".csv")]
