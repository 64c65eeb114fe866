"""Metrics against scikit-learn, their invariances, their errors, and intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score

from normalis import metrics
from normalis.errors import MetricError, SettingsError

FINITE = st.floats(-1e3, 1e3, width=32)
COARSE = st.integers(-3, 3).map(float)  # many ties


@st.composite
def scored(draw, min_size=2, max_size=60):
    """Scores, often tied, with at least one of each class."""
    size = draw(st.integers(min_size, max_size))
    scores = draw(hnp.arrays(np.float64, size, elements=st.one_of(FINITE, COARSE)))
    labels = draw(hnp.arrays(np.bool_, size))
    labels[0], labels[-1] = True, False
    return scores, labels


@given(scored())
def test_equal_to_scikit_learn(case):
    scores, labels = case
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    want = average_precision_score(labels, scores)
    assert metrics.average_precision(scores, labels) == pytest.approx(want, abs=1e-9)


@given(scored())
def test_unchanged_by_an_increasing_map(case):
    scores, labels = case
    doubled = 2 * scores  # exact in floating point, so ties stay ties
    for metric in (metrics.auroc, metrics.average_precision, metrics.sensitivity_at_fpr):
        assert metric(doubled, labels) == metric(scores, labels)


@given(scored())
def test_auroc_of_the_reversed_score_is_the_complement(case):
    scores, labels = case
    one = metrics.auroc(scores, labels)
    assert metrics.auroc(-scores, labels) == pytest.approx(1 - one, abs=1e-12)
    assert metrics.auroc(scores, ~labels) == pytest.approx(1 - one, abs=1e-12)


def test_all_tied():
    labels = np.array([True, False, False, False])
    assert metrics.auroc(np.ones(4), labels) == 0.5
    assert metrics.average_precision(np.ones(4), labels) == 0.25


@given(scored(), st.floats(0, 1))
def test_sensitivity_at_fpr_is_the_best_that_is_allowed(case, rate):
    scores, labels = case
    thresholds = [np.inf, *scores]
    allowed = [t for t in thresholds if np.mean(scores[~labels] >= t) <= rate + 1e-12]
    want = max(np.mean(scores[labels] >= t) for t in allowed)
    assert metrics.sensitivity_at_fpr(scores, labels, rate=rate) == pytest.approx(want)


def test_rates_at_a_threshold():
    scores, labels = np.array([1, 2, 3, 4]), np.array([0, 1, 0, 1])
    assert metrics.sensitivity(scores, labels, threshold=3) == 0.5
    assert metrics.false_positive_rate(scores, labels, threshold=3) == 0.5


def test_errors_say_what_was_given():
    normal = np.zeros(128, dtype=bool)
    message = "AUROC needs both classes, got 128 normal and 0 anomalous images"
    with pytest.raises(MetricError, match=message):
        metrics.auroc(np.zeros(128), normal)
    with pytest.raises(MetricError, match="average precision needs at least one anomalous image"):
        metrics.average_precision(np.zeros(128), normal)
    with pytest.raises(MetricError, match=r"got nan for image 1 and 1 such of 2"):
        metrics.auroc([0.0, np.nan], [0, 1])
    with pytest.raises(MetricError, match=r"got inf for image 0"):
        metrics.auroc([np.inf, 1.0], [0, 1])
    with pytest.raises(MetricError, match=r"got shapes \(2, 1\) and \(2,\)"):
        metrics.auroc([[0.0], [1.0]], [0, 1])
    with pytest.raises(MetricError, match=r"got shapes \(3,\) and \(2,\)"):
        metrics.auroc([0.0, 1.0, 2.0], [0, 1])
    with pytest.raises(MetricError, match="0 \\(normal\\) and 1 \\(anomalous\\)"):
        metrics.auroc([0.0, 1.0, 2.0], [0, 1, 2])
    with pytest.raises(MetricError, match="scores must be numbers"):
        metrics.auroc(["a", "b"], [0, 1])
    with pytest.raises(MetricError, match="at least one normal image"):
        metrics.false_positive_rate([1.0], [1], threshold=0)
    with pytest.raises(MetricError, match=r"in \[0, 1\], got 2"):
        metrics.sensitivity_at_fpr([0.0, 1.0], [0, 1], rate=2)


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.average_precision])
def test_a_perfect_ranking_is_one(metric):
    labels = np.arange(20) % 2 == 0
    assert metric(labels.astype(float), labels) == 1.0
    assert metric(1 - labels.astype(float), labels) < 0.6


@pytest.mark.parametrize(
    "metric", [metrics.pixel_auroc, metrics.pixel_average_precision, metrics.best_dice]
)
def test_a_perfect_map_is_one(metric, rng):
    masks = rng.random((4, 8, 8)) < 0.2
    assert metric(masks.astype(np.float32), masks) == 1.0
    assert metric(1 - masks.astype(np.float32), masks) < 0.6


# ---------------------------------------------------------------- intervals


def naive_draws(metric, scores, labels, groups, n, seed):
    """Resample by index, one draw at a time, with the same generator."""
    units = metrics.intervals.Draws.of(groups, scores.size, n=n, seed=seed)
    present = np.zeros((2, units.n_units), dtype=bool)
    present[labels.astype(int), units.member] = True
    out = []
    for weights, _ in units.blocks(present):
        for row in weights[:, units.member].astype(int):
            index = np.repeat(np.arange(scores.size), row)
            out.append(metric(labels[index], scores[index]))
    return np.array(out)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("clustered", [False, True])
def test_weights_equal_repeated_images(rng, tied, clustered):
    labels = rng.random(60) < 0.4
    scores = rng.normal(size=60) + labels
    scores = np.round(scores) if tied else scores
    groups = rng.integers(0, 15, 60) if clustered else None
    units = metrics.intervals.Draws.of(groups, 60, n=40, seed=3)
    for metric, reference in [
        (metrics.auroc, roc_auc_score),
        (metrics.average_precision, average_precision_score),
        (metrics.sensitivity_at_fpr, lambda y, s: metrics.sensitivity_at_fpr(s, y)),
    ]:
        got, _ = metrics.intervals.draw_statistics(metric, scores, labels, units=units)
        np.testing.assert_allclose(
            got, naive_draws(reference, scores, labels, groups, 40, 3), atol=1e-9
        )


def test_other_metrics_are_called_on_repeats(rng):
    labels = rng.random(50) < 0.5
    scores = rng.normal(size=50) + labels
    fast = metrics.bootstrap(metrics.auroc, scores, labels, n=50)
    slow = metrics.bootstrap(lambda s, y: metrics.auroc(s, y), scores, labels, n=50)
    assert (slow.low, slow.high) == pytest.approx((fast.low, fast.high))


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth = 0.760250  # Phi(1 / sqrt 2)
    hits = 0
    for seed in range(200):
        labels = np.arange(160) % 2 == 0
        found = metrics.bootstrap(
            metrics.auroc, rng.normal(size=160) + labels, labels, n=200, seed=seed, confidence=0.9
        )
        hits += found.low <= truth <= found.high
    assert 0.83 <= hits / 200 <= 0.95


def test_clustered_interval_is_wider_when_patients_repeat(rng):
    labels = np.repeat(np.arange(40) % 2 == 0, 10)
    patient = np.repeat(np.arange(40), 10)
    scores = np.repeat(rng.normal(size=40), 10) + 0.05 * rng.normal(size=400) + labels
    alone = metrics.bootstrap(metrics.auroc, scores, labels)
    grouped = metrics.bootstrap(metrics.auroc, scores, labels, groups=patient)
    assert (alone.n_units, grouped.n_units) == (400, 40)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert grouped.value == alone.value


def test_draws_without_a_class_are_counted():
    scores, labels = np.arange(8.0), np.array([0, 0, 0, 0, 0, 0, 0, 1])
    found = metrics.bootstrap(metrics.auroc, scores, labels, n=300)
    assert found.n_draws == 300
    assert 60 < found.n_rejected < 300  # (7/8)^8 = 34 % of all draws


def test_intervals_are_reproducible_and_refuse_nonsense(rng):
    labels = np.arange(30) % 3 == 0
    scores = rng.normal(size=30)
    one, two = (metrics.bootstrap(metrics.auroc, scores, labels, n=99, seed=5) for _ in range(2))
    assert one == two
    assert one.to_dict()["n_units"] == 30
    with pytest.raises(MetricError, match="at least 2 independent units, got 1"):
        metrics.bootstrap(metrics.auroc, scores, labels, groups=["same"] * 30)
    with pytest.raises(MetricError, match="one group per image"):
        metrics.bootstrap(metrics.auroc, scores, labels, groups=["a"])
    with pytest.raises(SettingsError, match="at least 1, got 0"):
        metrics.bootstrap(metrics.auroc, scores, labels, n=0)
    with pytest.raises(SettingsError, match="between 0 and 1"):
        metrics.bootstrap(metrics.auroc, scores, labels, confidence=95)


@settings(max_examples=30)
@given(scored(max_size=30), st.integers(0, 5))
def test_interval_ends_are_probabilities(case, seed):
    scores, labels = case
    found = metrics.bootstrap(metrics.average_precision, scores, labels, n=20, seed=seed)
    assert 0 <= found.low <= found.high <= 1
