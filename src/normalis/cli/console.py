"""What every command prints with: tables, and progress that is a bar or plain lines.

On a terminal progress is a bar with the time left. Elsewhere, in a log file or a batch job, it is a
plain line at least every `EVERY_S` seconds, also while a step reports nothing.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.measure import Measurement
from rich.table import Table

from normalis.errors import NormalisWarning
from normalis.files import visible

__all__ = [
    "EVERY_S", "PlainConsole", "Progress", "cell", "console", "errors", "escape", "print_remarks",
    "progress", "set_volume", "shortened", "show_warnings", "stages", "table",
]  # fmt: skip

#: Seconds between two lines of progress where there is no terminal.
EVERY_S = 30.0
_WIDEST = 10_000  # columns that no table needs
_SHORT = 24  # characters of a label that is never wrapped


def escape(text: str) -> str:
    """Return a text for the inside of one with markup, such as a file's name: it stays a text."""
    return escape_markup(visible(text))


class PlainConsole(Console):
    """A console that takes texts as texts.

    Names may hold anything: markup, escapes of terminals, bytes of no encoding. Colours are for
    those calls alone that ask for it (`styled`) and `escape` what is not theirs.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts as they may be read, and tables without breaking a word.

        A table that is wider than a terminal is printed row by row; elsewhere, in a file or a pipe,
        its lines are as long as they must be. See `rich.console.Console.print`.
        """
        if not options.get("markup"):
            objects = tuple(_readable(o) if isinstance(o, str) else o for o in objects)
        least = max((self._least_width(o) for o in objects if isinstance(o, Table)), default=0)
        if least <= self.width:
            super().print(*objects, **options)
        elif self.is_terminal:
            for made in objects:
                self._by_rows(made) if isinstance(made, Table) else super().print(made, **options)
        else:
            with self._as_wide_as(least):
                super().print(*objects, **options)

    def _least_width(self, made: Table) -> int:
        """Return the columns that a table needs so that no word is broken."""
        return Measurement.get(self, self.options.update(max_width=_WIDEST), made).minimum

    @contextmanager
    def _as_wide_as(self, columns: int) -> Iterator[None]:
        before = self.width
        self.width = columns
        try:
            yield
        finally:
            self.width = before

    def _by_rows(self, made: Table) -> None:
        """Print a table's rows below each other, each cell on a line of its own."""
        if made.title:
            super().print(made.title, soft_wrap=True)
        heads = [str(column.header) for column in made.columns]
        for row in zip(*(column.cells for column in made.columns), strict=True):
            for head, text in zip(heads, row, strict=True):
                if str(text):
                    shown = f"  {head}: {text}" if head else f"  {text}"
                    super().print(shown, soft_wrap=True, highlight=False)
            super().print()
        if made.caption:
            super().print(made.caption, soft_wrap=True)

    def styled(self, text: str) -> None:
        """Print a line with markup, in which whatever is not ours went through `escape`."""
        self.print(text, soft_wrap=True, markup=True)


def _readable(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


console = PlainConsole()
errors = PlainConsole(stderr=True)


class Progress(Protocol):
    """Where a command says how far it is."""

    def update(self, completed: float, total: float, note: str = "") -> None:
        """Say that ``completed`` of ``total`` are done, and in a few words what is next."""


def set_volume(*, quiet: bool = False, verbose: bool = False) -> None:
    """Say less or more on standard error; what a command was asked for is printed all the same.

    Args:
        quiet: no progress, no notes; errors are printed.
        verbose: also what the library logs, with the time and the step.
    """
    errors.quiet = quiet
    if verbose:
        shown = logging.StreamHandler()
        shown.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        log = logging.getLogger("normalis")
        log.addHandler(shown)
        log.setLevel(logging.DEBUG)


@contextmanager
def progress(description: str) -> Iterator[Progress]:
    """Show how far a step is, on standard error, so that output stays clean."""
    with _bar(description) if errors.is_terminal else _lines(description, EVERY_S) as shown:
        yield shown


def stages(bar: Progress) -> Callable[[str, float], None]:
    """Return what a step tells its name and its share of the whole."""

    def update(stage: str, share: float) -> None:
        bar.update(round(100 * share), 100, stage)

    return update


@contextmanager
def _bar(description: str) -> Iterator[Progress]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    )
    with rich_progress.Progress(*columns, console=errors) as bar:
        task = bar.add_task(escape(description), total=None, note="")

        class Shown:
            def update(self, completed: float, total: float, note: str = "") -> None:
                bar.update(task, completed=completed, total=total, note=note)

        yield Shown()


@contextmanager
def _lines(description: str, every_s: float) -> Iterator[Progress]:
    lines = _Lines(description, every_s)
    lines.start()
    try:
        yield lines
    finally:
        lines.stop()


class _Lines:
    """Plain lines of progress, written by a thread of their own."""

    def __init__(self, description: str, every_s: float) -> None:
        self.description, self.every_s = description, every_s
        self.started = self.phase_started = time.monotonic()
        self.done, self.total, self.note = 0.0, 0.0, ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="normalis-progress", daemon=True)

    def update(self, completed: float, total: float, note: str = "") -> None:
        """Say how far the step is; fewer done is a phase that begins."""
        if completed < self.done:
            self.phase_started = time.monotonic()
        self.done, self.total, self.note = completed, total, note

    def start(self) -> None:
        """Begin to print."""
        self._thread.start()

    def stop(self) -> None:
        """Print no more."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self.every_s):
            errors.print(self.line(), soft_wrap=True, markup=False, highlight=False)

    def line(self) -> str:
        """Return where the step is, the time that it took, and the time left."""
        now = time.monotonic()
        elapsed, phase = now - self.started, now - self.phase_started
        parts = [f"{elapsed:.0f} s"]
        if self.total > 0:
            parts.insert(0, f"{self.done:g} of {self.total:g}")
            if 0 < self.done < self.total:
                parts.append(f"about {phase * (self.total - self.done) / self.done:.0f} s left")
        if self.note:
            parts.append(self.note)
        return f"{self.description}: {', '.join(parts)}"


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """Return a table; the first column is text, the others are figures."""
    made = Table(title=visible(title), title_justify="left", header_style="bold")
    shown = [[cell(value) for value in row] for row in rows]
    for i, column in enumerate(columns):
        texts = [visible(column), *(row[i] for row in shown)]
        whole = max(map(len, texts)) <= _SHORT or all(" " not in text for text in texts)
        pieces = texts if whole else [word for text in texts for word in text.split()]
        made.add_column(
            texts[0],
            justify="left" if i == 0 else "right",
            overflow="fold",
            no_wrap=whole,
            min_width=max(map(len, pieces)),
        )
    for row in shown:
        made.add_row(*row)
    return made


def cell(value: Any) -> str:
    """Return a value as a cell shows it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def shortened(name: str, longest: int = 48) -> str:
    """Return a name cut in its middle, since names of one folder often begin alike.

    Args:
        name: of a file, for instance a UID.
        longest: characters.
    """
    if len(name) <= longest:
        return name
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def show_warnings() -> None:
    """Print what the library warns of as one line, and other packages' warnings as they are.

    What pydicom, Pillow and nibabel remark is kept for `print_remarks`.
    """
    from normalis.images.remarks import note, package_of

    usual = warnings.showwarning

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any
    ) -> None:
        if issubclass(category, NormalisWarning):
            errors.styled(f"[bold yellow]note:[/] {escape(str(message))}")
        elif package := package_of(filename):
            note(package, str(message))
        else:
            usual(message, category, filename, lineno, *more)

    warnings.showwarning = shown  # type: ignore[assignment]


def print_remarks(most: int = 3) -> None:
    """Print what decoders remarked on files: each kind once, with an example."""
    from normalis.images.remarks import taken

    found = taken()
    for remark in found[:most]:
        errors.styled(f"[yellow]remark of[/] {escape(str(remark))}")
    if len(found) > most:
        errors.print(f"{len(found) - most} more kinds of remarks; --verbose shows them")
