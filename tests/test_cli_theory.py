"""The command fingerprint, and what a fit measures, through the command line."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from normalis import AnomalyDetector
from normalis.cli import app
from normalis.datasets.phantom import PhantomSettings, generate
from normalis.entropy import fingerprint
from normalis.entropy.picture import draw_fingerprint
from normalis.errors import SettingsError


@pytest.fixture(scope="module")
def head_slices():
    drawn = generate(60, PhantomSettings(image_size=32, noise=0.03, seed=0))
    return (255 * np.clip(drawn.images, 0, 1)).astype(np.uint8)


@pytest.fixture
def data(tmp_path, head_slices):
    """A folder with 60 normal training images, and anomalous test images of another size."""
    for i, image in enumerate(head_slices):
        for folder, shown in (("train/good", image), ("test/bad", 255 - image)):
            path = tmp_path / "data" / folder / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(path)
    return tmp_path / "data"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_fingerprint_reads_normal_training_images_only(data, head_slices, tmp_path):
    file = tmp_path / "out" / "found.json"
    done = run("research", "fingerprint", data, "--image-size", 32, "--out", file)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found["images"] == 60, "the 60 anomalous test images are not looked at"
    expected = fingerprint(head_slices)
    assert found["eigenvalues"] == pytest.approx(expected.eigenvalues, rel=1e-4)
    assert f"{expected.components['90%']}" in done.output
    for said in ("Rate R(D)", "TwoNN", "effective rank", "do not name a capacity"):
        assert said in done.output
    for note in found["notes"]:
        assert note[:40] in done.output
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.size == (1100, 340)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "something is drawn"


def test_fingerprint_needs_no_file(data):
    done = run("research", "fingerprint", data, "--image-size", 32)
    assert done.exit_code == 0
    assert "numbers:" not in done.output


def test_the_figure_shows_the_measured_numbers(head_slices):
    found = fingerprint(head_slices)
    rate, spectrum, lesions = draw_fingerprint(found).axes
    np.testing.assert_allclose(rate.lines[1].get_ydata(), found.rate_heldout)
    positive = [v for v in found.eigenvalues if v > 0]
    np.testing.assert_allclose(spectrum.lines[0].get_ydata(), positive)
    assert list(lesions.lines[0].get_ydata()) == [r["best_rank"] for r in found.lesion_ranks]


TINY = ("--image-size", 32, "--epochs", 1, "--option", "hidden_dim=8", "--device", "cpu")


def test_a_latent_dimension_is_the_method_s_own_unless_given(head_slices):
    made = {"image_size": 32, "epochs": 1, "method_options": {"hidden_dim": 8}, "device": "cpu"}
    for method, own in (("ae-u", 16), ("nested-ae", 128)):
        assert AnomalyDetector(method=method, **made).fit(head_slices).latent_dim_ == own
    assert AnomalyDetector(method="ae-u", latent_dim=3, **made).fit(head_slices).latent_dim_ == 3


@pytest.mark.parametrize("wrong", ["automatic", "1.5", 1.5])
def test_latent_dim_is_a_number_or_a_rule(head_slices, wrong):
    with pytest.raises(SettingsError, match="latent_dim must be a whole number"):
        AnomalyDetector(method="ae-u", latent_dim=wrong).fit(head_slices)


def test_half_of_what_is_held_out_is_watched_where_a_method_asks(head_slices):
    made = {"method": "rate-ae", "image_size": 32, "epochs": 1, "device": "cpu"}
    made["calibration"] = "split"
    options = {"hidden_dim": 8, "rate": 5.0}
    kept, both = (
        AnomalyDetector(method_options=options | more, **made).fit(head_slices)
        for more in ({"held_out": True}, {})
    )
    assert kept.model_.settings.damping == 0.1, "or the rate ends wherever its swing is"
    kept, both = (d.info_["data"]["calibration_images"] for d in (kept, both))
    assert kept == pytest.approx(both / 2, abs=1)


def test_a_fit_says_what_rate_came_out(tmp_path):
    drawn = generate(160, PhantomSettings(image_size=32, seed=0)).images
    options = {"rate": 1.0, "held_out": True, "hidden_dim": 8}
    detector = AnomalyDetector(
        method="rate-ae", latent_dim=2, image_size=32, epochs=1, device="cpu",
        calibration_share=0.5, method_options=options,
    )  # fmt: skip
    detector.fit(drawn, run=tmp_path / "run")
    kept = AnomalyDetector.load(tmp_path / "run").info_["measured"]
    assert 0 <= kept["rate_low"] < kept["rate"] < kept["rate_high"]
    plain = AnomalyDetector(
        method="ae-u", image_size=32, epochs=1, device="cpu", method_options={"hidden_dim": 8}
    )
    assert "measured" not in plain.fit(drawn).info_
