"""Every system that the paper cites: the plan, what fails, and the table."""

import csv
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from normalis.cli import app
from normalis.errors import SettingsError
from normalis.models import METHODS, MODELS
from normalis.research import cited, cited_table
from normalis.research.data import Store
from normalis.research.records import Records
from normalis.scorers import SCORERS
from test_sweep import write_tiny


@pytest.fixture
def store(tmp_path):
    write_tiny(tmp_path / "data", patients=None)
    return Store(tmp_path / "out", tmp_path / "data")


def plan(store, **asked):
    return cited.plan_cited(store, **{"sets": ["tiny"], "epochs": 1, **asked})


def test_every_row_has_its_own_experiments(store):
    experiments = plan(store)
    rows = [cited.system_of(e.settings()) for e in experiments]
    assert {r.name for r in rows} == {
        s.name for s in cited.SYSTEMS if s.there and s.latent_dim("tiny") is not None
    }
    assert len({e.identity for e in experiments}) == len(experiments)
    seeds = {r: sorted(e.seed for e, s in zip(experiments, rows, strict=True) if s is r)
             for r in rows}  # fmt: skip
    for system, found in seeds.items():
        assert found == ([0] if system.group == "baseline" else [0, 1]), system.name


def test_rows_name_methods_and_figures_name_rows():
    known = {s.name for s in cited.SYSTEMS}
    assert {p["system"] for p in cited.published()} <= known
    assert {p["grade"] for p in cited.published()} == {"read", "remembered"}
    assert all(p["source"] for p in cited.published())
    assert len(known) == len(cited.SYSTEMS)
    assert {s.group for s in cited.SYSTEMS} == set(cited.GROUPS)


def test_a_system_that_is_not_on_the_shelf_waits_for_it(store, monkeypatch):
    new = cited.System(name="new", method="not-there-yet", cites="99")
    monkeypatch.setattr(cited, "SYSTEMS", (*cited.SYSTEMS, new))
    assert "new" not in {cited.system_of(e.settings()).name for e in plan(store)}
    with pytest.raises(SettingsError, match="no shelf holds new"):
        plan(store, only=["new"])
    monkeypatch.setitem(METHODS, "not-there-yet", MODELS["mean-image"])
    assert [e.method for e in plan(store, only=["new"], seeds=[0])] == ["not-there-yet"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"only": ["ganomali"]}, "did you mean 'ganomaly'"),
        ({"recipe": "slow"}, "--recipe must be one of paper, fast"),
        ({"effort": 0.0}, "--effort must be above 0, got 0.0"),
    ],
)
def test_what_is_asked_for_is_checked(store, asked, message):
    with pytest.raises(SettingsError, match=message):
        plan(store, **asked)


def test_effort_shortens_every_training_and_recipes_have_their_rates(store):
    def asked(system="MorphAEus", **how):
        (found,) = plan(store, only=[system], seeds=[0], epochs=None, **how)
        return found.training

    whole, short, paper = asked(), asked(effort=0.1), asked(recipe="paper")
    assert whole.epochs == 250, "as 24 images take"
    assert asked("DDAD").epochs == 125, "half of them"
    assert short.epochs == 25
    assert (whole.learning_rate, paper.learning_rate) == (1e-3, 1e-3)
    assert (whole.recipe, paper.recipe) == ("fast", "paper")


def test_the_leak_is_a_set_of_its_own(tmp_path):
    write_tiny(tmp_path / "data")
    folder = (tmp_path / "data/tiny").rename(tmp_path / "data/brain_tumor")
    (file,) = folder.glob("*.npz")
    arrays = dict(np.load(file))
    arrays["train"][0] = arrays["test"][0]
    np.savez(file, **arrays)
    store = Store(tmp_path / "out", tmp_path / "data")
    sets = ["brain_tumor", "brain_tumor_without_leak"]
    found = cited.plan_cited(store, sets=sets, only=["AE, d = 16", "mean image"], seeds=[0])
    assert [cited.set_of(e.settings()) for e in found] == [sets[0]] * 2 + [sets[1]] * 2
    best = cited.plan_cited(store, sets=sets, only=["AE, the paper's best d"], seeds=[0])
    assert [e.latent_dim for e in best] == [32, 32]


@pytest.mark.parametrize(
    "other",
    [
        {"subset": {"position": (0.4, 0.85)}},
        {"subset": {"validation_share": 0.2}},
        {"subset": {"drop_test_twins": 0.95}},
        {"training": {"learning_rate": 1e-3}},
        {"training": {"standardize": True}},
        {"training": {"keep_epoch": "best"}},
        {"reduction": "max"},
        {"channels": 3},
        {"images": {"percentiles": (1, 99)}},
    ],
    ids=str,
)
def test_records_of_other_studies_are_of_no_row(store, other):
    """Other test images, other rates, other readings: their mean would be of nothing."""
    (experiment,) = plan(store, only=["AE, d = 16"], seeds=[0])
    settings = experiment.settings()
    assert cited.system_of(settings).name == "AE, d = 16"
    changed = {k: {**settings[k], **v} if isinstance(v, dict) else v for k, v in other.items()}
    assert cited.system_of({**settings, **changed}) is None


def test_parts_of_a_set_of_the_table_are_not_the_set(store):
    (experiment,) = plan(store, only=["mean image"], seeds=[0])
    settings = {**experiment.settings(), "dataset": "lgg_flair"}
    assert cited.set_of(settings) == "lgg_flair"
    part = {**settings["subset"], "position": (0.4, 0.85)}
    assert cited.set_of({**settings, "subset": part}) == ""
    dropped = {**settings["subset"], "drop_train_twins": 0.95}
    assert cited.set_of({**settings, "subset": dropped}) == ""
    assert cited.set_of({**settings, "dataset": "brain_tumor", "subset": dropped}) == (
        "brain_tumor_without_leak"
    )


def run(tmp_path, *options):
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--sets", "tiny"]
    asked = ["research", "reproduce", "cited", *where, "--epochs", "1", "--jobs", "1", *options]
    return CliRunner().invoke(app, asked)


def test_the_table_is_made_in_pieces_and_says_what_failed(tmp_path, monkeypatch):
    write_tiny(tmp_path / "data")
    broken = cited.System(name="broken", method="pca", cites="99", latent_dims={"": 30})
    rows = (*cited.SYSTEMS, broken)
    for module in (cited, cited_table):
        monkeypatch.setattr(module, "SYSTEMS", rows)
    assert run(tmp_path, "--only", "mean-image", "--only", "broken").exit_code == 0
    made = Records(tmp_path / "out").identities()
    ran = run(tmp_path, "--only", "mean-image", "--only", "ganomaly", "--seeds", "2")
    assert ran.exit_code == 0, ran.output
    assert set(made) < set(Records(tmp_path / "out").identities())
    text = (tmp_path / "out/tables/cited.md").read_text()
    assert "| GANomaly [1] | cited by the paper |" in text
    assert "| broken [99] | cited by the paper | failed |" in text
    assert "more images than latent_dim" in text
    assert "remembered: not checked" in text
    with (tmp_path / "out/tables/cited.csv").open() as opened:
        table = list(csv.DictReader(opened))
    ganomaly = [row for row in table if row["system"] == "GANomaly" and row["metric"] == "auroc"]
    records = [r for r in Records(tmp_path / "out").table() if r["method"] == "ganomaly"]
    assert float(ganomaly[0]["mean"]) == pytest.approx(
        100 * np.mean([r["auroc"] for r in records]), abs=1e-3
    )
    assert (ganomaly[0]["seeds"], ganomaly[0]["epochs"], ganomaly[0]["recipe"]) == (
        "2",
        "1",
        "fast",
    )
    assert "62.9 on RSNA (BMAD" in ganomaly[0]["published"]
    assert [row["failed"] != "" for row in table if row["system"] == "broken"] == [True]
    again = cited_table.read_cited(tmp_path / "out/tables/cited.csv")
    assert cited_table.cited_markdown(again) == text
    assert [e.records for e in again if e.system.name == "GANomaly"] == [
        [r["id"][:12] for r in records]
    ]

    fixed = cited.System(name="broken", method="pca", cites="99", latent_dims={"": 3})
    for module in (cited, cited_table):
        monkeypatch.setattr(module, "SYSTEMS", (*cited.SYSTEMS[:-1], fixed))
    again = run(tmp_path, "--only", "broken")
    assert again.exit_code == 0, again.output
    assert (
        "| broken [99] | cited by the paper | failed |"
        not in (tmp_path / "out/tables/cited.md").read_text()
    )
    drawn = CliRunner().invoke(
        app, ["research", "reproduce", "cited", "--out", str(tmp_path / "out"), "--only-draw"]
    )
    assert drawn.exit_code == 0, drawn.output


def test_a_failure_is_forgotten_once_it_is_mended(store, tmp_path, monkeypatch):
    (experiment,) = plan(store, only=["mean-image"])
    with monkeypatch.context() as patched:
        patched.setattr("normalis.models.mean_image.MeanImage.fit", lambda *_, **__: {}["x"])
        assert cited.run_cited([experiment], tmp_path / "out", jobs=1)
    (note,) = cited.failures(tmp_path / "out")
    assert note["settings"]["method"] == "mean-image"
    assert note["message"] == "KeyError: 'x'"
    assert cited.run_cited([experiment], tmp_path / "out", jobs=1) == {}
    assert cited.failures(tmp_path / "out") == []


def test_a_panel_is_measured_by_normal_images_that_it_has_not_seen(store, tmp_path, monkeypatch):
    monkeypatch.setattr("normalis.panel.PanelSettings.image_size", 64)
    row = cited.System(
        name="panel", method="panel", group="ours",
        options={"members": "pca+knn"}, latent_dims={"": 2},
    )  # fmt: skip
    for module in (cited, cited_table):
        monkeypatch.setattr(module, "SYSTEMS", (row,))
    (experiment,) = plan(store, seeds=[0])
    assert cited.run_cited([experiment], tmp_path / "out", jobs=1) == {}
    record = Records(tmp_path / "out").read(experiment.identity)
    split = np.array(record["split"])
    assert (split == "validation").any()
    assert (np.array(record["anomaly_score"]) > 0).any()
    assert record["auroc"] > 0.9
    (entry,) = cited_table.cited_entries(tmp_path / "out")
    assert entry.recipe == "fast"


def test_a_system_that_is_trained_in_stages_is_recorded(store, tmp_path):
    (experiment,) = plan(store, only=["morphaeus"], seeds=[0], epochs=2)
    assert experiment.latent_dim == 128, "its own"
    experiment = replace(experiment, options={"deform_from": 0.5, "width": 4})
    assert cited.run_cited([experiment], tmp_path / "out", jobs=1) == {}
    (record,) = Records(tmp_path / "out").table()
    first, second = record["history"]["roughness"]
    assert first is None
    assert second >= 0


def test_a_slow_system_scores_the_test_alone(store, tmp_path, monkeypatch):
    slow = cited.System(name="slow", method="pca", latent_dims={"": 2}, slow=True)
    monkeypatch.setattr(cited, "SYSTEMS", (slow,))
    (experiment,) = plan(store, seeds=[0])
    assert experiment.identity == replace(experiment, score_training=True).identity
    assert cited.run_cited([experiment], tmp_path / "out", jobs=1) == {}
    record = Records(tmp_path / "out").read(experiment.identity)
    test = np.array(record["split"]) == "test"
    assert np.isfinite(np.array(record["anomaly_score"])[test]).all()
    assert np.isnan(np.array(record["anomaly_score"])[~test]).all()
    assert 0 <= record["auroc"] <= 1


def test_scorers_of_rows_are_read_once_they_exist():
    for system in cited.SYSTEMS:
        assert system.there == (system.method in METHODS and system.scorer in SCORERS)


# --- what is committed ---

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs/reference/cited.md"


@pytest.fixture(scope="module")
def make_cited():
    spec = importlib.util.spec_from_file_location("make_cited", REPOSITORY / "docs/make_cited.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entries(make_cited):
    return cited_table.read_cited(make_cited.TABLE)


def test_the_page_holds_what_the_table_says(make_cited, entries):
    """If this fails, run docs/make_cited.py."""
    text = PAGE.read_text(encoding="utf-8")
    assert make_cited.filled(text, entries, with_argument=False) == text
    rows = "; ".join(re.findall(r"<!-- seen: (.*?) -->", text)).split("; ")
    assert sorted(rows) == sorted(s.name for s in cited.SYSTEMS if s.group == "cited")


def test_each_figure_of_the_page_s_sentences_is_one_of_the_table(entries):
    text = PAGE.read_text(encoding="utf-8")
    for block in (
        r"<!-- seen.*?<!-- end -->", r"<!-- (table|argument) -->.*?<!-- end of \1 -->", "`[^`]*`"
    ):  # fmt: skip
        text = re.sub(block, "", text, flags=re.DOTALL)
    known = {f"{f.mean:.1f}" for e in entries for f in e.figures.values()}
    said = set(re.findall(r"\b\d+\.\d\b", text))
    assert said
    assert said - known == set()


@pytest.mark.slow
def test_the_table_holds_what_the_committed_records_say(make_cited, entries):
    """Rows of which the repository has the records; the other records are too large for it."""
    text = PAGE.read_text(encoding="utf-8")
    assert make_cited.filled(text, entries) == text
    known = {(e.name, e.system.name, e.recipe, e.epochs): e for e in entries}
    ours = [e for e in cited_table.cited_entries(REPOSITORY / "results") if e.name in cited.SETS]
    assert len(ours) > 30
    for entry in ours:
        there = known[entry.name, entry.system.name, entry.recipe, entry.epochs]
        assert there.records == list(entry.records)
        for metric, figure in entry.figures.items():
            assert there.figures[metric].mean == pytest.approx(figure.mean, abs=1e-3)
            assert there.figures[metric].low == pytest.approx(figure.low, abs=1e-3)
