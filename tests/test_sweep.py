import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from normalis.errors import DataError, RunError, SettingsError
from normalis.metrics import auroc
from normalis.research.data import Arrays, Store, nearest, select, small
from normalis.research.experiments import (
    Experiment,
    Subset,
    default_epochs,
    expand,
    plan,
    read_plan,
    write_plan,
)
from normalis.research.jobs import (
    estimate,
    fitted,
    is_trained,
    jobs_of,
    run_job,
    stacks_of,
    train_together,
)
from normalis.research.records import Records
from normalis.research.sweep import run_plan
from normalis.training.settings import TrainingSettings

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))
TINY = {
    "datasets": ["tiny"],
    "epochs": 2,
    "batch_size": 8,
    "precision": "float32",
    "options": {"hidden_dim": 8},
    "images": {"image_size": 16},
}


def write_tiny(root, n=24, patients=None):
    """Write a data set of 16 x 16 images; anomalous ones have a bright square and a mask."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 120, (n, 16, 16), dtype=np.uint8)
    test = rng.integers(0, 120, (n, 16, 16), dtype=np.uint8)
    label = np.arange(n) % 2
    mask = np.zeros((n, 16, 16), bool)
    mask[label == 1, 4:9, 4:9] = True
    test[mask] = 255
    folder = root / "tiny"
    folder.mkdir(parents=True)
    extra = {} if patients is None else {"train_patient": patients}
    np.savez(
        folder / "arrays_16.npz",
        train=train, test=test, test_label=label, test_mask=mask,
        train_names=[f"n{i:03d}.png" for i in range(n)],
        test_names=[f"t{i:03d}.png" for i in range(n)],
        test_slice_pos=np.linspace(0, 1, n),
        **extra,
    )  # fmt: skip
    return root


@pytest.fixture
def root(tmp_path):
    return write_tiny(tmp_path / "data")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


def planned(root, out, **changes):
    return plan({**TINY, **changes}, Store(out, root).fingerprints)


# --- plans and identities ---


def test_twins_are_the_same_at_any_size():
    rng = np.random.default_rng(0)
    fine = np.repeat(np.repeat(rng.integers(0, 256, (3, 1, 64, 64), dtype=np.uint8), 2, 2), 2, 3)
    np.testing.assert_array_equal(small(fine), fine[:, :, ::2, ::2])
    noisy = np.clip(fine + rng.normal(0, 40, fine.shape), 0, 255).astype(np.uint8)
    at_64 = nearest(small(noisy), small(fine))
    assert (at_64 > 0.95).all()
    assert (nearest(noisy, fine) < at_64).all(), "noise of single pixels is no difference"
    assert small(fine[:, :, :32, :32]).shape[-1] == 32


def test_product_and_include_in_order():
    cells = expand(
        {
            "datasets": ["a", "b"],
            "latent_dims": [1, 2],
            "include": [{"methods": ["pca"], "latent_dims": [4]}],
        }
    )
    found = [(c["dataset"], c["method"], c["latent_dim"]) for c in cells]
    assert found == [
        ("a", "ae", 1), ("a", "ae", 2), ("b", "ae", 1), ("b", "ae", 2),
        ("a", "pca", 4), ("b", "pca", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"datasets": ["a"], "latent_dim": [1]}, "did you mean 'latent_dims'"),
        ({"datasets": ["a"], "seeds": 3}, "seeds must be a list, got 3"),
        ({"methods": ["ae"]}, "at least one data set"),
        ({"datasets": ["a"], "include": [{"method": ["ae"]}]}, "did you mean 'methods'"),
    ],
)
def test_wrong_plans_are_refused(table, message):
    with pytest.raises(SettingsError, match=message):
        expand(table)


def test_plan_file_must_hold_a_sweep_table(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text("[swep]\n")
    with pytest.raises(SettingsError, match="did you mean 'sweep'"):
        read_plan(file)
    file.write_text("datasets = [")
    with pytest.raises(SettingsError, match="must be a TOML file"):
        read_plan(file)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_plans(file):
    table = read_plan(file)
    experiments = plan(table, lambda name, images, subset: (name, f"train of {name}"))
    assert len({e.identity for e in experiments}) == len(experiments) > 1


def test_equal_settings_are_one_experiment(root, out):
    once = planned(root, out, latent_dims=[2])
    twice = planned(root, out, latent_dims=[2, 2], options={"hidden_dim": 8, "channels": 1})
    assert [e.identity for e in once] == [e.identity for e in twice]


def experiment(**changes):
    return Experiment(dataset="d", data="x", train_data="y", **changes)


def test_identities_of_committed_records_stay():
    """Where this fails, a setting was added: run ``normalis research rekey results`` as well."""
    long = experiment(latent_dim=8, seed=1, training=TrainingSettings(epochs=600))
    assert long.identity.startswith(IDENTITY), long.identity
    assert long.training_key.startswith(TRAINING), long.training_key


IDENTITY, TRAINING = "71921eb8a7dba766", "f06a529c6204a73b"


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_dim": 4},
        {"seed": 1},
        {"method": "vae"},
        {"options": {"hidden_dim": 512}},
        {"training": TrainingSettings(epochs=3)},
        {"training": TrainingSettings(standardize=True)},
        {"image_size": 32},
    ],
)
def test_what_changes_the_training(changes):
    assert experiment(**changes).training_key != experiment().training_key
    assert experiment(**changes).identity != experiment().identity


@pytest.mark.parametrize("changes", [{"scorer": "l1"}, {"reduction": "max"}])
def test_what_changes_the_reading_only(changes):
    assert experiment(**changes).training_key == experiment().training_key
    assert experiment(**changes).identity != experiment().identity


def test_default_options_change_nothing():
    assert experiment(options={"hidden_dim": 1024}).identity == experiment().identity


def test_latent_dim_means_nothing_without_a_latent():
    one, other = (experiment(method="knn", latent_dim=d) for d in (4, 16))
    assert one.identity == other.identity
    assert one.latent_dim is None


def test_training_settings_mean_nothing_to_a_method_without_training():
    one, other = (experiment(method="pca", training=TrainingSettings(epochs=e)) for e in (1, 250))
    assert one.identity == other.identity


def test_settings_survive_the_plan_file(root, out):
    experiments = planned(root, out, latent_dims=[2], scorers=["native", "l1"])
    file = write_plan(out, experiments)
    rows = json.loads(file.read_text())
    names = ("id", "training_key")
    back = [Experiment.from_settings({k: v for k, v in r.items() if k not in names}) for r in rows]
    assert [e.identity for e in back] == [e.identity for e in experiments]


def test_epochs_of_the_data_sets():
    assert default_epochs("brain_tumor") == 600
    assert default_epochs("rsna") == default_epochs("my own") == 250


# --- data ---


def test_fingerprint_does_not_depend_on_order_or_folder(root, tmp_path, out):
    with np.load(root / "tiny/arrays_16.npz") as z:
        arrays = {k: z[k] for k in z.files}
    order = np.random.default_rng(1).permutation(24)
    shuffled = {k: v[order] for k, v in arrays.items()}
    (tmp_path / "elsewhere/tiny").mkdir(parents=True)
    np.savez(tmp_path / "elsewhere/tiny/arrays_16.npz", **shuffled)
    images = TINY["images"]
    here = Store(out, root).fingerprints("tiny", images, Subset())
    there = Store(out, tmp_path / "elsewhere").fingerprints("tiny", images, Subset())
    assert here == there
    arrays["test"] = arrays["test"].copy()
    arrays["test"][0, 0, 0] ^= 1
    np.savez(tmp_path / "elsewhere/tiny/arrays_16.npz", **arrays)
    changed = Store(out, tmp_path / "elsewhere").fingerprints("tiny", images, Subset())
    assert changed[0] != here[0]
    assert changed[1] == here[1], "the training images are the same"


def test_missing_data_set_says_what_there_is(root, out):
    with pytest.raises(DataError, match="holds tiny"):
        Store(out, root).fingerprints("tinny", {}, Subset())
    with pytest.raises(DataError, match="--data"):
        Store(out).fingerprints("tiny", {}, Subset())
    with pytest.raises(RunError, match="plan the sweep again"):
        Store(out).get("0" * 64)


def whole(root, out):
    store = Store(out, root)
    return store.get(store.fingerprints("tiny", TINY["images"], Subset())[0])


def test_twins_are_dropped_on_either_side(root, out):
    arrays = whole(root, out)
    pixels = arrays.pixels.copy()
    train, test = (np.flatnonzero(arrays.split == s) for s in ("train", "test"))
    pixels[test[3]] = pixels[train[5]]
    with np.load(root / "tiny/arrays_16.npz") as z:
        content = {k: z[k] for k in z.files} | {"test": pixels[test, 0], "train": pixels[train, 0]}
    np.savez(root / "tiny/arrays_16.npz", **content)
    arrays = whole(root, out.parent / "other")
    fewer = select(arrays, Subset(drop_train_twins=0.95))
    assert set(arrays.path) - set(fewer.path) == {"n005.png"}
    fewer = select(arrays, Subset(drop_test_twins=0.95))
    assert set(arrays.path) - set(fewer.path) == {"t003.png"}
    assert len(fewer.masks) == 23


def test_position_keeps_the_middle_of_the_test(root, out):
    arrays = select(whole(root, out), Subset(position=(0.4, 0.6)))
    test = arrays.split == "test"
    assert ((arrays.position[test] > 0.4) & (arrays.position[test] < 0.6)).all()
    assert test.sum() == len(arrays.masks) == 4
    assert (arrays.split == "train").sum() == 24


def test_validation_is_held_out_by_patient(tmp_path, out):
    patients = [f"p{i // 3}" for i in range(24)]
    arrays = whole(write_tiny(tmp_path / "data", patients=patients), out)
    held = select(arrays, Subset(validation_share=0.25))
    sides = [set(held.patient_id[held.split == s]) for s in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert (held.split == "validation").sum() == 6
    assert held.fingerprints[1] != arrays.fingerprints[1]


def test_training_images_are_limited(root, out):
    arrays = select(whole(root, out), Subset(train_limit=10))
    assert (arrays.split == "train").sum() == 10
    assert (arrays.split == "test").sum() == 24


def test_wrong_subsets_are_refused():
    with pytest.raises(SettingsError):
        Subset(validation_share=1.0)
    with pytest.raises(SettingsError):
        Subset(train_limit=1)


# --- running ---


def test_plan_is_run_once_and_recorded(root, out):
    experiments = planned(root, out, latent_dims=[2, 3])
    events = []
    assert run_plan(experiments, out, jobs=1, callback=events.append) == {}
    assert [e.kind for e in events].count("done") == 2
    assert events[-1].done == events[-1].total == 2
    again = []
    assert run_plan(experiments, out, jobs=1, callback=again.append) == {}
    assert again == []
    records = Records(out)
    assert records.identities() == sorted(e.identity for e in experiments)
    record = records.read(experiments[0].identity)
    test = np.array(record["split"]) == "test"
    scores = np.array(record["anomaly_score"], np.float32)[test]
    assert record["auroc"] == auroc(scores, np.array(record["is_anomalous"])[test])
    metrics = json.loads(record["metrics"])
    assert metrics["auroc"]["low"] <= record["auroc"] <= metrics["auroc"]["high"]
    assert 0 < metrics["best_dice"]["low"] <= record["best_dice"] <= 1
    assert len(json.loads(record["history"])["reconstruction"]) == 2
    assert record["n_train"] == 24
    assert (out / "plans").is_dir()


def test_scorers_share_one_training(root, out):
    experiments = planned(root, out, latent_dims=[2], scorers=["native", "l1"])
    assert len(jobs_of(experiments)) == 1
    run_plan(experiments[:1], out, jobs=1)
    (model,) = (out / "models").iterdir()
    before = (model / "model.safetensors").stat().st_mtime_ns
    run_plan(experiments, out, jobs=1)
    assert (model / "model.safetensors").stat().st_mtime_ns == before
    rows = Records(out).table()
    assert {r["scorer"] for r in rows} == {"native", "l1"}
    assert len({r["fit_s"] for r in rows}) == 1


def test_models_are_dropped_if_asked(root, out):
    run_plan(planned(root, out), out, jobs=1, keep_models=False)
    assert list((out / "models").iterdir()) == []


@pytest.mark.slow
def test_trainings_computed_as_one_give_the_records_of_trainings_alone(root, tmp_path):
    factors = {"latent_dims": [2, 3], "seeds": [0, 1]}
    found = {}
    for name, stack in (("alone", 1), ("together", 3)):
        out = tmp_path / name
        experiments = planned(root, out, **factors)
        events = []
        assert run_plan(experiments, out, jobs=1, stack=stack, callback=events.append) == {}
        assert events[-1].done == events[-1].total == 4
        found[name] = {e.identity: Records(out).read(e.identity) for e in experiments}
        assert len(list((out / "models").iterdir())) == 4  # no checkpoint of a stack stays
    devices = {"alone": set(), "together": set()}
    for identity, alone in found["alone"].items():
        together = found["together"][identity]
        np.testing.assert_allclose(together["anomaly_score"], alone["anomaly_score"], rtol=2e-2)
        assert together["seed"] == alone["seed"]
        for name, records in found.items():
            devices[name].add("one of 3 computed together" in records[identity]["device"])
    assert devices == {"alone": {False}, "together": {True, False}}  # four: three, and one alone


def test_what_can_be_trained_as_one(root, out):
    experiments = planned(
        root, out, methods=["ae", "vae", "memae"], latent_dims=[2, 3], seeds=[0, 1]
    )
    jobs = jobs_of(experiments)
    sizes = {}
    for stack in stacks_of(jobs, 8):
        sizes.setdefault(stack[0].experiments[0].method, []).append(len(stack))
    assert sizes == {"ae": [4], "vae": [2, 2], "memae": [1, 1, 1, 1]}
    assert [len(s) for s in stacks_of(jobs[:4], 3)] == [3, 1]
    assert all(len(s) == 1 for s in stacks_of(jobs, 1))


def test_trainings_of_several_networks_are_no_stack(root, out):
    options = {"methods": ["ae-u"], "seeds": [0, 1]}
    one = jobs_of(planned(root, out, **options))
    several = jobs_of(planned(root, out, options={"members": 2}, **options))
    assert [len(s) for s in stacks_of(one, 8)] == [2]
    assert [len(s) for s in stacks_of(several, 8)] == [1, 1], "they are trained one by one"


def test_a_killed_stack_goes_on_from_its_checkpoint(root, out, monkeypatch):
    jobs = jobs_of(planned(root, out, latent_dims=[2, 3], epochs=4))
    monkeypatch.setattr("normalis.training.checkpoints.EVERY_S", 0.0)

    def stop(epoch, epochs):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_together(jobs, out, device="cpu", callback=stop)
    epochs = []
    trained = train_together(jobs, out, device="cpu", callback=lambda e, n: epochs.append(e))
    assert (trained, epochs) == (2, [3, 4])
    assert train_together(jobs, out, device="cpu") == 0  # both are there
    assert sorted(p.name for p in (out / "models").iterdir()) == sorted(j.key for j in jobs)


def test_a_stack_leaves_a_claimed_training_alone(root, out):
    jobs = jobs_of(planned(root, out, latent_dims=[2, 3, 4]))
    with Records(out).claim(jobs[1].key):
        assert train_together(jobs, out, device="cpu") == 2
    kept = {p.name for p in (out / "models").iterdir()}
    assert kept == {jobs[0].key, jobs[2].key}


def test_interrupted_training_goes_on_exactly(root, out, monkeypatch):
    (experiment,) = planned(root, out, latent_dims=[2], epochs=4)
    arrays = Store(out, root).get(experiment.data)
    straight, _ = fitted(experiment, arrays, out / "straight", device="cpu")
    monkeypatch.setattr("normalis.training.checkpoints.EVERY_S", 0.0)

    def stop(epoch, epochs):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(experiment, arrays, out, device="cpu", callback=stop)
    epochs = []
    resumed, info = fitted(
        experiment, arrays, out, device="cpu", callback=lambda e, n: epochs.append(e)
    )
    assert epochs == [3, 4]
    assert len(info["history"]["reconstruction"]) == 4
    for name, value in straight.state().items():
        assert torch.equal(value, resumed.state()[name]), name


def test_failed_training_holds_nothing_up(root, out):
    experiments = planned(
        root, out, latent_dims=[2], scorers=["mahalanobis"], methods=["mean-image"]
    )
    experiments += planned(root, out, latent_dims=[2])
    failures = run_plan(experiments, out, jobs=1)
    assert len(failures) == 1
    assert "mean-image" in next(iter(failures))
    assert Records(out).identities() == [experiments[-1].identity]


def test_job_of_another_process_is_left_alone(root, out):
    (job,) = jobs_of(planned(root, out))
    with Records(out).claim(job.key):
        assert run_job(job, out) is False
    assert run_job(job, out) is True


def test_estimate_learns_from_records(root, out):
    experiments = planned(root, out, latent_dims=[2])
    (job,) = jobs_of(experiments)
    assert estimate(job, n_train=64) > estimate(job, n_train=8)
    run_plan(experiments, out, jobs=1)
    (record,) = Records(out).table()
    assert estimate(job, n_train=24, known=[record]) == pytest.approx(record["fit_s"])


def test_a_kept_model_is_only_read_again(root, out):
    (job,) = jobs_of(planned(root, out, latent_dims=[2]))
    (reading,) = jobs_of(planned(root, out, latent_dims=[2], scorers=["median"]))
    assert not is_trained(reading, out)
    run_job(job, out)
    assert is_trained(reading, out)
    assert run_job(reading, out)
    native, median = sorted(Records(out).table(), key=lambda r: r["scorer"] == "median")
    assert (median["scorer"], median["reduction"]) == ("median", "top:0.02")
    assert median["fit_s"] == native["fit_s"]


@pytest.mark.slow
def test_workers_share_a_plan(root, out):
    experiments = planned(root, out, latent_dims=[2, 3, 4])
    events = []
    assert run_plan(experiments, out, jobs=2, device="cpu", callback=events.append) == {}
    assert sorted(e.identity for e in experiments) == Records(out).identities()
    assert [e.kind for e in events].count("done") == 3
    assert not multiprocessing.active_children()


SCRIPT = """
import sys
from test_sweep import TINY
from normalis.research.data import Store
from normalis.research.experiments import plan
from normalis.research.sweep import run_plan
root, out = sys.argv[1:]
table = {**TINY, "latent_dims": list(range(1, 9)), "epochs": 40}
run_plan(plan(table, Store(out, root).fingerprints), out, jobs=1, device="cpu",
         callback=lambda e: print(e.kind, e.title, flush=True) if e.kind != "epoch" else None)
"""


@pytest.mark.slow
def test_kill_9_loses_and_repeats_nothing(root, out):
    experiments = planned(root, out, latent_dims=list(range(1, 9)), epochs=40)
    rng = np.random.default_rng(0)
    done = set()
    for _ in range(20):
        finished, killed = _run_and_kill(root, out, after=int(rng.integers(1, 4)), rng=rng)
        now = set(Records(out).identities())
        assert done <= now, "a record was lost"
        assert len(now) - len(done) >= finished - 1
        done = now
        if not killed:
            break
    assert done == {e.identity for e in experiments}
    assert len(Records(out).table()) == len(experiments)


def _run_and_kill(root, out, *, after, rng):
    """Kill the sweep with -9 a random moment after its nth training began."""
    command = [sys.executable, "-c", SCRIPT, str(root), str(out)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        ),
        "OMP_NUM_THREADS": "1",
    }
    started, finished = 0, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            started += line.startswith("start")
            finished += bool(re.match("done", line))
            if started > after:
                time.sleep(float(rng.uniform(0, 0.5)))
                os.kill(process.pid, signal.SIGKILL)
                return finished, True
    assert process.returncode == 0
    return finished, False


def test_arrays_survive_their_file(root, out):
    arrays = whole(root, out)
    arrays.write(out / "copy.npz")
    back = Arrays.read(out / "copy.npz")
    assert back.fingerprints == arrays.fingerprints
    assert (back.path == arrays.path).all()


def test_options_may_be_a_factor():
    table = {
        "datasets": ["a"],
        "methods": ["rate-ae"],
        "options": [{"rate": 4.0}, {"rate": 8.0}],
        "seeds": [0, 1],
    }
    assert [cell["options"]["rate"] for cell in expand(table)] == [4.0, 8.0] * 2
    assert expand({"datasets": ["a"]})[0]["options"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"include": 3}, "include must be tables"),
        ({"include": [3]}, "include must be tables"),
        ({"subset": 3}, "subset must be a table"),
        ({"images": "x"}, "images must be a table"),
        ({"seeds": [10**20]}, "seeds must be whole numbers from 0 to"),
        ({"seeds": [-1]}, "seeds must be whole numbers from 0 to"),
        ({"seeds": ["a"]}, "seeds must be whole numbers from 0 to"),
        ({"options": 3}, "cannot be understood"),
        ({"methods": [3]}, "plan cannot be understood|method must be"),
        ({"latent_dims": ["x"]}, "cannot be understood|must be a whole number"),
        ({"epochs": "x"}, "cannot be understood|epochs must be"),
    ],
)
def test_plans_of_another_kind_are_said(root, out, changes, message):
    with pytest.raises(SettingsError, match=message):
        planned(root, out, **changes)
