"""A second hospital: the same models, its own normal images, the same exact promise."""

from dataclasses import replace

import numpy as np
import pytest

from normalis.cli import app
from normalis.datasets import Dataset, Sample, open_dataset
from normalis.errors import CalibrationWarning, DataError, SettingsError
from normalis.evaluation.of_detector import evaluate_detector
from normalis.fitted import FittedDetector
from normalis.output.folder import ScoreOptions, score_to_folder
from normalis.report.sections import calibration_table
from normalis.report.sources import read_scores
from normalis.report.triage import triage_data
from small_runs import anomalies, detector, phantoms, read_table, write_pngs


def brighter(count, *, seed):
    """Images of another scanner: brighter, so that a model of the first one scores them high."""
    return np.clip(phantoms(count, seed=seed).astype(int) + 40, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def first():
    return detector(method="pca").fit(phantoms(60)).fitted_


def test_the_promise_holds_on_the_second_hospital_s_images(first):
    before, after = [], []
    for seed in range(12):
        ids = [f"P{i}" for i in range(40)]
        here = first.calibrate(brighter(40, seed=100 + seed), patient_ids=ids)
        new = brighter(60, seed=200 + seed)
        before.append(first.predict(new).mean())
        after.append(here.predict(new).mean())
        assert here.calibration.n_units == 40
    assert np.mean(before) > 0.5
    assert 0.1 < np.mean(after) < 0.3  # nominal 0.2, of 480 units in all
    np.testing.assert_array_equal(here.anomaly_score(new), first.anomaly_score(new))


def test_images_that_were_trained_on_do_not_calibrate(first, tmp_path):
    known = phantoms(60)
    with pytest.raises(DataError, match=r"the detector was trained on [0-9]+ of these 20 images"):
        first.calibrate(np.concatenate([known[:10], brighter(10, seed=3)]))
    loaded = FittedDetector.load(first.save(tmp_path / "run"))
    np.testing.assert_array_equal(loaded.trained_on, first.trained_on)
    with pytest.raises(DataError, match="was trained on"):
        loaded.calibrate(known)


def scanners(folder, names):
    paths = write_pngs(folder, np.random.default_rng(7).integers(
        0, 256, (len(names), 32, 32), dtype=np.uint8))  # fmt: skip
    samples = tuple(
        Sample(path=p, split="unlabelled", header={"scanner": name})
        for p, name in zip(paths, names, strict=True)
    )
    return Dataset(name="here", root=folder, layout="x", samples=samples)


def test_groups_have_p_values_of_their_own_and_small_ones_are_said(first, tmp_path):
    data = scanners(tmp_path, ["A"] * 20 + ["B"] * 2)
    with pytest.warns(CalibrationWarning, match="scanner B: 2 images certify no false-positive"):
        here = first.calibrate(data, by="scanner")
    assert {n: c.n_units for n, c in here.grouped.groups.items()} == {"A": 20, "B": 2}
    new = scanners(tmp_path / "new", ["A", "B", "C"])
    p = here.p_value(new)
    assert p[0] * 21 == pytest.approx(round(p[0] * 21))
    assert p[1] * 3 == pytest.approx(round(p[1] * 3))
    assert np.isnan(p[2])
    assert here.predict(new)[1:].tolist() == [0, 0]
    again = FittedDetector.load(here.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.p_value(new), p)
    assert replace(again, grouped=None).p_value(new)[2] > 0


@pytest.fixture(scope="module")
def within(first, tmp_path_factory):
    """A detector calibrated within scanners A and B, of which B's images score higher."""
    folder = tmp_path_factory.mktemp("within")
    paths = write_pngs(folder, np.concatenate([phantoms(12, seed=40), brighter(12, seed=41)]))
    samples = tuple(
        Sample(path=p, split="unlabelled", header={"scanner": "AB"[i // 12]})
        for i, p in enumerate(paths)
    )
    data = Dataset(name="both", root=folder, layout="x", samples=samples)
    return first.calibrate(data, by="scanner")


def labelled(folder):
    """Six normal and six anomalous test images of scanner B, three of scanner C."""
    paths = write_pngs(folder, np.concatenate([brighter(6, seed=42), anomalies(9, seed=43)]))
    samples = tuple(
        Sample(
            path=p,
            split="test",
            is_anomalous=i >= 6,
            header={"scanner": "B" if i < 12 else "C", "series_uid": f"1.{i}"},
        )
        for i, p in enumerate(paths)
    )
    return Dataset(name="new", root=folder, layout="x", samples=samples)


def test_who_asks_for_p_values_and_flags_gets_those_of_the_group(within, tmp_path):
    pytest.importorskip("pandas", reason="pandas is not installed")
    data = labelled(tmp_path)
    p, flags = within.p_value(data), within.predict(data)
    assert np.isnan(p).tolist() == [False] * 12 + [True] * 3
    assert not np.array_equal(p[:12], replace(within, grouped=None).p_value(data)[:12])
    frame = within.scores_frame(data)
    np.testing.assert_array_equal(frame["p_value"], p)
    assert frame["flagged"].astype(int).tolist() == flags.tolist()
    title = within.plot_case(data, 3).get_suptitle()
    assert title.endswith(f"p = {p[3]:.3g}")


def test_an_evaluation_flags_within_groups_and_says_which_it_cannot(within, tmp_path):
    data = labelled(tmp_path)
    found, _, _ = evaluate_detector(within, data, fpr=0.2)
    flags = within.predict(data, fpr=0.2)
    rates = found.subsets[0].deployable
    assert rates["false_positive_rate"].value == flags[:6].mean()
    assert rates["sensitivity"].value == flags[6:].mean()
    assert any("scanner C: no normal image of it calibrates" in note for note in found.notes)


@pytest.mark.parametrize(
    "ask",
    [
        lambda d: d.threshold(0.2),
        lambda d: d.labels_,
        lambda d: d.plot_calibration(),
        lambda d: d.predict_confidence(phantoms(2)),
    ],
)
def test_what_one_calibration_alone_has_is_refused_within_groups(within, ask):
    with pytest.raises(SettingsError, match="each scanner is calibrated by its own normal images"):
        ask(within)
    assert "flagged above" not in within._repr_html_()


def test_the_page_of_scores_within_groups_offers_no_threshold_for_all(within, tmp_path):
    data = labelled(tmp_path / "new")
    score_to_folder(within, data.samples, tmp_path / "out", root=tmp_path / "new")
    source = read_scores(tmp_path / "out")
    said = triage_data(source)
    assert (said["kind_of_calibration"], said["calibration"], said["presets"]) == (
        "by scanner", None, [],
    )  # fmt: skip
    table = calibration_table(source)
    assert {row[1] for row in table.rows} == {"by p-value", "cannot be certified"}
    assert "Each scanner is compared with its own" in table.note
    p = within.p_value(data)
    np.testing.assert_array_equal(source.cases.p_value, p)
    series = {row["series_uid"]: row["p_value"] for row in read_table(tmp_path / "out/series.csv")}
    assert series == {f"1.{i}": "" if np.isnan(v) else str(v) for i, v in enumerate(p.tolist())}


def test_another_scorer_keeps_no_p_values_of_groups(within):
    other = within.with_scorer("l1", phantoms(60))
    assert other.grouped is None
    direct = detector(method="pca", scorer="l1").fit(phantoms(60))
    np.testing.assert_array_equal(other.p_value(phantoms(5)), direct.p_value(phantoms(5)))


def test_a_panel_is_refused_groups_before_anything_is_read():
    panel = detector(method="panel", members=["pca", "knn"], latent_dim="auto", method_options=None)
    with pytest.raises(SettingsError, match="calibrate one of its members by group"):
        panel.fit(phantoms(40)).calibrate("nowhere", by="scanner")


def test_the_command_writes_a_run_that_scores(first, tmp_path, capsys):
    run = first.save(tmp_path / "run")
    rng = np.random.default_rng(1)
    write_pngs(tmp_path / "ours", rng.integers(0, 256, (30, 32, 32), dtype=np.uint8))
    arguments = ["calibrate", str(run), str(tmp_path / "ours"), "--out", str(tmp_path / "run2")]
    app(arguments, standalone_mode=False)
    assert "calibrated on 30 images (split), which certify" in capsys.readouterr().out
    here = FittedDetector.load(tmp_path / "run2")
    assert here.calibration.n_units == 30
    assert here.info["calibrated_on"]["images"] == 30


def table_of(folder, name):
    return read_table(folder / name)


def test_score_writes_a_row_for_each_patient(first, tmp_path):
    images = write_pngs(tmp_path / "new", noise(9, seed=5))
    rows = [f"{p.name},{'ANONYMOUS' if i > 6 else f'P{i // 3}'}" for i, p in enumerate(images)]
    (tmp_path / "new" / "m.csv").write_text("path,patient_id\n" + "\n".join(rows) + "\n")
    data = open_dataset(tmp_path / "new")
    options = ScoreOptions(fpr=0.2, fdr=0.3, maps=False, overlays=False)
    here = first.calibrate(noise(40, seed=3))
    summary = score_to_folder(here, data.samples, tmp_path / "out", root=data.root, options=options)
    patients, images = (table_of(tmp_path / "out", n) for n in ("patients.csv", "scores.csv"))
    assert len(patients) == len(summary.patients) == 5  # P0, P1, one of P2, two of nobody
    assert sum(int(row["images"]) for row in patients) == 9
    for row in patients:
        mine = [r for r in images if r["path"] == row["worst_path"]]
        assert float(mine[0]["anomaly_score"]) == float(row["anomaly_score"])
    scores = np.array([float(r["anomaly_score"]) for r in images])
    whose = [r["patient_id"] if r["patient_id"][0] == "P" else r["path"] for r in images]
    names, p = here.calibration.patient_p_values(scores, np.array(whose))
    expected = dict(zip(names.tolist(), p.tolist(), strict=True))
    assert {r["patient"]: float(r["p_value"]) for r in patients} == pytest.approx(expected)
    assert {r["calibration_units"] for r in patients} == {"40"}
    assert all(r["adjusted_p_value"] and r["flagged"] in "01" for r in patients)


def test_the_commands_calibrate_and_score_by_group(first, tmp_path, capsys):
    run = first.save(tmp_path / "run")
    for name, scanners_ in (("ours", "A" * 20 + "B" * 2), ("new", "ABC")):
        paths = write_pngs(tmp_path / name, noise(len(scanners_), seed=len(scanners_)))
        rows = [f"{p.name},{s}" for p, s in zip(paths, scanners_, strict=True)]
        (tmp_path / name / "m.csv").write_text("path,scanner\n" + "\n".join(rows) + "\n")
    for arguments in (
        ["calibrate", run, tmp_path / "ours", "--out", tmp_path / "run2", "--by", "scanner"],
        ["score", tmp_path / "run2", tmp_path / "new", "--out", tmp_path / "out", "--fpr", "0.1"],
    ):
        app(list(map(str, arguments)), standalone_mode=False)
    said = capsys.readouterr()
    assert "scanner B: 2 images certify no false-positive rate below 1/3" in said.out
    assert "scanner C: no normal image of it calibrates" in said.err
    a, b, c = table_of(tmp_path / "out", "scores.csv")
    assert float(a["p_value"]) * 21 == pytest.approx(round(float(a["p_value"]) * 21))
    assert float(b["p_value"]) in (pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    assert (b["flagged"], c["p_value"], c["flagged"]) == ("0", "", "0")
    by_group = {r["group"]: r for r in table_of(tmp_path / "out", "patients.csv")}
    assert (by_group["A"]["calibration_units"], by_group["B"]["calibration_units"]) == ("20", "2")
    assert by_group["C"]["p_value"] == ""


def noise(count, *, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), dtype=np.uint8)
