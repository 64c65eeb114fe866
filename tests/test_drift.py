"""The drift check: how often it warns falsely, what it finds, and whom it counts."""

import numpy as np
import pytest

from normalis.calibration.conformal import calibrate
from normalis.calibration.drift import SCORE, find_drift, least_anomalous, unit_medians
from normalis.errors import MetricError, SettingsError


@pytest.mark.slow
def test_drift_warns_no_more_often_than_it_says():
    rng = np.random.default_rng(0)
    alarms = {0.0: 0, 0.45: 0}
    for share in alarms:
        for _ in range(100):
            calibration = calibrate(
                rng.normal(size=100), statistics={"mean intensity": rng.normal(size=100)}
            )
            anomalous = rng.random(60) < share
            alarms[share] += calibration.drift(
                rng.normal(size=60) + 4 * anomalous,
                statistics={"mean intensity": rng.normal(size=60) - 5 * anomalous},
                false_alarm=0.05,
            ).drifted
    assert alarms[0.0] / 100 <= 0.05
    assert alarms[0.45] / 100 <= 0.10


@pytest.mark.parametrize(
    ("shift", "statistic", "word"),
    [(2.5, 0.0, "anomaly score"), (-1.5, 0.0, "anomaly score"), (0.0, 3.0, "mean intensity")],
)
def test_drift_finds_a_shift_and_names_it(shift, statistic, word):
    rng = np.random.default_rng(1)
    calibration = calibrate(
        rng.normal(size=200), statistics={"mean intensity": rng.normal(size=200)}
    )
    found = calibration.drift(
        rng.normal(shift, size=80), statistics={"mean intensity": rng.normal(statistic, size=80)}
    )
    assert found.drifted
    assert all(reason.startswith(word) for reason in found.reasons)
    assert found.n_units == 80


def test_drift_counts_patients_and_refuses():
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(50), 20)
    scores = rng.normal(size=50)[patient] + 0.3 * rng.normal(size=1000)
    calibration = calibrate(scores, patients=patient)
    one_odd_patient = calibration.drift(np.full(40, -9.0), patients=np.zeros(40))
    assert not one_odd_patient.drifted
    assert one_odd_patient.n_units == 1
    assert calibration.drift(np.full(40, -9.0)).drifted
    assert not calibration.drift(np.empty(0)).drifted
    with pytest.raises(SettingsError, match="max_anomalous"):
        calibration.drift([1.0], max_anomalous=1.0)
    bright = calibrate([1.0], statistics={"mean": [1.0]})
    with pytest.raises(MetricError, match="one finite mean per image"):
        bright.drift([1.0], statistics={"mean": [np.nan]})


def test_medians_of_units():
    values, unit = np.array([5.0, 1.0, 3.0, 9.0]), np.array([1, 0, 1, 1])
    assert unit_medians(values, unit).tolist() == [1.0, 5.0]


def test_more_than_the_cap_of_anomalies_warns():
    rng = np.random.default_rng(3)
    old, new = rng.normal(size=300), rng.normal(size=300) + 5 * (np.arange(300) < 240)
    assert find_drift({"anomaly score": (old, new)}).drifted
    assert not find_drift({"anomaly score": (old, new)}, max_anomalous=0.9).drifted


def test_how_many_must_be_anomalous(rng):
    normal = rng.normal(size=4000)
    assert least_anomalous({SCORE: (normal, rng.normal(size=200))}) == 0
    for share in (0.3, 0.6):
        count = int(share * 3000)
        mixed = np.append(rng.normal(size=3000 - count), rng.normal(6, 1, count))
        assert share - 0.15 <= least_anomalous({SCORE: (normal, mixed)}) <= share
    assert least_anomalous({"contrast": (normal, normal[:200] + 20)}) >= 0.9
    assert least_anomalous({}) == 0


def test_the_bound_is_rarely_too_high(rng):
    too_high = 0
    for _ in range(200):
        mixed = np.append(rng.normal(size=80), rng.normal(3, 1, 20))
        too_high += least_anomalous({SCORE: (rng.normal(size=200), mixed)}) > 0.2
    assert too_high <= 8  # 1 % promised; 8 of 200 has probability 0.0002
