"""Progress of training: a bar in a notebook, a line on a terminal, or the caller's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any, TextIO

from normalis.errors import SettingsError
from normalis.errors.arguments import shown

if TYPE_CHECKING:
    from normalis.training.loop import Progress

__all__ = ["NotebookBar", "TextLine", "in_notebook", "listener"]


def in_notebook() -> bool:
    """Return whether a cell of a Jupyter notebook calls."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def listener(
    progress: Callable[[Progress], None] | bool | None,
) -> Callable[[Progress], None] | None:
    """Return what hears of each epoch.

    Args:
        progress: a function; True for a bar in a notebook and a line on standard error elsewhere;
            False for nothing; None for a bar in a notebook alone.
    """
    if callable(progress):
        return progress
    if progress is not None and not isinstance(progress, bool):
        raise SettingsError(
            f"progress must be a function, True, False or None, got {shown(progress)}"
        )
    if progress is False or (progress is None and not in_notebook()):
        return None
    return NotebookBar() if in_notebook() else TextLine(sys.stderr)


def _told(progress: Progress) -> str:
    """Return epoch, losses and the time that is left, as one line.

    Example:
        >>> from normalis.training.loop import Progress
        >>> _told(Progress(epoch=2, epochs=8, losses={"loss": 0.25}, elapsed_s=10.0))
        'epoch 2 of 8, loss 0.25, 30 s left'
    """
    losses = "".join(f", {name} {value:.4g}" for name, value in progress.losses.items())
    left = progress.elapsed_s / max(progress.epoch, 1) * (progress.epochs - progress.epoch)
    return f"epoch {progress.epoch} of {progress.epochs}{losses}, {left:.0f} s left"


class TextLine:
    """One line that is written over, and ended with the last epoch.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.longest = stream, 0

    def __call__(self, progress: Progress) -> None:
        """Write how far training is."""
        text = _told(progress)
        self.longest = max(self.longest, len(text))
        end = "\n" if progress.epoch >= progress.epochs else ""
        self.stream.write(f"\r{text:<{self.longest}}{end}")
        self.stream.flush()


class NotebookBar:
    """A bar below the cell, which needs no widgets; what is saved of it is its last state."""

    def __init__(self) -> None:
        self.handle: Any = None

    def __call__(self, progress: Progress) -> None:
        """Show how far training is."""
        from IPython.display import HTML, display

        shown = HTML(
            f'<progress value="{progress.epoch}" max="{progress.epochs}" '
            f'style="width:20em;vertical-align:middle"></progress> {escape(_told(progress))}'
        )
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)
