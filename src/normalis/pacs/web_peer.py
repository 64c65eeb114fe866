"""A PACS over DICOMweb, by dicomweb-client: QIDO-RS, WADO-RS, STOW-RS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session, create_session_from_user_pass
from pydicom.datadict import tag_for_keyword
from requests import ConnectionError as NoConnection
from requests import RequestException
from requests.adapters import HTTPAdapter

from normalis.errors import RunError
from normalis.pacs.peer import Sent

__all__ = ["WebPeer"]

_STUDY = (
    "StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "PatientID",
    "NumberOfStudyRelatedInstances", "AccessionNumber", "StudyDescription",
)  # fmt: skip


class _OurAuthority(HTTPAdapter):
    """Trusts what a context trusts, and nobody else."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        super().__init__()

    def init_poolmanager(self, *values: Any, **named: Any) -> None:
        """Make connections with the context."""
        super().init_poolmanager(*values, ssl_context=self.context, **named)

    def cert_verify(self, *values: Any, **named: Any) -> None:
        """Leave it to the context; by default the public authorities would be added."""


class WebPeer:
    """A PACS at a DICOMweb address.

    Args:
        url: root of the service, for instance ``https://pacs/dicom-web``.
        user: empty for a server without a password.
        password: of the user.
        tls: for an authority that the system does not know, or a certificate of ours.
    """

    def __init__(
        self, url: str, *, user: str = "", password: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self.url = url
        session = create_session_from_user_pass(user, password) if user else create_session()
        if tls is not None:
            session.mount("https://", _OurAuthority(tls))
        self.client = DICOMwebClient(url, session=session)

    def echo(self) -> str:
        """Return why the server does not answer; empty if it does."""
        try:
            self.client.search_for_studies(limit=1)
        except (RequestException, ValueError) as error:
            return str(error)[:200]
        return ""

    def find(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        """Return the studies that match; keys are attributes of a study.

        Raises:
            RunError: if the server does not answer.
        """
        try:
            answers = self.client.search_for_studies(
                search_filters=dict(query), fields=list(_STUDY), get_remaining=True
            )
        except (RequestException, ValueError) as error:
            raise RunError(f"{self.url}: the query failed ({error})") from error
        return [{name: _value(answer, name) for name in _STUDY} for answer in answers]

    def fetch(self, study_uid: str) -> Iterator[Any]:
        """Yield the data sets of a study as they arrive.

        Raises:
            RunError: if the server does not send it.
        """
        try:
            yield from self.client.iter_study(study_uid, media_types=_ANY_SYNTAX)
        except (RequestException, ValueError) as error:
            raise RunError(f"{self.url}: study {study_uid} did not come ({error})") from error

    def has(self, dataset: Any) -> bool:
        """Return whether the server has an object."""
        try:
            found = self.client.search_for_instances(
                study_instance_uid=str(dataset.StudyInstanceUID),
                search_filters={"SOPInstanceUID": str(dataset.SOPInstanceUID)},
            )
        except (RequestException, ValueError) as error:
            raise RunError(f"{self.url}: cannot be asked ({error})") from error
        return any(_value(a, "SOPInstanceUID") == str(dataset.SOPInstanceUID) for a in found)

    def store(self, datasets: Sequence[Any]) -> list[Sent]:
        """Send objects one by one and ask for each whether it is there."""
        return [self._store(dataset) for dataset in datasets]

    def _store(self, dataset: Any) -> Sent:
        uid = str(dataset.SOPInstanceUID)
        dataset.preamble = (
            getattr(dataset, "preamble", None) or b"\0" * 128
        )  # else no server can give it back
        try:
            self.client.store_instances([dataset])
            kept = self.has(dataset)
        except (RequestException, ValueError, RunError) as error:
            state = "unreached" if isinstance(error, NoConnection) else "refused"
            return Sent(sop_uid=uid, state=state, problem=str(error)[:200])
        problem = "" if kept else "the server said success and does not find it"
        return Sent(sop_uid=uid, state="kept" if kept else "sent", problem=problem)


#: As it lies there, compressed or not.
_ANY_SYNTAX = (("application/dicom", "*"),)


def _value(answer: Mapping[str, Any], keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    values = answer.get(f"{tag:08X}", {}).get("Value", []) if tag is not None else []
    return "\\".join(map(str, values))
