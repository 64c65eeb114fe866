"""doctor, compare, and how loud the command line is."""

import io
import json
import logging
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from normalis.cli import _volume_first, app, console
from normalis.cli.console import PlainConsole, set_volume, shortened, table
from normalis.errors import DataError, SettingsError
from normalis.report.side_by_side import compare
from small_runs import anomalies, detector, phantoms, write_pngs

module = sys.modules["normalis.cli.console"]


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs, their outputs on the same images, and normal images of another hospital."""
    root = tmp_path_factory.mktemp("tools")
    write_pngs(root / "normal", phantoms(60))
    write_pngs(root / "test/good", phantoms(14, seed=5))
    write_pngs(root / "test/square", anomalies(14, seed=6))
    write_pngs(root / "train/good", phantoms(40, seed=8))
    write_pngs(root / "other", phantoms(50, seed=9))
    for name, seed in (("one", 0), ("two", 1)):
        detector(random_state=seed).fit(root / "normal", run=root / name)
    return root


@pytest.fixture(scope="module")
def scored(place):
    data = place / "labelled"
    write_pngs(data / "train/good", phantoms(20, seed=8))
    write_pngs(data / "test/good", phantoms(14, seed=5))
    write_pngs(data / "test/square", anomalies(14, seed=6))
    for name in ("one", "two"):
        run("score", place / name, data, "--out", place / f"scored_{name}", "--no-overlays")
        run("evaluate", place / name, data)
    return place


# -- doctor ---------------------------------------------------------------------------------------


def test_doctor_says_what_there_is():
    said = run("doctor")
    for word in ("torch", "device", "cores", "cache of decoded images", "codecs", "onnx"):
        assert word in said


def test_doctor_says_what_mends_what_is_missing(monkeypatch):
    from normalis.cli import doctor

    monkeypatch.setattr(doctor, "packages_of", lambda extra: ["no-such-package>=1"])
    said = run("doctor")
    assert "missing: no-such-package" in said
    assert "[ray]" in said
    assert "nothing is missing" not in said


# -- compare --------------------------------------------------------------------------------------


def test_two_outputs_of_score_side_by_side(scored):
    (found,) = compare(scored / "scored_one", scored / "scored_two", fpr=0.2)
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["images in common"][0] == "28"
    assert -1 <= float(rows["rank correlation (Spearman)"][2]) <= 1
    assert rows["AUROC, labelled images"][2].count("to") == 1
    assert found.notes == ("no patient ids: images were taken as independent",)
    assert "AUROC" in run("compare", scored / "scored_one", scored / "scored_two")


def test_an_output_beside_itself_differs_in_nothing(scored):
    (found,) = compare(scored / "scored_one", scored / "scored_one")
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["rank correlation (Spearman)"][2] == "1.000"
    assert rows["AUROC, labelled images"][2].startswith("+0.000")


def test_two_runs_side_by_side_by_what_evaluate_wrote(scored):
    (found,) = compare(scored / "one", scored / "two")
    rows = {row[0]: row[1:] for row in found.rows}
    stored = json.loads(next((scored / "two").glob("evaluation*.json")).read_text())
    value = stored["subsets"][0]["ranking"]["auroc"]["value"]
    assert rows["auroc, all"][1].startswith(f"{value:.3f} (")


def test_a_run_is_not_compared_with_an_output(scored):
    with pytest.raises(SettingsError, match="both must be runs"):
        compare(scored / "one", scored / "scored_one")


def test_runs_that_nobody_evaluated_are_an_error(place, tmp_path):
    detector().fit(place / "other", run=tmp_path / "run")
    with pytest.raises(DataError, match="no evaluation of the same data"):
        compare(tmp_path / "run", tmp_path / "run")


# -- how loud -------------------------------------------------------------------------------------


def test_quiet_and_verbose_may_stand_anywhere():
    assert _volume_first(["fit", "D", "--quiet", "--out", "R"]) == [
        "--quiet", "fit", "D", "--out", "R",
    ]  # fmt: skip
    assert _volume_first(["fit", "--", "--quiet"]) == ["fit", "--", "--quiet"]


@pytest.fixture
def loud():
    yield
    set_volume()
    log = logging.getLogger("normalis")
    log.handlers.clear()
    log.setLevel(logging.NOTSET)


def test_quiet_leaves_what_was_asked_for(place, tmp_path, loud):
    images = place / "test/good"
    loudly = run("score", place / "one", images, "--out", tmp_path / "a", "--no-overlays")
    quietly = run(
        "--quiet", "score", place / "one", images, "--out", tmp_path / "b", "--no-overlays"
    )
    assert "layout" in loudly
    assert "layout" not in quietly
    assert "14 images scored" in quietly


def test_verbose_prints_what_is_logged(place, tmp_path, loud):
    run("--verbose", "score", place / "one", place / "test/good", "--out", tmp_path / "a")
    assert logging.getLogger("normalis").isEnabledFor(logging.DEBUG)
    assert logging.getLogger("normalis").handlers


def test_score_names_the_maps_and_what_is_next(place, tmp_path):
    said = run("score", place / "one", place / "test/good", "--out", tmp_path / "a")
    assert f"maps: {tmp_path / 'a' / 'maps'}" in said
    assert f"next: normalis report {tmp_path / 'a'}" in said


def test_shells_complete(monkeypatch):
    assert "--install-completion" in run("--help")


def test_fit_has_its_options_in_panels_with_the_daily_ones_first():
    said = run("fit", "--help")
    order = [said.index(f" {name} ─") for name in ("Options", "Data", "Model", "Machine")]
    assert order == sorted(order)
    for name in ("--out", "--method", "--patient-pattern", "--seed", "--device", "--overwrite"):
        assert said.index(name) < order[1]


# -- tables ---------------------------------------------------------------------------------------

LONG = "1.2.826.0.1.3680043.8.498.10050001234567890123456789"


def shown(width, *, terminal):
    stream = io.StringIO()
    out = PlainConsole(file=stream, width=width, force_terminal=terminal, no_color=True)
    out.print(table("Scores", ["image", "score"], [[LONG, 0.5], ["short", 1.0]]))
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_table_never_breaks_a_word(width, terminal):
    said = shown(width, terminal=terminal)
    assert LONG in said
    assert "Scores" in said


def test_a_path_and_a_label_are_both_whole():
    stream = io.StringIO()
    PlainConsole(file=stream, width=60).print(table("", ["", ""], [["cache of images", LONG]]))
    assert "cache of images" in stream.getvalue()
    assert LONG in stream.getvalue()


def test_a_narrow_terminal_gets_rows_below_each_other():
    assert f"image: {LONG}" in shown(30, terminal=True)
    assert "│" not in shown(30, terminal=True)
    assert "│" in shown(200, terminal=True)


def test_the_width_is_as_before_after_a_wide_table():
    out = PlainConsole(file=io.StringIO(), width=30)
    out.print(table("", ["a"], [[LONG]]))
    assert out.width == 30


def test_long_names_are_cut_in_the_middle():
    assert shortened("short.png") == "short.png"
    cut = shortened(LONG, 20)
    assert len(cut) == 20
    assert cut.startswith(LONG[:10])
    assert cut.endswith(LONG[-9:])
    assert shortened(LONG, len(LONG)) == LONG


def test_the_console_of_commands_is_ours():
    assert isinstance(console, PlainConsole)
    assert isinstance(console, Console)
