import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from normalis.cli import app
from normalis.errors import DataError, SettingsError
from normalis.metrics import auroc
from normalis.research import tables
from normalis.research.datasets.catalogue import named
from normalis.research.experiments import expand, plan
from normalis.research.records import Records
from normalis.research.reproduce import (
    DIMS,
    Cell,
    compare,
    datasets_under,
    figure3,
    plan_of,
    reference,
)

REPOSITORY = Path(__file__).parents[1]


def record(dataset="brain_tumor", method="ae", d=32, seed=0, value=0.87, **changes):
    n = 40
    is_anomalous = np.arange(n) % 2 == 1
    split = np.where(np.arange(n) < 10, "train", "test")
    is_anomalous &= split == "test"
    metrics = {
        name: {"value": value, "low": value - 0.02, "high": value + 0.02}
        for name in ("auroc", "average_precision")
    }
    epochs = changes.pop("epochs", 600 if dataset == "brain_tumor" else 250)
    settings = {
        "options": {},
        "images": {},
        "image_size": 64,
        "subset": {"drop_train_twins": None, "validation_share": 0.0, "position": None},
        "training": {
            "epochs": epochs, "batch_size": 64, "learning_rate": 1e-3, "precision": "auto",
            "recipe": "paper", "standardize": False,
        },
    }  # fmt: skip
    for key, inner in changes.pop("settings", {}).items():
        settings[key] = {**settings[key], **inner}
    return {
        "dataset": dataset, "method": method, "latent_dim": d, "seed": seed, "epochs": epochs,
        "scorer": "native", "reduction": "mean", "auroc": value, "average_precision": value,
        "settings": settings, "metrics": metrics, "n_parameters": 10, "n_train": 10,
        "fit_s": 12.0, "split": split, "is_anomalous": is_anomalous,
        "anomaly_score": (0.1 / (d or 1) + 0.01 * is_anomalous).astype(np.float32),
        **changes,
    }  # fmt: skip


def store(out, *rows):
    for i, row in enumerate(rows):
        Records(out).append(f"{i:04d}", row)
    return out


# --- the paper's numbers and the plans ---


def test_reference_holds_what_the_paper_prints():
    table = reference()["table1_ae_by_latent_dim"]
    assert table["brain_tumor"]["32"][0] == [87.1, 0.2]
    assert set(table) == {"rsna", "vindr_cxr", "brain_tumor", "brats2021"}
    for rows in table.values():
        assert sorted(map(int, rows)) == list(DIMS)
    assert reference()["table2_methods_at_latent_dim_16"]["rsna"]["MemAE"][0] == [69.6, 0.4]
    assert "MICCAI 2024" in reference()["source"]


def test_epochs_agree_with_the_data_sets():
    for name, epochs in reference()["epochs"].items():
        assert named(name).epochs == epochs


@pytest.mark.parametrize(
    ("name", "count"), [("table1", 8 * 3), ("table2", (4 + 8) * 3), ("figure3", 15 * 3)]
)
def test_plans_have_every_experiment(name, count):
    cells = expand(plan_of(name, ["brain_tumor"], seeds=range(3)))
    assert len(cells) == count


def test_unknown_part_is_refused():
    with pytest.raises(SettingsError, match="table1"):
        plan_of("table7", ["brain_tumor"], seeds=[0])


def test_data_sets_under_a_root(tmp_path):
    n = 4
    (tmp_path / "good").mkdir()
    images = np.zeros((n, 16, 16), np.uint8)
    np.savez(tmp_path / "good/a.npz", train=images, test=images, test_label=np.arange(n) % 2)
    (tmp_path / "bad").mkdir()
    np.savez(tmp_path / "bad/a.npz", train=images)
    (tmp_path / "empty").mkdir()
    assert datasets_under(tmp_path) == ["good"]
    with pytest.raises(DataError, match="none among"):
        datasets_under(tmp_path / "good")


# --- cells ---


def test_one_seed_is_compared_with_its_interval(tmp_path):
    found = compare("table1", store(tmp_path, record(value=0.88)))
    cell = found.cells[0]
    assert (cell.row, cell.metric, cell.paper) == ("32", "auroc", (87.1, 0.2))
    assert cell.difference == pytest.approx(0.9)
    assert cell.within is True
    assert cell.asked == "bootstrap"
    assert cell.deviation is None


def test_several_seeds_are_compared_by_welch(tmp_path):
    from scipy.stats import ttest_ind_from_stats

    values = (0.85, 0.851, 0.852)
    rows = [record(value=v, seed=i) for i, v in enumerate(values)]
    cell = compare("table1", store(tmp_path, *rows)).cells[0]
    ours = 100 * np.array(values)
    expected = ttest_ind_from_stats(ours.mean(), ours.std(ddof=1), 3, 87.1, 0.2, 3, equal_var=False)
    assert cell.p_value == pytest.approx(expected.pvalue)
    assert cell.within is False
    assert "Welch" in cell.asked
    assert tables.difference(cell).endswith("*")


def test_without_the_paper_nothing_is_compared(tmp_path):
    cell = compare("table1", store(tmp_path, record(dataset="my own"))).cells[0]
    assert cell.difference is None
    assert cell.within is None
    assert cell.asked == ""


def test_without_an_interval_nothing_is_claimed():
    cell = Cell(
        dataset="brats2021", row="16", metric="best_dice", values=(40.0,), low=math.nan,
        high=math.nan, paper=(39.2, 1.7), p_value=None, fit_s=1.0,
    )  # fmt: skip
    assert cell.within is None
    assert tables.difference(cell) == "+0.8?"


@pytest.mark.parametrize(
    "changes",
    [
        {"scorer": "l1"},
        {"reduction": "max"},
        {"epochs": 250},
        {"settings": {"training": {"standardize": True}}},
        {"settings": {"subset": {"drop_train_twins": 0.95}}},
        {"settings": {"options": {"hidden_dim": 64}}},
        {"settings": {"images": {"percentiles": [1, 99]}}},
    ],
)
def test_other_experiments_stay_out_of_the_tables(tmp_path, changes):
    assert compare("table1", store(tmp_path, record(**changes))).cells == ()


def test_table2_has_the_methods_and_the_best_latent_dim(tmp_path):
    rows = [
        record(d=16, value=0.86), record(d=32, value=0.87), record(d=1, value=0.3),
        record(method="vae", d=16, value=0.85), record(method="ganomaly", d=16),
    ]  # fmt: skip
    found = compare("table2", store(tmp_path, *rows))
    auroc = [c for c in found.cells if c.metric == "auroc"]
    assert [c.row for c in auroc] == ["AE", "VAE", "AE, best d = 32"]
    assert [c.paper[0] for c in auroc] == [85.9, 85.3, 87.1]
    assert found.missing == ("brain_tumor MemAE", "brain_tumor CeAE")


def test_methods_include_those_without_a_latent(tmp_path):
    rows = [record(d=16), record(method="knn", d=None, epochs=250, n_parameters=0)]
    found = compare("methods", store(tmp_path, *rows))
    assert {c.row for c in found.cells} == {"ae", "knn"}


def test_methods_include_options_and_readings_and_no_other_table_does(tmp_path):
    l1, dark = {"options": {"loss": "l1"}}, {"options": {"sign": "dark"}}
    rows = [
        record(d=16),
        record(d=16, scorer="ssim"),
        record(d=16, settings=l1),
        record(d=16, settings=l1, scorer="gradient"),
        record(method="intensity", d=None, epochs=250, n_parameters=0, settings=dark),
        record(d=16, reduction="max"),
    ]  # fmt: skip
    out = store(tmp_path, *rows)
    assert [c.row for c in compare("methods", out).cells if c.metric == "auroc"] == [
        "ae", "ae, loss = l1", "ae, loss = l1, read by gradient", "ae, read by ssim",
        "intensity, sign = dark",
    ]  # fmt: skip
    cell, plain = [c for c in compare("table1", out).cells if c.metric == "auroc"]
    assert plain.row == "intensity, sign = dark (no network)"
    assert len(cell.values) == 1


def test_what_is_trained_otherwise_says_so_in_its_row(tmp_path):
    short = {"settings": {"training": {"epochs": 40, "recipe": "fast"}}}
    out = store(
        tmp_path,
        record(method="dae", d=None, **short),
        record(method="ae", d=16, **short),  # of another study
        record(method="dae", d=None, seed=1),
    )
    rows = [c.row for c in compare("methods", out).cells if c.metric == "auroc"]
    assert rows == ["dae", "dae, 40 epochs, recipe fast"]
    table = plan_of("methods", ["tiny"], seeds=[0])
    planned = plan(table, lambda name, images, subset: ("a" * 64, "b" * 64))
    assert {(e.training.epochs, e.training.recipe) for e in planned if e.method == "dae"} == {
        (40, "fast")
    }


def test_readings_in_the_plan_of_methods_train_nothing_more():
    table = plan_of("methods", ["tiny"], seeds=[0])
    experiments = plan(table, lambda name, images, subset: ("a" * 64, "b" * 64))
    of_ae = [e for e in experiments if e.method == "ae"]
    assert {e.scorer for e in of_ae} >= {"native", "ssim", "gradient", "normalised"}
    assert len({e.training_key for e in of_ae}) == 3  # one for each loss
    assert any(dict(e.options) == {"sign": "dark"} for e in experiments)


def test_leaked_tests_have_a_column_of_their_own(tmp_path):
    scores = np.linspace(0, 1, 40).astype(np.float32)
    leaked = np.where(np.arange(40) % 4 == 0, 0.99, 0.5)
    rows = [
        record(d=16, anomaly_score=scores, nearest_ncc=leaked),
        record(d=32, anomaly_score=scores, nearest_ncc=np.full(40, 0.94)),
    ]
    out = store(tmp_path, *rows)
    cells = {(c.row, c.metric): c for c in compare("methods", out).cells}
    kept = (np.arange(40) >= 10) & (leaked < 0.95)
    is_anomalous = (np.arange(40) % 2 == 1) & (np.arange(40) >= 10)
    expected = 100 * auroc(scores[kept], is_anomalous[kept])
    cell = cells["ae", "auroc_without_twins"]
    assert cell.mean == pytest.approx(expected)
    assert cell.low <= cell.mean <= cell.high
    assert cell.paper is None
    alone = compare("table1", store(tmp_path / "b", rows[1]))
    assert {c.metric for c in alone.cells} == {"auroc", "average_precision"}
    assert "few and unusual normal ones remain" in " ".join(tables.notes(compare("methods", out)))


def test_the_best_method_without_a_network_stands_below(tmp_path):
    plain = {"d": None, "epochs": 250, "n_parameters": 0}
    rows = [
        record(d=16),
        record(method="knn", value=0.7, **plain),
        record(method="intensity", value=0.8, settings={"options": {"sign": "dark"}}, **plain),
    ]
    found = compare("table1", store(tmp_path, *rows))
    auroc = [c for c in found.cells if c.metric == "auroc"]
    assert [c.row for c in auroc] == ["16", "intensity, sign = dark (no network)"]
    assert auroc[1].paper is None
    assert "the best of the baselines" in " ".join(tables.notes(found))


def test_table1_misses_what_has_no_record(tmp_path):
    found = compare("table1", store(tmp_path, record(d=16)))
    assert "brain_tumor 8" in found.missing
    assert "No record yet" in " ".join(tables.notes(found))


# --- figure ---


def test_figure3_means_by_group(tmp_path):
    rows = [record(d=d, seed=s) for d in (2, 4) for s in (0, 1)]
    (curve,) = figure3(store(tmp_path, *rows))
    assert curve.latent_dims == [2, 4]
    assert curve.n_seeds == [2, 2]
    assert curve.errors["train normal"] == pytest.approx([0.05, 0.025])
    assert curve.errors["test anomalous"] == pytest.approx([0.06, 0.035])


def test_figure_is_drawn(tmp_path):
    curves = figure3(store(tmp_path / "r", *(record(d=d) for d in (2, 512, 1024))))
    files = tables.write_figure(curves, tmp_path / "out")
    assert [f.suffix for f in files] == [".svg", ".png", ".csv"]
    text = ET.tostring(ET.parse(files[0]).getroot(), encoding="unicode")
    assert "brain_tumor" in text or "use" in text
    assert len(files[2].read_text().splitlines()) == 4


# --- renderings ---


@pytest.fixture
def comparison(tmp_path):
    return compare("table1", store(tmp_path / "r", record(), record(d=16, value=0.5)))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.cells = [], 0

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.cells += tag == "td"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_well_formed_and_escaped(comparison, tmp_path):
    parser = Tags()
    parser.feed(tables.to_html(comparison))
    assert parser.open == []
    assert parser.cells == 2 * 9
    evil = compare("table1", store(tmp_path / "evil", record(dataset="<script>")))
    assert "<script>" not in tables.to_html(evil)


def test_latex_has_a_row_per_row(comparison):
    text = tables.to_latex(comparison)
    assert text.count(r"\\") == 3
    assert r"\begin{tabular}{lrrrrrrrr}" in text
    assert "±" not in text
    assert "−" not in text


def test_markdown_columns_agree(comparison):
    lines = [line for line in tables.to_markdown(comparison).splitlines() if line[:1] == "|"]
    assert len({line.count("|") for line in lines}) == 1
    assert "−35.9\\*" in lines[2]


def test_csv_has_a_row_per_number(comparison, tmp_path):
    written = tables.write_all(comparison, tmp_path / "t")
    lines = written[0].read_text().splitlines()
    assert lines[0].split(",") == list(tables.CSV_COLUMNS)
    assert len(lines) == 1 + 2 * 2


def test_equal_records_give_equal_files(comparison, tmp_path):
    curves = figure3(tmp_path / "r")

    def written(folder):
        files = [*tables.write_all(comparison, folder), *tables.write_figure(curves, folder)]
        return [p.read_bytes() for p in files if p.suffix != ".png"]

    assert written(tmp_path / "a") == written(tmp_path / "b")


# --- the command line ---


def run(*arguments):
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    assert found.exit_code == 0, (found.output, found.exception)
    return found.output


def test_drawing_needs_no_data_and_no_training(tmp_path):
    out = store(tmp_path / "results", record())
    text = run("research", "reproduce", "table1", "--out", out, "--only-draw")
    assert "87.1" in text
    assert (out / "tables/table1.tex").is_file()
    run("research", "reproduce", "figure3", "--out", out, "--only-draw")
    assert (out / "tables/figure3.svg").is_file()


def test_dry_run_lists_a_line_per_experiment_and_trains_nothing(tmp_path):
    from test_sweep import write_tiny

    root = write_tiny(tmp_path / "data")
    text = run(
        "research", "reproduce", "table1", "--data", root, "--out", tmp_path / "r", "--dry-run"
    )
    assert len(re.findall(r"^[0-9a-f]{12}  ", text, re.MULTILINE)) == 24
    assert "24 experiments, about" in text
    assert not (tmp_path / "r/records").exists()
    assert len(list((tmp_path / "r/plans").iterdir())) == 1


@pytest.mark.slow
def test_sweep_and_results_from_the_command_line(tmp_path):
    from test_sweep import write_tiny

    root = write_tiny(tmp_path / "data")
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[sweep]\ndatasets = ["tiny"]\nlatent_dims = [2]\nepochs = 1\nbatch_size = 8\n'
        'options = { hidden_dim = 8 }\nimages = { image_size = 16 }\nscorers = ["native", "l1"]\n'
    )
    out = tmp_path / "r"
    run("research", "sweep", plan, "--data", root, "--out", out, "--jobs", 1, "--device", "cpu")
    file = tmp_path / "all.csv"
    text = run(
        "research",
        "results",
        out,
        "--where",
        "scorer=l1",
        "--columns",
        "dataset,auroc",
        "--csv",
        file,
    )
    assert "1 records" in text
    assert file.read_text().splitlines()[0] == "dataset,auroc"
    assert len(Records(out).identities()) == 2
    text = run("research", "results", out)
    assert re.search(r"2 records; all of dataset tiny, method ae, latent_dim 2, seed 0", text)
    for identity in Records(out).identities():
        assert re.search(rf"(native|l1) .*{identity[:12]} ", text)  # one line, no cell broken


def test_prepare_lists_the_data_sets():
    text = run("research", "prepare")
    for name in ("rsna", "vindr_cxr", "brats2021"):
        assert name in text


# --- what is committed ---


@pytest.mark.slow
def test_committed_tables_come_from_the_committed_records():
    """docs/results.md holds exactly what the records in the repository say."""
    page, records = REPOSITORY / "docs/results.md", REPOSITORY / "results/records.parquet"
    if not (page.is_file() and records.is_file()):
        pytest.skip("no committed results beside this installation")
    text = page.read_text(encoding="utf-8")
    assert tables.fill_in(text, REPOSITORY / "results") == text


@pytest.mark.slow
def test_committed_records_are_small_and_name_no_place():
    packed = list((REPOSITORY / "results").rglob("*.parquet"))
    if not packed:
        pytest.skip("no committed results beside this installation")
    assert sum(file.stat().st_size for file in packed) <= 6_000_000
    for row in Records(REPOSITORY / "results").table():
        assert not re.search(r"/(home|work|tmp|root)/", json.dumps(row, default=str))
