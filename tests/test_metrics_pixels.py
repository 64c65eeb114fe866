"""Pixel metrics: exact against scikit-learn, bounded when streamed, intervals by patient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from normalis import metrics
from normalis.errors import MetricError, SettingsError
from normalis.metrics.intervals import Draws
from normalis.metrics.streaming import bounds, float_keys

F32 = st.floats(-1e3, 1e3, width=32)


@pytest.fixture
def pictures(rng):
    """24 images of 6 patients, half of them with a lesion."""
    masks = np.zeros((24, 16, 16), dtype=bool)
    masks[::2, 4:9, 5:8] = True
    maps = (rng.gamma(2, 1, masks.shape) + 1.5 * masks).astype(np.float32)
    return maps, masks, np.repeat(np.arange(6), 4)


@st.composite
def small_maps(draw):
    maps = draw(hnp.arrays(np.float32, (3, 4, 5), elements=st.one_of(F32, st.sampled_from([0, 1]))))
    masks = draw(hnp.arrays(np.bool_, (3, 4, 5)))
    masks.flat[0], masks.flat[-1] = True, False
    return maps, masks


@given(small_maps())
def test_equal_to_scikit_learn(case):
    maps, masks = case
    y, s = masks.ravel(), maps.ravel()
    found = metrics.pixel_metrics(maps, masks)
    assert found.auroc == pytest.approx(roc_auc_score(y, s), abs=1e-9)
    assert found.average_precision == pytest.approx(average_precision_score(y, s), abs=1e-9)
    assert found.best_dice == pytest.approx(max(f1_score(y, s >= t) for t in np.unique(s)))
    assert f1_score(y, s >= np.float32(found.threshold)) == pytest.approx(found.best_dice)
    assert metrics.pixel_auroc(maps, masks) == found.auroc
    assert metrics.pixel_average_precision(maps, masks) == found.average_precision
    assert metrics.best_dice(maps, masks) == found.best_dice


def test_best_dice_is_never_below_a_grid_of_quantiles(pictures):
    maps, masks, _ = pictures
    grid = np.quantile(maps, np.linspace(0, 1, 200))
    of_grid = max(2 * (masks & (maps >= t)).sum() / (masks.sum() + (maps >= t).sum()) for t in grid)
    assert metrics.best_dice(maps, masks) >= of_grid


def test_images_of_different_sizes(pictures):
    maps, masks, _ = pictures
    one = metrics.pixel_metrics([maps[0], maps[1, :5]], [masks[0], masks[1, :5]])
    y = np.concatenate([masks[0].ravel(), masks[1, :5].ravel()])
    s = np.concatenate([maps[0].ravel(), maps[1, :5].ravel()])
    assert one.auroc == pytest.approx(roc_auc_score(y, s), abs=1e-9)


def test_errors_speak_of_pixels_and_images(pictures):
    maps, masks, _ = pictures
    with pytest.raises(MetricError, match="pixel AUROC needs both classes, got 6144 normal and 0"):
        metrics.pixel_auroc(maps, np.zeros_like(masks))
    with pytest.raises(MetricError, match="got 24 maps and 23 masks"):
        metrics.pixel_metrics(maps, masks[1:])
    with pytest.raises(MetricError, match=r"got \(16, 16\) and \(16, 15\) for image 0"):
        metrics.pixel_metrics(maps, masks[:, :, 1:])
    maps[3, 2, 1] = np.nan
    with pytest.raises(MetricError, match="finite, got nan for pixel"):
        metrics.pixel_metrics(maps, masks)


# ---------------------------------------------------------------- streaming


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)))
def test_keys_keep_the_order(values):
    keys = float_keys(values)
    i, j = np.triu_indices(20)
    np.testing.assert_array_equal(keys[i] < keys[j], values[i] < values[j])
    np.testing.assert_array_equal(keys[i] == keys[j], values[i] == values[j])


@given(small_maps(), st.integers(10, 20))
def test_streamed_bounds_hold(case, bits):
    maps, masks = case
    exact = metrics.pixel_metrics(maps, masks)
    stream = metrics.StreamingPixelMetrics(bits=bits).update(maps, masks)
    for name in ("auroc", "average_precision", "best_dice"):
        got = getattr(stream, name)()
        assert got.low - 1e-12 <= getattr(exact, name) <= got.high + 1e-12
        assert got.low - 1e-12 <= got.value <= got.high + 1e-12


@given(small_maps(), st.integers(1, 6))
def test_bounds_hold_for_bins_of_any_width(case, n_bins):
    maps, masks = case
    exact = metrics.pixel_metrics(maps, masks)
    edges = np.quantile(maps, np.linspace(0, 1, n_bins + 1)[1:-1])
    bins = np.searchsorted(edges, maps, side="right")
    counts = [np.bincount(bins[m], minlength=n_bins) for m in (masks, ~masks)]
    low, _, high = bounds(*counts)
    want = np.array([exact.auroc, exact.average_precision, exact.best_dice])
    assert (low - 1e-12 <= want).all()
    assert (want <= high + 1e-12).all()


def test_exact_zeros_are_a_true_tie(pictures):
    maps, masks, patient = pictures
    maps[maps < 1.5] = 0.0
    exact = metrics.pixel_metrics(maps, masks)
    streamed = metrics.StreamingPixelMetrics().update(maps, masks).auroc()
    assert streamed.high - streamed.low < 1e-3
    assert streamed.low - 1e-12 <= exact.auroc <= streamed.high + 1e-12
    assert metrics.pixel_bootstrap(maps, masks, groups=patient, n=50)["pixel_auroc"].slack < 2e-3


def test_stream_is_tight_and_merges(pictures):
    maps, masks, _ = pictures
    exact = metrics.pixel_metrics(maps, masks)
    whole = metrics.StreamingPixelMetrics().update(maps, masks)
    parts = metrics.StreamingPixelMetrics().update(maps[:9], masks[:9])
    parts.merge(metrics.StreamingPixelMetrics().update(maps[9:], masks[9:]))
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert whole.auroc().value == pytest.approx(exact.auroc, abs=1e-4)
    assert whole.auroc().high - whole.auroc().low < 1e-3
    assert whole.n_anomalous == masks.sum()


def test_stream_refuses(pictures):
    maps, masks, _ = pictures
    stream = metrics.StreamingPixelMetrics()
    with pytest.raises(MetricError, match="needs both classes, got 0 normal and 0 anomalous"):
        stream.auroc()
    with pytest.raises(MetricError, match="finite in float32, got 1 of 4"):
        stream.update([1.0, 2.0, 3.0, 1e300], [0, 0, 1, 1])
    with pytest.raises(MetricError, match="one shape"):
        stream.update(maps, masks[1:])
    assert stream.counts.sum() == 0
    with pytest.raises(MetricError, match="equal bits"):
        stream.merge(metrics.StreamingPixelMetrics(bits=12))
    with pytest.raises(SettingsError, match="bits must be 10 to 24"):
        metrics.StreamingPixelMetrics(bits=32)


# ---------------------------------------------------------------- intervals


def test_pixel_interval_contains_the_one_of_exact_draws(pictures):
    maps, masks, patient = pictures
    found = metrics.pixel_bootstrap(maps, masks, groups=patient, n=60, seed=2)
    units = Draws.of(patient, 24, n=60, seed=2)
    draws = []
    for weights, _ in units.blocks(np.ones((2, 6), dtype=bool)):
        for row in weights[:, units.member].astype(int):
            index = np.repeat(np.arange(24), row)
            one = metrics.pixel_metrics(maps[index], masks[index])
            draws.append((one.auroc, one.average_precision, one.best_dice))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    for i, name in enumerate(("pixel_auroc", "pixel_average_precision", "best_dice")):
        assert found[name].low <= low[i] + 1e-12
        assert found[name].high >= high[i] - 1e-12
        assert found[name].low > low[i] - found[name].slack - 1e-12
        assert found[name].n_units == 6
    assert found["pixel_auroc"].value == metrics.pixel_auroc(maps, masks)
    assert found["pixel_auroc"].slack < 1e-3


# ---------------------------------------------------------------- lesions


def test_lesions_are_components_and_found_at_their_peak():
    mask = np.zeros((2, 8, 8), dtype=bool)
    mask[0, 0, 0] = mask[0, 1, 1] = True  # corners touch: one lesion of two pixels
    mask[0, 5:8, 5:8] = True
    maps = np.zeros((2, 8, 8))
    maps[0, 1, 1], maps[0, 6, 6] = 3.0, 1.0
    lesions = metrics.find_lesions(maps, mask)
    assert lesions.size.tolist() == [2, 9]
    assert lesions.peak.tolist() == [3.0, 1.0]
    assert lesions.image.tolist() == [0, 0]
    small, large, huge = metrics.lesion_sensitivity(lesions, threshold=2.0, edges=(1, 5, 50))
    assert (small["n"], small["found"], small["sensitivity"]) == (1, 1, 1.0)
    assert (large["n"], large["found"], large["sensitivity"]) == (1, 0, 0.0)
    assert huge["n"] == 0
    assert np.isnan(huge["sensitivity"])
    assert metrics.find_lesions(maps, mask, min_size=3).size.tolist() == [9]


def test_lesions_refuse():
    with pytest.raises(MetricError, match="one shape"):
        metrics.find_lesions(np.zeros((1, 4, 4)), np.zeros((1, 4, 5)))
    with pytest.raises(MetricError, match="finite inside"):
        metrics.find_lesions(np.full((1, 4, 4), np.nan), np.ones((1, 4, 4)))
    none = metrics.find_lesions(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)))
    assert none.size.size == 0
    with pytest.raises(SettingsError, match="ascend"):
        metrics.lesion_sensitivity(none, threshold=0, edges=(5, 1))
