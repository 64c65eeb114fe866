"""Calibration against its theorems: validity by simulation, ties, patients, drift, storage."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import betabinom, kstest

from normalis.calibration.conformal import (
    Calibration,
    benjamini_hochberg,
    calibrate,
    realised_rate_interval,
)
from normalis.errors import MetricError, SettingsError

SCORES = st.integers(-4, 4).map(float)


def slices(rng, n_patients, per_patient, *, spread=0.3):
    """Scores of patients whose slices resemble each other."""
    sizes = rng.integers(1, per_patient + 1, n_patients)
    patient = np.repeat(np.arange(n_patients), sizes)
    level = rng.normal(size=n_patients)
    return level[patient] + spread * rng.normal(size=patient.size), patient


# ---------------------------------------------------------------- p-values


@given(
    hnp.arrays(np.float64, st.integers(1, 30), elements=SCORES),
    hnp.arrays(np.float64, st.integers(1, 9), elements=SCORES),
)
def test_p_values_are_the_formula(cal, new):
    want = [(1 + (cal >= s).sum()) / (cal.size + 1) for s in new]
    np.testing.assert_allclose(calibrate(cal).p_values(new), want)


@given(
    hnp.arrays(np.float64, st.integers(1, 40), elements=SCORES),
    st.integers(1, 40),
    st.booleans(),
)
def test_threshold_and_p_value_are_one_statement(cal, twentieths, by_patient):
    patients = np.arange(cal.size) // 3 if by_patient else None
    calibration = calibrate(cal, patients=patients)
    rate = twentieths / 41
    new = np.arange(-5, 6) / 1.0
    if rate < 1 / (calibration.n_units + 1) - 1e-9:
        with pytest.raises(SettingsError, match="cannot certify"):
            calibration.threshold(rate)
    else:
        flagged = new > calibration.threshold(rate)
        np.testing.assert_array_equal(flagged, calibration.p_values(new) <= rate + 1e-9)


@pytest.mark.parametrize(("n", "rate"), [(19, "1/20"), (99, "1/100"), (199, "1/20"), (70, "1/10")])
def test_threshold_is_the_order_statistic(n, rate, rng):
    alpha = Fraction(rate)
    rank = -((n + 1) * (alpha - 1) // 1)  # ceil((n + 1)(1 - alpha)), exactly
    cal = rng.normal(size=n)
    assert calibrate(cal).threshold(float(alpha)) == np.sort(cal)[rank - 1]


def test_realised_rate_follows_the_beta_binomial():
    rng = np.random.default_rng(4)
    n, m, rate = 60, 40, 0.1
    counts = np.array(
        [
            (rng.normal(size=m) > calibrate(rng.normal(size=n)).threshold(rate)).sum()
            for _ in range(3000)
        ]
    )
    law = betabinom(m, 6, 55)
    assert counts.mean() == pytest.approx(law.mean(), abs=4 * law.std() / np.sqrt(3000))
    assert counts.mean() / m <= rate
    low, high = realised_rate_interval(n, m, rate)
    inside = np.mean((counts / m >= low) & (counts / m <= high))
    assert 0.94 <= inside <= 0.99
    assert inside == pytest.approx(law.cdf(high * m) - law.cdf(low * m - 1), abs=0.01)


def test_smoothed_p_values_are_uniform_and_reproducible(rng):
    draws = []
    for seed in range(2000):
        values = rng.integers(0, 3, 12).astype(float)  # heavy ties
        draws.append(calibrate(values[1:]).p_values(values[:1], seed=seed)[0])
    assert kstest(draws, "uniform").pvalue > 0.01
    calibration = calibrate([0.0, 0.0, 1.0])
    assert calibration.p_values([0.0], seed=3) == calibration.p_values([0.0], seed=3)
    assert calibration.p_values([0.0]) == 1.0


# ---------------------------------------------------------------- patients


def test_hierarchical_p_value_by_hand():
    calibration = calibrate([1.0, 2.0, 3.0, 5.0], patients=["a", "a", "b", None])
    assert (calibration.n_units, calibration.n_images, calibration.level) == (3, 4, "patient")
    # a: 1 of 2 above 1.5; b: 1 of 1; the third: 1 of 1
    np.testing.assert_allclose(calibration.p_values([1.5]), (1 + 0.5 + 1 + 1) / 4)
    names, p = calibration.patient_p_values([2.5, 0.0, 9.0], ["x", "x", "w"])
    assert names.tolist() == ["w", "x"]
    np.testing.assert_allclose(p, [1 / 4, 3 / 4])
    assert calibration.threshold(0.25, unit="patient") == 5.0
    unknown, _ = calibration.patient_p_values([2.5, 0.0], [None, None])
    assert unknown.tolist() == ["image 0", "image 1"]
    assert calibration.threshold(0.5, unit="patient") == 3.0


@pytest.mark.slow
def test_patients_are_needed_for_the_rate_to_hold():
    """Slices taken as independent break the promise; patients as units keep it."""
    rng = np.random.default_rng(7)
    rate, trials = 0.1, 600
    outside = {"naive": 0, "patients": 0}
    images, people = [], []
    for _ in range(trials):
        scores, patient = slices(rng, 19, 30)
        new, _ = slices(rng, 1, 30)
        calibration = calibrate(scores, patients=patient)
        images.append(rng.choice(new) > calibration.threshold(rate))
        people.append(new.max() > calibration.threshold(rate, unit="patient"))
        fresh, _ = slices(rng, 200, 1)
        low, high = realised_rate_interval(scores.size, 200, rate)
        share = np.mean(fresh > calibrate(scores).threshold(rate))
        outside["naive"] += not low <= share <= high
        low, high = realised_rate_interval(19, 200, rate)
        share = np.mean(
            fresh > calibrate(np.bincount(patient, scores) / np.bincount(patient)).threshold(rate)
        )
        outside["patients"] += not low <= share <= high
    error = 3 * np.sqrt(rate * (1 - rate) / trials)
    assert np.mean(images) <= rate + error
    assert np.mean(people) <= rate + error
    assert np.mean(people) > rate - error  # and not needlessly strict: 0.1 * 20 is an integer
    assert outside["naive"] / trials > 0.3  # promised at most 5 %
    assert outside["patients"] / trials < 0.08


def test_naive_rate_of_a_patient_is_far_too_high(rng):
    scores, patient = slices(rng, 200, 30)
    new, whose = slices(rng, 200, 30)
    naive = calibrate(scores)
    flagged = np.unique(whose[new > naive.threshold(0.05)]).size / 200
    assert flagged > 0.08
    named = calibrate(scores, patients=patient)
    _, p = named.patient_p_values(new, whose)
    low, high = realised_rate_interval(200, 200, 0.05, confidence=0.999)
    assert low <= np.mean(p <= 0.05) <= high


# ---------------------------------------------------------------- too few, and errors


def test_too_few_units_say_so():
    calibration = calibrate(np.arange(140.0), patients=np.arange(140) // 2)
    with pytest.raises(
        SettingsError,
        match=r"70 patients cannot certify a false-positive rate below 1/71 = 1\.4 %, got 1 %",
    ):
        calibration.threshold(0.01)
    assert calibration.threshold(0.05) > 0
    with pytest.raises(SettingsError, match="1 image cannot certify"):
        calibrate([0.0]).threshold(0.05)
    with pytest.raises(SettingsError, match="between 0 and 1, got 5"):
        calibration.threshold(5)
    with pytest.raises(SettingsError, match="70 units cannot certify"):
        realised_rate_interval(70, 100, 0.01)


def test_nothing_held_out_says_what_to_do():
    nothing = calibrate([], kind="none")
    for ask in (
        lambda: nothing.p_values([1.0]),
        lambda: nothing.threshold(0.05),
        lambda: nothing.map_p_values([1.0]),
    ):
        with pytest.raises(SettingsError, match="no normal images were held out"):
            ask()


def test_bad_input():
    with pytest.raises(SettingsError, match="split, cv\\+ or none, got 'loo'"):
        calibrate([1.0], kind="loo")
    with pytest.raises(SettingsError, match="only cv\\+ has one"):
        calibrate([1.0], fold=[0])
    with pytest.raises(MetricError, match="at least one normal image"):
        calibrate([])
    with pytest.raises(MetricError, match="got scores of shape"):
        calibrate([1.0, np.nan])
    with pytest.raises(MetricError, match="got map_maxima of shape"):
        calibrate([1.0, 2.0], map_maxima=[1.0])
    with pytest.raises(SettingsError, match="in one fold"):
        calibrate([1.0, 2.0], kind="cv+", fold=[0, 1], patients=["a", "a"])
    calibration = calibrate([1.0, 2.0])
    with pytest.raises(MetricError, match="must be finite"):
        calibration.p_values([np.inf])
    with pytest.raises(MetricError, match=r"shape \(M,\)"):
        calibration.p_values([[1.0], [2.0]])
    with pytest.raises(MetricError, match="one patient"):
        calibration.patient_p_values([1.0, 2.0], ["a"])
    with pytest.raises(SettingsError, match="maxima of the calibration"):
        calibration.map_p_values([1.0])


# ---------------------------------------------------------------- CV+


def test_cross_conformal_by_hand_and_valid():
    calibration = calibrate([1.0, 2.0, 3.0, 4.0], kind="cv+", fold=[0, 0, 1, 1])
    # model 0 says 1.5 (one of its two is above), model 1 says 9 (none)
    np.testing.assert_allclose(calibration.p_values([[1.5], [9.0]]), [(1 + 1 + 0) / 5])
    with pytest.raises(MetricError, match=r"\(2, M\), one row per fold"):
        calibration.p_values([1.0])
    with pytest.raises(SettingsError, match="no common scale"):
        calibration.threshold(0.4)
    assert 0.4 < calibration.guaranteed_rate(0.2) <= 1
    assert calibrate([1.0]).guaranteed_rate(0.05) == 0.05
    big = calibrate(np.arange(1000.0), kind="cv+", fold=np.arange(1000) % 5)
    assert big.guaranteed_rate(0.05) == pytest.approx(0.1 + 1.6 / 201)
    assert "at most 10.8 %" in big.statement(0.05)


def test_cross_conformal_rate_by_simulation():
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(1500):
        x = rng.normal(size=21)
        fold = np.arange(20) % 4
        models = [np.delete(x[:20], np.flatnonzero(fold == k)).mean() for k in range(4)]
        cal = np.abs(x[:20] - np.array(models)[fold])
        new = np.abs(x[20] - np.array(models))[:, None]
        flagged.append(calibrate(cal, kind="cv+", fold=fold).p_values(new)[0] <= 0.1)
    assert 0.05 < np.mean(flagged) < 0.15


# ---------------------------------------------------------------- batches and maps


def test_benjamini_hochberg_controls_false_discoveries():
    rng = np.random.default_rng(2)
    false = []
    for _ in range(300):
        calibration = calibrate(rng.normal(size=400))
        new = np.append(rng.normal(size=80), rng.normal(4, 1, size=20))
        found = benjamini_hochberg(calibration.p_values(new)) <= 0.2
        false.append(found[:80].sum() / max(1, found.sum()))
    assert 0.08 < np.mean(false) < 0.2
    p = np.array([0.01, 0.2, 0.03])
    assert (benjamini_hochberg(p, dependent=True) >= benjamini_hochberg(p)).all()
    assert benjamini_hochberg([]).size == 0
    with pytest.raises(MetricError, match=r"in \[0, 1\]"):
        benjamini_hochberg([2.0])


# ---------------------------------------------------------------- storage


def test_storage_is_exact(rng):
    calibration = calibrate(
        rng.normal(size=20),
        patients=np.arange(20) // 2,
        kind="cv+",
        fold=np.arange(20) // 2 % 4,
        map_maxima=rng.normal(size=20),
        statistics={"mean intensity": rng.normal(size=20)},
    )
    back = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert back.to_dict() == calibration.to_dict()
    new = rng.normal(size=(4, 5))
    np.testing.assert_array_equal(back.p_values(new), calibration.p_values(new))


def test_damaged_storage():
    stored = calibrate([1.0, 2.0]).to_dict()
    with pytest.raises(SettingsError, match="damaged"):
        Calibration.from_dict({**stored, "scores": [1.0]})
    del stored["unit"]
    with pytest.raises(SettingsError, match="damaged"):
        Calibration.from_dict(stored)


def test_patients_of_cv_plus_hold_their_rate():
    """A patient is compared with the patients of each model's fold, by the largest score."""
    rng = np.random.default_rng(5)
    units, each, folds, repeats, flagged = 20, 3, 4, 400, 0
    for _ in range(repeats):
        level = rng.normal(size=(units + 1, 1)) + rng.normal(size=(units + 1, each))
        model = rng.normal(size=(folds, 1, 1))  # of a scale of its own
        seen = level[None] + model
        unit = np.repeat(np.arange(units), each)
        fold = np.arange(units) % folds
        own = seen[fold, np.arange(units)].ravel()
        known = calibrate(own, patients=unit, kind="cv+", fold=fold[unit])
        _, p = known.patient_p_values(seen[:, units], ["new"] * each)
        flagged += p[0] <= 0.1
    assert flagged / repeats <= 0.2 + 3 * np.sqrt(0.16 / repeats)  # proven: twice the rate
    assert flagged / repeats >= 0.03
    assert known.images_per_unit().tolist() == [each] * units


def test_patients_of_a_split_follow_the_beta_binomial_law():
    from scipy.stats import betabinom, kstest

    rng = np.random.default_rng(6)
    units, new, rate, counts = 39, 60, 0.1, []
    for _ in range(300):
        sizes = rng.integers(1, 6, units + new)
        member = np.repeat(np.arange(units + new), sizes)
        scores = rng.normal(size=units + new)[member] + rng.normal(size=member.size)
        known = calibrate(scores[member < units], patients=member[member < units])
        _, p = known.patient_p_values(scores[member >= units], member[member >= units])
        counts.append(int(known.flags(p, rate).sum()))
    law = betabinom(new, int(rate * (units + 1)), units + 1 - int(rate * (units + 1)))
    inside = np.mean([law.ppf(0.025) <= c <= law.ppf(0.975) for c in counts])
    assert inside >= 0.93
    smooth = [law.cdf(c - 1) + rng.random() * law.pmf(c) for c in counts]
    assert kstest(smooth, "uniform").pvalue > 1e-3
