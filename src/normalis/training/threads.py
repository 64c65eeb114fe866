"""How many threads one training gets: as many as pay, measured on its own first step.

The threads of one operation wait for each other at its end, and waiting threads spin. On cores that
somebody else uses as well they mostly wait, and burn what the others need: a fit took fifty times
as long (docs/reference/performance.md). The paper's networks gain nothing from a second thread, so
one is the rule, and more are taken only where a step becomes clearly faster by them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from normalis.errors import SettingsError

__all__ = ["THREADS_VARIABLE", "asked_threads", "choose_threads", "threads", "usable_cores"]

log = logging.getLogger("normalis.training")

#: Environment variable that fixes the number of threads of trainings.
THREADS_VARIABLE = "NORMALIS_THREADS"

_GAIN = 1.4  # twice the threads must make a step this much faster
_REPEATS = 3


def usable_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def asked_threads() -> int | None:
    """Return the number of threads that the environment asks for, None if it leaves the choice.

    Raises:
        SettingsError: if the variable is no whole number of at least 1.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text or text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(
            f"{THREADS_VARIABLE} must be auto or a whole number of at least 1, got {text!r}"
        )
    return int(text)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch's operations use so many threads, and restore what was before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(step: Callable[[], object], most: int | None = None) -> int:
    """Return the number of threads with which a step is clearly fastest.

    One, and twice as many as long as that makes the step `_GAIN` times as fast.

    Args:
        step: does the work of one training step and changes nothing that is kept.
        most: threads at most; None for the cores that this process may use, or fewer where
            PyTorch was told so (``OMP_NUM_THREADS``, ``torch.set_num_threads``).
    """
    asked = asked_threads()
    if asked is not None:
        return asked
    limit = min(usable_cores(), torch.get_num_threads()) if most is None else most
    if limit < 2:
        return 1
    best, best_s = 1, _seconds(step, 1)
    while 2 * best <= limit:
        taken_s = _seconds(step, 2 * best)
        if best_s < _GAIN * taken_s:
            break
        best, best_s = 2 * best, taken_s
    log.info("a training step takes %.3f s on %d of %d threads", best_s, best, limit)
    return best


def _seconds(step: Callable[[], object], count: int) -> float:
    """Return the least wall time of a step, after one that warms up."""
    with threads(count):
        step()
        taken = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
    return min(taken)
