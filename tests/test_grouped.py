"""p-values within groups: exact for each, said where too few, never pooled in silence."""

import numpy as np
import pytest

from normalis.calibration.conformal import calibrate, realised_rate_interval
from normalis.calibration.grouped import UNKNOWN, Grouped, calibrate_groups, unit_p_values
from normalis.errors import MetricError, SettingsError


def two_scanners(rng, count):
    """Scores of two scanners, one of which scores higher whoever is scanned."""
    scanner = np.where(rng.random(count) < 0.3, "B", "A")
    return rng.normal(size=count) + 1.5 * (scanner == "B"), scanner


def test_each_group_holds_its_rate_where_the_whole_does_not():
    rng = np.random.default_rng(0)
    inside, pooled = {"A": [], "B": []}, {"A": [], "B": []}
    for _ in range(200):
        old, where = two_scanners(rng, 200)
        known = calibrate_groups(old, where, by="scanner")
        new, there = two_scanners(rng, 400)
        flags = known.flags(known.p_values(new, there), there, 0.1)
        whole = calibrate(old)
        together = whole.flags(whole.p_values(new), 0.1)
        for name in "AB":
            mine = there == name
            low, high = realised_rate_interval(known.groups[name].n_units, int(mine.sum()), 0.1)
            inside[name].append(low <= flags[mine].mean() <= high)
            pooled[name].append(together[mine].mean())
    assert min(np.mean(inside["A"]), np.mean(inside["B"])) >= 0.92
    assert np.mean(pooled["B"]) > 0.2  # the promise of the whole is none for scanner B
    assert np.mean(pooled["A"]) < 0.06


def test_a_group_too_small_says_so_and_is_not_pooled():
    scanner = ["A"] * 30 + ["B"] * 3
    known = calibrate_groups(np.arange(33.0), scanner, by="scanner")
    p = known.p_values([100.0, 100.0, 100.0], ["A", "B", "C"])
    np.testing.assert_allclose(p, [1 / 31, 1 / 4, np.nan])
    assert known.flags(p, ["A", "B", "C"], 0.05).tolist() == [True, False, False]
    small, strange = known.too_few(0.05, ["A", "B", "C", "C"])
    assert small.startswith("scanner B: 3 images certify no false-positive rate below 1/4 = 25 %")
    assert strange == (
        "scanner C: no normal image of it calibrates, so that its 2 images have no p-value"
    )
    assert known.statement(0.05).endswith("A (30 images)")
    assert "no scanner has enough" in known.statement(0.01)


def test_units_count_within_a_group_and_unknown_values_are_one():
    known = calibrate_groups(
        [1.0, 2.0, 3.0, 4.0, 5.0], ["A", "A", " ", None, "A"], by="site",
        patients=[0, 0, 1, 2, 1], level="patient",
    )  # fmt: skip
    assert {n: c.n_units for n, c in known.groups.items()} == {"A": 2, UNKNOWN: 2}
    assert known.p_values([3.5], [float("nan")])[0] == pytest.approx(2 / 3)


def test_groups_survive_storage_and_refuse_what_does_not_fit():
    known = calibrate_groups(np.arange(8.0), list("AABBAABB"), by="scanner")
    again = Grouped.from_dict(known.to_dict())
    new = np.linspace(-1, 9, 20)
    np.testing.assert_array_equal(again.p_values(new, ["B"] * 20), known.p_values(new, ["B"] * 20))
    with pytest.raises(SettingsError, match="no normal image says its scanner"):
        calibrate_groups([1.0, 2.0], [None, ""], by="scanner")
    with pytest.raises(MetricError, match="one scanner"):
        known.p_values([1.0, 2.0], ["A"])
    with pytest.raises(MetricError, match="got 2 scores, 1 values and 2 units"):
        calibrate_groups([1.0, 2.0], ["A"], by="scanner")
    with pytest.raises(SettingsError, match="damaged"):
        Grouped.from_dict({"by": "x"})


def test_a_patient_is_compared_with_the_patients_of_its_group_exactly():
    """With 19 units a p-value of a normal patient is one of 1/20 .. 20/20, each as often."""
    rng = np.random.default_rng(3)
    found = {"A": [], "B": []}
    for _ in range(1000):
        scores = rng.normal(size=76) + np.repeat([0.0, 2.0], 38)
        scanner, owner = np.repeat(["A", "B"], 38), np.arange(76) // 2  # two images each
        known = calibrate_groups(scores, scanner, by="scanner", patients=owner, level="patient")
        new = rng.normal(size=4) + np.repeat([0.0, 2.0], 2)
        said = known.patient_p_values(new, ["a", "a", "b", "b"], ["A", "A", "B", "B"])
        assert {units for _, units in said.values()} == {19}
        found["A"].append(said["a"][0])
        found["B"].append(said["b"][0])
    for values in found.values():
        for k in (1, 2, 4, 10):  # 1000 draws: three standard errors
            share = np.mean(np.array(values) <= k / 20 + 1e-9)
            assert abs(share - k / 20) < 3 * np.sqrt(k / 20 * (1 - k / 20) / 1000)


def test_a_patient_of_two_groups_has_a_p_value_that_is_never_too_small():
    rng = np.random.default_rng(4)
    found = []
    for _ in range(800):
        scores, scanner = rng.normal(size=58), np.repeat(["A", "B"], 29)
        known = calibrate_groups(scores, scanner, by="scanner")
        said = known.patient_p_values(rng.normal(size=2), ["x", "x"], ["A", "B"])
        found.append(said["x"][0])
    for rate in (0.1, 0.2, 0.4):
        assert np.mean(np.array(found) <= rate + 1e-9) <= rate + 3 * np.sqrt(rate / 800)


def test_a_patient_of_no_group_that_calibrates_has_none_and_it_is_said():
    known = calibrate_groups(np.arange(20.0), ["A"] * 20, by="scanner")
    said = known.patient_p_values([1.0, 30.0, 99.0], ["x", "y", "y"], ["C", "A", "C"])
    assert np.isnan(said["x"][0])
    assert said["x"][1] == 0
    assert said["y"] == (pytest.approx(1 / 21), 20), "its image of scanner C says nothing"
    (only,) = known.too_few(0.1, ["C"], of_these=True)
    assert only.startswith("scanner C: no normal image of it calibrates")


def test_one_function_answers_for_both_kinds_of_calibration():
    scores, new = np.arange(40.0), np.array([50.0, 3.0])
    whole, parts = calibrate(scores), calibrate_groups(scores, list("AB") * 20, by="scanner")
    assert unit_p_values(whole, new, ["x", "y"], []) == {
        "x": (pytest.approx(1 / 41), 40), "y": (pytest.approx(38 / 41), 40)
    }  # fmt: skip
    assert unit_p_values(parts, new, ["x", "y"], ["A", "B"])["x"] == (pytest.approx(1 / 21), 20)
