"""TLS of the listener: who we are, and, if an authority is named, who may send."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from normalis.errors import SettingsError

__all__ = ["server_context"]


class _ServerContext(ssl.SSLContext):
    """A context whose handshake is made by the thread of an association.

    By default it is made where connections are accepted: one that says nothing, as a scanner's,
    would then keep everyone out.
    """

    def wrap_socket(self, sock: socket.socket, *values: Any, **named: Any) -> ssl.SSLSocket:
        named["do_handshake_on_connect"] = False
        return super().wrap_socket(sock, *values, **named)


def server_context(
    certificate: Path, key: Path | None = None, senders_ca: Path | None = None
) -> ssl.SSLContext:
    """Return the TLS context of a listener.

    Args:
        certificate: ours, with those between it and the authority.
        key: of it; None if the file of the certificate holds it too.
        senders_ca: authority of senders' certificates; None asks for none.

    Raises:
        SettingsError: if a file cannot be used.
    """
    try:
        context = _ServerContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificate), None if key is None else str(key))
        if senders_ca is not None:
            context.load_verify_locations(str(senders_ca))
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"the listener's TLS files cannot be used: {error}") from error
    return context
