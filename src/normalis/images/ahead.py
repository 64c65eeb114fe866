"""Work done in threads ahead of who consumes it, in order and within a budget of memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import TypeVar

__all__ = ["AHEAD_BYTES", "Budget", "map_ahead"]

AHEAD_BYTES = 128 * 2**20
"""Bytes of decoded images that may wait for their turn, besides the file that is next."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class Budget:
    """Bytes of decoded images that wait for the consumer, over all threads.

    A thread that would exceed `AHEAD_BYTES` waits for the consumer, but for the one whose file is
    the consumer's next: it always goes on, so that none waits for ever.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._taken: dict[int, int] = {}
        self._next = 0
        self._ended = False

    def take(self, number: int, nbytes: int) -> None:
        """Ask for room for one more image of a file."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(number, nbytes))
            self._taken[number] = self._taken.get(number, 0) + nbytes

    def _has_room(self, number: int, nbytes: int) -> bool:
        fits = sum(self._taken.values()) + nbytes <= AHEAD_BYTES
        return fits or self._ended or number <= self._next

    def release(self, number: int) -> None:
        """Say that the consumer has a file."""
        with self._changed:
            self._taken.pop(number, None)
            self._next = number + 1
            self._changed.notify_all()

    def end(self) -> None:
        """Let everybody go on: the consumer wants no more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def map_ahead(
    function: Callable[[_T], _R],
    items: Iterable[_T],
    *,
    workers: int | None = None,
    ahead: int = 16,
    weigh: Callable[[_R], int] | None = None,
    end: Callable[[], None] | None = None,
) -> Iterator[_R]:
    """Map in threads, in order, a bounded number of items and bytes ahead of the consumer.

    Args:
        function: what to do; threads overlap where it releases Python's lock, as decoders do.
        items: what to do it to.
        workers: threads; None means one per core, 16 at most.
        ahead: items that may wait for the consumer, per worker.
        weigh: bytes of a result. With it no more is started than `AHEAD_BYTES` has room for, if
            what is under way turns out as heavy as the heaviest so far: a file may be one small
            image or a volume of hundreds.
        end: called before the threads are waited for, to wake those that wait for something.
    """
    workers = workers or _cores()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="normalis-read")
    waiting: deque[Future[_R]] = deque()
    heaviest = 0

    def next_result() -> _R:
        nonlocal heaviest
        result = waiting.popleft().result()
        if weigh is not None:
            heaviest = max(heaviest, weigh(result))
        return result

    def is_full() -> bool:
        if weigh is None:
            return len(waiting) >= ahead * workers
        done = [weigh(f.result()) for f in waiting if f.done() and f.exception() is None]
        expected = max(heaviest, *done) if done else heaviest
        if not expected:  # nothing is known yet: one for each worker
            return len(waiting) >= workers
        under_way = len(waiting) - len(done)
        heavy = sum(done) + (under_way + 1) * expected > AHEAD_BYTES
        return len(waiting) >= ahead * workers or (heavy and len(waiting) > 0)

    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and is_full():
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        if end is not None:
            end()
        pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    available = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return min(16, len(available(0)) if available else os.cpu_count() or 1)
