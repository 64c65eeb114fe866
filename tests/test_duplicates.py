"""Twins by blocks against all pairs at once, planted copies, and the figures of real images."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from normalis import duplicates
from normalis.errors import DataError


def smooth_images(rng, n, size=64):
    images = gaussian_filter(rng.normal(size=(n, size, size)), (0, 3, 3), mode="wrap")
    images -= images.min(axis=(1, 2), keepdims=True)
    return (255 * images / images.max(axis=(1, 2), keepdims=True)).astype(np.uint8)


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer))


@pytest.fixture
def images(rng):
    return smooth_images(rng, 40)


def sides(train, test):
    x = np.concatenate([train, test])
    return x, np.arange(len(x)) >= len(train)


def test_correlation_of_rows_matches_numpy(images):
    rows = duplicates.unit_rows(images)
    want = np.corrcoef(images.reshape(len(images), -1).astype(float))
    np.testing.assert_allclose(rows @ rows.T, want, atol=2e-6)


def test_correlation_ignores_brightness_and_contrast(images):
    brighter = images.astype(np.float32) * 3 + 1000
    together = (duplicates.unit_rows(images) * duplicates.unit_rows(brighter)).sum(axis=1)
    np.testing.assert_allclose(together, 1, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_blocks_and_direct_pairs_agree(seed, block):
    rng = np.random.default_rng(seed)
    n = 24
    x = rng.integers(0, 4, (n, 2, 2)).astype(np.uint8)  # tiny: copies, mirrors, constants abound
    is_test = rng.random(n) < 0.4
    who = rng.integers(-1, 3, n)
    got = duplicates.scan(x, is_test, patients=who, block=block)

    rows = x.reshape(n, -1).astype(float)
    rows -= rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1)
    ncc = rows @ rows.T / np.maximum(np.outer(length, length), 1e-12)
    flat = length == 0
    ncc[np.outer(flat, flat) & (x[:, 0, 0][:, None] == x[:, 0, 0])] = 1
    differ = (who[:, None] != who) & (who[:, None] >= 0) & (who >= 0)
    far = is_test[:, None] != is_test
    other = ~np.eye(n, dtype=bool)

    def best(allowed):
        return np.where(allowed, ncc, -1).max(axis=1)

    np.testing.assert_allclose(got.across, best(far & ~differ), atol=1e-5)
    np.testing.assert_allclose(got.other_patient, best(far & differ), atol=1e-5)
    np.testing.assert_allclose(got.within, best(~far & ~differ & other), atol=1e-5)
    found = got.duplicate >= 0
    np.testing.assert_allclose(ncc[found, got.duplicate[found]], got.across[found], atol=1e-5)

    near = (ncc >= 0.95 - 1e-6) & ~differ
    kept = []
    for i in range(n):
        if not any(near[i, j] for j in kept if is_test[i] == is_test[j]):
            kept.append(i)
    np.testing.assert_array_equal(np.flatnonzero(got.distinct), kept)
    reach = near | np.eye(n, dtype=bool)
    for _ in range(5):
        reach = reach @ reach
    np.testing.assert_array_equal(got.group[:, None] == got.group, reach)


def test_equal_constants_are_twins_and_other_constants_are_not():
    x = np.zeros((4, 8, 8), np.float32)
    x[1:3] = 0.1  # not exact in binary: the mean differs from the value by rounding
    x[3, 0, 0] = 1
    got = duplicates.scan(x, np.array([False, False, True, True]))
    np.testing.assert_array_equal(got.across, [0, 1, 1, 0])


def test_different_known_patients_are_lookalikes(images):
    x, is_test = sides(images, images[:3])
    who = np.arange(len(x))
    who[-1] = -1  # of an unknown patient: may be the same one
    got = duplicates.scan(x, is_test, patients=who)
    assert got.across[-1] > 0.999
    assert (got.across[is_test][:2] < 0.95).all()
    assert (got.other_patient[is_test][:2] > 0.999).all()


def test_mirrored_copies_are_found_by_the_mirrored_scan_alone(images):
    x, is_test = sides(images, images[:5, :, ::-1])
    assert (duplicates.scan(x, is_test).across[is_test] < 0.95).all()
    got = duplicates.scan(x, is_test, mirrored=True)
    assert (got.across[is_test] > 0.9999).all()
    np.testing.assert_array_equal(got.duplicate[is_test], range(5))


def test_reencoded_copies(images):
    x, is_test = sides(images, np.stack([jpeg(i) for i in images[:8]]))
    got = duplicates.scan(x, is_test)
    np.testing.assert_array_equal(got.duplicate[is_test], range(8))
    assert (got.across[is_test] > 0.99).all()


@pytest.mark.parametrize(("dy", "dx"), [(2, 2), (0, -3), (-4, 1)])
def test_shifted_copies(images, dy, dx):
    moved = np.roll(images[:10], (dy, dx), axis=(1, 2))
    got, duplicate = duplicates.find_shifted(moved, images, block=16)
    np.testing.assert_array_equal(duplicate, range(10))
    assert (got > 0.9999).all()


def test_shift_by_a_broken_number_of_pixels(rng):
    large = smooth_images(rng, 20, 224)
    moved = np.roll(large[:10], (2, 2), axis=(1, 2))  # 0.57 pixels of 64
    small, moved = (
        np.stack([Image.fromarray(x).resize((64, 64), Image.Resampling.BILINEAR) for x in images])
        for images in (large, moved)
    )
    got, duplicate = duplicates.find_shifted(moved, small)
    np.testing.assert_array_equal(duplicate, range(10))
    assert (got > 0.97).all()


def test_no_shifted_copy_among_unrelated_images(rng, images):
    got, _ = duplicates.find_shifted(smooth_images(rng, 30), images)
    assert (got < 0.95).all()


def test_shifted_copies_of_other_patients_are_left_out(images):
    moved = np.roll(images[:4], 2, axis=1)
    got, duplicate = duplicates.find_shifted(
        moved, images, patients=(np.full(4, 99), np.arange(len(images)))
    )
    assert (got < 0.95).all()
    assert (duplicate != np.arange(4)).all()


def test_digests_tell_pixels_apart(images):
    again = duplicates.pixel_digests(images.copy())
    assert again == duplicates.pixel_digests(images)
    assert len(set(again)) == len(images)


def test_codes():
    assert duplicates.codes(["b", None, "a", "b"]).tolist() == [0, -1, 1, 0]


def test_shapes_must_agree(images):
    with pytest.raises(DataError, match="one side and patient each"):
        duplicates.scan(images, np.zeros(3, bool))


def test_progress_ends_at_one(images):
    seen = []
    duplicates.scan(images, np.arange(40) > 20, block=7, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1


@pytest.mark.real_data
def test_known_leaks_of_brain_tumor(real_data):
    with np.load(real_data / "brain_tumor" / "arrays_64.npz") as arrays:
        x, is_test = sides(arrays["train"], arrays["test"])
        anomalous = arrays["test_label"] == 1
    got = duplicates.scan(x, is_test)
    across = got.across[is_test]
    assert [(across >= t).sum() for t in (0.999, 0.95)] == [368, 510]
    assert (across[anomalous] < 0.95).all()
    assert got.distinct[~is_test].sum() == 402
    assert (got.across[~is_test] < 0.95).sum() == 278
    assert got.distinct[is_test][anomalous].sum() == 586
    mirror = duplicates.scan(x, is_test, mirrored=True).across[is_test]
    assert [(np.maximum(across, mirror) >= t).sum() for t in (0.999, 0.95)] == [448, 533]


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "lookalikes"), [("kermany_cxr", 7), ("lgg_flair", 2)])
def test_lookalikes_of_different_patients_are_no_leak(real_data, name, lookalikes):
    with np.load(real_data / name / "arrays_64.npz") as arrays:
        x, is_test = sides(arrays["train"], arrays["test"])
        who = duplicates.codes([*arrays["train_patient"], *arrays["test_patient"]])
    got = duplicates.scan(x, is_test, patients=who)
    assert (got.other_patient[is_test] >= 0.95).sum() == lookalikes
    assert (got.across[is_test] < 0.95).all()


@pytest.mark.parametrize("size", [64, 200])
def test_groups_of_larger_colour_images(rng, size):
    images = smooth_images(rng, 6, size)[:, None].repeat(3, axis=1)
    groups = duplicates.duplicate_groups(np.concatenate([images, images[4:5] // 2]))
    assert groups.tolist() == [0, 1, 2, 3, 4, 5, 4]


# --- outlines and what lies inside ----------------------------------------------------------------


def cut_out(rng, n, *, background=0):
    """Return discs of different texture on an even background, as fundus photographs are."""
    y, x = np.mgrid[0:64, 0:64]
    disc = (y - 32) ** 2 + (x - 32) ** 2 < 28**2
    texture = gaussian_filter(rng.normal(size=(n, 64, 64)), (0, 1.5, 1.5))
    texture *= 6 / texture.std(axis=(1, 2), keepdims=True)
    bright = 130 if background < 128 else 60
    return np.where(disc, bright + texture, background).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("background", [0, 255])
def test_a_shared_outline_is_a_look_alike_and_a_copy_is_found(rng, background):
    train = cut_out(rng, 30, background=background)
    copies = [jpeg(train[3]), train[4], (train[5] * 0.8).astype(np.uint8)]
    if background:  # at 64 pixels a JPEG of quality 60 rings far into a disc on white
        copies[0] = (train[3] * 0.97).astype(np.uint8)
    x, is_test = sides(train, np.concatenate([cut_out(rng, 20, background=background), copies]))
    whole = duplicates.scan(x, is_test)
    assert (whole.across[is_test] > 0.95).all()
    fine = duplicates.fine_detail(x)
    got = duplicates.scan(x, is_test, fine=fine)
    assert (got.across[is_test][:20] < 0.95).all()
    assert (got.other_patient[is_test][:20] > 0.95).all()
    assert (got.across[is_test][20:] > 0.95).all()
    assert got.duplicate[is_test][20:].tolist() == [3, 4, 5]
    assert got.distinct[~is_test].all()
    np.testing.assert_array_equal(got.group, whole.group)  # groups stay as wide as they were


def test_mirrored_and_moved_copies_are_found_by_what_lies_inside(rng):
    train = cut_out(rng, 30)
    test = np.concatenate([cut_out(rng, 10), train[7:9, :, ::-1]])
    x, is_test = sides(train, test)
    fine = duplicates.fine_detail(x)
    got = duplicates.scan(x, is_test, mirrored=True, fine=fine)
    assert (got.across[is_test][:10] < 0.95).all()
    assert got.duplicate[is_test][10:].tolist() == [7, 8]
    moved = np.roll(train[:5], (2, -1), axis=(1, 2))
    x, is_test = sides(train, np.concatenate([cut_out(rng, 10), moved]))
    fine = duplicates.fine_detail(x)
    ncc, duplicate = duplicates.find_shifted(
        x[is_test], x[~is_test], fine=(fine[is_test], fine[~is_test])
    )
    assert (ncc[:10] < 0.95).all()
    assert duplicate[10:].tolist() == list(range(5))
    assert (ncc[10:] > 0.95).all()


def test_smooth_images_have_no_detail_to_compare(rng):
    y, x = np.mgrid[0:64, 0:64]
    smooth = np.stack([(y * k + x) % 256 / 3 for k in (1, 1, 2)]).astype(np.uint8)
    smooth[0] = smooth[1] = (y + x).astype(np.uint8)
    fine = duplicates.fine_detail(smooth[:2])
    assert not fine.any()
    got = duplicates.scan(smooth[:2], np.array([False, True]), fine=fine)
    np.testing.assert_allclose(got.across, 1, atol=1e-6)


def test_dense_and_single_correlations_agree(rng):
    from normalis.duplicates.inside import correlations

    fine = duplicates.fine_detail(smooth_images(rng, 40))
    every = np.ones((40, 40), bool)
    few = rng.random((40, 40)) < 0.01
    dense = correlations(fine, fine, every)
    np.testing.assert_allclose(correlations(fine, fine, few)[few], dense[few], atol=2e-3)
    assert (correlations(fine, fine, few)[~few] == 1).all()
