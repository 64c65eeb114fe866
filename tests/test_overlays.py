"""Pictures: a quiet map leaves the image grey, and one scale serves all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normalis.calibration.colours import ColourScale
from normalis.output.overlays import (
    PANEL,
    contoured,
    grey,
    heat,
    numbered,
    outline,
    over,
    render,
    resize_map,
)

SCALE = ColourScale(quiet=0.2, full=0.8)


@given(st.integers(1, 200), st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_the_quiet_level_is_the_conformal_order_statistic(n, rate):
    maxima = np.random.default_rng(n).random(n)
    scale = ColourScale.from_maxima(maxima, rate)
    if scale.rate is None:
        assert n < 1 / rate - 1 + 1e-9
        assert scale.quiet == maxima.max()
    else:
        assert scale.rate == rate
        # among n + 1 exchangeable images at most a share `rate` lies above this one
        assert (1 + (maxima > scale.quiet).sum()) / (n + 1) <= rate + 1e-9
        higher = (1 + (maxima >= scale.quiet).sum()) / (n + 1)
        assert higher > rate - 1e-9
    assert scale.full == pytest.approx(3 * scale.quiet)


def test_the_rank_by_hand():
    maxima = np.arange(1.0, 20.0)  # 19 images certify 1 in 20 with their largest value
    assert ColourScale.from_maxima(maxima) == ColourScale(quiet=19, full=57, rate=0.05)
    assert ColourScale.from_maxima(maxima[:-1]) == ColourScale(quiet=18, full=54, rate=None)
    assert ColourScale.from_maxima(np.arange(1.0, 40.0)).quiet == 38


def test_maxima_of_zero_still_make_a_scale():
    scale = ColourScale.from_maxima(np.zeros(30))
    assert scale.full > scale.quiet
    assert not heat(np.zeros((3, 3)), scale)[1].any()


def test_a_quiet_map_leaves_the_image_grey(rng):
    pixels = rng.random((1, 12, 9))
    quiet = rng.uniform(0, SCALE.quiet, (12, 9))
    np.testing.assert_array_equal(over(pixels, quiet, SCALE), grey(pixels))


def test_what_is_above_is_coloured_and_nothing_else(rng):
    pixels, loud = rng.random((1, 12, 9)), np.zeros((12, 9))
    loud[3:5, 4:6] = 0.9
    painted = over(pixels, loud, SCALE)
    coloured = (painted.max(2) - painted.min(2)) > 0
    np.testing.assert_array_equal(coloured, loud > 0)


def test_colour_depends_on_the_value_alone():
    one, _ = heat(np.array([[0.5, 0.1]]), SCALE)
    other, _ = heat(np.array([[0.5, 99.0]]), SCALE)  # a louder neighbour changes nothing
    np.testing.assert_array_equal(one[0, 0], other[0, 0])
    brightness = heat(np.linspace(0.2, 0.8, 20)[None], SCALE)[0].astype(int).sum(2)[0]
    assert (np.diff(brightness) > 0).all()


def test_values_that_are_not_finite_are_not_painted():
    colours, opacity = heat(np.array([[np.nan, 0.0]]), SCALE)
    assert np.isfinite(colours).all()
    assert not opacity.any()


def test_grey_clips_for_display_only():
    pixels = np.array([[[-3.0, 0.0, 0.5, 1.0, 7.0, np.nan]]])
    before = pixels.copy()
    assert grey(pixels)[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0]
    np.testing.assert_array_equal(pixels, before)


def test_colour_images_keep_their_colours(rng):
    pixels = rng.random((3, 4, 5))
    shown = grey(pixels)
    np.testing.assert_allclose(shown / 255, pixels.transpose(1, 2, 0), atol=1 / 255)


@pytest.mark.parametrize("shape", [(16, 16), (40, 25), (7, 90), (1, 1)])
def test_maps_are_stretched_to_the_image(shape, rng):
    small = rng.random((16, 16)).astype(np.float32)
    whole = resize_map(small, shape)
    assert whole.shape == shape
    assert whole.dtype == np.float32
    assert small.min() <= whole.min() <= whole.max() <= small.max()
    if shape == small.shape:
        np.testing.assert_array_equal(whole, small)


@pytest.mark.parametrize("shape", [(16, 16), (300, 200), (40, 900), (1, 1)])
@pytest.mark.parametrize("rebuilt", [True, False])
def test_panels_keep_the_images_shape(shape, rebuilt, rng):
    picture = render(
        rng.random((1, *shape)),
        np.zeros((16, 16)),
        scale=SCALE,
        reconstruction=rng.random((1, 16, 16)) if rebuilt else None,
        title="scan_0041 ä.dcm   score 0.1",
    )
    width = max(1, round(shape[1] * PANEL / max(shape)))
    assert picture.width == (3 + rebuilt) * (width + 8) + 8 + 74
    assert picture.height >= max(1, round(shape[0] * PANEL / max(shape)))


def test_a_quiet_picture_has_no_colour_outside_the_bar(rng):
    picture = render(rng.random((1, 32, 32)), np.full((16, 16), 0.1), scale=SCALE)
    panels = np.asarray(picture)[38:-30, : picture.width - 82].astype(int)
    assert (panels.max(2) - panels.min(2)).max() <= 4  # the page itself is a bluish black
    loud = render(rng.random((1, 32, 32)), np.full((16, 16), 0.9), scale=SCALE)
    panels = np.asarray(loud)[38:-30, : loud.width - 82].astype(int)
    assert (panels.max(2) - panels.min(2)).max() > 60


@pytest.mark.parametrize(
    ("place", "ending"),
    [
        ("", ""),
        ("3", "_0003"),
        ("12345", "_12345"),
        ("validation_3", "_validation_0003"),
        ("?", ""),
    ],
)
def test_what_a_file_name_says_of_a_slice(place, ending):
    assert numbered(place) == ending


def test_an_outline_goes_around_areas_and_not_along_the_pictures_edge():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 0:5] = True
    line = outline(mask)
    assert line.sum() == 5 + 5 + 3  # above, below and to the right; the left is the edge
    assert not line[4, 0]
    drawn = contoured(np.full((9, 9, 3), 90, np.uint8), mask, (0, 229, 255))
    assert (drawn[line] == (0, 229, 255)).all()
    assert (drawn[4, 1] == 90).all()


def panel(picture, number):
    left = 8 + number * (PANEL + 8)
    return np.asarray(picture)[38 : 38 + PANEL, left : left + PANEL].astype(int)


def test_what_is_above_is_outlined_and_the_highest_place_always_ringed(rng):
    pixels, quiet = np.full((1, 64, 64), 0.5), np.full((64, 64), 0.01)
    quiet[40:44, 20:24] = 0.1  # below the level, and still the highest
    picture = render(pixels, quiet, scale=SCALE)
    assert (panel(picture, 1) == 128).all()  # nothing is above normal images
    ring = (panel(picture, 2) == 255).all(axis=2)
    y, x = np.nonzero(ring)
    assert abs(y.mean() - 42 * PANEL / 64) < 12
    assert abs(x.mean() - 22 * PANEL / 64) < 12
    quiet[40:44, 20:24] = 0.9
    loud = panel(render(pixels, quiet, scale=SCALE), 1)
    assert (loud == (0, 229, 255)).all(axis=2).sum() > 40
