"""Findings: areas in the image's own pixels and millimetres, the highest place always told."""

import numpy as np
import pytest

from normalis.calibration.findings import find_areas, highest_at_border, with_p_values


def with_box(shape, top, bottom, left, right, value=1.0):
    one = np.zeros(shape, np.float32)
    one[top:bottom, left:right] = value
    return one


def test_an_area_by_hand():
    (found,) = find_areas(with_box((40, 60), 10, 14, 20, 30), 0.5, shape=(40, 60))
    assert (found.left, found.top, found.right, found.bottom) == (20, 10, 30, 14)
    assert (found.x, found.y) == (25.0, 12.0)
    assert found.area_px == 40
    assert found.area_mm2 is None
    assert found.above
    assert found.number == 1
    assert not found.at_border


def test_areas_are_in_the_images_pixels_not_the_maps():
    """A map of 64 x 64 over an image of 256 x 128: four times as high, twice as wide."""
    (found,) = find_areas(with_box((64, 64), 16, 32, 16, 32), 0.5, shape=(256, 128))
    assert found.area_px == pytest.approx(16 * 16 * 8, rel=0.05)
    assert (found.x, found.y) == (48.0, 96.0)
    assert (found.left, found.right) == pytest.approx((32, 64), abs=1)
    assert (found.top, found.bottom) == pytest.approx((64, 128), abs=2)


def test_a_large_image_is_counted_coarsely_and_measured_in_its_pixels():
    (found,) = find_areas(with_box((64, 64), 16, 32, 16, 32), 0.5, shape=(3000, 4000))
    assert found.area_px == pytest.approx(3000 * 4000 / 16, rel=0.05)
    assert found.x == pytest.approx(1500, abs=20)
    assert found.y == pytest.approx(1125, abs=20)


def test_square_millimetres_of_pixels_that_are_not_square():
    (found,) = find_areas(
        with_box((40, 40), 10, 20, 10, 20), 0.5, shape=(40, 40), spacing=(0.5, 3.0)
    )
    assert found.area_mm2 == 100 * 0.5 * 3.0


def test_areas_that_touch_by_a_corner_are_one_and_others_are_ranked_by_peak():
    one = with_box((40, 40), 5, 10, 5, 10) + with_box((40, 40), 10, 15, 10, 15)
    two = one + with_box((40, 40), 25, 30, 25, 30, value=2.0)
    found = find_areas(two, 0.5, shape=(40, 40))
    assert [(f.number, f.peak, f.area_px) for f in found] == [(1, 2.0, 25), (2, 1.0, 50)]


def test_the_highest_place_is_told_even_below_the_level():
    quiet = with_box((40, 40), 20, 24, 20, 24, value=0.2) + with_box((40, 40), 5, 7, 5, 7, 0.16)
    (found,) = find_areas(quiet, 0.5, shape=(40, 40))
    assert not found.above
    assert found.area_px == 16  # not what is as high elsewhere
    assert (found.x, found.y) == (22.0, 22.0)


def test_a_map_of_zeros_has_no_finding():
    assert find_areas(np.zeros((8, 8)), 0.5, shape=(8, 8)) == []


def test_findings_at_the_border_say_so():
    (found,) = find_areas(with_box((40, 40), 0, 4, 10, 20), 0.5, shape=(400, 400))
    assert found.at_border
    maps = np.stack([with_box((40, 40), 0, 2, 10, 20), with_box((40, 40), 8, 12, 8, 12)])
    assert highest_at_border(maps).tolist() == [True, False]


def test_p_values_go_with_their_findings():
    found = find_areas(with_box((8, 8), 2, 4, 2, 4), 0.5, shape=(8, 8))
    assert [f.p_value for f in with_p_values(found, np.array([0.25]))] == [0.25]
    assert found[0].p_value is None
