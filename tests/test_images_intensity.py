"""The map of native units to [0, 1]."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normalis.errors import DataError, SettingsError
from normalis.images import IntensityRule


def test_the_range_becomes_0_to_1_and_nothing_is_clipped():
    rule = IntensityRule(low=-1000, high=1000)
    values = np.array([-3000, -1000, 0, 1000, 5000], np.float32)
    np.testing.assert_allclose(rule.apply(values), [-1, 0, 0.5, 1, 3], atol=1e-6)
    assert rule.apply(values).dtype == np.float32


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
def test_it_survives_json(low, width):
    rule = IntensityRule(low=low, high=low + width, source="s", voi=False)
    assert IntensityRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (0, np.inf), (np.nan, 1)])
def test_an_empty_range_is_refused(low, high):
    with pytest.raises(SettingsError, match="low < high"):
        IntensityRule(low=low, high=high)


def test_percentiles_leave_out_hot_pixels(rng):
    values = rng.normal(100, 10, (10, 1, 50, 50)).astype(np.float32)
    values[0, 0, 0, 0] = 1e6
    rule = IntensityRule.from_pixels(values)
    np.testing.assert_allclose([rule.low, rule.high], [100 - 25.76, 100 + 25.76], atol=1)
    assert "0.5 and 99.5" in rule.source


def test_few_bright_pixels_on_a_constant_ground_still_give_a_range():
    values = np.zeros((1, 100, 100), np.float32)
    values[0, 0, 0] = 9
    rule = IntensityRule.from_pixels(values)
    assert (rule.low, rule.high) == (0, 9)


def test_constant_images_have_no_range():
    with pytest.raises(DataError, match="must vary in intensity, but all 64 values are 5"):
        IntensityRule.from_pixels(np.full((1, 8, 8), 5, np.float32))
