"""The real process of ``normalis serve``, which can be killed at an exact point of its work.

As a program (``python serve_process.py POINT ARGUMENTS...``) it runs normalis with these arguments
and kills itself, as ``kill -9`` would, when the work comes to the point for the first time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pacs_peers import free_port

#: point of the work -> (module, name in it, when to die: "before" or "after" the call)
POINTS = {
    "a file arrives": ("normalis.serve.listener:os", "fsync", "after"),
    "a file lies in the spool": ("normalis.serve.store:Store", "received", "before"),
    "a file is noted": ("normalis.serve.store:Store", "received", "after"),
    "a study is taken": ("normalis.serve.store:Store", "next_job", "after"),
    "a study has its scores": ("normalis.serve.worker", "objects_of", "before"),
    "one object of several is written": ("normalis.serve.worker", "save", "after"),
    "all objects are written": ("normalis.serve.store:Store", "scored", "before"),
    "a study is scored": ("normalis.serve.store:Store", "scored", "after"),
    "one object of several is sent": ("normalis.pacs.dimse_peer", "_send", "after"),
    "all objects are sent": ("normalis.serve.store:Store", "sent", "before"),
    "one object is noted as sent": ("normalis.serve.store:Store", "sent", "after"),
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at(point: str) -> None:
    from importlib import import_module

    where, name, when = POINTS[point]
    module, _, attribute = where.partition(":")
    holder = import_module(module)
    holder = getattr(holder, attribute) if attribute else holder
    work = getattr(holder, name)

    def dying(*values: object, **named: object) -> object:
        if when == "before":
            _die()
        done = work(*values, **named)
        if not (name == "next_job" and done is None):
            _die()
        return done

    setattr(holder, name, dying)


@dataclass
class Service:
    """A running service.

    Attributes:
        process: of it.
        data: its folder.
        dicom: port of the listener.
        web: port of the page.
        log: what it printed so far.
        tls: authority of the page's certificate; None without TLS.
    """

    process: subprocess.Popen[bytes]
    data: Path
    dicom: int
    web: int
    log: Path
    tls: Path | None = None

    @property
    def address(self) -> str:
        return f"SERVICE@127.0.0.1:{self.dicom}"

    def rows(self, sql: str) -> list[tuple]:
        """Ask its file of state, which it may be writing."""
        with contextlib.closing(sqlite3.connect(self.data / "normalis.sqlite")) as file:
            return file.execute(sql).fetchall()

    def wait(self, holds: Callable[[], bool], seconds: float = 90) -> None:
        """Wait until something holds, or the process has ended."""
        until = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < until, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def scored(self) -> bool:
        """Whether every study is scored."""
        studies = self.rows("SELECT state,COUNT(*) FROM study GROUP BY state")
        return [state for state, _ in studies] == ["scored"]

    def get(self, path: str) -> bytes:
        """Ask the page."""
        with self.send(path) as answer:
            return answer.read()

    def send(self, path: str, data: bytes | None = None, headers: dict | None = None):
        """Ask the page and return the answer, without following where it leads."""
        asked = urllib.request.Request(f"{self.root}{path}", data, headers or {})
        return _opener(self.tls).open(asked, timeout=30)

    @property
    def root(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.web}"

    def post(self, path: str, body: dict) -> bytes:
        """Do on the page what a reader does."""
        token = self.get("/").split(b'name="csrf" content="')[1].split(b'"')[0].decode()
        headers = {"X-CSRF-Token": token, "Content-Type": "application/json"}
        with self.send(path, json.dumps(body).encode(), headers) as answer:
            return answer.read()

    def done(self) -> bool:
        """Whether every study is scored and every object kept by the PACS."""
        objects = self.rows("SELECT state,COUNT(*) FROM outbox GROUP BY state")
        return self.scored() and [state for state, _ in objects] == ["kept"]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req, fp, code, msg, headers):
        """Return the answer that leads elsewhere, as it came."""
        return fp

    http_error_303 = http_error_302


def _opener(ca: Path | None) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    return urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))


def _answers(service: Service) -> bool:
    try:
        return service.get("/ready") == b"ready"
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def serving(
    run: Path,
    data: Path,
    *more: str,
    point: str = "",
    ready: bool = True,
    quiet: float = 0.3,
    tls: Path | None = None,
    dicom: int = 0,
) -> Iterator[Service]:
    """Run the service until the block ends.

    Args:
        run: of a fitted detector.
        data: folder that it keeps.
        more: further arguments.
        point: one of `POINTS` at which it dies; empty for none.
        ready: whether to wait until its page answers.
        quiet: seconds without a further image until a study is scored.
        tls: authority of the page's certificate; None without TLS.
        dicom: port of the listener; 0 for any.
    """
    dicom, web = dicom or free_port(), free_port()
    arguments = [
        "serve", str(run), "--data", str(data), "--listen", f"SERVICE@127.0.0.1:{dicom}",
        "--web", f"127.0.0.1:{web}", "--quiet-seconds", str(quiet), "--reserve-gb", "0",
        "--aet", "NORMALIS", "--device", "cpu", *more,
    ]  # fmt: skip
    log = data.with_name(f"{data.name}.{dicom}.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, __file__, point, *arguments], stdout=stream, stderr=stream
        )
    service = Service(process, data, dicom, web, log, tls)
    try:
        if ready:
            service.wait(lambda: _answers(service))
        yield service
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    from normalis.cli import main

    if sys.argv[1]:
        _kill_at(sys.argv[1])
    sys.argv = ["normalis", *sys.argv[2:]]
    main()
