"""The commands fingerprint and explain, through the command line."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from normalis.cli import app
from normalis.datasets.phantom import PhantomSettings, generate
from normalis.entropy import fingerprint
from normalis.entropy.picture import draw_fingerprint


@pytest.fixture(scope="module")
def head_slices():
    drawn = generate(40, PhantomSettings(image_size=32, noise=0.03, seed=0))
    return (255 * np.clip(drawn.images, 0, 1)).astype(np.uint8)


@pytest.fixture
def data(tmp_path, head_slices):
    """A folder with 40 normal training images, and anomalous test images of another size."""
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
    done = run("fingerprint", data, "--image-size", 32, "--out", file)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert found["images"] == 40, "the 40 anomalous test images are not looked at"
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
    done = run("fingerprint", data, "--image-size", 32)
    assert done.exit_code == 0
    assert "numbers:" not in done.output


def test_the_figure_shows_the_measured_numbers(head_slices):
    found = fingerprint(head_slices)
    rate, spectrum, lesions = draw_fingerprint(found).axes
    np.testing.assert_allclose(rate.lines[1].get_ydata(), found.rate_heldout)
    positive = [v for v in found.eigenvalues if v > 0]
    np.testing.assert_allclose(spectrum.lines[0].get_ydata(), positive)
    assert list(lesions.lines[0].get_ydata()) == [r["best_rank"] for r in found.lesion_ranks]
