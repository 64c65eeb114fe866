"""No interval claims more than its units can prove."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normalis import metrics
from normalis.metrics.comparison import delong
from normalis.metrics.few import class_units, widest_ends


def separated(each):
    scores = np.arange(2 * each, dtype=float)
    return scores, scores >= each


@pytest.mark.parametrize(("each", "low"), [(1, 0.025), (5, 0.4782), (25, 0.8628), (200, 0.9817)])
def test_perfect_separation_is_no_proof_of_perfection(each, low):
    found = metrics.bootstrap(metrics.auroc, *separated(each), n=200)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(low, abs=1e-4)
    wrong = metrics.bootstrap(metrics.auroc, -separated(each)[0], separated(each)[1], n=200)
    assert (wrong.low, wrong.value) == (0, 0)
    assert wrong.high == pytest.approx(1 - low, abs=1e-4)


@pytest.mark.parametrize("metric", [metrics.average_precision, metrics.sensitivity_at_fpr])
def test_neither_are_precision_and_sensitivity(metric):
    lows = []
    for each in (1, 5, 25, 200):
        found = metrics.bootstrap(metric, *separated(each), n=200)
        assert found.value == found.high == 1
        lows.append(found.low)
    assert lows == sorted(lows)
    assert lows[0] < 0.03
    assert 0.85 < lows[-1] < 0.99


def test_what_belongs_together_counts_once():
    scores, labels = separated(40)
    whose = np.repeat(np.arange(8), 10)
    found = metrics.bootstrap(metrics.auroc, scores, labels, groups=whose, n=200)
    assert found.low == pytest.approx(0.025 ** (1 / 4))


def test_a_unit_of_both_classes_stands_for_one():
    normal = np.array([1, 1, 1, 1, 0], bool)
    anomalous = np.array([0, 1, 1, 1, 1], bool)
    assert class_units(np.stack([normal, anomalous])) in ((2, 3), (3, 2))
    assert class_units(np.ones((2, 1), bool)) in ((0, 1), (1, 0))


@given(
    st.sampled_from(["auroc", "average_precision", "sensitivity"]),
    st.integers(0, 50),
    st.integers(0, 50),
    st.floats(0.01, 0.99),
)
def test_more_units_prove_more(name, n_normal, n_anomalous, share):
    low, high = widest_ends(name, n_normal, n_anomalous, prevalence=share)
    more = widest_ends(name, n_normal + 5, n_anomalous + 5, prevalence=share)
    assert 0 <= low <= more[0] <= 1
    assert 0 <= more[1] <= high + 1e-12 <= 1 + 1e-9


def covers(metric, truth, each, shift, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * each) >= each
    inside = 0
    for _ in range(300):
        scores = rng.normal(size=2 * each) + shift * labels
        found = metrics.bootstrap(metric, scores, labels, n=100)
        inside += found.low - 1e-9 <= truth <= found.high + 1e-9
    return inside / 300


@pytest.mark.parametrize("each", [3, 6, 12])
def test_intervals_of_few_images_cover(each):
    from scipy.stats import norm

    shift = 2.33
    assert covers(metrics.auroc, norm.cdf(shift / np.sqrt(2)), each, shift, 0) >= 0.93
    rng = np.random.default_rng(1)
    scores = rng.normal(size=400_000) + shift * (np.arange(400_000) % 2)
    truth = metrics.average_precision(scores, np.arange(400_000) % 2 == 1)
    assert covers(metrics.average_precision, truth, each, shift, 2) >= 0.93


def test_pixels_of_one_image_prove_little():
    masks = np.zeros((4, 8, 8), bool)
    masks[2:, 2:5, 2:5] = True
    found = metrics.pixel_bootstrap(masks.astype(float), masks, n=50)
    for name, interval in found.items():
        assert interval.value == interval.high == 1, name
        assert interval.low < 0.17, name


def test_a_comparison_of_few_images_is_not_certain():
    scores, labels = separated(2)
    assert delong(scores, -scores, labels).p_value == 1 / 8
    assert delong(scores, scores, labels).p_value == 1
    many, labels = separated(40)
    assert delong(many, -many, labels).p_value < 1e-20
