"""Comparisons of records on the same images."""

import numpy as np
import pytest

from normalis.errors import DataError, SettingsError
from normalis.metrics import auroc, holm, paired_bootstrap
from normalis.research.paired import row_of, versus
from normalis.research.records import Records

N = 120
LABELS = np.arange(N) % 2 == 1


def record(scores, method="ae", *, d=16, seed=0, patients=None, paths=None, **settings):
    body = {
        "options": {},
        "scorer_options": {},
        "subset": {"drop_train_twins": None, "validation_share": 0.0},
        "training": {
            "epochs": 250,
            "learning_rate": 1e-3,
            "recipe": "paper",
            "precision": "auto",
            "standardize": False,
        },
    }
    body |= settings
    names = [f"{i:03d}.png" for i in range(N)] if paths is None else paths
    return {
        "dataset": "toy", "method": method, "latent_dim": d, "seed": seed, "scorer": "native",
        "reduction": "mean", "settings": body, "n_parameters": 0 if d is None else 10,
        "metrics": {}, "history": {}, "versions": {}, "path": ["train.png", *names],
        "split": ["train", *["test"] * N],
        "is_anomalous": [False, *LABELS.tolist()],
        "patient_id": ["", *(patients or [""] * N)],
        "anomaly_score": np.append(0, scores).astype(np.float32),
    }  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def store(out, *records):
    for i, body in enumerate(records):
        Records(out).append(f"{i:04d}", body)
    return out


def test_the_difference_is_the_paired_one(tmp_path, rng):
    weak, strong = LABELS + 2 * rng.random(N), 2 * LABELS + 2 * rng.random(N)
    out = store(tmp_path, record(weak, "knn", d=None), record(strong))
    reference, (one,) = versus(out, dataset="toy")
    assert reference == "knn"
    a, b = strong.astype(np.float32), weak.astype(np.float32)
    expected = paired_bootstrap(auroc, a, b, LABELS)
    assert one.row == "ae, d = 16"
    assert one.value == pytest.approx(auroc(a, LABELS))
    assert (one.difference, one.low, one.high) == pytest.approx(
        (expected.difference, expected.low, expected.high)
    )
    assert one.p_value == one.adjusted_p == pytest.approx(expected.p_value)
    assert one.verdict == "better"


def test_patients_are_drawn_whole(tmp_path, rng):
    weak, strong = LABELS + 2 * rng.random(N), LABELS + 1.5 * rng.random(N)
    patients = [f"P{i // 12}" for i in range(N)]
    both = [
        record(weak, "knn", d=None, patients=patients), record(strong, patients=patients),
    ]  # fmt: skip
    _, (one,) = versus(store(tmp_path, *both), dataset="toy")
    assert one.n_units == 10


def test_many_rows_are_corrected_and_noise_stays_undecided(tmp_path, rng):
    base = LABELS + 2 * rng.random(N)
    rows = [record(base + 0.3 * rng.random(N), d=d) for d in (1, 2, 4, 8, 16, 32)]
    _, found = versus(store(tmp_path, record(base, "pca", d=None), *rows), dataset="toy")
    assert len(found) == 6
    assert all(one.adjusted_p >= one.p_value for one in found)
    assert max(one.adjusted_p for one in found) > max(one.p_value for one in found) or all(
        one.adjusted_p == 1 for one in found
    )
    assert [one.value for one in found] == sorted((one.value for one in found), reverse=True)


def test_rows_that_do_not_take_part_do_not_count_in_the_correction(tmp_path, rng):
    base = LABELS + 2 * rng.random(N)
    rows = [record(base + 0.3 * rng.random(N), d=d) for d in (1, 2, 4, 8, 16, 32)]
    out = store(tmp_path, record(base, "pca", d=None), *rows)
    reference, found = versus(out, dataset="toy", rows="^(?!ae, d = .$)")
    assert (reference, {one.row for one in found}) == ("pca", {"ae, d = 16", "ae, d = 32"})
    adjusted = holm([one.p_value for one in found])
    assert [one.adjusted_p for one in found] == pytest.approx(list(adjusted))
    _, (one,) = versus(out, dataset="toy", against="pca", rows="d = 16$")
    assert one.adjusted_p == one.p_value
    with pytest.raises(DataError, match="no row of 'toy' matches"):
        versus(out, dataset="toy", rows="vae")
    with pytest.raises(SettingsError, match=r"rows must be a regular expression, got '\('"):
        versus(out, dataset="toy", rows="(")


def test_seeds_are_averaged(tmp_path, rng):
    base = LABELS + 2 * rng.random(N)
    seeds = [LABELS + 1.5 * rng.random(N) for _ in range(3)]
    out = store(
        tmp_path, record(base, "knn", d=None), *(record(s, seed=i) for i, s in enumerate(seeds))
    )
    _, (one,) = versus(out, dataset="toy", metric="auroc")
    assert one.n_seeds == 3
    assert one.value == pytest.approx(np.mean([auroc(s.astype(np.float32), LABELS) for s in seeds]))


def test_other_test_images_are_another_comparison(tmp_path, rng):
    scores = LABELS + rng.random(N)
    others = [f"other-{i}.png" for i in range(N)]
    out = store(
        tmp_path, record(scores, "knn", d=None), record(scores), record(-scores, d=8, paths=others)
    )
    reference, found = versus(out, dataset="toy")
    assert (reference, [one.row for one in found]) == ("knn", ["ae, d = 16"])
    assert versus(out, dataset="toy", against="ae, d = 8") == ("ae, d = 8", [])


def test_rows_are_named_by_what_was_done():
    subset = {"drop_train_twins": 0.95, "validation_share": 0.0}
    training = {
        "epochs": 80,
        "learning_rate": 4e-3,
        "recipe": "fast",
        "precision": "float32",
        "standardize": True,
    }
    body = record(np.zeros(N), options={"loss": "l1"}, subset=subset, training=training)
    body |= {"scorer": "ssim", "reduction": "max"}
    assert row_of(body) == (
        "ae, d = 16, loss = l1, drop_train_twins = 0.95, 80 epochs, recipe fast, "
        "precision float32, learning_rate = 0.004, standardize, read by ssim, max of the map"
    )


def test_what_cannot_be_compared_is_said(tmp_path, rng):
    out = store(tmp_path, record(LABELS + rng.random(N)))
    with pytest.raises(SettingsError, match="metric must be one of auroc, average_precision"):
        versus(out, dataset="toy", metric="f1")
    with pytest.raises(DataError, match="no record of 'other'; data sets there: toy"):
        versus(out, dataset="other")
    with pytest.raises(DataError, match="without a network"):
        versus(out, dataset="toy")
    with pytest.raises(DataError, match="no record of 'vae'; rows there: ae, d = 16"):
        versus(out, dataset="toy", against="vae")


def test_from_the_command_line(tmp_path, rng):
    from typer.testing import CliRunner

    from normalis.cli import app

    scores = 3 * LABELS + rng.random(N)
    out = store(tmp_path / "r", record(rng.random(N), "knn", d=None), record(scores))
    file = tmp_path / "all.csv"
    found = CliRunner().invoke(
        app, ["research", "compare", str(out), "--dataset", "toy", "--csv", str(file)]
    )
    assert found.exit_code == 0, found.output
    assert "toy: against knn" in found.output
    assert "better" in found.output
    assert file.read_text().splitlines()[0].startswith("row,n_seeds,value,difference,low,high")
