"""The most similar normal images: what a run keeps of them, what is written and shown of them."""

import csv

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from normalis import AnomalyDetector
from normalis.cli import app
from normalis.errors import RunError, SettingsError
from normalis.fitted import FittedDetector
from normalis.loading.similar import SIDE, SimilarImages
from normalis.output.folder import ScoreOptions, score_to_folder
from normalis.report import write_report
from small_runs import anomalies, phantoms, write_pngs

NORMAL = phantoms(24)


def fitted(**changes):
    """Return a detector that knows the most similar normal images."""
    small = {"method": "feature-knn", "image_size": 32, "device": "cpu", "calibration": "none"}
    return AnomalyDetector(**(small | changes)).fit(NORMAL).fitted_


@pytest.fixture(scope="module")
def knn():
    return fitted()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("new")
    write_pngs(root, np.concatenate([NORMAL[:3], anomalies(4)]))
    return root


def write(detector, folder, out, **options):
    samples = FittedDetector.select(detector, open_data(folder)).samples
    asked = ScoreOptions(overlays=False, **options)
    return score_to_folder(detector, samples, out, root=folder, options=asked)


def open_data(folder):
    from normalis.datasets import open_dataset

    return open_dataset(folder)


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


# ---------------------------------------------------------------- what a run keeps


@pytest.mark.parametrize("method", ["feature-knn", "spade", "panel"])
def test_a_training_image_is_most_similar_to_itself(method):
    members = ["feature-knn", "spade"] if method == "panel" else None
    detector = fitted(method=method, members=members)
    found = detector.similar_normals(NORMAL[:5], k=2)
    assert found.numbers[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (found.distances[:, 0] < 1e-3 * found.distances[:, 1]).all()
    assert np.array_equal(found.pictures[:, 0, 0], NORMAL[:5])


def test_pictures_are_small_and_as_many_as_the_bank():
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 128, 128), dtype=np.uint8)

    class Model:
        similar = None

        @property
        def kept_images(self):
            import torch

            return torch.tensor([1, 4, 6])

    kept = SimilarImages.of(Model(), images)
    assert kept.pixels.shape == (3, 1, SIDE, SIDE)
    assert kept.pixels.dtype == np.uint8
    assert kept.picture(4).astype(float).mean() == pytest.approx(images[4].mean(), abs=1)
    deep = SimilarImages.of(Model(), images.astype(np.float32) / 255)
    assert np.abs(deep.pixels.astype(int) - kept.pixels).max() <= 1
    seen = np.array([0, 2, 3, 4, 5, 6, 7])  # a fold left image 1 out
    assert SimilarImages.of(Model(), images, seen).numbers.tolist() == [2, 5, 7]


def test_a_bank_bounds_what_is_kept(tmp_path):
    detector = fitted(method_options={"bank": 6})
    assert detector.similar.pixels.shape == (6, 1, 32, 32)
    found = detector.similar_normals(NORMAL, k=3)
    assert set(found.numbers.ravel()) <= set(detector.similar.numbers.tolist())
    kept = detector.similar.numbers
    assert detector.similar_normals(NORMAL[kept]).numbers[:, 0].tolist() == kept.tolist()


def test_a_run_keeps_pictures_and_no_names(knn, tmp_path):
    knn.save(tmp_path / "run")
    arrays = load_file(tmp_path / "run/model.safetensors")
    kept = {name for name in arrays if name.startswith("similar.")}
    assert kept == {"similar.pixels", "similar.rows", "similar.numbers"}
    again = FittedDetector.load(tmp_path / "run")
    one, two = (d.similar_normals(anomalies(3)) for d in (knn, again))
    assert np.array_equal(one.numbers, two.numbers)
    assert np.array_equal(one.pictures, two.pictures)


def test_a_run_that_may_not_keep_pictures_has_none(folder, tmp_path):
    detector = fitted(keep_similar=False)
    detector.save(tmp_path / "run")
    arrays = load_file(tmp_path / "run/model.safetensors")
    assert not any(name.startswith("similar") for name in arrays)
    assert not any(a.dtype == np.uint8 for a in arrays.values())
    again = FittedDetector.load(tmp_path / "run")
    with pytest.raises(SettingsError, match="keep_similar=True"):
        again.similar_normals(NORMAL)
    write(again, folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("similar*"))


def test_methods_that_name_no_images_keep_none(tmp_path):
    detector = AnomalyDetector(method="pca", image_size=32, calibration="none").fit(NORMAL)
    assert detector.fitted_.similar is None
    with pytest.raises(SettingsError, match="panel, spade or feature-knn"):
        detector.similar_normals(NORMAL)


def test_calibration_elsewhere_keeps_them(knn):
    again = knn.calibrate(phantoms(24, seed=9))
    assert np.array_equal(again.similar.pixels, knn.similar.pixels)


def test_folds_name_the_images_that_the_first_model_saw():
    detector = fitted(calibration="cv+", folds=2)
    found = detector.similar_normals(NORMAL[detector.similar.numbers])
    assert np.array_equal(found.numbers[:, 0], detector.similar.numbers)
    assert np.array_equal(found.pictures[:, 0, 0], NORMAL[detector.similar.numbers])
    assert 0 < len(detector.similar.numbers) < len(NORMAL)


# ---------------------------------------------------------------- what score writes


def test_score_names_three_and_writes_each_picture_once(knn, folder, tmp_path):
    write(knn, folder, tmp_path / "out")
    table = rows(tmp_path / "out/similar.csv")
    assert len(table) == 7 * 3
    assert [row["rank"] for row in table] == ["1", "2", "3"] * 7
    own = [row for row in table if row["rank"] == "1"][:3]
    assert [row["normal_image"] for row in own] == ["0", "1", "2"]
    assert all(float(row["distance"]) < 1e-2 for row in own)
    named = {f"{int(row['normal_image']):04d}.png" for row in table}
    assert {p.name for p in (tmp_path / "out/similar").iterdir()} == named
    with Image.open(tmp_path / "out/similar/0001.png") as picture:
        assert np.array_equal(np.asarray(picture), NORMAL[1])
    assert not any(str(folder) in row["normal_image"] for row in table)


def test_score_may_leave_them_out(knn, folder, tmp_path):
    write(knn, folder, tmp_path / "out", similar=False)
    assert not list((tmp_path / "out").glob("similar*"))


def test_a_killed_scoring_goes_on_with_them(knn, folder, tmp_path, monkeypatch):
    write(knn, folder, tmp_path / "whole")
    from normalis.output import folder as module
    from normalis.output import tables

    def killed(self, samples, progress=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module._Writer, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            write(knn, folder, tmp_path / "out")
    assert not (tmp_path / "out/similar.csv").exists()
    write(knn, folder, tmp_path / "out")
    whole = (tmp_path / "whole/similar.csv").read_bytes()
    assert (tmp_path / "out/similar.csv").read_bytes() == whole
    with monkeypatch.context() as patched:  # the scores of the second run came from the journal
        patched.setattr(tables, "write_csv", lambda *a: None)
        write(knn, folder, tmp_path / "out")
    assert (tmp_path / "out/similar.csv").read_bytes() == whole


# ---------------------------------------------------------------- what is said and shown


def test_the_page_shows_them(knn, folder, tmp_path):
    write(knn, folder, tmp_path / "out")
    html = write_report(tmp_path / "out", tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'id="similar-data"' in html
    assert "Most similar normal images" in html
    write(knn, folder, tmp_path / "without", similar=False)
    html = write_report(tmp_path / "without", tmp_path / "page2.html").read_text(encoding="utf-8")
    assert 'id="similar-data"' not in html
    assert "Most similar normal images" not in html


def test_fit_says_what_it_keeps_and_how_to_keep_nothing(tmp_path):
    write_pngs(tmp_path / "normal", NORMAL)
    fit = ["fit", str(tmp_path / "normal"), "--method", "feature-knn", "--image-size", "32"]
    said = CliRunner().invoke(app, [*fit, "--out", str(tmp_path / "a")]).output
    assert "pictures of" in said
    assert "--no-keep-similar keeps none" in said
    said = CliRunner().invoke(app, [*fit, "--out", str(tmp_path / "b"), "--no-keep-similar"]).output
    assert "pictures of" not in said


def test_a_damaged_table_is_named(knn, folder, tmp_path):
    write(knn, folder, tmp_path / "out")
    (tmp_path / "out/similar.csv").write_text("path,slice,rank,normal_image,distance\na,,x,1,2\n")
    with pytest.raises(RunError, match=r"similar\.csv: is not what normalis writes"):
        write_report(tmp_path / "out", tmp_path / "page.html")
