"""The object that users hold: what it accepts, what it promises, and how it survives."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

import normalis.detector.images
from normalis import AnomalyDetector
from normalis import storage as records
from normalis.datasets import open_dataset
from normalis.errors import DataError, NotFittedError, RunError, SettingsError
from normalis.models.ae_u import AEU, ROUNDING
from normalis.models.base import DirectModel
from normalis.training import checkpoints
from small_runs import anomalies, detector, phantoms, read_table, write_mvtec, write_pngs
from test_images_dicom import make as make_dicom
from test_images_dicom import write as write_dicom
from test_images_nifti import write as write_nifti


@pytest.fixture(scope="module")
def images():
    return phantoms(30)


@pytest.fixture(scope="module")
def fitted(images):
    return detector(epochs=20, learning_rate=0.01).fit(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    root = tmp_path_factory.mktemp("normal scans ä")
    write_pngs(root, images)
    return root


def weights(fitted_detector):
    return {k: v.clone() for k, v in fitted_detector.model_.state().items()}


def same_weights(one, other):
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- what it accepts --------------------------------------------------------------------------


def test_fit_returns_self_and_sets_fitted_state(images):
    unfitted = detector()
    assert not [name for name in vars(unfitted) if name.endswith("_")]
    assert unfitted.fit(images) is unfitted
    assert unfitted.info_["data"]["train_images"] == 24
    assert unfitted.info_["data"]["calibration_images"] == len(unfitted.decision_scores_) == 6
    assert len(unfitted.history_) == 1
    assert unfitted.skipped_ == []
    assert unfitted.rule_ is None


def test_the_same_images_in_every_form_are_the_same(fitted, images, folder):
    paths = sorted(folder.iterdir())
    expected = fitted.anomaly_score(images)
    assert expected.shape == (30,)
    forms = [
        images[:, None],
        torch.from_numpy(images),
        torch.from_numpy(images)[:, None],
        folder,
        str(folder),
        paths,
        [str(p) for p in paths],
        open_dataset(folder),
    ]
    for form in forms:
        np.testing.assert_allclose(fitted.anomaly_score(form), expected, rtol=1e-5)
    # Not rounded to bytes when they are resized, which an error over a small variance magnifies.
    as_floats = fitted.anomaly_score(images / 255)
    np.testing.assert_allclose(as_floats, expected, rtol=0.1)
    assert np.median(np.abs(as_floats / expected - 1)) < 0.03


def test_fitting_on_a_folder_a_list_or_an_array_is_the_same(images, folder):
    of_array = detector().fit(images)
    assert same_weights(of_array, detector().fit(folder))
    assert same_weights(of_array, detector().fit(sorted(folder.iterdir())))
    assert not same_weights(of_array, detector(random_state=1).fit(images))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(12, 20, 24), (12, 3, 20, 24)])
def test_channels(channels, shape, rng):
    x = rng.random(shape)
    maps = detector(channels=channels).fit(x).anomaly_map(x)
    assert maps.shape == (12, 16, 16)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()


@pytest.mark.parametrize("method", ["pca", "mean-image", "knn"])
def test_methods_without_training(method, images, tmp_path):
    fitted = detector(method=method, method_options=None).fit(images)
    assert isinstance(fitted.model_, DirectModel)
    assert fitted.history_ == []
    fitted.save(tmp_path / "run")
    again = AnomalyDetector.load(tmp_path / "run")
    np.testing.assert_array_equal(again.anomaly_score(images), fitted.anomaly_score(images))


@pytest.mark.filterwarnings("ignore:grey values are in different units")
def test_every_pillow_mode_goes_through(tmp_path, images):
    for i, mode in enumerate(["RGB", "RGBA", "P", "CMYK", "LA", "1", "L", "I;16"] * 2):
        size = (16 + i, 40 - i)
        image = Image.fromarray(images[i]).resize(size)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        suffix = ".tif" if mode in ("CMYK", "I;16") else ".png"
        image.save(tmp_path / f"{i:02d}{suffix}")
    (tmp_path / "00.png").rename(tmp_path / "00.jpg")
    fitted = detector().fit(tmp_path)
    assert fitted.skipped_ == []
    scores = fitted.anomaly_score(tmp_path)
    assert scores.shape == (16,)
    assert np.isfinite(scores).all()


# --- scikit-learn -----------------------------------------------------------------------------


def test_scikit_learn_vocabulary(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "model_")
    copy.set_params(latent_dim=4, method="vae")
    assert (copy.latent_dim, copy.method) == (4, "vae")
    with pytest.raises(ValueError, match="Invalid parameter 'latent_dims'"):
        copy.set_params(latent_dims=4)
    assert "latent_dim=2" in repr(fitted)


def test_higher_is_more_anomalous(fitted, images):
    normal, odd = fitted.anomaly_score(phantoms(20, seed=9)), fitted.anomaly_score(anomalies(20))
    assert np.median(odd) > np.median(normal)
    np.testing.assert_array_equal(fitted.decision_function(images), fitted.anomaly_score(images))


def test_maps_are_high_where_the_anomaly_is(fitted):
    maps = fitted.anomaly_map(anomalies(20))
    inside = maps[:, 4:8, 4:8].mean()
    assert inside > 2 * maps.mean()


def test_predict_threshold_and_p_value_are_one_statement(fitted):
    x = np.concatenate([phantoms(20, seed=9), anomalies(20)])
    scores, flags, p = fitted.anomaly_score(x), fitted.predict(x), fitted.p_value(x)
    assert set(np.unique(flags)) == {0, 1}
    np.testing.assert_array_equal(flags, scores > fitted.threshold_)
    np.testing.assert_array_equal(flags, p <= fitted.fpr)
    assert ((p > 0) & (p <= 1)).all()
    order = np.argsort(scores)
    assert (np.diff(p[order]) <= 0).all()


def test_a_rate_that_cannot_be_certified_says_so(fitted, images):
    strict = clone(fitted).set_params(fpr=0.01).fit(images)
    with pytest.raises(SettingsError, match="6"):
        strict.predict(images)
    assert strict.p_value(images).min() >= 1 / 7


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.anomaly_score(np.zeros((1, 16, 16))),
        lambda d: d.anomaly_map(np.zeros((1, 16, 16))),
        lambda d: d.predict(np.zeros((1, 16, 16))),
        lambda d: d.threshold_,
        lambda d: d.save("nowhere"),
        lambda d: d.calibrate(np.zeros((1, 16, 16))),
        lambda d: d.info_,
    ],
)
def test_unfitted_is_an_error(call):
    with pytest.raises(NotFittedError, match="must be fitted first"):
        call(detector())


def test_the_global_random_state_is_left_alone(images):
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    detector().fit(images).anomaly_score(images)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, "image_size must be a multiple of 16"),
        ({"channels": 2}, "channels must be 1"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number or None, got 2.5"),
        ({"latent_dim": 0}, "latent_dim must be at least 1"),
        ({"method": "vea"}, "did you mean 'vae'"),
        ({"scorer": "l9"}, "scorer must be one of"),
        ({"reduction": "maxx"}, "reduction must be"),
        ({"calibration": "cv"}, "calibration must be auto, split, cv\\+ or none, got 'cv'"),
        ({"calibration_share": 1}, "calibration_share must be in"),
        ({"fpr": 2}, r"fpr must be in \(0, 1\), got 2"),
        ({"random_state": -1}, "random_state must be a whole number from 0 to 4294967295, got -1"),
        ({"random_state": None}, "random_state"),
        ({"window": 5}, r"window must be two numbers \(low, high\), got 5"),
        ({"slice_range": (0,)}, "slice_range must be two numbers"),
        ({"method_options": {"depth": 1}}, "unknown setting 'depth'"),
        ({"device": "abacus"}, "device must be auto, cpu or cuda"),
        ({"device": "meta"}, "device must be auto, cpu or cuda"),
        ({"device": None}, "device must be auto, cpu or cuda"),
        ({"device": "cuda:99"}, "device 'cuda:99' was asked for"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_read(changes, message, monkeypatch):
    def read(*_, **__):
        raise AssertionError("images were read")

    monkeypatch.setattr(normalis.detector.images, "normal_images", read)
    with pytest.raises(SettingsError, match=message):
        detector(**changes).fit("nowhere")


def test_numpy_numbers_are_settings(images, tmp_path):
    fitted = detector(latent_dim=np.int64(3), percentiles=(np.float64(1), 99))
    fitted.fit(images, run=tmp_path / "run")
    assert AnomalyDetector.load(tmp_path / "run").latent_dim == 3


# --- calibration ------------------------------------------------------------------------------


def test_without_calibration_everything_is_trained_on(images):
    fitted = detector(calibration="none").fit(images)
    assert fitted.info_["data"]["train_images"] == 30
    assert fitted.calibration_ is None
    assert fitted.anomaly_score(images).shape == (30,)
    for ask in (fitted.predict, fitted.p_value):
        with pytest.raises(NotFittedError, match='calibration="split"'):
            ask(images)


def spy_on_halves(monkeypatch):
    """Collect what is trained on and what is held out."""
    seen = []
    original = normalis.detector.images.normal_images

    def noting(*arguments, **options):
        seen.append(original(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(normalis.detector.images, "normal_images", noting)
    return seen


def test_patients_are_held_out_whole(tmp_path, monkeypatch):
    write_pngs(tmp_path, phantoms(40))
    lines = [f"{i:03d}.png,0,P{i % 10},train" for i in range(40)]
    (tmp_path / "m.csv").write_text("path,label,patient_id,split\n" + "\n".join(lines))
    seen = spy_on_halves(monkeypatch)
    fitted = detector().fit(tmp_path)
    train = {row.patient_id for row in seen[0].train.rows}
    held = {row.patient_id for row in seen[0].held.rows}
    assert len(held) == 2
    assert not train & held
    assert train | held == {f"P{i}" for i in range(10)}
    assert fitted.calibration_.level == "patient"
    assert fitted.calibration_.n_units == 2


def test_patients_of_arrays_are_held_out_whole(monkeypatch):
    seen = spy_on_halves(monkeypatch)
    x, patients = phantoms(40), np.repeat(np.arange(10), 4)
    detector().fit(x, patient_ids=[f"P{p}" for p in patients])
    held = {row.sample.index for row in seen[0].held.rows}
    assert len(held) == 8
    for p in range(10):
        own = set(np.flatnonzero(patients == p))
        assert own <= held or not own & held


def test_near_duplicates_are_held_out_together(monkeypatch, rng):
    seen = spy_on_halves(monkeypatch)
    different = rng.integers(0, 256, (20, 16, 16), dtype=np.uint8)
    x = np.concatenate([different, different // 2 + 60])  # each image twice, at another contrast
    detector().fit(x)
    held = {row.sample.index for row in seen[0].held.rows}
    assert held
    assert {i % 20 for i in held} == {i for i in held if i < 20}
    assert len(held) % 2 == 0


def test_a_validation_split_is_what_is_held_out(tmp_path, monkeypatch):
    write_mvtec(tmp_path, train=20, valid=7)
    seen = spy_on_halves(monkeypatch)
    detector().fit(tmp_path)
    assert {row.path.parts[-3] for row in seen[0].train.rows} == {"train"}
    assert {row.path.parts[-3] for row in seen[0].held.rows} == {"valid"}
    assert (len(seen[0].train.rows), len(seen[0].held.rows)) == (20, 7)


def test_labels_change_nothing_in_what_is_fitted(tmp_path):
    write_pngs(tmp_path, np.concatenate([phantoms(20), anomalies(20)]))

    def fit_with(labels):
        rows = [f"{i:03d}.png,0,train" for i in range(20)]
        rows += [f"{20 + i:03d}.png,{label},test" for i, label in enumerate(labels)]
        (tmp_path / "m.csv").write_text("path,label,split\n" + "\n".join(rows))
        return detector().fit(tmp_path)

    one, other = fit_with([0, 1] * 10), fit_with([1, 1, 0, 0] * 5)
    assert same_weights(one, other)
    np.testing.assert_array_equal(one.decision_scores_, other.decision_scores_)
    assert one.colour_scale_ == other.colour_scale_


@pytest.mark.parametrize("scorer", ["mahalanobis", "normalised"])
def test_a_fitted_scorer_is_not_calibrated_on_what_it_saw(images, scorer, tmp_path):
    fitted = detector(scorer=scorer).fit(images)
    assert 1 <= len(fitted.decision_scores_) < 6
    fitted.save(tmp_path / "run")
    again = AnomalyDetector.load(tmp_path / "run")
    np.testing.assert_array_equal(again.anomaly_score(images), fitted.anomaly_score(images))


def test_another_scorer_reads_the_same_model(images):
    fitted = detector().fit(images).fitted_
    other = fitted.with_scorer("l1", images, reduction="max")
    assert other.models == fitted.models
    direct = detector(scorer="l1", reduction="max").fit(images)
    np.testing.assert_array_equal(other.anomaly_score(images), direct.anomaly_score(images))
    assert other.calibration.threshold(0.2) == direct.threshold_
    assert type(fitted.scorers[0]).__name__ == "Median"
    with pytest.raises(DataError, match="must be those that the detector was fitted on"):
        fitted.with_scorer("l1", images[::-1])


def test_another_scorer_is_not_calibrated_on_images_that_chose_the_epoch(images):
    fitted = detector(keep_epoch="best", epochs=2).fit(images)
    other = fitted.fitted_.with_scorer("l1", images)
    assert other.calibration.n_images == fitted.calibration_.n_images
    direct = detector(keep_epoch="best", epochs=2, scorer="l1").fit(images)
    np.testing.assert_array_equal(other.normal_scores, direct.decision_scores_)


# --- odd images -------------------------------------------------------------------------------


def test_too_few_or_too_equal_images_say_what_to_do():
    one = phantoms(1)
    with pytest.raises(DataError, match="at least 3 images, got 1"):
        detector().fit(one)
    with pytest.raises(DataError, match="at least 2 normal images, got 1"):
        detector(calibration="none").fit(one)
    with pytest.raises(DataError, match="at least 3 groups of near duplicates, got 1"):
        detector().fit(np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(DataError, match="must vary in intensity"):
        detector().fit(np.full((20, 8, 8), 7, np.int32))
    with pytest.raises(DataError, match="at least 3 patients, got 2"):
        detector().fit(phantoms(4), patient_ids=["a", "a", "b", "b"])
    with pytest.raises(DataError, match="one entry per image, got 2 for 4 images"):
        detector().fit(phantoms(4), patient_ids=["a", "b"])


def test_constant_images_can_be_fitted_and_scored_without_calibration():
    flat = np.full((20, 8, 8), 90, np.uint8)
    fitted = detector(calibration="none", epochs=2, standardize=True).fit(flat)
    assert np.isfinite(fitted.anomaly_score(flat)).all()


def test_one_pixel_images(rng):
    x = rng.random((20, 1, 1))
    assert np.isfinite(detector().fit(x).anomaly_map(x)).all()


def test_a_constant_image_among_others_scores_finitely(fitted):
    assert np.isfinite(fitted.anomaly_score(np.zeros((2, 5, 7), np.uint8))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_name_the_image(fitted, bad):
    x = phantoms(12) / 255
    x[3, 0, 0] = bad
    for ask in (detector().fit, fitted.anomaly_score):
        with pytest.raises(DataError, match="image 3 holds NaN or infinity"):
            ask(x)


def test_nothing_to_read(tmp_path, fitted):
    (tmp_path / "empty").mkdir()
    for ask in (detector().fit, fitted.anomaly_score):
        with pytest.raises(DataError, match="no image found"):
            ask(tmp_path / "empty")
        with pytest.raises(DataError, match="there is no such file or folder"):
            ask(tmp_path / "absent")
        with pytest.raises(DataError, match="at least one image"):
            ask([])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(DataError, match="none of the 1 images is readable"):
        detector().fit(tmp_path / "bad")
    write_pngs(tmp_path / "anomalous", anomalies(3))
    rows = [f"anomalous/{i:03d}.png,1,test" for i in range(3)]
    (tmp_path / "m.csv").write_text("path,label,split\n" + "\n".join(rows))
    with pytest.raises(DataError, match="must have normal training images, has none"):
        detector().fit(tmp_path / "m.csv")


def test_one_unreadable_image_among_many_is_reported(tmp_path, images):
    write_pngs(tmp_path / "in", images)
    (tmp_path / "in/broken.png").write_bytes((tmp_path / "in/000.png").read_bytes()[:200])
    fitted = detector().fit(tmp_path / "in", run=tmp_path / "run")
    assert [path.name for path, _ in fitted.skipped_] == ["broken.png"]
    (row,) = read_table(tmp_path / "run/skipped.csv")
    assert row["path"].endswith("broken.png")
    assert "truncated" in row["reason"]
    assert fitted.info_["data"]["skipped"] == 1
    with pytest.raises(DataError, match=r"1 of the images .*broken\.png: truncated"):
        fitted.anomaly_score(tmp_path / "in")  # a shorter array would not line up with the files


# --- deeper than 8 bit ------------------------------------------------------------------------


def test_16_bit_values_beyond_the_rule_are_kept(tmp_path, rng):
    deep = rng.integers(1000, 3000, (20, 16, 16)).astype(np.uint16)
    write_pngs(tmp_path / "train", deep)
    bright = deep[:2].copy()
    bright[0, 4:8, 4:8], bright[1, 4:8, 4:8] = 20000, 40000
    write_pngs(tmp_path / "new", bright)
    fitted = detector(percentiles=(0, 100)).fit(tmp_path / "train")
    assert (fitted.rule_.low, fitted.rule_.high) == (deep.min(), deep.max())
    less, more = fitted.anomaly_score(tmp_path / "new")
    assert more > 2 * less  # clipped, both would score the same
    np.testing.assert_allclose(fitted.anomaly_score(bright), [less, more], rtol=1e-5)


def test_volumes_and_frames_are_images(tmp_path, rng):
    for i in range(3):
        write_nifti(tmp_path / f"n{i}.nii", rng.integers(0, 900, (12, 10, 7)).astype(np.int16))
        values = rng.integers(0, 900, (4, 12, 10)).astype(np.uint16)
        write_dicom(tmp_path / f"d{i}.dcm", make_dicom(values, PatientID=f"P{i}"))
    fitted = detector(calibration="none").fit(tmp_path)
    assert fitted.info_["data"]["train_images"] == 3 * 7 + 3 * 4
    assert fitted.anomaly_map(tmp_path).shape == (33, 16, 16)
    middle = detector(calibration="none", plane="coronal", slice_range=(0.25, 0.75))
    assert middle.fit([tmp_path / "n0.nii"]).info_["data"]["train_images"] == 6


def test_patients_of_headers_are_held_out_whole(tmp_path, rng, monkeypatch):
    for i in range(8):
        values = rng.integers(0, 900, (3, 12, 10)).astype(np.uint16)
        write_dicom(tmp_path / f"{i}.dcm", make_dicom(values, PatientID=f"P{i // 2}"))
    seen = spy_on_halves(monkeypatch)
    detector(calibration_share=0.25).fit(tmp_path)
    assert len(seen[0].held.rows) == 6
    assert len({row.patient_id for row in seen[0].held.rows}) == 1


# --- save and load ----------------------------------------------------------------------------


def test_what_is_loaded_scores_bit_for_bit_the_same(fitted, images, tmp_path):
    path = fitted.save(tmp_path / "my model ö")
    again = AnomalyDetector.load(path)
    # What was left to the defaults is written down: these may change, a run may not.
    used = {"scorer": "median", "reduction": "top:0.02", "recipe": "paper"}
    used["method_options"] = AEU.default_options | fitted.method_options
    assert {k: v for k, v in again.get_params().items() if k != "device"} == {
        k: v for k, v in (fitted.get_params() | used).items() if k != "device"
    }
    np.testing.assert_array_equal(again.anomaly_score(images), fitted.anomaly_score(images))
    np.testing.assert_array_equal(again.anomaly_map(images), fitted.anomaly_map(images))
    np.testing.assert_array_equal(again.predict(images), fitted.predict(images))
    assert again.threshold_ == fitted.threshold_
    assert again.colour_scale_ == fitted.colour_scale_
    assert again.history_ == fitted.history_
    assert again.info_ == fitted.info_


def test_a_run_keeps_its_settings_when_what_is_usual_changes(images, tmp_path, monkeypatch):
    """As a run of an earlier release that knew no such setting."""
    with monkeypatch.context() as before:
        before.setattr(AEU, "default_options", {})
        earlier = detector(epochs=1).fit(images, run=tmp_path / "run")
    again = AnomalyDetector.load(tmp_path / "run")
    assert again.model_.settings == earlier.model_.settings
    assert again.model_.settings.noise == ROUNDING
    assert detector(epochs=1).fit(images).model_.settings.noise == 2
    asked = detector(epochs=1, method_options={"hidden_dim": 8, "noise": 3.0}).fit(images)
    assert asked.model_.settings.noise == 3, "what was asked for comes before what is usual"


def test_a_run_holds_its_rule_and_no_pickle(tmp_path, rng):
    deep = rng.integers(0, 3000, (20, 16, 16)).astype(np.uint16)
    write_pngs(tmp_path / "in", deep)
    fitted = detector().fit(tmp_path / "in", run=tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names - {".lock"} == {"model.safetensors", "model.json", "skipped.csv"}
    for path in (tmp_path / "run").iterdir():
        assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"PK"))
    again = AnomalyDetector.load(tmp_path / "run")
    assert again.rule_ == fitted.rule_
    assert (
        again.info_["versions"]["torch"] == torch.__version__.split("+")[0]
        or "+" in (again.info_["versions"]["torch"])
    )
    assert again.info_["data"]["fingerprint"]


def test_a_class_of_ones_own_is_found_again(images, tmp_path):
    from normalis.models.pca import PCA

    fitted = detector(method=PCA, method_options=None).fit(images)
    fitted.save(tmp_path / "run")
    assert AnomalyDetector.load(tmp_path / "run").method == "pca"


def test_a_run_with_a_file_missing_or_edited(fitted, tmp_path):
    with pytest.raises(RunError, match=r"must hold model.json.*not a run"):
        AnomalyDetector.load(tmp_path)
    edited = fitted.save(tmp_path / "edited") / "model.json"
    edited.write_text(edited.read_text().replace('"latent_dim": 2', '"latent_dim": 3'))
    with pytest.raises(RunError, match="was changed after it was written"):
        AnomalyDetector.load(edited.parent)
    edited.write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        AnomalyDetector.load(edited.parent)
    weights_file = fitted.save(tmp_path / "other") / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(RunError, match="is not the file that was written"):
        AnomalyDetector.load(weights_file.parent)
    weights_file.unlink()
    with pytest.raises(RunError, match="is missing"):
        AnomalyDetector.load(weights_file.parent)


def test_a_finished_run_is_replaced_only_if_asked(images, tmp_path):
    run = tmp_path / "run"
    first = detector().fit(images, run=run)
    with pytest.raises(RunError, match=r"holds a finished run.*--overwrite"):
        detector(random_state=1).fit(images, run=run)
    before = (run / "model.json").read_bytes()
    assert same_weights(detector().fit(images, run=run), first)
    assert (run / "model.json").read_bytes() == before, "the same again is answered"
    with pytest.raises(RunError, match=r"holds a finished run.*--overwrite"):
        detector().fit(images[::-1], run=run)
    with pytest.raises(RunError, match="holds a finished run"):
        first.save(run)
    assert same_weights(AnomalyDetector.load(run), first)
    second = detector(random_state=1).fit(images, run=run, overwrite=True)
    assert same_weights(AnomalyDetector.load(run), second)


def test_a_folder_of_other_things_is_left_alone(images, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds thesis.tex"):
        detector().fit(images, run=tmp_path)
    with pytest.raises(RunError, match="must be a folder, is a file"):
        detector().fit(images, run=tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


# --- interrupted fits -------------------------------------------------------------------------


class Stop(Exception):
    """An interruption."""


def stop_after(epochs):
    def callback(step):
        if step.epoch == epochs:
            raise Stop

    return callback


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("method", ["ae", "vae", "ganomaly"])
def test_a_fit_that_was_interrupted_goes_on_to_the_same_weights(method, images, tmp_path):
    run = tmp_path / "run"
    whole = detector(method=method, epochs=5).fit(images)
    for epoch in (2, 4):
        with pytest.raises(Stop):
            detector(method=method, epochs=5).fit(images, run=run, progress=stop_after(epoch))
        assert (run / "checkpoint.safetensors").is_file()
    heard = []
    resumed = detector(method=method, epochs=5).fit(
        images, run=run, progress=lambda step: heard.append(step.epoch)
    )
    assert heard == [5]
    assert same_weights(resumed, whole)
    assert resumed.history_ == whole.history_
    np.testing.assert_array_equal(resumed.decision_scores_, whole.decision_scores_)
    assert not (run / "checkpoint.safetensors").exists()
    assert same_weights(AnomalyDetector.load(run), whole)


@pytest.mark.usefixtures("often")
def test_an_unfinished_run_is_of_one_setting_and_one_data_set(images, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        detector(epochs=3).fit(images, run=run, progress=stop_after(2))
    with pytest.raises(RunError, match="unfinished: run fit again to resume it"):
        AnomalyDetector.load(run)
    for changes, data in (({"latent_dim": 3}, images), ({}, images[:-1])):
        with pytest.raises(RunError, match="unfinished run with other settings or other data"):
            detector(**({"epochs": 3} | changes)).fit(data, run=run)
    (run / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match=r"is damaged .* remove it to start again"):
        detector(epochs=3).fit(images, run=run)


_FIT = """
import sys, time
from normalis.training import checkpoints
from small_runs import detector, phantoms
checkpoints.EVERY_S = 0.0
slow = lambda step: time.sleep(0.2)
detector(epochs=40).fit(phantoms(30), run=sys.argv[1], progress=slow)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_kill_9_leaves_a_run_that_goes_on_to_the_same_weights(images, tmp_path):
    run = tmp_path / "run"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        )
    }
    process = subprocess.Popen([sys.executable, "-c", _FIT, str(run)], env=environment)
    try:
        give_up = time.monotonic() + 240
        while not (run / "checkpoint.safetensors").is_file():
            assert process.poll() is None, "the fit ended by itself"
            assert time.monotonic() < give_up, "no checkpoint appeared"
            time.sleep(0.05)
        with pytest.raises(RunError, match="is being written by another process"):
            detector(epochs=40).fit(images, run=run)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, progress = records.RunFolder(run).read_checkpoint()
    heard = []
    resumed = detector(epochs=40)
    resumed.fit(images, run=run, progress=lambda step: heard.append(step.epoch))
    assert heard == list(range(progress["epoch"] + 1, 41))
    assert same_weights(resumed, detector(epochs=40).fit(images))


def test_two_processes_do_not_write_one_run(images, tmp_path):
    run = tmp_path / "run"
    with (
        records.RunFolder(run).locked(),
        pytest.raises(RunError, match="is being written by another process"),
    ):
        detector().fit(images, run=run)
    detector().fit(images, run=run)


# --- where nothing can be written -------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_refused_before_training(images, tmp_path):
    (tmp_path / "file").write_text("no folder")

    def heard(step):
        raise AssertionError("it trained")

    with pytest.raises(RunError, match=r"cannot be written .*choose another folder"):
        detector().fit(images, run=tmp_path / "file/run", progress=heard)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(images, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunError, match="cannot be written"):
        detector().fit(images, run=tmp_path / "locked/run")


def test_a_full_disk_keeps_the_old_run_and_says_so(fitted, images, tmp_path, monkeypatch):
    run = fitted.save(tmp_path / "run")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            detector().fit(images, run=run, overwrite=True)
        with pytest.raises(RunError, match="No space left on device"):
            detector().fit(images, run=tmp_path / "new")
    assert same_weights(AnomalyDetector.load(run), fitted)
    assert not list((tmp_path / "new").glob("model*"))


def test_a_limit_of_the_system_on_files_is_one_line(fitted, tmp_path):
    resource = pytest.importorskip("resource", reason="limits are set on POSIX only")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(RunError, match=r"model.safetensors: cannot be written \(.*File too"):
            fitted.save(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "run").glob("*model*"))


@pytest.mark.parametrize("members", [("pca", "mean-image"), ("mean-image",)])
def test_the_same_fit_of_a_panel_with_members_is_answered(members, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32), np.uint8)

    def fit(*members):
        made = AnomalyDetector(method="panel", members=members, image_size=32)
        return made.fit(images, run=tmp_path / "run").fitted_

    first = fit(*members)
    written = (tmp_path / "run" / "model.json").stat().st_mtime_ns
    assert fit(*members).params == first.params
    assert (tmp_path / "run" / "model.json").stat().st_mtime_ns == written
    with pytest.raises(RunError, match="finished run"):
        fit("pca", "knn")
