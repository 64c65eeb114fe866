"""Ray listens on every address, so these tests run it in a network namespace of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from normalis.datasets import open_dataset
from normalis.errors import MissingExtraError, RunError, SettingsError
from normalis.output.folder import ScoreOptions, score_to_folder
from normalis.research.records import Records
from small_runs import detector, phantoms, read_table, write_pngs
from test_sweep import planned, write_tiny

INSIDE = """
import json, os, sys, threading
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import warnings
warnings.simplefilter("ignore")
from test_sweep import TINY, planned
from normalis.research.ray import run_plan_on_ray

root, out, mode = sys.argv[1:]
experiments = planned(root, out, latent_dims=[1, 2, 3, 4, 5, 6], epochs=60)
events = []
if mode == "local":
    failures = run_plan_on_ray(experiments[:2], out, device="cpu", callback=events.append)
else:
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    killed = []
    def hear(event):
        events.append(event)
        running = {e.key for e in events if e.kind == "epoch"} - {
            e.key for e in events if e.kind == "done"}
        if len(running) == 2 and not killed:  # one on each node
            killed.append(True)
            cluster.remove_node(second, allow_graceful=False)
    failures = run_plan_on_ray(experiments, out, address=cluster.address, device="cpu",
                               callback=hear)
    assert killed, "both nodes must have been at work"
starts = [e.key for e in events if e.kind == "start"]
print(json.dumps({"failures": failures, "starts": len(starts), "jobs": len(set(starts)),
                  "done": sum(e.kind == "done" for e in events)}))
os._exit(0)  # the killed node's leftovers need not be waited for
"""


SCORING = """
import os, signal, sys, threading, time
from pathlib import Path
import warnings
warnings.simplefilter("ignore")
from normalis.engines import ray_scoring
from normalis.datasets import open_dataset
from normalis.detector import AnomalyDetector
from normalis.output.folder import ScoreOptions, score_to_folder

run, images, out = map(Path, sys.argv[1:])
os.environ["SCORED_FOR"] = str(out)
ray_scoring.PART = 2

def at_work():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
            ours = f"SCORED_FOR={out}".encode() in (process / "environ").read_bytes()
        except OSError:
            continue
        if b"ray::score_part" in title and ours:
            yield int(process.name)

def kill_one():
    while not killed:
        for pid in at_work():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return
        time.sleep(0.005)

killed = []
threading.Thread(target=kill_one, daemon=True).start()
score_to_folder(
    AnomalyDetector.load(run, device="cpu"), open_dataset(images).samples, out, root=images,
    options=ScoreOptions(overlays=False, fpr=0.2, engine="ray"),
)
print(len(killed), flush=True)
"""


def isolated(command):
    """Return the command in a network namespace with nothing but loopback, or skip."""
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"Ray is not tested: {tool} is not there to isolate its network")
    inner = 'ip link set lo up && exec "$@"'
    for flags in (["-n"], ["-rn"]):
        whole = ["unshare", *flags, "sh", "-c", inner, "sh"]
        if subprocess.run([*whole, "true"], capture_output=True, check=False).returncode == 0:
            return [*whole, *command]
    pytest.skip("Ray is not tested: unshare may not make a network namespace here")


def python(script, *arguments, cwd=None):
    """Run a script in a network namespace; return the last line that it printed, from JSON."""
    pytest.importorskip("ray", reason="Ray is not installed")
    command = isolated([sys.executable, "-c", script, *map(str, arguments)])
    environment = {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        ),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment},
        check=False, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_inside(tmp_path, mode):
    root, out = write_tiny(tmp_path / "data"), tmp_path / "results"
    return root, out, python(INSIDE, root, out, mode)


@pytest.mark.slow
def test_one_of_two_nodes_is_killed_in_the_middle(tmp_path):
    root, out, found = run_inside(tmp_path, "cluster")
    assert found["failures"] == {}
    assert found["done"] == found["jobs"] == 6
    assert found["starts"] > 6, "the killed node's job must have begun again elsewhere"
    experiments = planned(root, out, latent_dims=[1, 2, 3, 4, 5, 6], epochs=60)
    assert Records(out).identities() == sorted(e.identity for e in experiments)


@pytest.fixture
def one_thread():
    """Ray's workers have one: with another number, sums are rounded in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_ray_on_this_machine_writes_the_same_records(tmp_path):
    from normalis.research.sweep import run_plan

    root, out, found = run_inside(tmp_path, "local")
    assert found["failures"] == {}
    assert found["done"] == 2
    experiments = planned(root, tmp_path / "other", latent_dims=[1, 2], epochs=60)
    run_plan(experiments, tmp_path / "other", jobs=1, device="cpu")
    ours, theirs = Records(tmp_path / "other"), Records(out)
    assert ours.identities() == theirs.identities()
    for identity in ours.identities():
        mine, other = ours.read(identity), theirs.read(identity)
        assert list(mine) == list(other)
        assert mine["anomaly_score"] == pytest.approx(other["anomaly_score"], rel=1e-4)


@pytest.mark.slow
def test_scoring_loses_a_worker_and_writes_what_one_process_writes(tmp_path):
    fitted = detector(epochs=1, reduction="mean").fit(phantoms(30))
    fitted.save(tmp_path / "run")
    write_pngs(tmp_path / "scans/a", phantoms(40, size=40, seed=7))
    (tmp_path / "scans/a/020.png").write_bytes(b"not a picture")
    # Relative paths: a worker's folder is another one.
    assert python(SCORING, tmp_path / "run", "scans", "ray", cwd=tmp_path) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        samples = open_dataset(Path("scans")).samples
        options = ScoreOptions(overlays=False, fpr=0.2)
        score_to_folder(fitted, samples, "alone", root=Path("scans"), options=options)
    ray, alone = tmp_path / "ray", tmp_path / "alone"
    names = sorted(p.relative_to(alone).as_posix() for p in alone.rglob("*") if p.is_file())
    assert sorted(p.relative_to(ray).as_posix() for p in ray.rglob("*") if p.is_file()) == names
    maps = [name for name in names if name.startswith("maps/")]
    assert len(maps) == 39
    assert (ray / "skipped.csv").read_bytes() == (alone / "skipped.csv").read_bytes()
    ours, theirs = read_table(ray / "scores.csv"), read_table(alone / "scores.csv")
    for row, other in zip(ours, theirs, strict=True):
        assert float(row.pop("anomaly_score")) == pytest.approx(float(other.pop("anomaly_score")))
        assert row == other
    for name in maps[:5]:
        ours, theirs = (np.load(f / name) for f in (ray, alone))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_scoring_without_ray_answers_with_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    fitted = detector(epochs=1).fit(phantoms(20))
    write_pngs(tmp_path / "scans", phantoms(2))
    samples = open_dataset(tmp_path / "scans").samples
    with pytest.raises(MissingExtraError, match=r"\[ray\]"):
        score_to_folder(
            fitted, samples, tmp_path / "out", root=tmp_path, options=ScoreOptions(engine="ray")
        )
    # Nothing is lost: another engine takes the folder over.
    assert score_to_folder(fitted, samples, tmp_path / "out", root=tmp_path).images == 2


def test_missing_ray_answers_with_the_install_line(tmp_path, monkeypatch):
    from normalis.research.ray import run_plan_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"\[ray\]"):
        run_plan_on_ray([], tmp_path)


def test_impossible_shares_are_refused(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    from normalis.research.ray import run_plan_on_ray

    with pytest.raises(SettingsError, match="negative share"):
        run_plan_on_ray([], tmp_path, gpus_per_job=-1)


def test_finished_plan_starts_no_cluster(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from normalis.research.ray import run_plan_on_ray

    monkeypatch.setattr(ray, "init", lambda **k: pytest.fail("a cluster was started"))
    assert run_plan_on_ray([], tmp_path) == {}


def test_unknown_cluster_is_said(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from normalis.research.ray import run_plan_on_ray

    def refuse(**options):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", refuse)
    experiments = planned(write_tiny(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(RunError, match=r"'1\.2\.3\.4:6379' cannot be joined: nobody there"):
        run_plan_on_ray(experiments, tmp_path / "out", address="1.2.3.4:6379")
