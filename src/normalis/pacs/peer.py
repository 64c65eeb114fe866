"""Where a PACS is and how to talk to it: ``AET@HOST:PORT`` (DIMSE) or a DICOMweb address.

Two kinds of peers answer the same four questions: which studies are there (`find`), give me one
(`fetch`), take these objects (`store`), do you have this one (`has`). Credentials of DICOMweb come
from the environment, never from the command line, which other users of the machine can read.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from normalis.errors import SettingsError
from normalis.errors.extras import require

__all__ = ["RIGHTS", "Address", "Peer", "Sent", "parse_address", "peer_at", "tls_context"]

#: Environment variables with the user and the password of a DICOMweb server.
USER_VARIABLE, PASSWORD_VARIABLE = "NORMALIS_PACS_USER", "NORMALIS_PACS_PASSWORD"

_DIMSE = re.compile(r"([^@\s]{1,16})@(\[[0-9A-Fa-f:]+\]|[^:@\s]+):(\d{1,5})\Z")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a peer is.

    Attributes:
        aet: application entity title; empty for DICOMweb.
        host: name or number.
        port: 1 to 65535; 0 for DICOMweb.
        url: of DICOMweb; empty for DIMSE.
    """

    aet: str = ""
    host: str = ""
    port: int = 0
    url: str = ""

    def __str__(self) -> str:
        return self.url or f"{self.aet}@{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        SettingsError: if it is none.
    """
    if text.startswith(("http://", "https://")):
        if "@" in text.split("//", 1)[1].split("/", 1)[0]:
            raise SettingsError(
                "a DICOMweb address must not hold a password, which other users of this machine "
                f"could read; set {USER_VARIABLE} and {PASSWORD_VARIABLE} instead"
            )
        return Address(url=text.rstrip("/"))
    match = _DIMSE.match(text)
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise SettingsError(f"an address must be AET@HOST:PORT or https://..., got {text!r}")
    return Address(aet=match[1], host=match[2].strip("[]"), port=int(match[3]))


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of one object.

    Attributes:
        sop_uid: SOP Instance UID.
        state: ``kept`` if the peer was asked again and has it, ``sent`` if it only said so,
            ``refused`` if it did not take it, ``unreached`` if there was no talking to it.
        problem: why not; empty if all is well.
    """

    sop_uid: str
    state: str
    problem: str = ""


class Peer(Protocol):
    """A PACS."""

    def echo(self) -> str:
        """Return why the peer does not answer; empty if it does."""

    def find(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        """Return the studies that match: UID, date, modalities, number of images."""

    def fetch(self, study_uid: str) -> Iterator[Any]:
        """Yield the data sets of a study as they arrive."""

    def store(self, datasets: Sequence[Any]) -> list[Sent]:
        """Send objects; return what became of each, in their order."""

    def has(self, dataset: Any) -> bool:
        """Return whether the peer has an object."""


def tls_context(
    ca_file: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return a client's TLS context that checks the peer against an authority.

    Raises:
        SettingsError: if a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if certificate is not None:
            context.load_cert_chain(str(certificate), None if key is None else str(key))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"the TLS files cannot be used: {error}") from error
    return context


def peer_at(text: str, *, own_aet: str = "NORMALIS", tls: ssl.SSLContext | None = None) -> Peer:
    """Return the peer at an address.

    Args:
        text: ``AET@HOST:PORT`` or a DICOMweb address.
        own_aet: our application entity title.
        tls: for DIMSE over TLS, or for an authority of DICOMweb that the system does not know.

    Raises:
        SettingsError: if the address is none, or TLS is asked of an http:// one.
        MissingExtraError: if the extra ``pacs`` is not installed.
    """
    address = parse_address(text)
    if address.url:
        require("dicomweb_client", extra="pacs", why="a DICOMweb address")
        from normalis.pacs.web_peer import WebPeer

        if tls is not None and address.url.startswith("http://"):
            raise SettingsError(f"{address.url}: TLS was asked for; give an https:// address")

        user = os.environ.get(USER_VARIABLE, "")
        password = os.environ.get(PASSWORD_VARIABLE, "")
        return WebPeer(address.url, user=user, password=password, tls=tls)
    require("pynetdicom", extra="pacs", why="a DICOM address")
    from normalis.pacs.dimse_peer import DimsePeer

    return DimsePeer(address, own_aet=own_aet, tls=tls)


#: What is to be looked at where a PACS refuses, or does not answer, though the network is there.
RIGHTS = (
    "Most PACS answer only titles that are entered there: ask for an entry of ours (--aet, or "
    "NORMALIS) with this machine's address and the rights to store, query and fetch; the title "
    "in AET@HOST:PORT must be that of the PACS, in the same case"
)
