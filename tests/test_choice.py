"""Which calibration `auto` chooses for so many units, and what it must hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normalis.calibration.choice import ABOVE, choose


@pytest.mark.parametrize(
    ("units", "rate", "kind", "held"),
    [
        (1000, 0.05, "split", 200),  # the usual fifth is steady
        (400, 0.05, "split", 119),  # less than a third reaches six above
        (357, 0.05, "split", 119),
        (356, 0.05, "cv+", 0),
        (120, 0.05, "cv+", 0),
        (120, 0.2, "split", 29),
        (30, 0.1, "cv+", 0),
        (1000, 0.01, "cv+", 0),
        (3000, 0.01, "split", 600),
    ],
)
def test_what_is_chosen(units, rate, kind, held):
    choice = choose(units, rate)
    assert (choice.kind, choice.held) == (kind, held)
    assert str(units) in choice.reason
    assert choice.n_calibration == (held or units)


@given(st.integers(3, 5000), st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.2]), st.booleans())
def test_a_split_that_was_chosen_is_steady_and_leaves_two_to_train_on(units, rate, cross_fit):
    choice = choose(units, rate, cross_fit=cross_fit)
    if choice.kind == "cv+":
        assert cross_fit
        assert 2 <= choice.folds <= units
        return
    assert 1 <= choice.held <= units - 2 or units == 3
    assert round(choice.share * units) == choice.held
    if cross_fit:
        assert int(rate * (choice.held + 1) + 1e-9) >= ABOVE
        assert choice.held <= max(units / 3, 0.2 * units + 1)
    else:
        assert choice.held <= max(units / 3, 0.2 * units + 1)


def test_a_method_that_cannot_be_cross_fitted_is_split_with_a_third_at_most():
    held = [choose(n, 0.05, cross_fit=False).held for n in (10, 60, 120, 300, 1000)]
    assert held == [3, 20, 39, 60, 200]


def test_few_units_have_as_many_folds():
    assert choose(4, 0.05).folds == 4
    assert choose(100, 0.05, folds=10).folds == 10
