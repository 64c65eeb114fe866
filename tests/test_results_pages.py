"""docs/results.md and docs/panel.md hold what docs/data says, and that what the records say."""

import csv
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from normalis.calibration.panel import Readings, surprise

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="no documentation beside this package")


@pytest.fixture
def scripts(monkeypatch):
    """Make the scripts of docs and benchmarks importable."""
    for folder in (DOCS, REPOSITORY / "benchmarks"):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name in ("make_results", "make_panel", "panel_scales", "panel", "methods", "panel_border"):
        sys.modules.pop(name, None)


def test_the_page_of_results_holds_what_its_tables_say(scripts):
    import make_results

    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in make_results.PARTS)
    assert make_results.page(text) == text


def test_the_page_of_the_panel_holds_what_its_tables_say(scripts):
    import make_panel
    import make_results

    text = (DOCS / "panel.md").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in make_panel.PARTS)
    assert make_results.page(text, make_panel.PARTS) == text


def test_a_changed_number_changes_the_page(scripts):
    import make_results

    text = (DOCS / "results.md").read_text(encoding="utf-8")
    changed = re.sub(r"(\| panel \| )\d", r"\g<1>1", text, count=1)
    assert changed != text
    assert make_results.page(changed) == text


def test_the_two_measurements_of_the_panel_agree(scripts):
    """`benchmarks/methods.py` read what `benchmarks/panel.py` had fitted."""
    import make_results

    fitted = {
        (r["data"], r["seed"]): float(r["auroc"])
        for r in make_results.read("panel") if r["reading"] == "panel"
    }  # fmt: skip
    read = {
        (r["data"], r["seed"]): float(r["auroc"])
        for r in make_results.read("methods") if r["method"] == "panel"
    }  # fmt: skip
    assert read == pytest.approx(fitted, abs=0.011)


@pytest.mark.slow
def test_tables_of_the_documentation_come_from_the_records(scripts):
    import make_results

    if not (REPOSITORY / "results/records.parquet").is_file():
        pytest.skip("no committed results beside this installation")
    for name, (head, rows) in make_results.long_tables().items():
        with (DOCS / "data" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
            found = list(csv.reader(stream))
        assert found[0] == list(head)
        assert found[1:] == [["" if v is None else str(v) for v in row] for row in rows], name


@pytest.mark.parametrize("name", ["methods", "panel_border", "panel_exactness", "panel_flagged"])
def test_the_benchmarks_that_wrote_the_tables_still_import(name, scripts):
    assert importlib.import_module(name).main


def test_measured_by_held_out_images_is_the_score_of_the_panel(scripts):
    import panel_scales

    generator = np.random.default_rng(0)
    new, held, train = (np.exp(generator.normal(size=(5, n))) for n in (40, 30, 90))
    readings = Readings(
        names=("joined map", "ae-u", "spade", "feature-knn", "feature-gaussian"),
        kinds=("place", "", "", "whole", "whole"),
    )
    ways = dict(panel_scales.ways(*map(np.log, (new, held, train))))
    expected = surprise(new, held, readings)[0]
    np.testing.assert_allclose(ways["held-out (the panel)"], expected)
    np.testing.assert_allclose(
        dict(panel_scales.ways(*map(np.log, (new, held, held))))["whole: training"], expected
    )
    assert not np.allclose(ways["whole: training"], expected)


def test_ranks_are_normal_scores_and_do_not_end(scripts):
    import panel_scales

    by = np.exp(np.random.default_rng(0).normal(size=1001))  # any increasing change of a normal
    middle = panel_scales.ranks(np.array([np.median(by)]), by)
    np.testing.assert_allclose(middle, 0, atol=1e-9)
    beyond = panel_scales.ranks(by.max() * np.array([1.0, 2.0, 4.0]), by)
    assert (np.diff(beyond) > 0.1).all()
