"""Studies from a PACS into a folder, results from a folder into a PACS; both go on after a stop.

Files are named by a hash of their UID: nothing of a person stands in a name. What is there already
is not fetched again; what the PACS has already is replaced by the same UID.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from normalis.errors import DataError, SettingsError
from normalis.pacs.peer import Peer, Sent
from normalis.pacs.pseudonymous import Leaving, as_it_is
from normalis.storage import write_atomically

__all__ = ["Pulled", "date_range", "file_name", "pull", "push", "save"]

log = logging.getLogger("normalis.pacs")

_AT_ONCE = 20  # objects of one association


@dataclass(kw_only=True)
class Pulled:
    """What was fetched.

    Attributes:
        studies: studies that matched.
        images: files that arrived.
        known: files that were there already.
        failed: (study UID, reason).
    """

    studies: int = 0
    images: int = 0
    known: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def date_range(since: str | None, until: str | None = None) -> str:
    """Return a range of study dates as DICOM has it.

    Args:
        since: first day, ``2026-03-01``; None for no limit.
        until: last day; None for no limit.

    Raises:
        SettingsError: if a day is none.
    """
    days = []
    for name, text in (("since", since), ("until", until)):
        try:
            days.append("" if text is None else date.fromisoformat(text).strftime("%Y%m%d"))
        except ValueError as error:
            raise SettingsError(
                f"--{name} must be a day such as 2026-03-01, got {text!r}"
            ) from error
    return "-".join(days) if any(days) else ""


def file_name(sop_uid: str) -> str:
    """Return the name of an object's file; the sender's text never becomes a path."""
    return hashlib.sha256(sop_uid.encode()).hexdigest()[:32] + ".dcm"


def save(data: Any, folder: Path) -> Path:
    """Write a data set under its name, whole or not at all; return the path."""
    path = folder / file_name(str(data.SOPInstanceUID))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, lambda part: data.save_as(part, enforce_file_format=True))
    return path


def pull(
    peer: Peer,
    folder: Path,
    *,
    query: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Fetch the studies that match into a folder, one sub-folder a study.

    Args:
        peer: where from.
        folder: where to.
        query: attributes of a study, as for `Peer.find`.
        progress: called as ``progress(studies done, studies)``.

    Raises:
        RunError: if the peer cannot be asked at all.
        DataError: if no study matches.
    """
    studies = [found["StudyInstanceUID"] for found in peer.find(query)]
    if not studies:
        asked = ", ".join(f"{k}={v}" for k, v in query.items() if v) or "any study"
        raise DataError(f"the PACS has no study with {asked}")
    result = Pulled(studies=len(studies))
    for done, uid in enumerate(studies, 1):
        try:
            _pull_study(peer, folder / file_name(uid).removesuffix(".dcm"), uid, result)
        except Exception as error:  # one study that cannot be had must not end a night's work
            result.failed.append((uid, str(error) or type(error).__name__))
            log.warning("study %s: %s", uid, error)
        if progress is not None:
            progress(done, len(studies))
    return result


def _pull_study(peer: Peer, folder: Path, uid: str, result: Pulled) -> None:
    for data in peer.fetch(uid):
        if (folder / file_name(str(data.SOPInstanceUID))).exists():
            result.known += 1
            continue
        save(data, folder)
        result.images += 1


def push(
    peer: Peer,
    paths: list[Path],
    *,
    leaves: Leaving = as_it_is,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Path, Sent]]:
    """Send result objects; return what became of each.

    Args:
        peer: where to.
        paths: DICOM files that `normalis export-dicom` wrote.
        leaves: what changes objects that leave the hospital (`normalis.pacs.pseudonymous`).
        progress: called as ``progress(done, total)``.

    Raises:
        DataError: if there is nothing to send, or a file is no result of normalis: other people's
            images are not ours to send.
    """
    import pydicom

    from normalis.images.objects import OUR_NAME, equipment_of

    if not paths:
        raise DataError("there is no DICOM file to send; write some with normalis export-dicom")
    told: list[tuple[Path, Sent]] = []
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        datasets = [pydicom.dcmread(path) for path in some]
        for path, data in zip(some, datasets, strict=True):
            if OUR_NAME not in equipment_of(data):
                raise DataError(f"{path}: is no result that normalis wrote; only those are sent")
        told += zip(some, peer.store([leaves(data) for data in datasets]), strict=True)
        if progress is not None:
            progress(len(told), len(paths))
    return told
