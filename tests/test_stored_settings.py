"""A model.json that was edited and signed again: what no fit writes is refused on load."""

import json
import shutil

import numpy as np
import pytest

from normalis import AnomalyDetector, FittedDetector
from normalis.errors import RunError
from normalis.storage import content_hash
from small_runs import detector, phantoms


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    detector().fit(phantoms(30)).save(folder / "one")
    panel = AnomalyDetector(
        members=["knn", "pca", "mean-image"], image_size=16, calibration="split", epochs=1
    )
    panel.fit(phantoms(30)).save(folder / "panel")
    return folder


def signed(source, target, change):
    shutil.copytree(source, target)
    body = json.loads((target / "model.json").read_text())
    change(body)
    own = {k: v for k, v in body.items() if k != "sha256"}
    body["sha256"]["settings"] = content_hash(own)
    (target / "model.json").write_text(json.dumps(body))
    return target


def put(*path, value):
    def change(body):
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("params", "batch_size"), -3),
        (("params", "batch_size"), "64"),
        (("params", "epochs"), 0),
        (("params", "learning_rate"), -1),
        (("params", "folds"), 1),
        (("params", "calibration"), "yes"),
        (("params", "calibration_share"), 2),
        (("params", "fpr"), 0),
        (("params", "random_state"), -1),
        (("params", "standardize"), "no"),
        (("params", "keep_similar"), 3),
        (("params", "precision"), "float8"),
        (("params", "recipe"), "slow"),
        (("params", "latent_dim"), "wide"),
        (("params", "plane"), "coronal"),
        (("params", "margin"), 0.3),
        (("params", "where"), ["Modality=CT"]),
        (("params", "percentiles"), [1, 99]),
        (("params", "window"), [0, 1]),
        (("params", "unknown"), 3),
        (("params", "members"), 7),
        (("params", "device"), 7),
        (("params", "method_options"), [1]),
        (("image_settings", "image_size"), "16"),
        (("model_settings", "hidden_dim"), 16),
        (("calibration", "kind"), "jackknife"),
        (("calibration", "kind"), "none"),
        (("calibration", "level"), "hospital"),
        (("calibration", "scores", 0), 1e9),
        (("calibration", "scores", 0), None),
        (("calibration", "unit", 0), -3),
        (("calibration", "unit", 0), 10**9),
        (("calibration", "unit", 0), True),
        (("calibration", "unit", 0), 0.5),
        (("calibration", "fold", 0), 1),
        (("calibration", "fold", 0), -1),
        (("map_scale", "taper"), None),
        (("map_scale", "smoothing"), 10**9),
        (("map_scale", "around"), "x"),
    ],
)
def test_settings_that_no_fit_writes(runs, tmp_path, path, value):
    run = signed(runs / "one", tmp_path / "run", put(*path, value=value))
    with pytest.raises(RunError, match="is damaged"):
        FittedDetector.load(run)


@pytest.mark.parametrize("name", ["standardize", "fpr", "method", "calibration", "scorer"])
def test_settings_that_are_missing(runs, tmp_path, name):
    run = signed(runs / "one", tmp_path / "run", lambda body: body["params"].pop(name))
    with pytest.raises(RunError, match="is damaged"):
        FittedDetector.load(run)


def without_the_last(body):
    body["model_settings"]["members"] = "knn+pca"
    body["info"]["members"] = ["knn", "pca"]


def without_the_first(body):
    body["model_settings"]["members"] = "pca+mean-image"


def in_another_order(body):
    body["model_settings"]["members"] = "pca+knn+mean-image"


@pytest.mark.parametrize("change", [without_the_last, without_the_first, in_another_order])
def test_a_panel_with_other_members_than_were_fitted(runs, tmp_path, change):
    assert FittedDetector.load(runs / "panel").models[0].settings.members == "knn+pca+mean-image"
    with pytest.raises(RunError, match="is damaged"):
        FittedDetector.load(signed(runs / "panel", tmp_path / "run", change))


def test_signing_alone_changes_nothing(runs, tmp_path):
    run = signed(runs / "one", tmp_path / "run", lambda body: None)
    new = phantoms(4, seed=5)
    expected = FittedDetector.load(runs / "one").anomaly_score(new)
    np.testing.assert_array_equal(FittedDetector.load(run).anomaly_score(new), expected)
