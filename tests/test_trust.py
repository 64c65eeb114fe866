"""A model folder from somebody else: loading it runs nobody's code, and says what is wrong."""

import json
import sys

import numpy as np
import pytest

from normalis import AnomalyDetector, models, scorers, shelf
from normalis.errors import RunError, SettingsError, UntrustedError
from normalis.shelf import named_by_a_file
from normalis.storage import RunFolder, content_hash, file_hash
from small_runs import detector, phantoms

PAYLOAD = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from normalis.models.pca import PCA as X
from normalis.scorers.l2 import L2 as S
def net():
    pathlib.Path(__file__).with_name("called").touch()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return (
        detector(method="pca", method_options={})
        .fit(phantoms())
        .save(tmp_path_factory.mktemp("x") / "run")
    )


def edited(source, target, change):
    """Copy a run with changed settings and the right checksums, as whoever wrote it could."""
    body = json.loads((source / "model.json").read_text())
    change(body)
    folder = RunFolder(target)
    target.mkdir(parents=True)
    (target / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    body.pop("sha256")
    body["sha256"] = {
        folder.MODEL: file_hash(target / folder.MODEL),
        "settings": content_hash(body),
    }
    (target / "model.json").write_text(json.dumps(body))
    return target


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A module on the path, as the working folder is in notebooks and scripts."""
    (tmp_path / "payload.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("payload", None)


def put(*keys, value):
    def change(body):
        place = body
        for key in keys[:-1]:
            place = place[key] if place[key] is not None else place.setdefault(key, {})
        place[keys[-1]] = value

    return change


NAMES_CODE = {
    "method": put("params", "method", value="payload:X"),
    "scorer": put("params", "scorer", value="payload:S"),
    "part of a scorer": lambda body: body["params"].update(
        scorer="combination", scorer_options={"parts": ["l2", "payload:S"]}
    ),
}


@pytest.mark.parametrize("change", NAMES_CODE.values(), ids=NAMES_CODE)
def test_loading_imports_nothing_that_the_folder_names(run, payload, change):
    folder = edited(run, payload / "model", change)
    with pytest.raises(UntrustedError, match="trust=True"):
        AnomalyDetector.load(folder)
    assert not (payload / "ran").exists()


def test_what_is_trusted_is_imported(run, payload):
    folder = edited(run, payload / "model", NAMES_CODE["method"])
    images = phantoms(3)
    trusted = AnomalyDetector.load(folder, trust=True)
    assert (payload / "ran").exists()
    expected = AnomalyDetector.load(run).anomaly_score(images)
    assert (trusted.anomaly_score(images) == expected).all()


@pytest.mark.parametrize("network", ["payload:net", "os:abort", "sys:exit"])
def test_a_network_is_never_called_by_name_on_load(run, payload, network):
    options = {"weights": "nowhere.pt", "network": network}

    def change(body):
        body["params"] |= {"method": "ae-perceptual", "method_options": options}
        body["model_settings"] |= options

    with pytest.raises(UntrustedError, match="network"):
        AnomalyDetector.load(edited(run, payload / "model", change))
    assert not (payload / "called").exists()


def test_settings_that_contradict_each_other_hide_no_code(run, payload):
    def change(body):
        body["params"] |= {
            "method": "ae-perceptual",
            "method_options": {"weights": "nowhere.pt", "network": "payload:net"},
        }
        body["model_settings"] |= {"weights": "nowhere.pt"}

    with pytest.raises(RunError, match="disagree on network"):
        AnomalyDetector.load(edited(run, payload / "model", change))


def test_an_entry_point_in_the_working_folder_is_not_installed(run, payload, monkeypatch):
    info = payload / "payload-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: payload\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[normalis.models]\nnice = payload:X\n")
    folder = edited(run, payload / "model", put("params", "method", value="nice"))
    shelf.offered_by_packages.cache_clear()
    try:
        with monkeypatch.context() as inside:
            inside.chdir(payload)
            with pytest.raises(UntrustedError):
                AnomalyDetector.load(folder)
            assert not (payload / "ran").exists()
        AnomalyDetector.load(folder)  # on the path, and not by being the working folder
    finally:
        shelf.offered_by_packages.cache_clear()


def test_names_that_a_user_types_are_imported(payload):
    assert models.model_class("payload:X").__name__ == "PCA"
    assert scorers.scorer_class("payload:S").__name__ == "L2"
    with named_by_a_file("model.json"), pytest.raises(UntrustedError):
        models.model_class("payload:X")
    assert models.model_class("payload:X").__name__ == "PCA"


# --- edited and damaged, with the right checksums -----------------------------------------------


EDITS = {
    "no params": lambda body: body.pop("params"),
    "params no table": put("params", value=[1]),
    "unknown param": put("params", "wings", value=2),
    "param of another type": put("params", "image_size", value="wide"),
    "params size": put("params", "image_size", value=48),
    "huge width": put("model_settings", "hidden_dim", value=2_000_000_000),
    "huge image": put("model_settings", "image_size", value=16 * 10**8),
    "negative": put("model_settings", "latent_dim", value=-3),
    "infinite": put("model_settings", "latent_dim", value=1e400),
    "settings missing": lambda body: body.pop("model_settings"),
    "info no table": put("info", value=3),
    "history no list": put("history", value="lost"),
    "rule of text": put("rule", value={"low": "a", "high": "b"}),
    "rule reversed": put("rule", value={"low": 2.0, "high": 1.0}),
    "colours missing": put("colour_scale", value={}),
    "colours of text": put("colour_scale", value={"quiet": "q", "full": "f"}),
    "calibration a number": put("calibration", value=3),
    "calibration of lengths": put("calibration", "unit", value=[0]),
    "calibration without scores": put("calibration", "scores", value=None),
    "a folds number": put("params", "calibration", value="cv+"),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_an_edited_folder_gets_a_clear_message(run, tmp_path, change):
    try:
        folder = edited(run, tmp_path / "model", change)
    except ValueError:  # infinity has no checksum: written without
        body = json.loads((run / "model.json").read_text())
        change(body)
        folder = tmp_path / "model"
        (folder / "model.json").write_text(json.dumps(body))
    with pytest.raises(RunError, match=r"model") as raised:
        AnomalyDetector.load(folder, device="cpu")
    assert len(str(raised.value)) < 2000


def test_a_network_larger_than_its_file_is_refused_before_memory_is_taken(tmp_path):
    source = detector(method="ae").fit(phantoms()).save(tmp_path / "run")

    def wide(body):
        body["model_settings"] |= {"hidden_dim": 65_536, "latent_dim": 65_536}

    with pytest.raises(RunError, match=r"describe a network of .* values"):
        AnomalyDetector.load(edited(source, tmp_path / "model", wide))


RAW = {
    "empty": b"",
    "cut": b'{"format": 1, "params": {',
    "a list": b"[1, 2]",
    "a number": b"7",
    "not UTF-8": b'{"format": "\xff"}',
    "NaN": b'{"format": 1, "x": NaN, "sha256": {"settings": "", "model.safetensors": ""}}',
    "sums no table": b'{"format": 1, "sha256": 3}',
    "sums empty": b'{"format": 1, "sha256": {}}',
    "no format": b'{"sha256": {"settings": "", "model.safetensors": ""}}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep table": b'{"format": 1, "sha256": {"settings": "", "model.safetensors": ""}, "x": '
    + b"[" * 5000 + b"]" * 5000 + b"}",
    "another format": b'{"format": [1], "sha256": {"settings": "", "model.safetensors": ""}}',
    "zeros": b"\0" * 500,
}  # fmt: skip


@pytest.mark.parametrize("text", RAW.values(), ids=RAW)
def test_a_damaged_model_json_gets_a_clear_message(run, tmp_path, text):
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    (tmp_path / "model.json").write_bytes(text)
    with pytest.raises(RunError, match=r"model\.json"):
        AnomalyDetector.load(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 8, 100, 1000])
def test_cut_weights_get_a_clear_message_even_with_the_right_checksum(run, tmp_path, size):
    folder = edited(run, tmp_path / "model", lambda body: None)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    body = json.loads((folder / "model.json").read_text())
    body["sha256"]["model.safetensors"] = file_hash(weights)
    (folder / "model.json").write_text(json.dumps(body))
    with pytest.raises(RunError, match=r"model\.safetensors"):
        AnomalyDetector.load(folder)


def test_a_folder_in_place_of_a_file(run, tmp_path):
    (tmp_path / "model.json").mkdir()
    with pytest.raises(RunError, match="must hold model"):
        AnomalyDetector.load(tmp_path)


def test_seeds_that_nothing_takes_are_refused():
    for seed in (-1, 2**32, 99999999999999999999, 0.5):
        with pytest.raises(SettingsError, match="random_state must be"):
            detector(random_state=seed).fit(np.zeros((3, 16, 16)))
