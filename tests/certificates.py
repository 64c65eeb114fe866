"""Certificates made for a test by the system's openssl: an authority, a server, a client."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificates:
    """Files of one authority.

    Attributes:
        ca: the authority's certificate.
        server: a certificate for 127.0.0.1 and localhost.
        client: a certificate of a sender.
    """

    ca: Path
    server: Path
    client: Path

    @property
    def server_key(self) -> Path:
        return self.server.with_suffix(".key")

    @property
    def client_key(self) -> Path:
        return self.client.with_suffix(".key")


def make_certificates(folder: Path) -> Certificates:
    """Make an authority, and what it signs; skips the test without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the test's certificates")
    folder.mkdir(parents=True, exist_ok=True)
    ca = folder / "ca.pem"
    _openssl(
        "req", "-x509", *_new_key(folder / "ca.key"), "-out", ca, "-days", "2", "-subj",
        "/CN=authority of a test", "-addext", "basicConstraints=critical,CA:TRUE",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    server = _signed(folder, "server", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    client = _signed(folder, "client", "extendedKeyUsage=clientAuth")
    return Certificates(ca=ca, server=server, client=client)


def _new_key(path: Path) -> list[object]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path]


def _signed(folder: Path, name: str, extension: str) -> Path:
    request, made = folder / f"{name}.csr", folder / f"{name}.pem"
    _openssl("req", *_new_key(folder / f"{name}.key"), "-out", request, "-subj", f"/CN={name}")
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"{extension}\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n")
    _openssl(
        "x509", "-req", "-in", request, "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key",
        "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", made,
    )  # fmt: skip
    return made


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
