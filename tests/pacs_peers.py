"""PACS to test against: one of pynetdicom's in this process, and a real Orthanc where it is."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

OURS = "NORMALIS"
PASSWORD = "normalis"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Embedded:
    """A PACS in this process.

    Attributes:
        port: where it listens.
        kept: SOP Instance UID -> data set.
        refused: SOP classes that it takes with an error status.
    """

    port: int
    kept: dict[str, Dataset] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"PEER@127.0.0.1:{self.port}"

    def store(self, event) -> int:
        data = event.dataset
        data.file_meta = event.file_meta
        if data.SOPClassUID in self.refused:
            return 0x0122
        self.kept[str(data.SOPInstanceUID)] = data
        return 0x0000

    def find(self, event):
        asked = event.identifier
        found = [d for d in self.kept.values() if _matches(d, asked)]
        level = asked.QueryRetrieveLevel
        key = {"STUDY": "StudyInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        for data in {str(d.get(key)): d for d in found}.values():
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for element in asked:
                if element.keyword in data:
                    setattr(answer, element.keyword, data.get(element.keyword))
            yield 0xFF00, answer
        yield 0x0000, None

    def get(self, event):
        found = [d for d in self.kept.values() if _matches(d, event.identifier)]
        yield len(found)
        for data in found:
            yield 0xFF00, data


def _matches(data: Dataset, asked: Dataset) -> bool:
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID"):
        if asked.get(name) and str(data.get(name)) != str(asked.get(name)):
            return False
    wanted = str(asked.get("StudyDate") or "")
    if wanted:
        low, _, high = wanted.partition("-")
        day = str(data.get("StudyDate"))
        return (not low or day >= low) and (not high or day <= high)
    return True


@contextlib.contextmanager
def embedded(port: int | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Embedded]:
    """Run a PACS in this process."""
    peer = Embedded(port or free_port())
    entity = AE("PEER")
    entity.require_called_aet = True
    entity.require_calling_aet = [OURS]
    entity.supported_contexts = list(AllStoragePresentationContexts)
    for context in entity.supported_contexts:
        context.transfer_syntax = ALL_TRANSFER_SYNTAXES
        context.scu_role, context.scp_role = True, True
    for model in (
        Verification,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
    ):
        entity.add_supported_context(model)
    handlers = [
        (evt.EVT_C_STORE, peer.store),
        (evt.EVT_C_FIND, peer.find),
        (evt.EVT_C_GET, peer.get),
    ]
    server = entity.start_server(
        ("127.0.0.1", peer.port), block=False, evt_handlers=handlers, ssl_context=tls
    )
    try:
        yield peer
    finally:
        server.shutdown()


@contextlib.contextmanager
def behind_tls(port: int, tls: ssl.SSLContext) -> Iterator[int]:
    """Speak TLS before a port of this machine, as a reverse proxy does; yield the port of it."""

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                tls.wrap_socket(self.request, server_side=True) as outside,
                socket.create_connection(("127.0.0.1", port)) as inside,
            ):
                back = threading.Thread(target=_copy, args=(inside, outside), daemon=True)
                back.start()
                _copy(outside, inside)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


PLUGINS = [
    folder / name
    for folder in (Path("/usr/share/orthanc/plugins"), Path("/usr/local/share/orthanc/plugins"))
    for name in ("libOrthancDicomWeb.so", "libOrthancGdcm.so")
]


def find_orthanc() -> str | None:
    return shutil.which("Orthanc") or next(
        (p for p in ("/usr/sbin/Orthanc", "/usr/local/sbin/Orthanc") if Path(p).exists()), None
    )


@dataclass
class Orthanc:
    """A running Orthanc."""

    folder: Path
    http: int
    dicom: int
    process: subprocess.Popen | None = None

    def start(self) -> None:
        """Run it, on what lies in its folder."""
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [find_orthanc(), str(self.folder / "orthanc.json")],
                stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        _wait_until_up(self, self.folder)

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    @property
    def address(self) -> str:
        return f"ORTHANC@127.0.0.1:{self.dicom}"

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def get(self, path: str, data: bytes | None = None) -> bytes:
        """Ask its own interface; with data, post them."""
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        url = f"http://127.0.0.1:{self.http}{path}"
        manager.add_password(None, url, OURS.lower(), PASSWORD)
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
        with opener.open(url, data, timeout=120) as answer:
            return answer.read()

    def json(self, path: str):
        return json.loads(self.get(path))


@contextlib.contextmanager
def orthanc(known: dict[str, int] | None = None, **settings) -> Iterator[Orthanc]:
    """Run an Orthanc on this machine; ``known`` maps titles to ports that it may send to."""
    folder = Path(tempfile.mkdtemp(prefix="orthanc-"))
    server = Orthanc(folder, free_port(), free_port())
    modalities = {
        title.lower(): {
            "AET": title, "Host": "127.0.0.1", "Port": port, "AllowEcho": True, "AllowFind": True,
            "AllowGet": True, "AllowMove": True, "AllowStore": True,
            "AllowStorageCommitment": True,
        }
        for title, port in (known or {OURS: free_port()}).items()
    }  # fmt: skip
    config = {
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "Plugins": [str(p) for p in PLUGINS if p.exists()], "HttpPort": server.http,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": True,
        "RegisteredUsers": {OURS.lower(): PASSWORD}, "HttpsCACertificates": "",
        "DicomAet": "ORTHANC", "DicomPort": server.dicom, "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True, "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False, "DicomAlwaysAllowFind": False,
        "DicomAlwaysAllowGet": False, "DicomAlwaysAllowMove": False,
        "DicomModalities": modalities, "StableAge": 1, "OverwriteInstances": True,
        "SaveJobs": False, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, **settings,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config))
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.process.terminate()
            try:
                server.process.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(server: Orthanc, folder: Path) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            server.get("/system")
            return
        except (urllib.error.URLError, OSError) as error:
            if server.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((folder / "log").read_text()) from error
            time.sleep(0.05)
