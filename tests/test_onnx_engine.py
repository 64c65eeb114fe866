"""The engine of onnxruntime: PyTorch's scores, or a clear refusal."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from normalis import models, scorers
from normalis.cli import app
from normalis.datasets import open_dataset
from normalis.engines import onnx as onnx_engine
from normalis.engines.onnx import OnnxScorer, on_engine
from normalis.errors import MissingExtraError, NotFittedError, RunError, SettingsError, extras
from normalis.fitted import FittedDetector
from normalis.output.folder import ScoreOptions, score_to_folder
from small_runs import anomalies, detector, phantoms, read_table, write_pngs

SMALL = {"image_size": 16, "latent_dim": 2, "hidden_dim": 8}


@pytest.fixture
def installed():
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def fitted():
    return detector(epochs=10, learning_rate=0.01, standardize=True).fit(phantoms(40))


@pytest.fixture(scope="module")
def on_onnx(fitted):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    return on_engine(fitted)


def test_scores_maps_and_p_values_are_those_of_pytorch(fitted, on_onnx):
    x = np.concatenate([phantoms(70, seed=8), anomalies(5)])  # more than one batch
    scores = fitted.anomaly_score(x)
    np.testing.assert_allclose(on_onnx.anomaly_score(x), scores, rtol=1e-5)
    maps = fitted.anomaly_map(x)
    np.testing.assert_allclose(on_onnx.anomaly_map(x), maps, atol=1e-5 * maps.max())
    # An image within the tolerance of a held-out one may fall on its other side.
    nearest = np.abs(scores[:, None] / fitted.decision_scores_ - 1).min(axis=1)
    clear = nearest > onnx_engine.TOLERANCE
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(on_onnx.p_value(x)[clear], fitted.p_value(x)[clear])
    np.testing.assert_array_equal(on_onnx.predict(x)[clear], fitted.predict(x)[clear])


def test_the_detector_given_is_left_as_it_is(fitted, on_onnx, tmp_path):
    assert type(fitted.scorer_).__name__ == "Median"
    assert on_engine(fitted, "torch") is fitted.fitted_
    x = phantoms(3, seed=5)
    again = FittedDetector.load(on_onnx.save(tmp_path / "run"), device="cpu")
    np.testing.assert_allclose(again.anomaly_score(x), fitted.anomaly_score(x), rtol=1e-6)
    copied = pickle.loads(pickle.dumps(on_onnx))
    np.testing.assert_array_equal(copied.anomaly_score(x), on_onnx.anomaly_score(x))


@pytest.mark.slow
def test_the_command_scores_with_it_and_says_so(fitted, on_onnx, tmp_path):
    fitted.save(tmp_path / "run")
    write_pngs(tmp_path / "in", anomalies(4, size=40))
    call = ["score", str(tmp_path / "run"), str(tmp_path / "in"), "--fpr", "0.2", "--device", "cpu"]
    for engine in onnx_engine.ENGINES:
        options = ["--out", str(tmp_path / engine), "--engine", engine]
        done = CliRunner().invoke(app, [*call, *options], catch_exceptions=False)
        assert done.exit_code == 0
        assert json.loads((tmp_path / engine / "score.json").read_text())["engine"] == engine
    torch_rows, onnx_rows = (read_table(tmp_path / e / "scores.csv") for e in onnx_engine.ENGINES)
    for column in ("anomaly_score", "p_value", "flagged"):
        values = [[float(r[column]) for r in rows] for rows in (torch_rows, onnx_rows)]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    maps = [np.load(tmp_path / e / "maps/000.png.npy") for e in onnx_engine.ENGINES]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-5 * maps[0].max())
    assert len(list((tmp_path / "onnx/overlays").iterdir())) == 4


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("method", "scorer"),
    [
        ("ae", "l1"),
        pytest.param("ganomaly", "native", marks=pytest.mark.slow),
        pytest.param("ae", "ssim", marks=pytest.mark.slow),
        pytest.param("vae", "normalised", marks=pytest.mark.slow),
        pytest.param("pca", "native", marks=pytest.mark.slow),
    ],
)
def test_other_readings(method, scorer):
    settings = SMALL if method != "pca" else {"image_size": 16}
    model, reading = models.build(method, **settings), scorers.build(scorer, reduction="top:0.1")
    normals = 2 * torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(2)) - 1
    model = model.eval() if isinstance(model, torch.nn.Module) else model.fit(normals)
    reading.fit(model, normals)
    x = normals[:7].flip(3)
    engine = OnnxScorer(model, reading)
    for found, expected in zip(engine.read(model, x), reading.read(model, x), strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    alone, nothing = engine.read(model, x, maps=False)
    assert torch.equal(alone, engine.anomaly_score(model, x))
    assert nothing is None


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_what_cannot_be_traced_is_refused(fitted):
    by_gradient = detector(scorer="gradient").fit(phantoms())
    with pytest.raises(SettingsError, match=r"AEU read by Gradient.*use engine torch"):
        on_engine(by_gradient)


@pytest.mark.parametrize("scorer", ["gradient", "restoration"])
def test_what_takes_gradients_is_refused_before_anything_is_traced(scorer):
    model, reading = models.build("vae", **SMALL), scorers.build(scorer)
    with pytest.raises(SettingsError, match=r"takes gradients while it scores.*use engine torch"):
        OnnxScorer(model, reading)


def test_a_method_that_searches_is_refused_before_anything_is_traced():
    model = models.build("anogan", image_size=32, latent_dim=2)
    with pytest.raises(SettingsError, match=r"search along gradients.*use engine torch"):
        OnnxScorer(model, scorers.build("native"))


def test_an_engine_that_disagrees_is_refused(fitted, on_onnx, monkeypatch):
    monkeypatch.setattr(onnx_engine, "TOLERANCE", -1.0)
    with pytest.raises(SettingsError, match=r"must agree with PyTorch.*AEU read by Median"):
        on_onnx.scorers[0]._check()


def test_it_computes_one_model_only(on_onnx):
    other = models.build("ae", **SMALL).eval()
    with pytest.raises(SettingsError, match="the model that it was built from"):
        on_onnx.scorers[0].anomaly_score(other, torch.zeros(1, 1, 16, 16))


def test_wrong_engines_and_devices(fitted):
    with pytest.raises(SettingsError, match="engine must be one of torch, onnx, got 'tensorrt'"):
        on_engine(fitted, "tensorrt")
    with pytest.raises(NotFittedError):
        on_engine(detector())
    elsewhere = replace(fitted.fitted_, params={**fitted.fitted_.params, "device": "cuda"})
    with pytest.raises(SettingsError, match="computes on the CPU"):
        on_engine(elsewhere)


def test_a_missing_extra_is_named_with_its_install_line(fitted, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"engine onnx .*pip install .*\[onnx\]'"):
        on_engine(fitted)


def test_an_interrupted_scoring_keeps_its_engine(fitted, on_onnx, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_engine, "on_engine", lambda given, engine: on_onnx)
    write_pngs(tmp_path / "in", phantoms(3))
    samples = open_dataset(tmp_path / "in").samples

    def stop(done, total):
        raise KeyboardInterrupt

    out = {"out": tmp_path / "out", "root": tmp_path / "in"}
    with pytest.raises(KeyboardInterrupt):
        score_to_folder(fitted, samples, **out, progress=stop)
    with pytest.raises(RunError, match="interrupted scoring"):
        score_to_folder(fitted, samples, **out, options=ScoreOptions(engine="onnx"))
