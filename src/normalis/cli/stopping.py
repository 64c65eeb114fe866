"""What happens when the user, the system or a scheduler stops a command.

Click turns Ctrl-C into an exit of its own and says nothing. A signal therefore raises an exception
that Click does not know, so that the command unwinds, leaves nothing half-written, and says how to
go on. A second signal ends the process at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["Stopped", "print_anything", "stoppable"]

_WORDS = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "the end of its terminal"}


class Stopped(BaseException):
    """A signal asked the command to end.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__(_WORDS.get(signal.Signals(number).name, signal.Signals(number).name))


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn signals into `Stopped` while the block runs; those that are ignored stay ignored."""
    numbers = [getattr(signal, name) for name in _WORDS if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers}
    taken = [n for n in numbers if before[n] not in (signal.SIG_IGN, None)]

    def stop(number: int, frame: FrameType | None) -> None:
        for other in taken:
            signal.signal(other, signal.SIG_DFL)
        raise Stopped(number)

    with suppress(ValueError):  # not the main thread
        for number in taken:
            signal.signal(number, stop)
    try:
        yield
    finally:
        with suppress(ValueError):
            for number in taken:
                signal.signal(number, before[number])


def print_anything() -> None:
    """Let texts that the terminal's encoding lacks be spelt out, not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
