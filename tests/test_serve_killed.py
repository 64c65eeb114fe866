"""``normalis serve`` as a process that is killed at each state of a study, and started again."""

from __future__ import annotations

import json
import signal
import sys

import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_studies import image, lesion_slices, series, study

pytest.importorskip("pynetdicom", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")
if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)

from normalis import AnomalyDetector
from normalis.pacs.peer import peer_at
from pacs_peers import embedded, free_port
from serve_process import POINTS, Service, serving

#: What tells when an object was made.
TIMES = (
    "ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "SeriesDate",
    "SeriesTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture", "ContributionDateTime",
    "DateTime",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Fitted on 24 patients' slices of 12 bit."""
    normals = np.concatenate([lesion_slices(slices=2, seed=s)[:1] for s in range(24)])
    fitted = AnomalyDetector(method="pca", image_size=32, window=(0, 4095), fpr=0.2)
    return fitted.fit(normals.astype("float32")).fitted_.save(tmp_path_factory.mktemp("r") / "r")


@pytest.fixture(scope="module")
def files():
    """A study of a radiograph and three slices."""
    shared = study()
    film = image("DX", lesion_slices()[2], shared, series=generate_uid())
    return [film, *series("MR", lesion_slices(slices=3), shared, number=2)]


def send(service: Service, files: list[Dataset]) -> list[Dataset]:
    """Send files as a modality does; return those that it was not told are kept."""
    told = peer_at(service.address).store(files)
    return [file for file, one in zip(files, told, strict=True) if one.state != "sent"]


def content(data: Dataset) -> dict:
    """Return all that an object says, but when it was made."""
    times = {f"{tag_for_keyword(name):08X}" for name in TIMES}

    def timeless(said: dict) -> dict:
        kept = {}
        for tag, element in said.items():
            if tag not in times:
                values = element.get("Value", [])
                items = [timeless(v) if element["vr"] == "SQ" else v for v in values]
                kept[tag] = {**element, "Value": items}
        return kept

    return timeless(data.to_json_dict())


def told(service: Service) -> dict:
    ((result,),) = service.rows("SELECT result FROM study")
    return json.loads(result)


@pytest.fixture(scope="module")
def undisturbed(run, files, tmp_path_factory):
    """What a service that nobody kills says of the study, and what the PACS has then."""
    with (
        embedded() as pacs,
        serving(run, tmp_path_factory.mktemp("u") / "data", "--pacs", pacs.address) as service,
    ):
        assert send(service, files) == []
        service.wait(service.done)
        return told(service), {uid: content(data) for uid, data in pacs.kept.items()}


def killed_then_done(run, data, files, undisturbed, point: str) -> None:
    """Kill a service at a point, start it again, and compare with one that was left alone."""
    with embedded() as pacs:
        with serving(run, data, "--pacs", pacs.address, point=point) as first:
            unheard = send(first, files)
            assert first.process.wait(90) == -signal.SIGKILL, first.said()
        with serving(run, data, "--pacs", pacs.address) as second:
            # A sender sends again what it was not told is kept, and nothing else.
            assert send(second, unheard) == [] if unheard else True
            second.wait(second.done)
            ((images,),) = second.rows("SELECT COUNT(*) FROM instance")
            assert images == len(files)
            assert told(second) == undisturbed[0]
            paths = [p.name for p in second.data.rglob("*") if p.is_file()]
        kept = {uid: content(data) for uid, data in pacs.kept.items()}
        assert kept.keys() == undisturbed[1].keys()
        for uid, said in undisturbed[1].items():
            assert kept[uid] == said
    spool = [p for p in paths if p.endswith(".dcm")]
    assert len(spool) == len(files) + len(undisturbed[1]), "each file once"
    assert [p for p in paths if "part" in p or "tmp" in p] == []


@pytest.mark.slow
def test_killed_with_half_of_the_results_sent(run, files, undisturbed, tmp_path):
    killed_then_done(run, tmp_path / "data", files, undisturbed, "one object of several is sent")


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_each_point(point, run, files, undisturbed, tmp_path):
    killed_then_done(run, tmp_path / "data", files, undisturbed, point)


@pytest.mark.slow
def test_killed_while_it_waits_for_further_images(run, files, undisturbed, tmp_path):
    with embedded() as pacs:
        with serving(run, tmp_path / "d", "--pacs", pacs.address, quiet=600) as first:
            assert send(first, files[:2]) == []
            first.process.kill()
            first.process.wait()
        with serving(run, tmp_path / "d", "--pacs", pacs.address) as second:
            assert send(second, files[2:]) == []
            second.wait(second.done)
            assert told(second) == undisturbed[0]
        assert pacs.kept.keys() == undisturbed[1].keys()


@pytest.mark.slow
def test_killed_while_the_pacs_is_down(run, files, undisturbed, tmp_path):
    port = free_port()
    with serving(run, tmp_path / "d", "--pacs", f"PEER@127.0.0.1:{port}") as first:
        assert send(first, files) == []
        first.wait(lambda: b"no association" in first.get("/"))
        first.process.kill()
        first.process.wait()
    with embedded(port) as pacs, serving(run, tmp_path / "d", "--pacs", pacs.address) as second:
        second.wait(second.done)
        assert told(second) == undisturbed[0]
        assert pacs.kept.keys() == undisturbed[1].keys()


@pytest.mark.slow
def test_what_readers_said_outlives_a_kill(run, files, tmp_path):
    with serving(run, tmp_path / "d") as first:
        assert send(first, files) == []
        first.wait(first.scored)
        key = first.get("/").split(b'href="/study/')[1].split(b'"')[0].decode()
        first.post(f"/study/{key}/review", {"state": "agree", "note": "left", "version": 0})
        first.process.kill()
        first.process.wait()
    with serving(run, tmp_path / "d") as second:
        shown = second.get(f"/study/{key}").decode()
    assert "left</textarea>" in shown
    assert 'value="agree" checked' in shown


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_cleanly(number, run, files, tmp_path):
    with serving(run, tmp_path / "d") as service:
        assert send(service, files[:1]) == []
        service.wait(service.scored)
        service.process.send_signal(number)
        assert service.process.wait(30) == 0, service.said()
        (last,) = service.rows("SELECT what FROM audit ORDER BY rowid DESC LIMIT 1")
        assert last == ("ended",)
        assert "Traceback" not in service.said()
        assert "what was received is kept" in service.said()
        assert list(service.data.glob("*-wal")) == [], "all is in the one file"


@pytest.mark.slow
def test_a_second_service_and_a_port_in_use_say_so(run, tmp_path):
    with serving(run, tmp_path / "d") as service:
        with serving(run, tmp_path / "d", ready=False) as second:
            assert second.process.wait(60) == 2
            assert "folder" in second.said()
        taken = f"127.0.0.1:{service.web}"
        with serving(run, tmp_path / "e", "--web", taken, ready=False) as second:
            assert second.process.wait(60) == 2
            assert "the page cannot be shown there" in second.said()
            assert "another --web" in " ".join(second.said().split())
