"""A run, or scored images, as one HTML page that opens from disk.

The page holds everything it needs: charts as SVG, pictures as data URIs, its style and its script.
It loads nothing and sends nothing; a content-security policy in the page forbids it. Pictures that
are too many or too large for one file lie in ``NAME_files/`` beside it, and are loaded when they
come into view. Notes that a reader takes stay in the reader's browser until they are exported.

::

    sources    folder -> tables and settings          curves     ROC and PR with bands
    sections   -> tiles, charts, tables               charts     matplotlib -> inline SVG
    triage     -> cases for the browser               pictures   what score drew -> small WebP
    contours   lines around what maps paint           beside     the folder of pictures
    page       templates -> one file                  templates  HTML, CSS and plain JavaScript

PyTorch is not needed, neither are the images: `normalis score` leaves what the page shows.

For triage and research, not for diagnosis.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normalis.errors import RunError
from normalis.errors.arguments import path_of
from normalis.files import as_utf8
from normalis.output.pseudonyms import no_pseudonyms
from normalis.report.sources import Source, detect, read_run, read_scores, under_pseudonyms
from normalis.storage import write_atomically

__all__ = ["write_page", "write_report"]

_log = logging.getLogger("normalis.report")

_MARK = '<meta name="generator" content="normalis'


def write_report(
    path: str | Path, out: str | Path, *, leaves: Callable[[str, str], str] = no_pseudonyms
) -> Path:
    """Write the page of a run folder, or of an output folder of ``score``.

    Args:
        path: the folder; what it holds is recognised.
        out: the HTML file. An older page of ours is replaced, any other file is not.
        leaves: what turns cells of tables into those that may leave the hospital
            (`normalis.output.pseudonyms`).

    Returns:
        The file written.

    Raises:
        RunError: if the folder is neither of the two, damaged or unfinished, or if ``out`` is
            something other than a page of ours or cannot be written.
    """
    folder, page = path_of("path", path), path_of("out", out)
    _check_out(page)
    try:
        source = read_scores(folder) if detect(folder) == "scores" else read_run(folder)
        html = _source_page(under_pseudonyms(source, leaves), page)
    except RunError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder}: holds what normalis does not write ({type(error).__name__}: {error}); "
            "restore its JSON files and tables, or remove those that were added"
        ) from error
    return write_page(html, page)


def write_page(html: str, page: Path) -> Path:
    """Write a page of ours.

    Raises:
        RunError: if the file is something other than a page of ours, or cannot be written.
    """
    _check_out(page)
    write_atomically(page, lambda p: p.write_text(as_utf8(html), encoding="utf-8"))
    _log.info("wrote %s", page)
    return page


def _check_out(page: Path) -> None:
    if page.is_dir():
        raise RunError(f"{page}: must be a file such as page.html, is a folder; add a file name")
    if page.is_file() and page.stat().st_size:
        with page.open(encoding="utf-8", errors="replace") as file:
            head = file.read(2000)
        if _MARK not in head:
            raise RunError(
                f"{page}: holds something other than a report, which is not overwritten; choose "
                "another --out"
            )


def _source_page(source: Source, page: Path) -> str:
    from normalis.report import sections
    from normalis.report.page import render
    from normalis.report.similar import similar_data
    from normalis.report.triage import triage_data

    some = source.cases is not None and len(source.cases) > 0
    triage = triage_data(source, page) if some else None
    context: dict[str, Any] = {
        "name": sections.display_name(source),
        "tiles": sections.tiles(source),
        "charts": sections.draw_charts(source),
        "calibration": sections.calibration_table(source),
        "facts": sections.fact_tables(source),
        "findings": sections.findings(source.audit),
        "drift": source.details.get("drift") or [],
        "audit_tables": sections.audit_tables(source.audit),
        "evaluations": [sections.evaluation_part(body) for body in source.evaluations],
        "skipped": source.skipped,
        "source": source,
        "similar": similar_data(source),
        "triage": triage,
    }
    return render("source.html.j2", context, beside=bool(triage and triage["beside"]))
