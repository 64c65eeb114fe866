"""Compressed frames are decoded in child processes, which may die without taking the run along.

The decoders of JPEG, JPEG-LS, JPEG 2000 and RLE are native code that parses bytes from anywhere.
One of them (gdcm) aborts the whole process where a header disagrees with its codestream, others
print to the terminal or allocate what a codestream claims. A child is started once for each thread
that decodes and used again; what it sends back is an array or a reason.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CodecError", "decode_frame"]

TIMEOUT_S = 60.0  # for one frame; the largest take a few seconds
_CHILD = Path(__file__).with_name("codec_child.py")
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "runpy.run_path(sys.argv[2], run_name='__main__')"
)


class CodecError(RuntimeError):
    """A frame cannot be decoded; the message says why."""


def decode_frame(
    frame: bytes, *, syntax: str, tags: Mapping[str, Any]
) -> tuple[NDArray[Any], int | None]:
    """Decode one compressed frame.

    Args:
        frame: its bytes.
        syntax: the transfer syntax UID.
        tags: ``Rows``, ``Columns``, ``SamplesPerPixel``, ``BitsAllocated``, ... by keyword.

    Returns:
        The values as the decoder gives them, without correction of sign or unused bits, (H, W) or
        (H, W, 3); and the bits of a sample that the codestream states, None where it states none.

    Raises:
        CodecError: if no decoder can, or the one that tried ended the child process.
    """
    request = {"syntax": syntax, "tags": dict(tags)}
    try:
        said, pixels = _ask(_take(), request, frame)
    except (IndexError, _GoneError):  # no idle child, or it ended while it was idle
        said, pixels = _ask(_Child(), request, frame)
    if "error" in said:
        raise CodecError(said["error"])
    values = np.frombuffer(pixels, dtype=said["dtype"]).reshape(said["shape"])
    return values, said["precision"]


def _ask(child: _Child, request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Ask a child and keep it for the next, or end it where that fails."""
    try:
        answer = child.ask(request, frame)
    except BaseException:
        child.end()
        raise
    _idle_children.append(child)
    return answer


class _GoneError(CodecError):
    """The child process had been killed from outside, and may not have seen the frame."""


class _Child:
    def __init__(self) -> None:
        path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, path, str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the parent's to answer
        )

    def ask(self, request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
        """Send one frame and wait for the answer."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(TIMEOUT_S, stop)
        timer.daemon = True
        timer.start()
        try:
            return self._exchange(request, frame)
        except (OSError, ValueError, EOFError) as error:
            if late.is_set():
                raise CodecError(f"the decoder did not end within {TIMEOUT_S:g} s") from error
            why = self._why()
            killed = self.process.returncode == -getattr(signal, "SIGKILL", 9)
            raise (_GoneError if killed else CodecError)(why) from error
        finally:
            timer.cancel()

    def _exchange(self, request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
        to, back = self.process.stdin, self.process.stdout
        assert to is not None
        assert back is not None
        to.write(json.dumps(request | {"bytes": len(frame)}).encode() + b"\n")
        to.write(frame)
        to.flush()
        line = back.readline()
        if not line:
            raise EOFError
        said: dict[str, Any] = json.loads(line)
        pixels = back.read(said["bytes"])
        if len(pixels) != said["bytes"]:
            raise EOFError
        return said, pixels

    def _why(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(5)
            if code == -getattr(signal, "SIGXCPU", 0):
                return "the decoder did not end in the processor time that frames of its size take"
            if code < 0:
                name = signal.Signals(-code).name
                return f"the decoder crashed ({name}); it ran in a process of its own"
            return f"the decoder's process ended with status {code}"
        return "the decoder's process does not answer"

    def end(self) -> None:
        """Kill the process and close its pipes."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


_idle_children: list[_Child] = []  # append and pop are atomic


def _take() -> _Child:
    """Return an idle child.

    Raises:
        IndexError: if there is none.
    """
    while True:
        child = _idle_children.pop()
        if child.process.poll() is None:
            return child
        child.end()


@atexit.register
def _end_all() -> None:
    while _idle_children:
        _idle_children.pop().end()


if hasattr(os, "register_at_fork"):  # the pipes belong to the parent; a fork starts its own
    os.register_at_fork(after_in_child=_idle_children.clear)
