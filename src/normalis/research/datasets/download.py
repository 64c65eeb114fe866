"""Downloads that resume where they broke off and are only believed when their checksum agrees.

What has arrived lies in ``NAME.part``, with the server's mark of the version (ETag) in
``NAME.part.json``. A later attempt asks for the rest with ``Range`` and ``If-Range``: if the file
has changed meanwhile, the server sends all of it and the download starts over.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from normalis.errors import DataError
from normalis.research.datasets.catalogue import named

__all__ = ["download", "download_archive", "verify"]

_CHUNK = 1 << 20
_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})

Progress = Callable[[int, int | None], None]


class _Broken(Exception):
    """The transfer ended too early; what arrived is kept."""


def download_archive(name: str, folder: str | Path, *, progress: Progress | None = None) -> Path:
    """Download the authors' prepared archive of a named data set into a folder.

    Raises:
        DataError: if there is none, or the download fails.
    """
    dataset = named(name)
    if not (dataset.url and dataset.archive):
        raise DataError(f"{dataset.name} has no public archive; get it from {dataset.source}")
    target = Path(folder).expanduser() / dataset.archive
    return download(dataset.url, target, checksum=dataset.checksum, progress=progress)


def download(
    url: str,
    target: Path,
    *,
    checksum: str | None = None,
    attempts: int = 8,
    wait_s: float = 1.0,
    timeout_s: float = 60.0,
    progress: Progress | None = None,
) -> Path:
    """Download a file, resuming what an earlier attempt or process left.

    Args:
        url: http or https.
        target: the file; it appears when complete and verified. One that is there already is
            verified and kept.
        checksum: ``md5:...`` or ``sha256:...``; None where none is published.
        attempts: transfers that bring nothing new before giving up; one that brings something
            starts the count again.
        wait_s: pause after the first failure, doubled after each further one.
        timeout_s: longest silence of the server.
        progress: called with (bytes there, bytes in all or None).

    Returns:
        The file.

    Raises:
        DataError: if the server refuses, keeps failing, or the checksum differs.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"a download must start with http:// or https://, got {url}")
    if target.exists():
        verify(target, checksum)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    fetch = partial(_fetch, url, part, timeout_s, checksum is not None, progress)
    # What an earlier process left may be damaged: then once more, from the start.
    for last in (False, True) if _size(part) else (True,):
        _insist(fetch, url, part, attempts=attempts, wait_s=wait_s)
        try:
            verify(part, checksum)
            break
        except DataError:
            _forget(part)
            if last:
                raise
    part.replace(target)
    _forget(part)
    return target


def verify(file: Path, checksum: str | None) -> None:
    """Compare a file with its checksum; nothing is compared where it is None.

    Raises:
        DataError: if it differs, or the checksum has another form.
    """
    if checksum is None:
        return
    algorithm, _, expected = checksum.partition(":")
    if algorithm not in ("md5", "sha256"):
        raise DataError(f"a checksum must start with md5: or sha256:, got {checksum}")
    with file.open("rb") as stream:
        # MD5 guards against broken transfers here, not against an attacker.
        digest = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    if digest.hexdigest() != expected.lower():
        raise DataError(
            f"{file}: the {algorithm} must be {expected}, got {digest.hexdigest()};"
            " the file is damaged or another version: remove it and download again"
        )


def _insist(
    fetch: Callable[[], None], url: str, part: Path, *, attempts: int, wait_s: float
) -> None:
    """Repeat a request until it has brought everything."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return fetch()
        except (_Broken, OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in _RETRY:
                raise DataError(
                    f"{url}: the server refuses: {error.code} {error.reason}"
                ) from error
            failures = 0 if _size(part) > before else failures + 1
            if failures >= attempts:
                raise DataError(
                    f"{url}: the download failed {attempts} times in a row, last with: {error}."
                    f" {_size(part)} bytes are kept; the same command goes on from there"
                ) from error
            time.sleep(min(wait_s * 2 ** max(failures - 1, 0), 60))


def _fetch(
    url: str, part: Path, timeout_s: float, trusting: bool, progress: Progress | None
) -> None:
    """Make one request and append what it brings.

    Without a mark of the version, parts are only joined where a checksum will judge the whole.
    """
    mark = _mark(part)
    start = _size(part) if mark or trusting else 0
    request = urllib.request.Request(url, headers={"User-Agent": "normalis"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if start and mark:
        request.add_header("If-Range", mark)
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # asked beyond the end: nothing is left, or it has shrunk
            if _total(error.headers) == start:
                return
            _forget(part)
            raise _Broken("the file on the server has changed") from error
        raise
    with response:
        if response.status == 206 and _start(response.headers) != start:
            _forget(part)
            raise _Broken("the server sent another part than it was asked for")
        if response.status != 206:
            start = 0
        total = _total(response.headers)
        _remember(part, response.headers)
        _append(response, part, start=start, total=total, progress=progress)


def _append(
    response: Any, part: Path, *, start: int, total: int | None, progress: Progress | None
) -> None:
    done = start
    with part.open("r+b" if start else "wb") as stream:
        stream.seek(start)
        while chunk := response.read(_CHUNK):
            stream.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    if total is not None and done != total:
        raise _Broken(f"{done} of {total} bytes arrived")


def _total(headers: Any) -> int | None:
    """Size of the whole file, whichever header says it."""
    ranged = re.fullmatch(r"bytes (?:\*|\d+-\d+)/(\d+)", headers.get("Content-Range", ""))
    if ranged:
        return int(ranged[1])
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _start(headers: Any) -> int | None:
    ranged = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(ranged[1]) if ranged else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _sidecar(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _mark(part: Path) -> str | None:
    try:
        mark = json.loads(_sidecar(part).read_text(encoding="utf-8")).get("mark")
    except (OSError, ValueError, AttributeError):
        return None
    return mark if isinstance(mark, str) else None


def _remember(part: Path, headers: Any) -> None:
    etag = headers.get("ETag", "")
    # A weak ETag does not promise equal bytes, so it cannot continue a transfer.
    mark = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    _sidecar(part).write_text(json.dumps({"mark": mark}), encoding="utf-8")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _sidecar(part).unlink(missing_ok=True)
