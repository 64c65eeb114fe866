"""What the house promises as a whole: each thing is done once, and old names answer."""

import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import normalis
from normalis import models
from normalis.cli import MOVED, app
from small_runs import detector, phantoms


@pytest.fixture
def built(monkeypatch):
    """How often each method's model has been built."""
    found, plain = Counter(), models.build

    def counting(method, **options):
        found[models.method_name(method)] += 1
        return plain(method, **options)

    monkeypatch.setattr(models, "build", counting)
    return found


def test_fit_builds_a_network_once(built):
    fitted = detector().fit(phantoms(20))
    assert built == {"ae-u": 1}
    fitted.anomaly_score(phantoms(3))
    assert built == {"ae-u": 1}, "scoring builds none"


def test_a_network_whose_footprint_was_asked_for_is_the_one_that_is_fitted(built):
    one = detector(method="feature-knn", latent_dim="auto", method_options=None)
    asked = one.footprint(20)
    assert asked is not None
    one.fit(phantoms(20))
    assert built == {"feature-knn": 1}
    one.fit(phantoms(20))
    assert built == {"feature-knn": 2}, "a fitted one is never fitted again"


def test_other_settings_are_another_network(built):
    one = detector(method="feature-knn", latent_dim="auto", method_options=None)
    one.footprint(20)
    one.set_params(method_options={"neighbours": 1}).fit(phantoms(20))
    assert one.model_.settings.neighbours == 1
    assert built == {"feature-knn": 2}


def test_where_no_footprint_is_known_none_is_built_to_ask(built):
    assert detector().footprint(20) is None
    assert not built


@pytest.mark.parametrize("folds", [0, 2])
def test_unlabelled_images_do_not_build_another_network(built, folds):
    way = {"calibration": "cv+", "folds": folds} if folds else {"calibration": "split"}
    one = detector(method="ddad", latent_dim="auto", method_options=None, epochs=1, **way)
    assert one.footprint(20) is None
    fitted = one.fit(phantoms(20), unlabelled=phantoms(12, seed=9)).fitted_
    assert built == {"ddad": folds or 1}
    assert [m.settings.unlabelled for m in fitted.models] == [12] * (folds or 1)


def test_cross_fitting_builds_a_network_for_each_fold(built):
    fitted = detector(calibration="cv+", folds=3).fit(phantoms(24))
    assert built == {"ae-u": 3}
    weights = [next(iter(m.parameters())).detach().numpy() for m in fitted.models_]
    assert not np.array_equal(weights[0], weights[1])


@pytest.mark.parametrize("name", MOVED)
def test_what_moved_to_the_laboratory_answers_with_its_new_name(name):
    said = CliRunner().invoke(app, [name, "whatever", "--out", "x"], standalone_mode=False)
    assert f"`normalis {name}` is now `normalis research {name}`" in str(said.exception)
    there = CliRunner().invoke(app, ["research", name, "--help"], standalone_mode=False)
    assert there.exit_code == 0


HOUSE = Path(__file__).parents[1] / "scripts/house.py"


def test_at_most_ten_modules_lie_flat_beside_the_rooms():
    source = Path(normalis.__file__).parent
    flat = {f.stem for f in source.glob("*.py")} - {"__init__", "__main__"}
    assert len(flat) <= 10, sorted(flat)


FUNCTION = '''
def f(x):
    """Say nothing."""
    # Why.
    if x:

        return [
            1,
        ]
    return None
'''


def test_lines_of_a_function_are_those_that_hold_code(tmp_path):
    (tmp_path / "a.py").write_text(FUNCTION)
    assert list(runpy.run_path(str(HOUSE))["functions"](tmp_path / "a.py")) == [(5, "f", 2)]


def test_arrows_are_imports_of_the_top_that_are_not_for_types_alone(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room/__init__.py").write_text("")
    (tmp_path / "room/a.py").write_text("def f():\n    from normalis import files\n")
    lines = ["from typing import TYPE_CHECKING", "if TYPE_CHECKING:", "    import normalis.room.a"]
    (tmp_path / "files.py").write_text("\n".join(lines))
    assert runpy.run_path(str(HOUSE))["arrows"](tmp_path) == {("room", "files")}
