"""Findings of runs: in Python, in findings.csv, after loading, of old runs, in millimetres."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from normalis import AnomalyDetector
from normalis.datasets import open_dataset
from normalis.evaluation.of_detector import evaluate_detector
from normalis.fitted import FittedDetector
from normalis.output import folder as outputs
from normalis.output.folder import ScoreOptions, score_to_folder
from small_runs import anomalies, detector, phantoms, read_table, write_mvtec, write_pngs


@pytest.fixture(scope="module")
def fitted():
    return detector(image_size=32, method="pca", method_options=None).fit(phantoms(120))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("new")
    write_pngs(root / "normal", phantoms(10, size=40, seed=7))
    write_pngs(root / "square", anomalies(6, size=40))  # bright from 10 to 20
    return root


def score(run, source, out, **options):
    samples = open_dataset(source).samples
    score_to_folder(run, samples, out, root=source, options=ScoreOptions(overlays=False, **options))
    return read_table(out / "findings.csv")


def test_the_planted_square_is_the_highest_finding(fitted, source, tmp_path):
    rows = score(fitted, source, tmp_path / "out")
    first = [row for row in rows if row["number"] == "1"]
    assert len(first) == 16  # of every image, above or not
    squares = [row for row in first if "/square/" in row["path"]]
    assert {row["above"] for row in squares} == {"1"}
    for row in squares:
        assert 10 <= float(row["peak_x"]) <= 20
        assert 10 <= float(row["peak_y"]) <= 20
        assert 4 <= float(row["area_px"]) <= 400
        assert float(row["p_value"]) == pytest.approx(1 / (fitted.calibration_.n_units + 1))
        assert (row["area_mm2"], row["image_height"], row["image_width"]) == ("", "40", "40")
    normal = [row for row in first if "/normal/" in row["path"]]
    assert sum(row["above"] == "1" for row in normal) <= 3


def test_python_says_the_same(fitted, source, tmp_path):
    rows = score(fitted, source, tmp_path / "out")
    found = [one for areas in fitted.findings(source) for one in areas]
    assert [row["x"] for row in rows] == [str(one.x) for one in found]
    np.testing.assert_allclose([float(r["peak"]) for r in rows], [f.peak for f in found])


def test_what_is_above_the_level_is_what_is_coloured(fitted):
    x = np.concatenate([phantoms(20, seed=9), anomalies(5)])
    level = fitted.colour_scale_.quiet
    above = [any(one.above for one in areas) for areas in fitted.findings(x)]
    assert above == (fitted.calibrated_map(x).max(axis=(1, 2)) > level).tolist()


def test_normal_images_are_coloured_about_as_often_as_promised(fitted):
    new = fitted.calibrated_map(phantoms(200, seed=11)).max(axis=(1, 2))
    assert fitted.colour_scale_.rate == 0.05
    assert (new > fitted.colour_scale_.quiet).mean() < 0.2  # one set of 24 units realises 0 to 17 %


def test_a_loaded_run_finds_the_same(fitted, tmp_path):
    x = anomalies(5)
    again = FittedDetector.load(fitted.save(tmp_path / "run"))
    assert again.findings(x) == fitted.findings(x)


def test_a_run_from_before_there_was_a_map_scale_shows_smoothed_maps(fitted, tmp_path):
    scale = replace(fitted.colour_scale_, quiet=0.01, full=0.03, smoothing=1 / 64)
    old = replace(fitted.fitted_, map_scale=None, colour_scale=scale)
    again = FittedDetector.load(old.save(tmp_path / "run"))
    assert again.map_scale is None
    x = anomalies(3)
    np.testing.assert_array_equal(again.calibrated_map(x), scale.smooth(again.anomaly_map(x)))
    assert all(one.p_value is None for areas in again.findings(x) for one in areas)


def test_an_interrupted_scoring_has_the_findings_of_one_that_was_not(
    fitted, source, tmp_path, monkeypatch
):
    whole = score(fitted, source, tmp_path / "whole")
    monkeypatch.setattr("normalis.fitted.detector.BATCH_SIZE", 3)
    noted = outputs._Writer.add
    calls = []

    def stopping(self, part):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        noted(self, part)

    monkeypatch.setattr(outputs._Writer, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        score(fitted, source, tmp_path / "out")
    monkeypatch.setattr(outputs._Writer, "add", noted)
    resumed = score(fitted, source, tmp_path / "out")
    assert [row["path"] for row in resumed] == [row["path"] for row in whole]
    for name in ("peak", "x", "area_px"):
        np.testing.assert_allclose(
            [float(r[name]) for r in resumed], [float(r[name]) for r in whole], rtol=1e-3
        )


def test_without_maps_there_are_no_findings(fitted, source, tmp_path):
    samples = open_dataset(source).samples
    options = ScoreOptions(overlays=False, maps=False)
    score_to_folder(fitted, samples, tmp_path / "out", root=source, options=options)
    assert not (tmp_path / "out/findings.csv").exists()
    assert {row["at_border"] for row in read_table(tmp_path / "out/scores.csv")} == {""}


def test_areas_of_an_oblique_volume_are_in_its_own_plane(tmp_path):
    """Voxels of 0.5 x 2 x 3 mm, the axes turned by 20 degrees: an axial pixel is 1 square mm."""
    values = np.random.default_rng(0).integers(0, 200, (30, 32, 32)).astype(np.uint16)
    run = AnomalyDetector(method="pca", image_size=32, device="cpu", latent_dim=2).fit(values)
    turn = np.deg2rad(20)
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.5, 2.0, 3.0])
    volume = np.random.default_rng(1).integers(0, 200, (40, 40, 3)).astype(np.uint16)
    volume[10:20, 10:20] = 2000
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "in/scan.nii")
    rows = score(run, tmp_path / "in", tmp_path / "out")
    assert {row["slice"] for row in rows} == {"0", "1", "2"}
    for row in rows:
        assert float(row["area_mm2"]) == pytest.approx(float(row["area_px"]) * 1.0, rel=0.01)


def test_cross_fitted_runs_promise_no_rate_of_colour():
    run = detector(method="pca", method_options=None, calibration="cv+", folds=2).fit(phantoms(40))
    assert run.colour_scale_.rate is None
    assert run.fitted_.map_scale is not None


def test_a_margin_is_neither_scored_nor_shown():
    run = detector(image_size=32, method="pca", method_options=None, margin=0.2)
    run.fit(phantoms(60))
    clean, written = phantoms(4, seed=9), phantoms(4, seed=9)
    written[:, :5] = 255  # five of 32 rows: within the outer fifth
    np.testing.assert_allclose(run.anomaly_score(clean), run.anomaly_score(written))
    assert run.findings(clean) == run.findings(written)


def test_a_map_whose_highest_place_is_the_edge_says_so(fitted, tmp_path):
    images = phantoms(6, size=40, seed=7)
    images[:3, :2] = 255  # the film's edge
    write_pngs(tmp_path / "in", images)
    score(fitted, tmp_path / "in", tmp_path / "out")
    rows = read_table(tmp_path / "out/scores.csv")
    assert [row["at_border"] for row in rows[:3]] == ["1"] * 3
    assert "1" not in [row["at_border"] for row in rows[3:]]


def test_evaluate_says_where_the_level_of_maps_is_no_promise(tmp_path):
    given = {"image_size": 32, "method": "pca", "method_options": None, "calibration": "split"}
    run = detector(**given).fit(phantoms(40))
    data = open_dataset(write_mvtec(tmp_path / "data"))
    few, _, _ = evaluate_detector(run, data, fpr=0.05)
    assert few.coloured["anomalous"].value == 1.0
    assert any("too few to promise a level of maps at 5%" in note for note in few.notes)
    enough, _, _ = evaluate_detector(run, data, fpr=0.2)
    assert not any("level of maps" in note for note in enough.notes)
