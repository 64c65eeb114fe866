"""A PACS over DIMSE, by pynetdicom: C-ECHO, C-FIND, C-GET, C-STORE."""

from __future__ import annotations

import logging
import queue
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt

from normalis.errors import RunError
from normalis.errors.words import counted
from normalis.pacs.peer import Address, Sent

__all__ = ["DimsePeer"]

log = logging.getLogger("normalis.pacs")

_CONNECT_S, _ANSWER_S = 10, 60
_ECHO = UID("1.2.840.10008.1.1")
_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")  # study root
_GET = UID("1.2.840.10008.5.1.4.1.2.2.3")
_PENDING = (0xFF00, 0xFF01)
_STORED = (0x0000, 0xB000, 0xB006, 0xB007)
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_RARE = ("481.", "9.", "78.", "79.", "80.", "81.", "82.", "34.", "200.")  # plans, curves, eyes


def _classes_to_get() -> tuple[str, ...]:
    """Return the storage classes that a study may hold, the rare ones last.

    Contexts of one association are 128 at most, one of them the query's. A PACS gives up the whole
    study at an object of a class that we did not offer: reports and segmentations must be there.
    """
    known = [str(c.abstract_syntax) for c in AllStoragePresentationContexts]
    stored = [c.removeprefix(_STORAGE) for c in known if c.startswith(_STORAGE)]
    return tuple(_STORAGE + c for c in sorted(stored, key=lambda c: c.startswith(_RARE)))[:127]


_IMAGE_CLASSES = _classes_to_get()
_STUDY = {
    "StudyInstanceUID": "", "StudyDate": "", "ModalitiesInStudy": "", "PatientID": "",
    "NumberOfStudyRelatedInstances": "", "AccessionNumber": "", "StudyDescription": "",
}  # fmt: skip


class DimsePeer:
    """A PACS at ``AET@HOST:PORT``.

    Args:
        address: of the peer.
        own_aet: our application entity title, which the peer must know.
        tls: for DICOM over TLS.
    """

    def __init__(
        self, address: Address, *, own_aet: str = "NORMALIS", tls: ssl.SSLContext | None = None
    ) -> None:
        self.address, self.own_aet, self.tls = address, own_aet, tls

    @contextmanager
    def _association(self, contexts: Sequence[tuple[str, Any]], **given: Any) -> Iterator[Any]:
        entity = AE(self.own_aet)
        entity.connection_timeout, entity.acse_timeout = _CONNECT_S, _CONNECT_S
        entity.dimse_timeout, entity.network_timeout = _ANSWER_S, _ANSWER_S
        for syntax, transfer in contexts:
            entity.add_requested_context(syntax, transfer)
        if self.tls is not None:
            given["tls_args"] = (self.tls, self.address.host)
        peer = entity.associate(
            self.address.host, self.address.port, ae_title=self.address.aet, **given
        )
        if not peer.is_established:
            why = "refused our title" if peer.is_rejected else "no association"
            raise RunError(f"{self.address}: {why} ({self.own_aet} calls {self.address.aet})")
        try:
            yield peer
        finally:
            peer.release()

    def echo(self) -> str:
        """Return why the peer does not answer; empty if it does."""
        try:
            with self._association([(_ECHO, None)]) as peer:
                status = peer.send_c_echo()
        except RunError as error:
            return str(error)
        return "" if status and status.Status == 0 else "C-ECHO was not answered"

    def find(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        """Return the studies that match; keys are attributes of a study, values as DICOM has them.

        Raises:
            RunError: if the peer does not answer or the query fails.
        """
        return self._find("STUDY", {**_STUDY, **query})

    def _find(self, level: str, keys: Mapping[str, str]) -> list[dict[str, str]]:
        asked = _query(level, keys)
        with self._association([(_FIND, None)]) as peer:
            return self._answers(peer, asked, keys)

    def _answers(self, peer: Any, asked: Dataset, keys: Iterable[str]) -> list[dict[str, str]]:
        found = []
        for status, answer in peer.send_c_find(asked, _FIND):
            if not status or status.Status not in (0x0000, *_PENDING):
                code = f"status 0x{status.Status:04X}" if status else "no answer"
                raise RunError(f"{self.address}: the query failed ({code})")
            if answer is not None:
                found.append({name: _text(answer.get(name)) for name in keys})
        return found

    def has(self, dataset: Any) -> bool:
        """Return whether the peer has an object, asked by its UID."""
        return bool(self._there([dataset]))

    def _there(self, datasets: Sequence[Any]) -> set[str]:
        """Return the UIDs of those objects that the peer has; it is asked for each."""
        names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        found = set()
        with self._association([(_FIND, None)]) as peer:
            for data in datasets:
                keys = {name: str(data.get(name)) for name in names}
                answers = self._answers(peer, _query("IMAGE", keys), keys)
                found |= {a["SOPInstanceUID"] for a in answers} & {keys["SOPInstanceUID"]}
        return found

    def fetch(self, study_uid: str) -> Iterator[Any]:
        """Yield the data sets of a study as they arrive, by C-GET.

        Raises:
            RunError: if the peer does not answer, or cannot send all of it.
        """
        arrived: queue.Queue[Any] = queue.Queue(maxsize=32)
        end = object()

        def take(event: Any) -> int:
            data = event.dataset
            data.file_meta = event.file_meta
            arrived.put(data)
            return 0x0000

        def get() -> None:
            try:
                arrived.put(self._get(study_uid, take))
            except Exception as error:  # handed to the thread that waits
                arrived.put(error)
            arrived.put(end)

        threading.Thread(target=get, name="normalis-c-get", daemon=True).start()
        while (item := arrived.get()) is not end:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, str):
                if item:
                    raise RunError(f"{self.address}: study {study_uid} came in part ({item})")
                continue
            yield item

    def _get(self, study_uid: str, take: Any) -> str:
        """Fetch a study; return what went wrong, empty if nothing did."""
        asked = Dataset()
        asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", study_uid
        model = _GET
        contexts: list[tuple[str, Any]] = [(model, None)]
        contexts += [(syntax, None) for syntax in _IMAGE_CLASSES]
        roles = [build_role(syntax, scp_role=True) for syntax in _IMAGE_CLASSES]
        with self._association(
            contexts, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, take)]
        ) as peer:
            last = None
            for status, _ in peer.send_c_get(asked, model):
                last = status
            if not last:
                return "no answer"
            failed = int(last.get("NumberOfFailedSuboperations") or 0)
            if last.Status != 0x0000:
                return f"status 0x{last.Status:04X}, {counted(failed, 'image')} failed"
            return f"{counted(failed, 'image')} failed" if failed else ""

    def store(self, datasets: Sequence[Any]) -> list[Sent]:
        """Send objects and ask for each whether it is there."""
        pairs = sorted({(d.SOPClassUID, d.file_meta.TransferSyntaxUID) for d in datasets})
        contexts = [(sop_class, [syntax]) for sop_class, syntax in pairs]
        try:
            with self._association(contexts[:128]) as peer:
                said = [_send(peer, data) for data in datasets]
        except RunError as error:
            return [
                Sent(sop_uid=str(d.SOPInstanceUID), state="unreached", problem=str(error))
                for d in datasets
            ]
        taken = [d for d, problem in zip(datasets, said, strict=True) if not problem]
        there, doubt = self._asked_again(taken)
        return [_became(d, p, there, doubt) for d, p in zip(datasets, said, strict=True)]

    def _asked_again(self, datasets: Sequence[Any]) -> tuple[set[str], str]:
        """Return what the peer has of what it took, and why that is not known."""
        if not datasets:
            return set(), ""
        try:
            return self._there(datasets), "the peer said success and does not find it"
        except RunError as error:  # a peer that stores need not answer queries
            return set(), f"could not be asked: {error}"


def _became(dataset: Any, problem: str, there: set[str], doubt: str) -> Sent:
    uid = str(dataset.SOPInstanceUID)
    if problem:
        return Sent(sop_uid=uid, state="refused", problem=problem)
    if uid in there:
        return Sent(sop_uid=uid, state="kept")
    return Sent(sop_uid=uid, state="sent", problem=doubt)


def _query(level: str, keys: Mapping[str, str]) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    for name, value in keys.items():
        setattr(asked, name, value)
    return asked


def _send(peer: Any, dataset: Any) -> str:
    try:
        status = peer.send_c_store(dataset)
    except (ValueError, RuntimeError) as error:  # no context for its class, or the link is gone
        return f"not accepted: {error}"[:200]
    if not status:
        return "no answer"
    return "" if status.Status in _STORED else f"status 0x{status.Status:04X}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, str) else "\\".join(map(str, _several(value)))


def _several(value: Any) -> list[Any]:
    return list(value) if hasattr(value, "__iter__") else [value]
