"""One row a patient: the worst image, an exact p-value, false discoveries, odd numbers."""

import numpy as np
import pytest

from normalis.calibration.conformal import calibrate
from normalis.output.patients import summarise_patients


@pytest.fixture
def known():
    scores = np.arange(39.0).repeat(2)
    return calibrate(scores, patients=np.arange(39).repeat(2))


def test_patients_are_ranked_and_say_where_the_worst_image_is(known):
    scores = np.array([1.0, 50.0, 20.0, 37.5, 2.0])
    units = ["b", "b", "a", "c", "a"]
    found = summarise_patients(known, units, scores, scores, fpr=0.05)
    assert found.name == ["b", "c", "a"]
    assert found.worst.tolist() == [1, 3, 2]
    assert found.images.tolist() == [2, 1, 2]
    np.testing.assert_allclose(found.p_value, [1 / 40, 2 / 40, 20 / 40])
    assert found.flagged.tolist() == [True, True, False]
    assert (found.n_units, found.adjusted) == (39, None)
    assert found.warning == ["", "", ""]


def test_a_patient_of_many_images_is_said(known):
    units = ["many"] * 5 + ["few"]
    scores = np.linspace(0, 10, 6)
    found = summarise_patients(known, units, scores, scores, fpr=0.05)
    said = dict(zip(found.name, found.warning, strict=True))
    assert said["few"] == ""
    assert said["many"] == (
        "5 images where those that calibrate have 2: the p-value may be too small"
    )
    stacks = calibrate(np.arange(100.0), patients=np.arange(100) // 10)
    lone = summarise_patients(stacks, ["one"], scores[:1], scores[:1], fpr=0.2)
    assert lone.warning[0].endswith("have 10: the p-value may be too large")


def test_false_discoveries_are_bounded_among_the_flagged():
    rng = np.random.default_rng(0)
    false, most = [], 0
    for _ in range(200):
        known = calibrate(rng.normal(size=199))
        normal = np.arange(60) < 50
        scores = rng.normal(size=60) + 4 * ~normal
        units = [f"p{i}" for i in range(60)]
        found = summarise_patients(known, units, scores, scores, fpr=0.05, fdr=0.2)
        hit = [int(name[1:]) for name, f in zip(found.name, found.flagged, strict=True) if f]
        false.append(np.mean(normal[hit]) if hit else 0.0)
        most = max(most, len(hit))
    assert np.mean(false) <= 0.2 + 3 * np.std(false) / np.sqrt(200)
    assert most >= 8


def test_without_calibration_or_with_few_units_nothing_is_flagged():
    scores = np.array([1.0, 2.0])
    plain = summarise_patients(None, ["a", "b"], scores, scores, fpr=0.05)
    assert (plain.p_value, plain.flagged, plain.name) == (None, None, ["b", "a"])
    few = summarise_patients(calibrate([0.0, 1.0]), ["a", "b"], scores, scores, fpr=0.05)
    assert few.flagged is None
    assert few.p_value is not None
