"""Studies out of a PACS and results into it, against a peer in this process and a real Orthanc."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dicom_studies import image, lesion_slices, series, study

pytest.importorskip("pynetdicom", reason="needs the extra pacs")

from normalis.errors import DataError, RunError, SettingsError
from normalis.pacs import capture
from normalis.pacs.cases import Region, ScoredImage, ScoredStudy
from normalis.pacs.peer import Address, parse_address, peer_at
from normalis.pacs.transfer import date_range, file_name, pull, push, save
from pacs_peers import PASSWORD, embedded, find_orthanc, free_port, orthanc


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("PACS@10.0.0.5:4242", Address(aet="PACS", host="10.0.0.5", port=4242)),
        ("A B@x:1", None),
        ("PACS@[::1]:104", Address(aet="PACS", host="::1", port=104)),
        ("https://pacs/dicom-web/", Address(url="https://pacs/dicom-web")),
        ("https://user:secret@pacs/dicom-web", None),
        ("PACS@host:0", None),
        ("PACS@host:70000", None),
        ("host:4242", None),
        ("A_TITLE_THAT_IS_TOO_LONG@host:1", None),
        ("", None),
    ],
)
def test_addresses(text, address):
    if address is None:
        with pytest.raises(SettingsError, match="address"):
            parse_address(text)
    else:
        assert parse_address(text) == address


def test_days():
    assert date_range("2026-03-01") == "20260301-"
    assert date_range(None, "2026-03-02") == "-20260302"
    assert date_range("2026-03-01", "2026-03-02") == "20260301-20260302"
    assert date_range(None) == ""
    with pytest.raises(SettingsError, match="--since must be a day"):
        date_range("yesterday")


@pytest.fixture(params=["embedded", "orthanc", "orthanc over DICOMweb"])
def pacs(request, monkeypatch):
    """An address that answers, with its password where it has one."""
    if request.param == "embedded":
        with embedded() as peer:
            yield peer.address
        return
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed (make pacs)")
    monkeypatch.setenv("NORMALIS_PACS_USER", "normalis")
    monkeypatch.setenv("NORMALIS_PACS_PASSWORD", PASSWORD)
    with orthanc() as server:
        yield server.web if "web" in request.param else server.address


def sources():
    shared = study()
    film = image("DX", lesion_slices()[2], shared, series=generate_uid())
    return [film, *series("MR", lesion_slices(slices=3), shared, number=2)]


def results(sources_):
    """Pictures of a study, as a model would make them."""
    box = Region(left=2, top=2, right=9, bottom=9, peak=2.0)
    images = tuple(
        ScoredImage(source=s, score=1.0, anomaly_map=np.ones((48, 48), np.float32), regions=(box,))
        for s in sources_
    )
    uid = str(sources_[0].StudyInstanceUID)
    return capture.build(ScoredStudy(uid=uid, model="m", images=images))


def test_there_and_back(pacs, tmp_path):
    peer = peer_at(pacs)
    assert peer.echo() == ""
    files = sources()
    assert {one.state for one in peer.store(files)} == {"kept"}

    query = {"StudyDate": date_range("2026-02-27")}
    found = pull(peer, tmp_path / "in", query=query)
    assert (found.studies, found.images, found.known, found.failed) == (1, 4, 0, [])
    again = pull(peer, tmp_path / "in", query=query)
    assert (again.images, again.known) == (0, 4)
    arrived = {pydicom.dcmread(p).SOPInstanceUID for p in (tmp_path / "in").rglob("*.dcm")}
    assert arrived == {f.SOPInstanceUID for f in files}
    first = files[0]
    copy = next((tmp_path / "in").rglob(file_name(str(first.SOPInstanceUID))))
    assert (pydicom.dcmread(copy).pixel_array == first.pixel_array).all()

    made = [save(data, tmp_path / "out") for data in results(files)]
    for _ in range(2):  # a resend replaces
        assert [s.state for _, s in push(peer, made)] == ["kept"] * 3
    answers = pull(peer, tmp_path / "all", query=query)
    assert answers.images == 4 + 3


def test_nothing_that_matches_is_an_error(pacs):
    with pytest.raises(DataError, match="no study with StudyDate=20400101-"):
        pull(peer_at(pacs), None, query={"StudyDate": date_range("2040-01-01")})


def test_other_peoples_images_are_not_sent(tmp_path):
    paths = [save(sources()[0], tmp_path)]
    with embedded() as peer, pytest.raises(DataError, match="no result that normalis wrote"):
        push(peer_at(peer.address), paths)
    assert peer.kept == {}


# pynetdicom leaves the socket that could not connect to the collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket")
def test_a_pacs_that_is_down_says_so(tmp_path):
    peer = peer_at(f"PEER@127.0.0.1:{free_port()}")
    assert "no association" in peer.echo()
    with pytest.raises(RunError, match="no association"):
        peer.find({})
    (sent,) = peer.store(results(sources())[:1])
    assert (sent.state, "no association" in sent.problem) == ("unreached", True)


def test_a_stranger_is_refused():
    with embedded() as server:
        assert "refused our title" in peer_at(server.address, own_aet="STRANGER").echo()


def test_a_class_that_the_pacs_refuses_does_not_stop_the_others():
    films = sources()
    with embedded() as server:
        server.refused.add(str(films[0].SOPClassUID))
        sent = peer_at(server.address).store(films)
    assert [one.state for one in sent] == ["refused", "kept", "kept", "kept"]
    assert "0122" in sent[0].problem


def test_a_study_that_fails_does_not_end_the_others(tmp_path):
    with embedded() as server:
        peer = peer_at(server.address)
        peer.store(sources())
        peer.store(sources())
        fetch = peer.fetch
        broken = str(next(iter(server.kept.values())).StudyInstanceUID)

        def half(uid):
            yield from () if uid == broken else fetch(uid)
            if uid == broken:
                raise RunError("the line went dead")

        peer.fetch = half
        found = pull(peer, tmp_path, query={})
    assert found.images == 4
    assert found.failed == [(broken, "the line went dead")]


def test_a_study_that_holds_reports_is_fetched_whole():
    """A PACS gives up a study at an object of a class that was not offered."""
    from test_pacs_objects import BUILDERS, scored

    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed (make pacs)")
    case = scored("MR")
    files = [i.source for i in case.images]
    files += [data for kind in ("sc", "sr", "seg", "pm", "pr") for data in BUILDERS[kind](case)]
    with orthanc() as server:
        peer = peer_at(server.address)
        assert {one.state for one in peer.store(files)} == {"kept"}
        came = {str(d.SOPInstanceUID) for d in peer.fetch(str(files[0].StudyInstanceUID))}
    assert came == {str(d.SOPInstanceUID) for d in files}
