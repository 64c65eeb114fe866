"""The service as one process: a listener, a worker and a page, started and ended together."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalis.errors import RunError, SettingsError
from normalis.pacs.peer import Address, Peer
from normalis.pacs.pseudonymous import leaving
from normalis.serve.listener import adopt, listening
from normalis.serve.store import Store
from normalis.serve.tls import server_context
from normalis.serve.web import WebSettings, make_app
from normalis.serve.worker import Worker
from normalis.storage import exclusive

if TYPE_CHECKING:
    import uvicorn

    from normalis.fitted import FittedDetector

__all__ = ["ServiceSettings", "run_service"]

log = logging.getLogger("normalis.serve")

_END_S = 30.0


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How the service works.

    Attributes:
        listen: our title, and where the listener is.
        allowed: titles that may send; empty lets everyone who knows our title.
        quiet_s: how long a study waits for further images.
        reserve_bytes: free space below which nothing is accepted.
        quota_bytes: what the spool may hold of studies that are done.
        kinds: of result objects.
        fpr: share of normals that may be flagged.
        web_host: address of the page.
        web_port: its port.
        web_certificate: for TLS of the page.
        web_key: of that certificate.
        listen_certificate: for TLS of the listener.
        listen_key: of that certificate.
        senders_ca: authority of senders' certificates; None asks for none.
        pseudonyms: file of the key under whose pseudonyms results go to the peer; None sends true
            ids.
    """

    listen: Address
    allowed: tuple[str, ...] = ()
    quiet_s: float = 60.0
    reserve_bytes: int = 10**9
    quota_bytes: int | None = None
    kinds: tuple[str, ...] = ("sc", "sr", "seg")
    fpr: float = 0.05
    web_host: str = "127.0.0.1"
    web_port: int = 8080
    web_certificate: Path | None = None
    web_key: Path | None = None
    listen_certificate: Path | None = None
    listen_key: Path | None = None
    senders_ca: Path | None = None
    pseudonyms: Path | None = None


def run_service(
    folder: Path,
    detector: FittedDetector,
    peer: Peer | None,
    settings: ServiceSettings,
    page: WebSettings,
) -> None:
    """Serve until the process is told to end.

    Args:
        folder: what the service keeps; one service at a time.
        detector: fitted.
        peer: where results go; None keeps them.
        settings: how it works.
        page: how the page is shown.

    Raises:
        RunError: if another service uses the folder, or a port cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with exclusive(folder / ".lock", what=f"{folder}: the service's folder"):
        store = Store(folder)
        worker = Worker(
            store, detector, kinds=settings.kinds, peer=peer, fpr=settings.fpr,
            quota_bytes=settings.quota_bytes, leaves=leaving(settings.pseudonyms),
        )  # fmt: skip
        thread = threading.Thread(target=worker.run, name="normalis-worker", daemon=True)
        with (
            _web_socket(settings) as socket_,
            listening(
                store,
                settings.listen,
                allowed=settings.allowed,
                quiet_s=settings.quiet_s,
                reserve_bytes=settings.reserve_bytes,
                tls=_listener_tls(settings),
            ),
        ):
            server = _web_server(make_app(store, worker, page), settings)
            if found := adopt(store, settings.quiet_s):
                log.warning("%d files lay in the spool unnoted and are scored now", found)
            store.note("normalis", "started")
            thread.start()
            try:
                server.run(sockets=[socket_])
            finally:
                worker.stop()
                thread.join(_END_S)
                store.note("normalis", "ended")
        store.close()


def _web_socket(settings: ServiceSettings) -> socket.socket:
    host, port = settings.web_host, settings.web_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RunError(
            f"{host}:{port}: the page cannot be shown there ({error.strerror or error}); choose "
            "another --web"
        ) from error


def _web_server(app: Any, settings: ServiceSettings) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(_END_S),
        ssl_certfile=_text(settings.web_certificate),
        ssl_keyfile=_text(settings.web_key),
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"the page's TLS files cannot be used: {error}") from error
    return uvicorn.Server(config)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _listener_tls(settings: ServiceSettings) -> ssl.SSLContext | None:
    if settings.listen_certificate is not None:
        return server_context(settings.listen_certificate, settings.listen_key, settings.senders_ca)
    if settings.senders_ca is not None:
        raise SettingsError(
            "--listen-ca asks senders for certificates, which needs TLS: give --listen-cert too"
        )
    return None
