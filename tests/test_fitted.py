"""A fitted detector: immutable, what is saved, and calibrated anew without training."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from normalis import AnomalyDetector
from normalis.audit import audit
from normalis.datasets import open_dataset
from normalis.errors import DataError, NotFittedError
from normalis.fitted import FittedDetector, fitted_of
from normalis.output.folder import score_to_folder
from normalis.report import write_report
from small_runs import anomalies, detector, phantoms, write_pngs

#: Runs that version 0.1.0 wrote before the fitted detector was an object of its own.
OLD = Path(__file__).parent / "data/run_0_1_0"


@pytest.fixture(scope="module")
def fitted():
    return detector().fit(phantoms(30)).fitted_


@pytest.mark.parametrize("name", ["split", "cv"])
def test_runs_of_the_first_format_load_and_score_as_they_did(name):
    images = np.load(OLD / "images.npy")
    kept = json.loads((OLD / f"{name}_scores.json").read_text())
    for read in (FittedDetector.load(OLD / name), AnomalyDetector.load(OLD / name)):
        np.testing.assert_allclose(read.anomaly_score(images), kept["anomaly_score"], rtol=1e-5)
        np.testing.assert_array_equal(read.p_value(images), kept["p_value"])
        maps = read.anomaly_map(images).sum((1, 2))
        np.testing.assert_allclose(maps, kept["map_sum"], rtol=1e-5)


def test_it_cannot_be_changed(fitted):
    with pytest.raises(FrozenInstanceError):
        fitted.calibration = None


def test_the_detector_hands_on_what_was_fitted():
    made = detector().fit(phantoms(30))
    assert isinstance(made.fitted_, FittedDetector)
    assert made.models_ is made.fitted_.models
    assert fitted_of(made) is fitted_of(made.fitted_) is made.fitted_
    x = phantoms(4, seed=3)
    np.testing.assert_array_equal(made.predict(x), made.fitted_.predict(x, fpr=made.fpr))
    with pytest.raises(NotFittedError, match="must be fitted first"):
        fitted_of(detector())


def test_equal_detectors_share_an_identity_and_others_do_not(fitted, tmp_path):
    read = FittedDetector.load(fitted.save(tmp_path / "run"))
    assert read.identity == fitted.identity == detector().fit(phantoms(30)).fitted_.identity
    assert fitted.with_scorer("l1", phantoms(30)).identity != fitted.identity
    assert detector(random_state=1).fit(phantoms(30)).fitted_.identity != fitted.identity


def test_calibrating_elsewhere_trains_nothing_and_keeps_the_scores(fitted, tmp_path):
    theirs = np.clip(phantoms(40, seed=9).astype(int) + 25, 0, 255).astype(np.uint8)
    here = fitted.calibrate(theirs, patient_ids=[f"P{i // 2}" for i in range(40)])
    new = np.concatenate([theirs[:3], anomalies(3)])
    assert here.models is fitted.models
    np.testing.assert_array_equal(here.anomaly_score(new), fitted.anomaly_score(new))
    assert (here.calibration.n_images, here.calibration.n_units) == (40, 20)
    assert here.calibration.level == "patient"
    assert here.info["calibrated_on"]["images"] == 40
    assert fitted.calibration.n_images == 6, "the one given stays as it was"
    again = FittedDetector.load(here.save(tmp_path / "here"))
    np.testing.assert_array_equal(again.p_value(new), here.p_value(new))


def test_calibrating_holds_its_rate_where_the_first_calibration_does_not():
    fitted = detector(method="pca", method_options=None).fit(phantoms(60)).fitted_
    theirs = np.clip(phantoms(400, seed=9).astype(int) // 2 + 90, 0, 255).astype(np.uint8)
    here, other = fitted.calibrate(theirs[:200]), theirs[200:]
    flagged = here.predict(other, fpr=0.1).mean()
    assert abs(flagged - 0.1) < 0.08
    assert abs(fitted.predict(other, fpr=0.1).mean() - 0.1) > 0.3


def test_calibrating_on_the_images_of_the_fit_is_refused(tmp_path):
    write_pngs(tmp_path / "scans", phantoms(12))
    fitted = detector(calibration="none").fit(tmp_path / "scans").fitted_
    with pytest.raises(DataError, match="was trained on these images"):
        fitted.calibrate(tmp_path / "scans")


def test_a_cross_fitted_detector_can_be_calibrated_elsewhere(tmp_path):
    fitted = detector(calibration="cv+", folds=3).fit(phantoms(30)).fitted_
    here = fitted.calibrate(phantoms(20, seed=9))
    assert fitted.cross_fitted
    assert not here.cross_fitted
    new = anomalies(3)
    again = FittedDetector.load(here.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.p_value(new), here.p_value(new))
    np.testing.assert_array_equal(here.anomaly_score(new), fitted.anomaly_score(new))


def test_each_step_says_in_the_log_how_far_it_is(caplog, tmp_path):
    caplog.set_level("INFO", logger="normalis")
    made = detector(epochs=2).fit(phantoms(30))
    write_pngs(tmp_path / "in", phantoms(5))
    data = open_dataset(tmp_path / "in")
    score_to_folder(made, data.samples, tmp_path / "out", root=data.root)
    audit(data)
    page = write_report(tmp_path / "out", tmp_path / "page.html")
    said = {(record.name, record.getMessage()) for record in caplog.records}
    assert {
        ("normalis.datasets", f"{tmp_path / 'in'}: 5 files, layout folder of images"),
        ("normalis.audit", "comparing 5 images of in, 0 unreadable"),
        ("normalis.report", f"wrote {page}"),
        ("normalis.loading", "24 normal images to train on, 6 held out"),
        ("normalis.training", "epoch 2 of 2"),
        ("normalis.calibration", "calibrating on 6 normal images"),
        ("normalis.scoring", "5 of 5 files"),
    } <= said
