"""Calibration cv+ from end to end: one model per fold, each image judged by models unseen."""

import numpy as np
import pytest

from normalis import AnomalyDetector
from normalis.calibration.conformal import calibrate
from normalis.datasets import open_dataset
from normalis.engines.export import export_onnx
from normalis.errors import CalibrationWarning, DataError, NotFittedError, SettingsError
from normalis.evaluation.of_detector import evaluate_detector
from normalis.fitted import FittedDetector
from normalis.loading.arrays import ImageSettings, from_array
from normalis.loading.held_out import folds
from normalis.output.folder import ScoreOptions, score_to_folder
from small_runs import anomalies, detector, phantoms, read_table, write_mvtec, write_pngs

SETTINGS = ImageSettings(image_size=16)


def cross_fitted(**changes):
    return detector(calibration="cv+", folds=3, **changes)


@pytest.fixture(scope="module")
def fitted():
    return cross_fitted(method="pca").fit(phantoms(30), patient_ids=range(30))


def test_folds_are_even_and_whole_groups(rng):
    images = rng.integers(0, 256, (20, 16, 16), dtype=np.uint8)
    loaded = from_array(np.concatenate([images, images // 2 + 60]), SETTINGS)
    number = folds(loaded, 4, seed=0)
    np.testing.assert_array_equal(number[:20], number[20:])
    np.testing.assert_array_equal(np.bincount(number), [10, 10, 10, 10])
    assert (number != folds(loaded, 4, seed=1)).any()
    with pytest.raises(
        DataError, match="21 folds needs at least 21 groups of near duplicates, got 20"
    ):
        folds(loaded, 21, seed=0)


def test_each_normal_image_is_scored_by_the_model_that_has_not_seen_it():
    x = phantoms(30)
    whole = cross_fitted(method="pca").fit(x)
    number = whole.calibration_.fold
    for k in range(3):
        alone = detector(method="pca", calibration="none").fit(x[number != k])
        expected = alone.anomaly_score(x[number == k])
        np.testing.assert_allclose(whole.decision_scores_[number == k], expected, rtol=1e-4)


def test_a_fold_of_a_network_is_the_network_trained_without_it():
    x = phantoms(30)
    whole = cross_fitted().fit(x)
    number = whole.calibration_.fold
    first = detector(calibration="none").fit(x[number != 0])  # the first has the seed itself
    np.testing.assert_allclose(
        whole.decision_scores_[number == 0], first.anomaly_score(x[number == 0]), rtol=1e-5
    )


def test_scores_are_means_and_p_values_compare_each_model_with_its_fold(fitted):
    new = np.concatenate([phantoms(5, seed=8), anomalies(5)])
    readers = zip(fitted.models_, fitted.scorers_, strict=True)
    each = np.stack([s.anomaly_score(m, _input(new)).double().numpy() for m, s in readers])
    np.testing.assert_allclose(fitted.anomaly_score(new), each.mean(0), rtol=1e-5)
    scores, number = fitted.decision_scores_, fitted.calibration_.fold
    above = sum((scores[number == k][:, None] >= each[k]).sum(0) for k in range(3))
    np.testing.assert_allclose(fitted.p_value(new), (1 + above) / 31)
    np.testing.assert_array_equal(fitted.predict(new), fitted.p_value(new) <= 0.2)
    assert fitted.predict(new)[5:].all()
    assert fitted.anomaly_map(new).shape == (10, 16, 16)


def _input(images):
    import torch

    from normalis.models.inputs import to_model_input

    return to_model_input(torch.from_numpy(from_array(images, SETTINGS).pixels), standardize=False)


def test_there_is_no_threshold_and_the_promise_is_twice_the_rate(fitted):
    with pytest.raises(SettingsError, match="a threshold needs a split calibration"):
        _ = fitted.threshold_
    assert fitted.calibration_.guaranteed_rate(0.2) > 0.4
    assert "(at most 52.1 %" in fitted.calibration_.statement(0.2)


def test_patients_share_a_fold():
    patients = [f"P{i % 6}" for i in range(30)]
    number = cross_fitted(method="pca").fit(phantoms(30), patient_ids=patients).calibration_.fold
    assert all(len(set(number[i::6])) == 1 for i in range(6))


@pytest.mark.parametrize("method", ["ae", "pca"])
def test_a_run_is_read_as_it_was_written(method, tmp_path):
    x, new = phantoms(30), anomalies(4)
    written = cross_fitted(method=method).fit(x, run=tmp_path / "run")
    read = AnomalyDetector.load(tmp_path / "run")
    np.testing.assert_array_equal(read.anomaly_score(new), written.anomaly_score(new))
    np.testing.assert_array_equal(read.p_value(new), written.p_value(new))
    again = read.fitted_.with_scorer("normalised", x)
    assert again.calibration.n_models == 3
    assert np.isfinite(again.p_value(new)).all()


def test_another_scorer_takes_the_folds_of_the_fit_or_none():
    x, patients = phantoms(30), [f"P{i % 6}" for i in range(30)]
    fitted = cross_fitted(method="pca").fit(x, patient_ids=patients).fitted_
    other = fitted.with_scorer("l1", x, patient_ids=patients)
    np.testing.assert_array_equal(other.calibration.fold, fitted.calibration.fold)
    with pytest.raises(DataError, match="give the same patient_ids"):
        fitted.with_scorer("l1", x)
    elsewhere = fitted.calibrate(phantoms(30, seed=8))
    with pytest.raises(SettingsError, match="does not know its folds any more"):
        elsewhere.with_scorer("l1", x, patient_ids=patients)


def test_an_interrupted_fit_goes_on(tmp_path, monkeypatch):
    from normalis.training import checkpoints

    monkeypatch.setattr(checkpoints, "EVERY_S", 0)
    x = phantoms(30)

    def stop(step):
        if step.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_fitted(epochs=3).fit(x, run=tmp_path / "run", progress=stop)
    resumed = cross_fitted(epochs=3).fit(x, run=tmp_path / "run")
    whole = cross_fitted(epochs=3).fit(x)
    np.testing.assert_allclose(resumed.decision_scores_, whole.decision_scores_, rtol=1e-5)
    assert len(resumed.history_) == 3


def test_the_table_of_scores_has_the_same_p_values(fitted, tmp_path):
    write_pngs(tmp_path / "new", np.concatenate([phantoms(4, seed=8), anomalies(3)]))
    data = open_dataset(tmp_path / "new")
    options = ScoreOptions(fpr=0.2, maps=False, overlays=False)
    score_to_folder(fitted, data.samples, tmp_path / "out", root=data.root, options=options)
    rows = read_table(tmp_path / "out" / "scores.csv")
    images = np.concatenate([phantoms(4, seed=8), anomalies(3)])
    np.testing.assert_allclose([float(r["p_value"]) for r in rows], fitted.p_value(images))
    assert [r["flagged"] for r in rows] == [str(f) for f in fitted.predict(images)]


def test_an_evaluation_uses_the_p_values(fitted, tmp_path):
    result, _, _ = evaluate_detector(fitted, open_dataset(write_mvtec(tmp_path)), fpr=0.2)
    assert result.all.deployable["sensitivity"].value == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "folds must be a whole number of at least 2, got 1"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(SettingsError, match=message):
        detector(**({"calibration": "cv+"} | changes)).fit(phantoms(10))


def test_what_one_network_is_needed_for(tmp_path):
    with pytest.raises(SettingsError, match="holds one network, and calibration cv\\+ made 3"):
        export_onnx(cross_fitted().fit(phantoms(30)), tmp_path / "x.onnx")


def test_without_calibration_the_error_names_both_kinds():
    with pytest.raises(NotFittedError, match='"split" or "cv\\+"'):
        detector(method="pca", calibration="none").fit(phantoms(10)).p_value(phantoms(2))


def test_the_rate_holds_on_fresh_normals():
    rates = []
    for seed in range(12):
        fitted = cross_fitted(method="pca").fit(phantoms(40, seed=100 + seed))
        rates.append(fitted.predict(phantoms(100, seed=200 + seed)).mean())
    assert 0.1 < np.mean(rates) < 0.3  # nominal 0.2; the proof allows 0.4 and a little more


def test_flags_are_those_above_the_threshold():
    known = calibrate(np.arange(19.0))
    scores = np.linspace(-1, 20, 85)
    flags = known.flags(known.p_values(scores), 0.1)
    np.testing.assert_array_equal(flags, scores > known.threshold(0.1))


def test_few_images_are_cross_fitted_by_default_and_python_is_told(tmp_path):
    small = {"method": "pca", "image_size": 16, "device": "cpu", "latent_dim": 2}
    with pytest.warns(CalibrationWarning, match=r"30 images? .*\(cv\+\), which certify .* 1/31"):
        fitted = AnomalyDetector(**small).fit(_noise(30), run=tmp_path / "run")
    kept = FittedDetector.load(tmp_path / "run")
    assert fitted.calibration_.kind == "cv+"
    assert (kept.params["calibration"], kept.params["folds"]) == ("cv+", 5)
    new = _noise(4, seed=1)
    np.testing.assert_array_equal(kept.p_value(new), fitted.p_value(new))
    assert fitted.get_params()["calibration"] == "auto"
    again = fitted.fitted_.with_scorer("normalised", _noise(30))
    assert again.calibration.n_models == 5


def test_many_images_are_split_by_default_and_nothing_is_said(recwarn):
    small = {"method": "pca", "image_size": 16, "device": "cpu", "latent_dim": 2}
    patients = [f"P{i}" for i in range(400)]
    fitted = AnomalyDetector(**small).fit(_noise(400), patient_ids=patients)
    assert (fitted.calibration_.kind, fitted.calibration_.n_units) == ("split", 119)
    assert not [w for w in recwarn if issubclass(w.category, CalibrationWarning)]
    fitted = AnomalyDetector(**small).fit(_noise(400))
    (said,) = [w for w in recwarn if issubclass(w.category, CalibrationWarning)]
    assert str(said.message).startswith("patients are unknown: each file counts as a patient")
    recwarn.clear()
    again = fitted.fitted_.with_scorer("l1", _noise(400))
    np.testing.assert_array_equal(again.calibration.unit, fitted.calibration_.unit)
    assert not [w for w in recwarn if issubclass(w.category, CalibrationWarning)]


def test_a_validation_split_calibrates_whatever_its_size(tmp_path):
    fitted = detector(method="pca", calibration="auto").fit(write_mvtec(tmp_path, valid=6))
    assert (fitted.calibration_.kind, fitted.calibration_.n_images) == ("split", 6)


def test_a_detector_without_patients_warns_of_ids_that_name_nobody():
    ids = ["ANONYMOUS", None, *(f"P{i}" for i in range(28))]
    with pytest.warns(CalibrationWarning, match="2 of 30 files have a patient id that names nob"):
        detector(method="pca").fit(_noise(30), patient_ids=ids)


def _noise(count, *, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16), dtype=np.uint8)
