"""The trivial scores against direct formulas, and the figures known of real images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.filters import threshold_otsu
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from normalis import baselines as trivial
from normalis.errors import DataError


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)


def test_moments_match_numpy(images):
    unit = images / 255
    np.testing.assert_allclose(trivial.mean_intensity(images), unit.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(trivial.contrast(images), unit.std((1, 2)), rtol=1e-6)
    area = trivial.foreground_area(images, threshold=0.5)
    np.testing.assert_allclose(area, (unit > 0.5).mean((1, 2)))


def test_float_images_keep_their_units(images):
    unit = (images / 255).astype(np.float32)
    np.testing.assert_allclose(trivial.mean_intensity(unit), trivial.mean_intensity(images))
    np.testing.assert_allclose(
        trivial.mean_intensity(2 * unit), 2 * trivial.mean_intensity(images), rtol=1e-6
    )


def test_blocks_do_not_change_the_nearest(images, rng):
    x = rng.integers(0, 256, (33, 8, 8), dtype=np.uint8)
    direct = np.square((x[:, None] - images[None].astype(float)) / 255).mean((2, 3)).min(1)
    for block in (1, 7, 1024):
        got = trivial.nearest_training(x, images, block=block)
        np.testing.assert_allclose(got, direct, atol=1e-5)


def test_copy_of_training_image_has_distance_zero(images):
    assert trivial.nearest_training(images[:5], images).max() < 1e-6


def test_pca_residual_matches_full_svd(rng):
    basis = rng.normal(size=(5, 64))
    train = (rng.normal(size=(200, 5)) * [9, 7, 5, 3, 0.01]) @ basis
    x = rng.normal(size=(20, 64))
    full = PCA(n_components=4, svd_solver="full").fit(train)
    want = np.square(x - full.inverse_transform(full.transform(x))).mean(1)
    got = trivial.pca_residual(x, train, components=4)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_pca_residual_with_fewer_images_than_components(images):
    assert trivial.pca_residual(images[3:6], images[:10]).shape == (3,)


def test_threshold_separates_two_levels():
    train = np.zeros((4, 8, 8), np.uint8)
    train[:, :4] = 200
    threshold = trivial.foreground_threshold(train)
    np.testing.assert_allclose(trivial.foreground_area(train, threshold=threshold), 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_that_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    for values in (rng.random(500), rng.normal(size=(9, 8, 8)), rng.integers(0, 5, 40) / 4):
        values = values.astype(np.float32)
        assert trivial._otsu_threshold(values) == pytest.approx(threshold_otsu(values), rel=1e-5)
    assert trivial._otsu_threshold(np.full(4, 0.3)) == 0.3


def test_pixel_scores_come_in_both_directions(images):
    scores = trivial.pixel_scores(images[:20], images[20:])
    np.testing.assert_array_equal(scores["mean_intensity_reversed"], -scores["mean_intensity"])
    assert all(np.isfinite(score).all() and score.shape == (20,) for score in scores.values())


def test_shapes_must_agree(images):
    with pytest.raises(DataError, match="same settings"):
        trivial.pixel_scores(images[:, :4], images)


def test_property_scores():
    rows = [{"size": "512x512", "bytes": 9, "scanner": "A"}] * 6
    rows += [{"size": "256x256", "bytes": 5, "scanner": "A"}] * 4 + [{"scanner": "A"}] * 3
    scores = trivial.property_scores(rows)
    np.testing.assert_array_equal(scores["size=512x512"], [1] * 6 + [0] * 7)
    np.testing.assert_array_equal(scores["size=missing"], [0] * 10 + [1] * 3)
    np.testing.assert_array_equal(scores["bytes"], [9] * 6 + [5] * 4 + [9] * 3)  # the median
    assert not any(name.startswith("scanner") for name in scores)


def test_two_values_make_one_bit():
    rows = [{"sex": "F"}] * 5 + [{"sex": "M"}] * 4
    assert list(trivial.property_scores(rows)) == ["sex=M"]


@given(st.lists(st.one_of(st.none(), st.integers(0, 3), st.text(max_size=2)), max_size=30))
def test_property_scores_are_always_finite(values):
    for score in trivial.property_scores([{"key": value} for value in values]).values():
        assert score.shape == (len(values),)
        assert np.isfinite(score).all()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "score", "auroc"),
    [
        ("brain_tumor", "mean_intensity_reversed", 0.80),
        ("brain_tumor", "pca16_residual", 0.43),
        ("brain_tumor", "nearest_training", 0.864),
        ("kermany_cxr", "mean_intensity", 0.52),
        ("kermany_cxr", "pca16_residual", 0.71),
        ("lgg_flair", "pca16_residual", 0.47),
    ],
)
def test_figures_of_real_images(real_data, name, score, auroc):
    with np.load(real_data / name / "arrays_64.npz") as arrays:
        train, test, label = arrays["train"], arrays["test"], arrays["test_label"]
    got = roc_auc_score(label, trivial.pixel_scores(test, train)[score])
    assert got == pytest.approx(auroc, abs=0.006)
