"""Comparisons of two methods against direct formulas and simulated nulls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from normalis import metrics
from normalis.errors import MetricError


def direct_delong_variance(a, b, labels):
    """DeLong's variance of the difference by comparing every pair."""

    def parts(s):
        pairs = (s[labels][:, None] > s[~labels]) + 0.5 * (s[labels][:, None] == s[~labels])
        return pairs.mean(1), pairs.mean(0)

    (a10, a01), (b10, b01) = parts(a), parts(b)
    return np.var(a10 - b10, ddof=1) / labels.sum() + np.var(a01 - b01, ddof=1) / (~labels).sum()


@pytest.mark.parametrize("tied", [False, True])
def test_delong_matches_all_pairs(rng, tied):
    labels = rng.random(80) < 0.4
    a, b = rng.normal(size=80) + labels, rng.normal(size=80) + 0.3 * labels
    if tied:
        a, b = np.round(a), np.round(b)
    found = metrics.delong(a, b, labels)
    half = 1.959963985 * np.sqrt(direct_delong_variance(a, b, labels))
    want = metrics.auroc(a, labels) - metrics.auroc(b, labels)
    assert found.difference == pytest.approx(want)
    assert (found.low, found.high) == pytest.approx((want - half, want + half))


def test_delong_rejects_a_true_null_as_often_as_it_says():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2 == 0
    p = [
        metrics.delong(rng.normal(size=200) + labels, rng.normal(size=200) + labels, labels).p_value
        for _ in range(600)
    ]
    assert 0.025 <= np.mean(np.array(p) < 0.05) <= 0.08


def test_delong_of_equal_scores_and_of_too_few():
    labels = np.array([0, 0, 1, 1])
    same = metrics.delong([1, 2, 3, 4], [1, 2, 3, 4], labels)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    with pytest.raises(MetricError, match="at least 2 images of each class, got 3 normal and 1"):
        metrics.delong([1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 1])


def test_paired_bootstrap_agrees_with_delong(rng):
    labels = rng.random(300) < 0.5
    shared = rng.normal(size=300)
    a, b = shared + labels, shared + rng.normal(size=300) + labels
    ours, theirs = (
        metrics.paired_bootstrap(metrics.auroc, a, b, labels),
        metrics.delong(a, b, labels),
    )
    assert ours.difference == pytest.approx(theirs.difference)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_paired_bootstrap_by_patient_is_more_careful(rng):
    patient = np.repeat(np.arange(30), 10)
    labels = patient % 2 == 0
    a = np.repeat(rng.normal(size=30), 10) + labels
    b = np.repeat(rng.normal(size=30), 10) + labels
    alone = metrics.paired_bootstrap(metrics.auroc, a, b, labels)
    grouped = metrics.paired_bootstrap(metrics.auroc, a, b, labels, groups=patient)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert grouped.n_units == 30
    assert grouped.p_value >= 2 / 2001


def test_holm_by_hand():
    np.testing.assert_allclose(metrics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert metrics.holm([]).size == 0
    with pytest.raises(MetricError, match=r"in \[0, 1\]"):
        metrics.holm([0.5, 1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_beats_its_input_and_keeps_order(p):
    adjusted = metrics.holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_welch_is_scipys(rng):
    a, b = rng.normal(size=5), rng.normal(1, 3, size=4)
    found = metrics.welch(a, b)
    want = ttest_ind(a, b, equal_var=False)
    assert found.p_value == pytest.approx(want.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(want.confidence_interval(0.95)))
    assert metrics.welch([1, 1], [1, 1]).p_value == 1.0
    with pytest.raises(MetricError, match="got 1 and 2"):
        metrics.welch([1.0], [1.0, 2.0])
