from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from normalis import models
from normalis.cli import app
from normalis.engines import export
from normalis.engines.export import OUTPUTS, export_onnx
from normalis.errors import MissingExtraError, NotFittedError, RunError, SettingsError, extras
from small_runs import detector, phantoms

SMALL = {"image_size": 16, "latent_dim": 2, "hidden_dim": 8}
# Tracing takes seconds a method: two stand for all, the rest run with the slow tests.
SLOW = (
    "ae-spatial",
    "ae-baur",
    "vae",
    "cevae",
    "gmvae",
    "ceae",
    "constrained-ae",
    "ae-u",
    "dae",
    "ganomaly",
)
NETWORKS = ["ae", "memae", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]


def run_onnx(path, x):
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(list(OUTPUTS), {"x": x.numpy()}), session.get_modelmeta()


def trained_looking(method):
    """Return a model whose batch statistics are not those of a new one."""
    model = models.build(method, **SMALL)
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(seed)))
    return model.eval()


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("method", NETWORKS)
def test_the_file_computes_what_the_model_computes(method, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    model = trained_looking(method)
    path = export_onnx(model, tmp_path / "model.onnx")
    for batch in (1, 5):
        x = 2 * torch.rand(batch, 1, 16, 16, generator=torch.Generator().manual_seed(9)) - 1
        (maps, x_hat), _ = run_onnx(path, x)
        with torch.no_grad():
            assert relative(maps, model.anomaly_map(x).numpy()) < 1e-5
            assert relative(x_hat, model.reconstruct(x).numpy()) < 1e-5
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]


def test_export_of_a_run_from_the_command_line(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    fitted = detector(standardize=True).fit(phantoms())
    fitted.save(tmp_path / "run")
    call = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out" / "model.onnx")]
    done = CliRunner().invoke(app, call, catch_exceptions=False)
    assert done.exit_code == 0
    assert "model.onnx" in done.output
    x = torch.rand(3, 1, 16, 16)
    (maps, _), meta = run_onnx(tmp_path / "out" / "model.onnx", x)
    with torch.no_grad():
        assert relative(maps, fitted.model_.anomaly_map(x).numpy()) < 1e-5
    known = meta.custom_metadata_map
    assert (known["method"], known["image_size"]) == ("ae-u", "16")
    assert "mean" in known["standardize"]
    with pytest.raises(RunError, match="exists"):
        CliRunner().invoke(app, call, catch_exceptions=False)


def test_what_cannot_be_exported_is_refused(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    with pytest.raises(SettingsError, match="network can be exported, got MeanImage"):
        export_onnx(models.build("mean-image", image_size=16), tmp_path / "model.onnx")
    with pytest.raises(NotFittedError):
        export_onnx(detector(), tmp_path / "model.onnx")


def test_what_is_read_by_gradients_is_refused_with_what_to_do(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    options = {"steps": 2, "tv": 0.1}
    fitted = detector(method="vae", scorer="restoration", scorer_options=options).fit(phantoms())
    with pytest.raises(
        SettingsError, match=r"Restoration takes gradients.*with_scorer\('native'\)"
    ):
        export_onnx(fitted, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named_with_its_install_line(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[onnx\]'"):
        export_onnx(models.build("ae", **SMALL), tmp_path / "model.onnx")


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    model = models.build("ae", **SMALL)
    program = SimpleNamespace(  # a graph is traced above; this is about its file
        model=SimpleNamespace(metadata_props={}),
        save=lambda path, external_data: Path(path).write_bytes(b"graph"),
    )
    monkeypatch.setattr(export, "trace", lambda *_: program)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        export_onnx(model, tmp_path / "file" / "model.onnx")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        export_onnx(model, tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
