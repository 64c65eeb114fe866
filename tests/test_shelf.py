"""Tables of variants: one kind, one error, imported on use."""

import sys

import pytest

from normalis.backbones import BACKBONES
from normalis.datasets import LAYOUTS
from normalis.errors import SettingsError, did_you_mean
from normalis.images.reader import FORMATS
from normalis.models import METHODS, MODELS
from normalis.pacs import OBJECTS
from normalis.research.datasets import DATASETS
from normalis.research.synthetic import SYNTHETIC
from normalis.scorers import SCORERS
from normalis.shelf import Shelf

SHELVES = [METHODS, MODELS, SCORERS, BACKBONES, LAYOUTS, FORMATS, OBJECTS, DATASETS, SYNTHETIC]


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda s: s.what)
def test_tables_of_variants_are_shelves_and_list_what_is_there(shelf):
    assert isinstance(shelf, Shelf)
    for name, target in shelf.items():
        found = shelf.load(name)
        assert found is shelf.load(name)
        assert target.startswith("normalis.")
        module, _, attribute = target.partition(":")
        assert found is (
            getattr(sys.modules[module], attribute) if attribute else sys.modules[module]
        )


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda s: s.what)
def test_an_unknown_name_is_one_error_with_the_nearest(shelf):
    first = next(iter(shelf))
    with pytest.raises(SettingsError) as caught:
        shelf.load(first + "q")
    message = str(caught.value)
    assert message.startswith(f"{shelf.what} must be one of ")
    assert message.endswith(f"got {first + 'q'!r}; did you mean {first!r}?")


@pytest.mark.parametrize("name", ["normalis.nothing:X", "normalis.errors:Nothing", ":x"])
def test_what_cannot_be_imported_is_said(name):
    with pytest.raises(SettingsError, match="cannot be imported"):
        Shelf("thing", {}).load(name)


def test_a_module_alone_is_not_a_name_of_ones_own():
    with pytest.raises(SettingsError, match="thing must be one of a, got 'sys:'"):
        Shelf("thing", {"a": "sys:path"}).load("sys:")


def test_no_hint_where_nothing_is_near():
    assert did_you_mean("zzz", ["mean", "max"]) == ""
    assert did_you_mean("meen", ["mean", "max"]) == "; did you mean 'mean'?"
