"""The DICOM listener: what arrives is on the disk, under a name of ours, before we say yes.

Every storage class is accepted, also those that are never scored: a router that forwards a whole
study fails it whole if one object is refused. Strangers are refused by their title. A disk that is
nearly full answers "out of resources", so that the sender keeps its images and tries again.
"""

from __future__ import annotations

import logging
import os
import shutil
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt

from normalis.errors import RunError
from normalis.pacs.peer import Address
from normalis.pacs.transfer import file_name
from normalis.serve.store import Store

__all__ = ["OUT_OF_RESOURCES", "SUCCESS", "adopt", "listening", "take"]

log = logging.getLogger("normalis.serve")

SUCCESS, OUT_OF_RESOURCES, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
_ECHO = "1.2.840.10008.1.1"
_MOST_ASSOCIATIONS = 16


def take(event: Any, store: Store, quiet_s: float, reserve_bytes: int) -> int:
    """Keep one object that a sender stores; return the status that it hears.

    Args:
        event: of pynetdicom.
        store: where what arrived is noted.
        quiet_s: how long a study waits for further images.
        reserve_bytes: free space below which nothing is accepted.
    """
    sender = str(event.assoc.requestor.ae_title).strip()
    try:
        if shutil.disk_usage(store.folder).free < reserve_bytes:
            store.note(sender, "refused", why="the disk is nearly full")
            return OUT_OF_RESOURCES
        names = _names(event.dataset)
        encoded = event.encoded_dataset()  # as it came: what is compressed stays so
    except Exception as error:  # a sender's object may be anything
        log.warning("an object of %s is not understood: %s", sender, error)
        return NOT_UNDERSTOOD
    path = store.spool / file_name(names["sop"])
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as stream:
            stream.write(encoded)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        store.received(**names, path=path, sender=sender, quiet_s=quiet_s)
    except Exception as error:
        log.error("an object of %s cannot be kept: %s", sender, error)
        return OUT_OF_RESOURCES
    return SUCCESS


def _names(data: Any) -> dict[str, str]:
    """Return the UIDs of an object."""
    return {
        "sop": str(data.SOPInstanceUID),
        "study": str(data.StudyInstanceUID),
        "series": str(data.get("SeriesInstanceUID", "")),
        "sop_class": str(data.SOPClassUID),
    }


def adopt(store: Store, quiet_s: float) -> int:
    """Note files in the spool that no table knows, and remove half-written ones; return how many.

    They are there if the service was killed between writing a file and noting it, or if its file of
    state was lost. Their sender may have heard that they are kept.

    Args:
        store: of a service that takes nothing yet.
        quiet_s: how long their studies wait for further images.
    """
    import pydicom

    for part in store.spool.glob("*.part"):
        part.unlink(missing_ok=True)
    known = {Path(path).name for (path,) in store.run("SELECT path FROM instance")}
    found = 0
    for path in sorted(store.spool.glob("*.dcm")):
        if path.name in known:
            continue
        try:
            names = _names(pydicom.dcmread(path, stop_before_pixels=True))
        except Exception as error:  # a damaged disk may have left anything
            log.error("%s: lies in the spool and cannot be read: %s", path.name, error)
            continue
        store.received(**names, path=path, sender="normalis", quiet_s=quiet_s)
        found += 1
    return found


@contextmanager
def listening(
    store: Store,
    address: Address,
    *,
    allowed: Sequence[str],
    quiet_s: float,
    reserve_bytes: int,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Any]:
    """Listen until the block ends.

    Args:
        store: where what arrives goes.
        address: our title, the address to listen on, the port.
        allowed: titles that may send; empty lets everyone who knows our title.
        quiet_s: how long a study waits for further images.
        reserve_bytes: free space below which nothing is accepted.
        tls: for DICOM over TLS.

    Raises:
        RunError: if the port cannot be had.
    """
    entity = AE(address.aet)
    entity.require_called_aet = True
    senders: list[Any] = [*allowed]
    entity.require_calling_aet = senders
    entity.maximum_associations = _MOST_ASSOCIATIONS
    entity.supported_contexts = list(AllStoragePresentationContexts)
    syntaxes: list[Any] = [*ALL_TRANSFER_SYNTAXES]
    for context in entity.supported_contexts:
        context.transfer_syntax = syntaxes
    entity.add_supported_context(_ECHO)
    handlers: list[Any] = [(evt.EVT_C_STORE, take, [store, quiet_s, reserve_bytes])]
    given: dict[str, Any] = {} if tls is None else {"ssl_context": tls}
    try:
        server = entity.start_server(
            (address.host, address.port), block=False, evt_handlers=handlers, **given
        )
    except OSError as error:
        raise RunError(f"{address}: cannot be listened on ({error})") from error
    try:
        yield server
    finally:
        entity.shutdown()
