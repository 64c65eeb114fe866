"""Records are named by all their settings, and named anew where settings were added."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normalis import models
from normalis.errors import RunError
from normalis.models import MODELS
from normalis.models.ae import AE
from normalis.research import packed
from normalis.research.experiments import Experiment
from normalis.research.jobs import jobs_of, run_job
from normalis.research.records import Records
from normalis.research.rekey import rekey
from normalis.research.sweep import run_plan
from test_sweep import planned

RESULTS = Path(__file__).parents[1] / "results"
#: What naming anew may change in a record.
RENAMED = {"id", "old_id", "training_key", "settings", "format"}
OLD, OLD_TRAINING = "0" * 64, "1" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A results folder of one experiment, as the first version would have named it."""
    from test_sweep import write_tiny

    folder = tmp_path_factory.mktemp("old")
    results = folder / "results"
    (experiment,) = planned(write_tiny(folder / "data"), results, latent_dims=[2])
    run_plan([experiment], results, jobs=1, device="cpu")
    return folder, experiment


@pytest.fixture
def old(made, tmp_path):
    """A copy of `made`, its names and settings as the first version wrote them."""
    import shutil

    shutil.copytree(made[0] / "results", tmp_path / "results")
    records = Records(tmp_path / "results")
    record = records.read(made[1].identity)
    settings = json.loads(record["settings"])
    for name in ("model", "reading"):
        del settings[name]
    (records.folder / f"{record['id']}.parquet").unlink()
    named = {"id": OLD, "training_key": OLD_TRAINING, "format": 1}
    records.write({**record, **named, "settings": json.dumps(settings, sort_keys=True)})
    kept = records.path / "models"
    (kept / made[1].training_key).rename(kept / OLD_TRAINING)
    return records, made[1]


def measured(record):
    return repr({k: v for k, v in sorted(record.items()) if k not in RENAMED})


def test_committed_records_are_named_by_their_settings():
    """Fails where a setting was added: run ``normalis research rekey results`` and commit."""
    rows = Records(RESULTS).table()
    assert len(rows) > 500
    for row in rows:
        experiment = Experiment.from_settings(row["settings"])
        assert row["id"] == experiment.identity, f"{experiment}: normalis research rekey results"
        assert row["training_key"] == experiment.training_key
    assert len({row["old_id"] for row in rows}) == len(rows)


def test_committed_results_are_small():
    assert sum(f.stat().st_size for f in RESULTS.rglob("*") if f.is_file()) <= 6_000_000


def test_committed_evidence_cites_records():
    known = {row["training_key"] for row in Records(RESULTS).table()}
    from normalis.files import read_csv

    cited = {row["training_key"] for row in read_csv(RESULTS / "theory/latent.csv")}
    assert cited & known
    normals = pq.read_table(RESULTS / "evidence/normals.parquet", columns=["identity"])
    ids = {row["id"] for row in Records(RESULTS).table()}
    assert set(normals["identity"].to_pylist()) & ids


@pytest.mark.parametrize("name", [n for n in MODELS if n != "ae-perceptual"])
def test_settings_name_an_experiment_of_any_method(name):
    one = Experiment(dataset="d", data="x", train_data="y", method=name)
    back = Experiment.from_settings(json.loads(json.dumps(one.settings())))
    assert back.identity == one.identity
    assert back.training_key == one.training_key
    assert set(models.model_class(name).Settings.__dataclass_fields__) == set(one.model)


def test_a_number_is_one_number_however_it_is_written():
    whole, real = (
        Experiment(dataset="d", data="x", train_data="y", method="ae-u", options={"noise": n})
        for n in (2, 2.0)
    )
    assert whole.identity == real.identity


def test_a_default_may_change(monkeypatch):
    before = Experiment(dataset="d", data="x", train_data="y")
    named = before.identity

    @dataclass(frozen=True, kw_only=True)
    class Later(AE.Settings):
        loss: str = "l1"

    monkeypatch.setattr(AE, "Settings", Later)
    after = Experiment(dataset="d", data="x", train_data="y")
    assert after.identity != named, "the default is another experiment"
    read = Experiment.from_settings(before.settings())
    assert read.identity == named, "what was recorded keeps its name and meaning"
    assert read.options == {"loss": before.model["loss"]}


def test_what_is_added_names_records_anew_and_keeps_the_old_name(old):
    records, experiment = old
    before = records.read(OLD)
    done = rekey(records.path)
    assert (done.records, done.models, done.left) == (1, 1, {})
    (after,) = records.all()
    assert (after["id"], after["old_id"]) == (experiment.identity, OLD)
    assert measured(after) == measured(before)
    assert json.loads(after["settings"])["model"]["loss"] == "l2"
    assert rekey(records.path).records == 0


def test_a_sweep_goes_on_from_records_named_anew(old, monkeypatch):
    records, experiment = old
    with pytest.raises(RunError, match="normalis research rekey"):
        run_plan([experiment], records.path, jobs=1, device="cpu")
    rekey(records.path)

    def train(*args, **kwargs):
        raise AssertionError("it was there already")

    monkeypatch.setattr("normalis.research.jobs.train_models", train)
    assert run_plan([experiment], records.path, jobs=1, device="cpu") == {}
    assert records.identities() == [experiment.identity]
    file = records.folder / f"{experiment.identity}.parquet"
    file.unlink()
    (job,) = jobs_of([experiment])
    assert run_job(job, records.path, device="cpu"), "the fitted model is found by its new name"


def test_packed_records_are_named_anew(old):
    records, experiment = old
    before = records.read(OLD)
    packed.pack(records.all(), records.path)
    (records.folder / f"{OLD}.parquet").unlink()
    assert rekey(records.path).records == 1
    (after,) = Records(records.path).all()
    assert (after["id"], after["old_id"]) == (experiment.identity, OLD)
    same = {
        **before,
        "anomaly_score": packed.rounded(before["anomaly_score"], packed.BITS).tolist(),
    }
    assert measured(after) == measured(same)


def test_tables_that_cite_a_record_follow(old):
    records, experiment = old
    csv = records.path / "theory/latent.csv"
    csv.parent.mkdir()
    csv.write_bytes(b"set,training_key,rate\ntiny,%s,0.5\n" % OLD_TRAINING.encode())
    evidence = pa.table({"identity": [OLD, "2" * 64], "rate": pa.array([[0.5], [1.5]])})
    pq.write_table(evidence, records.path / "evidence.parquet")
    assert len(rekey(records.path).tables) == 2
    assert csv.read_bytes() == b"set,training_key,rate\ntiny,%s,0.5\n" % (
        experiment.training_key.encode()
    )
    found = pq.read_table(records.path / "evidence.parquet").to_pydict()
    assert found == {"identity": [experiment.identity, "2" * 64], "rate": [[0.5], [1.5]]}


def test_a_rekey_that_is_killed_goes_on(old, monkeypatch):
    records, experiment = old
    csv = records.path / "cited.csv"
    csv.write_text(f"id\n{OLD}\n")

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("normalis.research.rekey._rekey_files", die)
        with pytest.raises(KeyboardInterrupt):
            rekey(records.path)
    assert records.identities() == [OLD]
    assert rekey(records.path).records == 1
    assert csv.read_text() == f"id\n{experiment.identity}\n"
    assert records.identities() == [experiment.identity]


def test_records_of_a_method_that_is_gone_stay(old):
    records, _ = old
    record = records.read(OLD)
    settings = json.loads(record["settings"]) | {"method": "gone"}
    records.write({**record, "method": "gone", "settings": json.dumps(settings)})
    done = rekey(records.path)
    assert list(done.left) == [OLD]
    assert "gone" in done.left[OLD]
    assert records.identities() == [OLD]
