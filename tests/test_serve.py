"""The service: nothing that was accepted is lost, whatever happens, and only readers read."""

import json
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom.uid import generate_uid

from dicom_studies import image, lesion_slices, series, study

pytest.importorskip("pynetdicom", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

from starlette.testclient import TestClient

from normalis import AnomalyDetector
from normalis.errors import RunError, SettingsError
from normalis.pacs.peer import Address, Sent, peer_at
from normalis.serve import listener as listener_module
from normalis.serve.listener import listening
from normalis.serve.store import MOST_TRIES, Store
from normalis.serve.users import Sessions, Users, add_user
from normalis.serve.web import WebSettings, check_exposure, make_app
from normalis.serve.worker import Worker
from pacs_peers import embedded, free_port

KINDS = ("sc", "sr", "seg")


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture(scope="module")
def detector():
    """Fitted on 24 patients' slices of 12 bit."""
    normals = np.concatenate([lesion_slices(slices=2, seed=s)[:1] for s in range(24)])
    fitted = AnomalyDetector(method="pca", image_size=32, window=(0, 1), fpr=0.2)
    return fitted.fit((normals / 4095).clip(0, 1)).fitted_


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    made = Store(tmp_path / "data", now=clock)
    yield made
    made.close()


@contextmanager
def receiving(store, **changes):
    given = {"allowed": ("NORMALIS",), "quiet_s": 60.0, "reserve_bytes": 0}
    port = free_port()
    address = Address(aet="SERVICE", host="127.0.0.1", port=port)
    with listening(store, address, **(given | changes)):
        yield peer_at(str(address))


def arrive(store, files):
    with receiving(store) as sender:
        assert {one.state for one in sender.store(files)} == {"sent"}, "a listener is no archive"


def film():
    return image("DX", lesion_slices()[2], study(), series=generate_uid())


class Taking:
    """A PACS that takes what it is told to take."""

    def __init__(self):
        self.kept, self.problem, self.state, self.asked = [], "", "refused", 0
        self.took = "kept"

    def store(self, datasets):
        self.asked += 1
        if self.problem:
            return [
                Sent(sop_uid=str(d.SOPInstanceUID), state=self.state, problem=self.problem)
                for d in datasets
            ]
        self.kept += datasets
        return [Sent(sop_uid=str(d.SOPInstanceUID), state=self.took) for d in datasets]


@pytest.fixture
def worker(store, detector):
    return Worker(store, detector, kinds=KINDS, peer=Taking(), fpr=0.2)


# --- in ---


def test_a_study_is_scored_once_it_is_quiet_and_its_results_are_kept(store, worker, clock):
    file = film()
    arrive(store, [file])
    assert not worker.score_next(), "further images may come"
    clock.time += 61
    assert worker.score_next()
    assert worker.send_due()
    (entry,) = store.studies()
    assert entry["state"] == "scored"
    assert entry["result"]["patient_id"] == "P1"
    assert 0 < entry["result"]["p_value"] <= 1
    assert store.counts()["objects_kept"] == len(worker.peer.kept) >= 1
    assert not worker.score_next()


def test_a_late_image_is_scored_with_the_others_and_results_are_replaced(store, worker, clock):
    shared = study()
    files = series("MR", lesion_slices(slices=4), shared)
    arrive(store, files[:3])
    clock.time += 61
    assert worker.score_next()
    worker.send_due()
    first = {d.SOPInstanceUID for d in worker.peer.kept}
    arrive(store, files[3:])
    clock.time += 61
    assert worker.score_next()
    worker.send_due()
    (entry,) = store.studies()
    assert entry["result"]["images"] == 4
    reports = [d for d in worker.peer.kept if d.Modality == "SR"]
    assert len({d.SOPInstanceUID for d in reports}) == 1, "the report replaces the one before"
    assert first & {d.SOPInstanceUID for d in worker.peer.kept[len(first) :]}


def test_a_late_image_during_scoring_is_not_forgotten(store, worker, clock):
    arrive(store, [file := film()])
    clock.time += 61
    job = store.next_job()
    late = image("DX", lesion_slices(seed=3)[2], study(), series=generate_uid())
    late.StudyInstanceUID = file.StudyInstanceUID
    arrive(store, [late])
    store.scored(job.study, {}, {})
    assert store.studies()[0]["state"] == "waiting"


def test_a_resend_changes_nothing(store):
    file = film()
    for _ in range(2):
        arrive(store, [file])
    assert store.counts()["instances"] == 1
    assert len(list(store.spool.iterdir())) == 1


def test_results_that_come_back_are_taken_and_never_scored(store, worker, clock):
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    worker.send_due()
    arrive(store, worker.peer.kept)
    clock.time += 61
    assert worker.score_next()
    (entry,) = store.studies()
    assert entry["result"]["images"] == 1
    assert sum(entry["result"]["aside"].values()) >= 1


def test_a_study_of_results_alone_fails_with_the_reason(store, worker, clock):
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    worker.send_due()
    for result in worker.peer.kept:
        result.StudyInstanceUID = "1.2.3"
        result.SOPInstanceUID = generate_uid()
        result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    arrive(store, worker.peer.kept)
    clock.time += 61
    worker.score_next()
    failed = next(e for e in store.studies() if e["uid"] == "1.2.3")
    assert failed["state"] == "failed"
    assert "normalis wrote" in failed["error"]


def test_a_full_disk_tells_the_sender_to_keep_its_images(store):
    with receiving(store, reserve_bytes=10**18) as sender:
        (sent,) = sender.store([film()])
    assert (sent.state, "A700" in sent.problem) == ("refused", True)
    assert list(store.spool.iterdir()) == []


def test_what_cannot_be_written_is_not_accepted(store, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(listener_module.os, "fsync", full)
    with receiving(store) as sender:
        (sent,) = sender.store([film()])
    assert "A700" in sent.problem
    assert store.counts()["instances"] == 0


def test_strangers_are_refused_and_everyone_is_taken_if_nobody_is_named(store):
    with receiving(store, allowed=("SOMEBODY",)) as sender:
        assert "refused our title" in sender.echo()
    with receiving(store, allowed=()) as sender:
        assert sender.echo() == ""


def test_what_is_not_understood_is_refused(store):
    event = SimpleNamespace(
        assoc=SimpleNamespace(requestor=SimpleNamespace(ae_title="X")), dataset=SimpleNamespace()
    )
    assert listener_module.take(event, store, 1.0, 0) == listener_module.NOT_UNDERSTOOD


def test_a_port_in_use_says_so(store):
    with receiving(store) as sender:
        taken = sender.address
        with (
            pytest.raises(RunError, match="cannot be listened on"),
            listening(store, taken, allowed=(), quiet_s=1, reserve_bytes=0),
        ):
            pass


# --- failing ---


def test_an_object_that_is_refused_again_and_again_is_given_up(store, worker, clock):
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    worker.peer.problem = "status 0x0122"
    tries = 0
    while store.counts().get("objects_waiting"):
        clock.time += 4000
        assert worker.send_due()
        tries += 1
    assert tries == MOST_TRIES
    assert store.counts()["objects_dead"] >= 1
    worker.peer.problem = ""
    uid = store.studies()[0]["uid"]
    assert store.send_again(uid, "reader") >= 1
    worker.send_due()
    assert store.counts()["objects_kept"] >= 1


def test_a_pacs_that_is_down_for_a_night_loses_nothing_and_is_asked_rarely(store, worker, clock):
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    worker.peer.problem, worker.peer.state = "no association", "unreached"
    asked = 0
    for _ in range(8 * 3600):
        clock.time += 1
        before = worker.peer.asked
        worker.send_due()
        asked += worker.peer.asked - before
    assert 8 * 6 <= asked < 8 * 6 + 8
    assert "no association" in worker.peer_problem
    assert store.counts().get("objects_dead", 0) == 0
    worker.peer.problem = ""
    clock.time += 600
    assert worker.send_due()
    assert worker.peer_problem == ""
    assert store.counts()["objects_kept"] >= 1


@pytest.mark.parametrize("second", ["kept", "sent"])
def test_what_was_taken_and_not_found_again_is_sent_once_more(store, worker, clock, second):
    """A PACS that was killed after it said success was once believed."""
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    worker.peer.took = "sent"
    assert worker.send_due()
    assert store.counts().get("objects_waiting", 0) >= 1
    assert not worker.send_due(), "a little later"
    worker.peer.took = second
    clock.time += 11
    assert worker.send_due()
    assert store.counts()[f"objects_{second}"] >= 1
    assert "objects_waiting" not in store.counts()


# pynetdicom leaves the socket that could not connect to the collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket")
def test_results_wait_while_the_port_is_closed(store, detector, clock):
    worker = Worker(store, detector, kinds=KINDS, peer=peer_at(f"PEER@127.0.0.1:{free_port()}"))
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    assert not worker.send_due()
    assert "no association" in worker.peer_problem
    assert set(store.run("SELECT state,tries FROM outbox")[0]) == {"waiting", 0}


def test_an_object_that_is_refused_waits_longer_each_time(store, worker, clock):
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    worker.peer.problem = "no"
    waits = []
    for _ in range(3):
        worker.send_due()
        due = store.run("SELECT MIN(not_before) FROM outbox WHERE state='waiting'")[0][0]
        waits.append(due - clock.time)
        clock.time = due
    assert waits == sorted(waits)
    assert waits[0] < waits[-1]


def test_an_error_of_one_study_is_noted_and_tried_again(store, worker, clock, monkeypatch):
    arrive(store, [film()])

    def broken(job):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(worker, "_score", broken)
        for _ in range(MOST_TRIES):
            clock.time += 4000
            assert worker.score_next()
    (entry,) = store.studies()
    assert entry["state"] == "failed"
    assert "no memory" in entry["error"]
    store.send_again(entry["uid"], "reader")
    assert worker.score_next()
    assert store.studies()[0]["state"] == "scored"


def test_a_crash_while_scoring_starts_the_study_again(store, worker, clock, tmp_path):
    arrive(store, [film()])
    clock.time += 61
    assert store.next_job() is not None
    store.close()
    after = Store(tmp_path / "data", now=clock)
    assert after.studies()[0]["state"] == "waiting"
    assert after.next_job() is not None
    after.close()


def test_a_study_that_ends_the_process_again_and_again_is_given_up(tmp_path, store, clock):
    arrive(store, [file := film()])
    other = film()
    for number in range(1, MOST_TRIES + 1):
        clock.time += 4000
        job = store.next_job()
        assert job is not None
        assert (job.study, job.tries) == (file.StudyInstanceUID, number - 1)
        store.close()
        store = Store(tmp_path / "data", now=clock)
        if number == 1:
            arrive(store, [other])
        if number == 2:  # others come first
            taken = store.next_job()
            assert taken.study == other.StudyInstanceUID
            store.scored(taken.study, {}, {})
    (entry,) = store.studies(file.StudyInstanceUID)
    assert entry["state"] == "failed"
    assert f"ended {MOST_TRIES} times" in entry["error"]
    assert store.next_job() is None
    store.send_again(entry["uid"], "reader")
    assert store.next_job().study == file.StudyInstanceUID
    store.close()


def test_a_folder_that_was_moved_goes_on(tmp_path, worker, store, clock):
    arrive(store, [film()])
    clock.time += 61
    assert worker.score_next()
    store.close()
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = Store(tmp_path / "moved", now=clock)
    again = Worker(moved, worker.detector, kinds=KINDS, peer=Taking(), fpr=0.2)
    assert again.send_due()
    assert moved.counts().get("objects_dead", 0) == 0
    arrive(moved, [film()])
    clock.time += 61
    assert again.score_next()
    assert {entry["state"] for entry in moved.studies()} == {"scored"}
    again.send_due()
    assert moved.make_room(0) == 2
    moved.close()


def test_files_that_no_table_knows_are_scored_and_half_ones_removed(tmp_path, store, clock):
    arrive(store, [film(), film()])
    (store.spool / "half.part").write_bytes(b"DICM")
    (store.spool / "damaged.dcm").write_bytes(b"no DICOM")
    store.close()
    (tmp_path / "data" / "normalis.sqlite").unlink()
    store = Store(tmp_path / "data", now=clock)
    assert listener_module.adopt(store, 60.0) == 2
    assert listener_module.adopt(store, 60.0) == 0
    assert store.counts()["studies_waiting"] == 2
    assert not (store.spool / "half.part").exists()
    store.close()


def test_a_late_image_of_a_study_whose_images_were_removed_says_so(store, worker, clock):
    files = series("MR", lesion_slices(slices=4), study())
    arrive(store, files[:3])
    clock.time += 61
    worker.score_next()
    worker.send_due()
    store.make_room(0)
    arrive(store, files[3:])
    clock.time += 61
    worker.score_next()
    (entry,) = store.studies()
    assert entry["result"]["images"] == 1
    assert entry["result"]["aside"] == {"removed to make room": 3}


def test_files_that_are_gone_say_so(store, worker, clock):
    arrive(store, [film()])
    for path in store.spool.iterdir():
        path.unlink()
    clock.time += 61
    worker.score_next()
    assert "no longer there" in store.studies()[0]["error"]


def test_a_damaged_file_of_state_is_refused_with_words(tmp_path):
    (tmp_path / "normalis.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(RunError, match="backup"):
        Store(tmp_path)


def test_room_is_made_of_what_is_done_alone(store, worker, clock):
    arrive(store, [film()])
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    worker.send_due()
    size = sum(p.stat().st_size for p in store.spool.iterdir())
    assert store.make_room(size) == 0
    assert store.make_room(0) == 1, "what was not scored stays"
    assert len(list(store.spool.iterdir())) == 1


# --- readers ---


@pytest.fixture
def scored(store, worker, clock):
    arrive(store, [film()])
    clock.time += 61
    worker.score_next()
    worker.send_due()
    worker.last_seen = clock()
    return store


def page(store, worker, **settings):
    given = WebSettings(hosts=("testserver",), **settings)
    return TestClient(make_app(store, worker, given), follow_redirects=False)


def token(client, url="/"):
    text = client.get(url).text
    return text.split('name="csrf" content="')[1].split('"')[0]


def test_the_worklist_and_a_study_are_shown(scored, worker):
    client = page(scored, worker)
    listed = client.get("/")
    assert listed.status_code == 200
    assert "P1" in listed.text
    assert "not for diagnosis" in listed.text
    link = listed.text.split('href="/study/')[1].split('"')[0]
    shown = client.get(f"/study/{link}")
    assert "p-value" in shown.text
    picture = client.get(f"/study/{link}/picture/1.png")
    assert picture.content[:4] == b"\x89PNG"
    assert client.get(f"/study/{link}/picture/99.png").status_code == 404
    assert client.get("/study/absent").status_code == 404
    assert client.get("/static/serve.css").status_code == 200
    assert client.get("/static/../store.py").status_code == 404
    assert "default-src 'none'" in listed.headers["content-security-policy"]
    assert listed.headers["cache-control"] == "no-store"


def test_two_readers_do_not_overwrite_each_other(scored, worker):
    client = page(scored, worker)
    key = client.get("/").text.split('href="/study/')[1].split('"')[0]
    headers = {"X-CSRF-Token": token(client)}
    url = f"/study/{key}/review"
    first = client.post(url, json={"state": "agree", "note": "left", "version": 0}, headers=headers)
    assert (first.status_code, first.json()["version"]) == (200, 1)
    second = client.post(url, json={"state": "disagree", "note": "", "version": 0}, headers=headers)
    assert (second.status_code, second.json()["state"]) == (409, "agree")
    assert scored.studies()[0]["review"] == "agree"
    assert "left" in client.get(f"/study/{key}").text


@pytest.mark.parametrize(
    "body", [{}, {"state": "maybe", "note": "", "version": 0}, {"state": "seen", "version": "x"}]
)
def test_a_review_that_is_none_is_refused(scored, worker, body):
    client = page(scored, worker)
    key = client.get("/").text.split('href="/study/')[1].split('"')[0]
    headers = {"X-CSRF-Token": token(client)}
    assert client.post(f"/study/{key}/review", json=body, headers=headers).status_code == 400


def test_another_site_can_do_nothing(scored, worker):
    client = page(scored, worker)
    key = client.get("/").text.split('href="/study/')[1].split('"')[0]
    body = {"state": "agree", "note": "", "version": 0}
    assert client.post(f"/study/{key}/review", json=body).status_code == 403
    wrong = {"X-CSRF-Token": "x"}
    assert client.post(f"/study/{key}/review", json=body, headers=wrong).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_names_are_text_and_no_formula(store, worker, clock):
    odd = film()
    odd.PatientID, odd.StudyDescription = "=1+1", "<script>alert(1)</script>"
    arrive(store, [odd])
    clock.time += 61
    worker.score_next()
    client = page(store, worker)
    assert "<script>alert" not in client.get("/").text
    assert "'=1+1" in client.get("/worklist.csv").text


def test_users_log_in_and_out(scored, worker, tmp_path):
    file = tmp_path / "users"
    add_user(file, "reader", "a long password")
    assert (file.stat().st_mode & 0o777) == 0o600
    assert "a long password" not in file.read_text()
    client = page(scored, worker, users=Users.read(file))
    reader = {"Accept": "text/html"}
    assert client.get("/", headers=reader).headers["location"] == "/login"
    asked = client.get("/study/abc", headers=reader)
    assert asked.headers["location"] == "/login?then=/study/abc"
    assert client.get("/").status_code == 401
    assert client.get("/worklist.csv").status_code == 401
    wrong = client.post("/login", data={"name": "reader", "password": "no"})
    assert wrong.status_code == 401
    right = client.post("/login", data={"name": "reader", "password": "a long password"})
    assert right.status_code == 303
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/").status_code == 200
    client.post("/logout", headers={"X-CSRF-Token": token(client)})
    assert client.get("/", headers=reader).status_code == 303


@pytest.mark.parametrize(
    ("then", "goes"),
    [("/study/abc", "/study/abc"), ("https://evil.example/", "/"), ("//evil.example", "/"),
     ("/study/../x", "/"), ("/logout", "/"), ("", "/")],
)  # fmt: skip
def test_after_login_a_reader_is_where_he_wanted_to_be_and_nowhere_else(
    scored, worker, tmp_path, then, goes
):
    add_user(tmp_path / "users", "ada", "a long password")
    client = page(scored, worker, users=Users.read(tmp_path / "users"))
    said = {"name": "ada", "password": "a long password", "then": then}
    assert client.post("/login", data=said).headers["location"] == goes


def test_what_is_not_there_is_a_page_for_readers_and_a_line_for_machines(scored, worker):
    client = page(scored, worker)
    shown = client.get("/study/absent", headers={"Accept": "text/html"})
    assert (shown.status_code, "<h1>There is no such study</h1>" in shown.text) == (404, True)
    assert client.get("/study/absent").text == "there is no such study"


def test_a_proxy_names_the_reader(scored, worker):
    client = page(scored, worker, proxy_header="X-Forwarded-User")
    assert client.get("/").status_code == 401
    assert client.get("/", headers={"X-Forwarded-User": "ada"}).status_code == 200


def test_a_name_is_locked_after_many_failures(tmp_path):
    add_user(tmp_path / "u", "ada", "a long password")
    users = Users.read(tmp_path / "u")
    clock = users.now = Clock()
    for _ in range(10):
        assert not users.check("ada", "wrong")
    assert not users.check("ada", "a long password")
    clock.time += 301
    assert users.check("ada", "a long password")
    assert not users.check("nobody", "a long password")


def test_a_session_ends():
    clock = Clock()
    sessions = Sessions(now=clock)
    opened = sessions.begin("ada")
    assert sessions.find(opened).user == "ada"
    clock.time += 9 * 3600
    assert sessions.find(opened) is None


@pytest.mark.parametrize(
    ("name", "password"), [("", "long enough!"), ("ada", "short"), ("a\n", "x" * 12)]
)
def test_users_that_will_not_do(tmp_path, name, password):
    with pytest.raises(SettingsError):
        add_user(tmp_path / "u", name, password)


def test_the_page_is_not_shown_to_a_network_without_asking():
    check_exposure("127.0.0.1", WebSettings())
    check_exposure("::1", WebSettings())
    check_exposure("0.0.0.0", WebSettings(proxy_header="X-User"))
    for host in ("0.0.0.0", "10.0.0.5", "hospital.example"):
        with pytest.raises(SettingsError, match="--users"):
            check_exposure(host, WebSettings())


def test_health_ready_and_metrics(scored, worker, clock):
    client = page(scored, worker)
    healthy = client.get("/health")
    assert healthy.status_code == 200
    assert healthy.json()["studies_scored"] == 1
    assert client.get("/ready").text == "ready"
    assert "normalis_instances 1" in client.get("/metrics").text
    clock.time += 1000
    assert client.get("/health").status_code == 503


def test_the_audit_grows_and_names_no_patient(scored):
    rows = scored.run("SELECT who,what,detail FROM audit ORDER BY at")
    assert [row["what"] for row in rows][:2] == ["received", "scored"]
    assert "Doe" not in json.dumps([tuple(row) for row in rows])
    assert "P1" not in json.dumps([tuple(row) for row in rows])


def test_the_worker_goes_on_after_an_error_and_stops(store, detector, monkeypatch):
    import threading

    worker = Worker(store, detector, kinds=KINDS, peer=None)
    heard = []

    def broken():
        worker.stop() if len(heard) > 1 else None
        raise RuntimeError("odd")

    monkeypatch.setattr(worker, "score_next", broken)
    thread = threading.Thread(target=worker.run, args=(heard.append,))
    thread.start()
    end = time.monotonic() + 20
    while thread.is_alive() and time.monotonic() < end:
        time.sleep(0.02)
    assert not thread.is_alive()
    assert len(heard) >= 2


def test_there_and_back_with_a_peer(store, detector, clock):
    """From a PACS to the service and its results back into the PACS."""
    with embedded() as pacs:
        peer = peer_at(pacs.address)
        worker = Worker(store, detector, kinds=KINDS, peer=peer, fpr=0.2)
        file = film()
        peer.store([file])
        arrive(store, [file])
        clock.time += 61
        worker.score_next()
        worker.send_due()
        kept = [d for d in pacs.kept.values() if d.SOPInstanceUID != file.SOPInstanceUID]
        assert {d.Modality for d in kept} >= {"OT"}
        assert {d.StudyInstanceUID for d in kept} == {file.StudyInstanceUID}
    assert store.counts()["objects_kept"] == len(kept)
