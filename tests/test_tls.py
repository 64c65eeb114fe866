"""TLS from end to end: the listener, the page, a PACS over DIMSE and over DICOMweb."""

from __future__ import annotations

import gc
import socket
import ssl
import urllib.error
import urllib.request

import numpy as np
import pytest
from pydicom.uid import generate_uid

from certificates import make_certificates
from dicom_studies import image, lesion_slices, study

pytest.importorskip("pynetdicom", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

from normalis import AnomalyDetector
from normalis.errors import RunError, SettingsError
from normalis.pacs.peer import Address, peer_at, tls_context
from normalis.serve.listener import listening
from normalis.serve.service import ServiceSettings, _listener_tls, _web_server
from normalis.serve.store import Store
from normalis.serve.tls import server_context
from normalis.serve.users import add_user
from pacs_peers import PASSWORD, behind_tls, embedded, find_orthanc, free_port, orthanc
from serve_process import serving

pytestmark = [
    # pynetdicom leaves sockets whose handshake failed to the collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <s"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def _collected():
    """Collect what pynetdicom left here, not in the next test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Of an authority that nobody trusts."""
    return make_certificates(tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def secured(store, ours):
    """A listener with TLS that asks senders for no certificate."""
    address = Address(aet="SERVICE", host="127.0.0.1", port=free_port())
    tls = server_context(ours.server, ours.server_key)
    with listening(store, address, allowed=(), quiet_s=60, reserve_bytes=0, tls=tls):
        yield str(address)


def film():
    return image("DX", lesion_slices()[2], study(), series=generate_uid())


def test_an_image_comes_over_tls_and_nothing_over_anything_else(secured, store, ours, theirs):
    over_tls = peer_at(secured, tls=tls_context(ours.ca))
    assert over_tls.echo() == ""
    assert [one.state for one in over_tls.store([film()])] == ["sent"]
    assert store.counts()["instances"] == 1
    for other in (None, tls_context(theirs.ca)):
        sender = peer_at(secured, tls=other)
        assert [one.state for one in sender.store([film()])] == ["unreached"]
    assert store.counts()["instances"] == 1
    assert over_tls.echo() == "", "the listener goes on"


# pynetdicom's thread of an association that never began ends with an exception.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_that_connects_and_is_silent_keeps_nobody_out(secured, ours):
    host, port = secured.partition("@")[2].split(":")
    with socket.create_connection((host, int(port))):
        assert peer_at(secured, tls=tls_context(ours.ca)).echo() == ""


def test_senders_without_a_certificate_of_the_authority_are_refused(store, ours, theirs):
    address = Address(aet="SERVICE", host="127.0.0.1", port=free_port())
    tls = server_context(ours.server, ours.server_key, ours.ca)
    with listening(store, address, allowed=(), quiet_s=60, reserve_bytes=0, tls=tls):
        known = tls_context(ours.ca, ours.client, ours.client_key)
        stranger = tls_context(ours.ca, theirs.client, theirs.client_key)
        assert peer_at(str(address), tls=known).echo() == ""
        for refused in (stranger, tls_context(ours.ca)):
            assert peer_at(str(address), tls=refused).echo() != ""


def test_results_go_to_a_pacs_over_tls(ours, theirs):
    with embedded(tls=server_context(ours.server, ours.server_key)) as pacs:
        known = peer_at(pacs.address, tls=tls_context(ours.ca))
        assert [one.state for one in known.store([film()])] == ["kept"]
        wrong = peer_at(pacs.address, tls=tls_context(theirs.ca))
        assert "no association" in wrong.echo()
        assert len(pacs.kept) == 1


@pytest.mark.slow
def test_a_real_pacs_over_tls_and_https(ours, theirs, monkeypatch):
    """Orthanc asks for our certificate over DIMSE; a proxy before it speaks HTTPS.

    Debian's Orthanc 1.10 has HTTPS of its own, and crashes at the first request.
    """
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed (make pacs)")
    monkeypatch.setenv("NORMALIS_PACS_USER", "normalis")
    monkeypatch.setenv("NORMALIS_PACS_PASSWORD", PASSWORD)
    known = tls_context(ours.ca, ours.client, ours.client_key)
    first, second = film(), film()
    with (
        orthanc(
            DicomTlsEnabled=True, DicomTlsCertificate=str(ours.server),
            DicomTlsPrivateKey=str(ours.server_key), DicomTlsTrustedCertificates=str(ours.ca),
        ) as server,
        behind_tls(server.http, _plain_server(ours)) as port,
    ):  # fmt: skip
        assert [s.state for s in peer_at(server.address, tls=known).store([first])] == ["kept"]
        assert peer_at(server.address).echo() != ""
        address = f"https://127.0.0.1:{port}/dicom-web"
        assert "CERTIFICATE_VERIFY" in peer_at(address, tls=tls_context(theirs.ca)).echo()
        assert "CERTIFICATE_VERIFY" in peer_at(address).echo(), "unknown to the system"
        web = peer_at(address, tls=tls_context(ours.ca))
        assert web.echo() == ""
        assert [s.state for s in web.store([second])] == ["kept"]
        for file in (first, second):
            (came,) = web.fetch(str(file.StudyInstanceUID))
            assert came.SOPInstanceUID == file.SOPInstanceUID


def _plain_server(certificates):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    return context


@pytest.mark.slow
def test_the_service_with_tls_on_both_sides(ours, tmp_path):
    """The real process: an image in over TLS, the page over HTTPS with a login."""
    normals = np.concatenate([lesion_slices(slices=2, seed=s)[:1] for s in range(24)])
    detector = AnomalyDetector(method="pca", image_size=32, window=(0, 4095), fpr=0.2)
    run = detector.fit(normals.astype("float32")).fitted_.save(tmp_path / "run")
    add_user(tmp_path / "users", "ada", "a long password")
    given = {
        "--listen-cert": ours.server, "--listen-key": ours.server_key, "--listen-ca": ours.ca,
        "--web-cert": ours.server, "--web-key": ours.server_key, "--users": tmp_path / "users",
        "--pacs": None, "--tls-ca": ours.ca,
    }  # fmt: skip
    with embedded(tls=server_context(ours.server, ours.server_key)) as pacs:
        given["--pacs"] = pacs.address
        more = [str(text) for pair in given.items() for text in pair]
        with serving(run, tmp_path / "data", *more, tls=ours.ca) as service:
            known = tls_context(ours.ca, ours.client, ours.client_key)
            sent = peer_at(service.address, tls=known).store([film()])
            assert [one.state for one in sent] == ["sent"]
            service.wait(service.done)
            assert len(pacs.kept) >= 1
            assert b'name="password"' in service.get("/login")
            answer = service.send("/login", b"name=ada&password=a+long+password")
            cookie = answer.headers["set-cookie"].lower()
            assert "secure" in cookie
            assert "httponly" in cookie
            with pytest.raises((urllib.error.URLError, OSError)):
                urllib.request.urlopen(f"http://127.0.0.1:{service.web}/", timeout=10)


def test_files_that_are_none_say_so(ours, tmp_path):
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for make in (
        lambda: server_context(junk),
        lambda: server_context(tmp_path / "absent"),
        lambda: server_context(ours.server, ours.client_key),
        lambda: server_context(ours.server, ours.server_key, junk),
        lambda: tls_context(junk),
        lambda: tls_context(ours.ca, ours.client, ours.server_key),
        lambda: _web_server(None, _settings(web_certificate=junk)),
        lambda: _listener_tls(_settings(senders_ca=ours.ca)),
        lambda: peer_at("http://pacs/dicom-web", tls=tls_context(ours.ca)),
    ):
        with pytest.raises(SettingsError, match=r"TLS|--listen-cert"):
            make()


def _settings(**given):
    return ServiceSettings(listen=Address(aet="A", host="127.0.0.1", port=1), **given)


def test_without_a_certificate_there_is_no_tls():
    assert _listener_tls(_settings()) is None


def test_only_new_versions_of_tls_are_spoken(secured, ours):
    host, port = secured.partition("@")[2].split(":")
    old = ssl.create_default_context(cafile=str(ours.ca))
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, int(port)), timeout=10) as raw, pytest.raises(OSError):
        old.wrap_socket(raw, server_hostname=host)


def test_an_address_that_is_not_the_certificates_is_not_trusted(store, ours):
    tls = server_context(ours.client, ours.client_key)
    address = Address(aet="SERVICE", host="127.0.0.1", port=free_port())
    with listening(store, address, allowed=(), quiet_s=60, reserve_bytes=0, tls=tls):
        assert peer_at(str(address), tls=tls_context(ours.ca)).echo() != ""
        with pytest.raises(RunError, match="no association"):
            peer_at(str(address), tls=tls_context(ours.ca)).find({})
