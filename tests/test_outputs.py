"""The folder that `score` writes: what is in it, and what survives an interruption."""

import errno
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from normalis.calibration.colours import ColourScale
from normalis.datasets import open_dataset
from normalis.errors import DataError, RunError
from normalis.files import read_csv
from normalis.output import drawing, replacing
from normalis.output import folder as outputs
from normalis.output.folder import ScoreOptions, score_to_folder
from normalis.report import write_report
from normalis.report.pictures import find_pictures
from normalis.report.sources import detect, read_scores
from normalis.scoring import Detail
from normalis.storage import exclusive
from small_runs import anomalies, detector, phantoms, read_table, write_pngs
from test_images_dicom import make as make_dicom
from test_images_dicom import write as write_dicom
from test_images_nifti import write as write_nifti

COLUMNS = ["path", "slice", "patient_id", "anomaly_score", "p_value", "flagged", "at_border"]
DETAILS = ["patients.csv", "score.json", "scores.csv", "skipped.csv"]


@pytest.fixture(scope="module")
def fitted():
    # Scores that are means of maps can be seen in the maps that are written.
    return detector(epochs=10, learning_rate=0.01, reduction="mean").fit(phantoms(40))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight normal images and four anomalous ones in folders with odd names."""
    root = tmp_path_factory.mktemp("new scans ß")
    write_pngs(root / "a", phantoms(8, size=40, seed=7))
    write_pngs(root / "b c", anomalies(4, size=40))
    return root


@pytest.fixture(scope="module")
def deep():
    """Fitted on values of 16 bit."""
    values = np.random.default_rng(0).integers(0, 1000, (30, 16, 16)).astype(np.uint16)
    return detector(reduction="mean").fit(values)


def score(fitted_detector, source, out, *, progress=None, drawn=None, **options):
    data = open_dataset(source)
    root = source if source.is_dir() else source.parent
    given = ScoreOptions(**({"fpr": 0.2} | options))
    heard = {"progress": progress, "drawn": drawn}
    return score_to_folder(fitted_detector, data.samples, out, root=root, options=given, **heard)


@pytest.fixture(scope="module")
def scored(fitted, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "out é"
    return out, score(fitted, source, out)


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# --- what is in it ----------------------------------------------------------------------------


def test_the_table_has_one_row_per_image_and_exactly_these_columns(scored, fitted, source):
    out, summary = scored
    rows = read_table(out / "scores.csv")
    assert list(rows[0]) == COLUMNS
    samples = open_dataset(source).samples
    assert [row["path"] for row in rows] == [str(s.path) for s in samples]
    scores = fitted.anomaly_score(source)
    np.testing.assert_allclose([float(r["anomaly_score"]) for r in rows], scores, rtol=1e-6)
    np.testing.assert_allclose([float(r["p_value"]) for r in rows], fitted.p_value(source))
    assert [int(r["flagged"]) for r in rows] == fitted.predict(source).tolist()
    assert {row["slice"] for row in rows} == {row["patient_id"] for row in rows} == {""}
    assert (summary.images, summary.skipped) == (12, 0)
    assert summary.flagged == fitted.predict(source).sum()
    assert summary.top[0]["anomaly_score"] == pytest.approx(scores.max(), rel=1e-6)


def test_maps_pictures_and_details_keep_the_tree(scored, source):
    out, _ = scored
    inside = [p.relative_to(source).as_posix() for p in sorted(source.rglob("*.png"))]
    expected = [f"maps/{name}.npy" for name in inside]
    expected += [f"{kind}/{name}" for kind in ("overlays", "thumbnails") for name in inside]
    expected += [f"pictures/{name}{end}" for end in (".webp", ".map.png") for name in inside]
    assert files(out) == sorted([*expected, "findings.csv", *DETAILS])
    details = json.loads((out / "score.json").read_text())
    assert details["params"]["latent_dim"] == 2
    assert len(details["is_anomalous"]) == 12
    assert read_table(out / "skipped.csv") == []


def test_maps_are_float32_at_the_images_own_geometry(scored, fitted, source):
    out, _ = scored
    whole = np.load(out / "maps/b c/000.png.npy", allow_pickle=False)
    assert whole.dtype == np.float32
    assert whole.shape == (40, 40)
    small = fitted.anomaly_map([source / "b c/000.png"])[0]
    assert whole.mean() == pytest.approx(small.mean(), rel=0.02)
    assert whole[10:20, 10:20].mean() > 2 * whole.mean()


def test_wide_images_have_wide_maps(fitted, tmp_path):
    write_pngs(tmp_path / "in", phantoms(2)[:, 4:20])
    score(fitted, tmp_path / "in", tmp_path / "out")
    assert np.load(tmp_path / "out/maps/000.png.npy").shape == (16, 32)


def test_one_colour_scale_for_all_pictures(fitted, source, tmp_path, monkeypatch):
    seen = []
    original = drawing.render

    def noting(*arguments, **options):
        seen.append(options["scale"])
        return original(*arguments, **options)

    monkeypatch.setattr(drawing, "render", noting)
    score(fitted, source, tmp_path / "out")
    assert len(seen) == 12
    assert {id(scale) for scale in seen} == {id(fitted.colour_scale_)}


def test_the_bar_of_every_picture_is_the_same(scored):
    out, _ = scored
    bars = []
    for path in sorted((out / "overlays").rglob("*.png")):
        with Image.open(path) as picture:
            bars.append(np.asarray(picture)[30:, -74:])
    assert all(np.array_equal(bar, bars[0]) for bar in bars)


def test_neither_maps_nor_pictures_if_not_wanted(fitted, source, tmp_path):
    score(fitted, source, tmp_path / "out", maps=False, overlays=False)
    assert files(tmp_path / "out") == DETAILS


def test_without_calibration_cells_are_empty(source, tmp_path):
    plain = detector(calibration="none").fit(phantoms(20))
    summary = score(plain, source, tmp_path / "out", overlays=False)
    rows = read_table(tmp_path / "out/scores.csv")
    assert list(rows[0]) == COLUMNS
    assert {(r["p_value"], r["flagged"]) for r in rows} == {("", "")}
    assert summary.flagged is None


def test_a_rate_that_cannot_be_certified_leaves_flags_empty(fitted, source, tmp_path):
    summary = score(fitted, source, tmp_path / "out", fpr=0.01, overlays=False)
    rows = read_table(tmp_path / "out/scores.csv")
    assert {r["flagged"] for r in rows} == {""}
    assert all(float(r["p_value"]) >= 1 / 9 for r in rows)
    assert summary.flagged is None


@pytest.mark.parametrize(("all_overlays", "drawn"), [(False, 3), (True, 12)])
def test_of_many_images_the_most_anomalous_are_drawn(
    fitted, source, tmp_path, monkeypatch, all_overlays, drawn
):
    monkeypatch.setattr(outputs, "MANY", 3)
    score(fitted, source, tmp_path / "out", all_overlays=all_overlays, maps=False)
    rows = sorted(read_table(tmp_path / "out/scores.csv"), key=lambda r: -float(r["anomaly_score"]))
    top = sorted(os.path.relpath(r["path"], source) for r in rows[:drawn])
    assert files(tmp_path / "out/overlays") == top


# --- deeper images, volumes, frames, arrays ---------------------------------------------------


def test_a_volume_has_a_row_per_slice_and_one_map_in_its_own_voxels(deep, tmp_path, rng):
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -6], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    volume = rng.integers(0, 1000, (12, 20, 5)).astype(np.int16)
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in/brain.nii", volume, affine)
    summary = score(deep, tmp_path / "in", tmp_path / "out")
    rows = read_table(tmp_path / "out/scores.csv")
    assert [r["slice"] for r in rows] == list("01234")
    assert summary.images == 5
    made = nib.load(tmp_path / "out/maps/brain.nii.nii.gz")
    assert made.shape == volume.shape
    assert made.get_data_dtype() == np.float32
    np.testing.assert_allclose(made.affine, affine)
    means = np.asarray(made.dataobj).mean((0, 1))
    np.testing.assert_allclose(means, [float(r["anomaly_score"]) for r in rows], rtol=0.1)
    assert files(tmp_path / "out/overlays") == [f"brain.nii_{i:04d}.png" for i in range(5)]


def test_volumes_of_one_name_in_two_formats_do_not_share_a_map(deep, tmp_path, rng):
    (tmp_path / "in").mkdir()
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / "in" / name, rng.integers(0, 999, (9, 9, 2)).astype(np.int16))
    score(deep, tmp_path / "in", tmp_path / "out")
    rows = read_table(tmp_path / "out/scores.csv")
    assert len(rows) == 4
    assert files(tmp_path / "out/maps") == ["a.nii.gz", "a.nii.nii.gz"]
    for name, part in (("a.nii.nii.gz", rows[:2]), ("a.nii.gz", rows[2:])):
        means = np.asarray(nib.load(tmp_path / "out/maps" / name).dataobj).mean((0, 1))
        np.testing.assert_allclose(means, [float(r["anomaly_score"]) for r in part], rtol=0.1)


def test_frames_of_dicom_have_rows_maps_and_their_patient(deep, tmp_path, rng):
    values = rng.integers(0, 1000, (3, 14, 11)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    write_dicom(tmp_path / "in/a.dcm", make_dicom(values, PatientID="P7"))
    score(deep, tmp_path / "in", tmp_path / "out")
    rows = read_table(tmp_path / "out/scores.csv")
    assert [(r["slice"], r["patient_id"]) for r in rows] == [("0", "P7"), ("1", "P7"), ("2", "P7")]
    assert files(tmp_path / "out/maps") == [f"a.dcm_{i:04d}.npy" for i in range(3)]
    assert np.load(tmp_path / "out/maps/a.dcm_0001.npy").shape == (14, 11)


def test_16_bit_values_beyond_the_rule_raise_the_score(deep, tmp_path, rng):
    values = rng.integers(0, 1000, (2, 16, 16)).astype(np.uint16)
    values[0, 4:8, 4:8], values[1, 4:8, 4:8] = 20000, 40000
    write_pngs(tmp_path / "in", values)
    score(deep, tmp_path / "in", tmp_path / "out")
    less, more = (float(r["anomaly_score"]) for r in read_table(tmp_path / "out/scores.csv"))
    assert more > 2 * less


def test_a_picture_shows_a_dicom_in_the_units_of_the_rule(tmp_path, rng, monkeypatch):
    values = rng.integers(0, 1000, (24, 16, 16)).astype(np.uint16)
    for i, value in enumerate(values):
        window = {"WindowCenter": 500, "WindowWidth": 1000} if i % 2 else {}
        tmp_path.joinpath("in").mkdir(exist_ok=True)
        write_dicom(tmp_path / f"in/{i:02d}.dcm", make_dicom(value, **window))
    fitted = detector().fit(tmp_path / "in")
    assert not fitted.rule_.voi  # only some have a window, so that none is applied
    seen = list(fitted.fitted_.detail(open_dataset(tmp_path / "in").samples))
    for explained, value in zip(seen, values, strict=True):
        np.testing.assert_allclose(explained.original[0], fitted.rule_.apply(value), rtol=1e-5)


def test_rows_of_an_array_file(fitted, tmp_path):
    np.save(tmp_path / "x.npy", anomalies(3))
    score(fitted, tmp_path / "x.npy", tmp_path / "out")
    rows = read_table(tmp_path / "out/scores.csv")
    assert [r["slice"] for r in rows] == ["0", "1", "2"]
    assert files(tmp_path / "out/maps") == [f"x.npy_{i:04d}.npy" for i in range(3)]
    assert files(tmp_path / "out/overlays") == [f"x.npy_{i:04d}.png" for i in range(3)]


def test_arrays_of_one_file_do_not_share_names(fitted, tmp_path):
    np.savez(tmp_path / "x.npz", train=phantoms(2), validation=anomalies(2))
    score(fitted, tmp_path / "x.npz", tmp_path / "out")
    rows = read_table(tmp_path / "out/scores.csv")
    places = [f"{part}_{i}" for part in ("train", "validation") for i in range(2)]
    assert [r["slice"] for r in rows] == places
    names = [f"x.npz_{part}_{i:04d}" for part in ("train", "validation") for i in range(2)]
    assert files(tmp_path / "out/maps") == [f"{name}.npy" for name in names]
    assert files(tmp_path / "out/overlays") == [f"{name}.png" for name in names]
    for name, row in zip(names, rows, strict=True):
        mean = np.load(tmp_path / f"out/maps/{name}.npy").mean()
        assert mean == pytest.approx(float(row["anomaly_score"]), rel=0.1)
    kept = read_scores(tmp_path / "out")
    found = find_pictures(kept.folder, kept.cases, range(4), kept.details["pictures"])
    assert [found[i].name for i in range(4)] == [f"{name}.png" for name in names]


def test_files_outside_the_root_do_not_share_a_map(fitted, tmp_path):
    for folder in ("p1", "p2"):
        write_pngs(tmp_path / "scans" / folder, anomalies(1, seed=len(folder)))
    (tmp_path / "lists").mkdir()
    rows = [f"../scans/{p}/000.png,1,test" for p in ("p1", "p2")]
    (tmp_path / "lists/m.csv").write_text("path,label,split\n" + "\n".join(rows))
    score(fitted, tmp_path / "lists/m.csv", tmp_path / "out")
    assert len(files(tmp_path / "out/maps")) == len(files(tmp_path / "out/overlays")) == 2
    assert files(tmp_path / "out/maps")[0].endswith("scans/p1/000.png.npy")


def test_links_keep_the_name_that_the_user_gave(fitted, tmp_path):
    (path,) = write_pngs(tmp_path / "store", phantoms(1))
    (tmp_path / "in").mkdir()
    for name in ("patient1.png", "patient2.png"):
        (tmp_path / "in" / name).symlink_to(path)
    score(fitted, tmp_path / "in", tmp_path / "out", overlays=False)
    assert files(tmp_path / "out/maps") == ["patient1.png.npy", "patient2.png.npy"]


# --- many images ------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr("normalis.fitted.detector.BATCH_SIZE", 8)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    fitted = detector(image_size=64).fit(phantoms(20, size=64))
    path = write_pngs(tmp_path, phantoms(1, size=64))[0]
    peaks = []
    for count in (100, 100, 400):  # the first fills caches
        folder = tmp_path / f"in{len(peaks)}"
        folder.mkdir()
        for i in range(count):
            os.link(path, folder / f"{i:03d}.png")
        samples = open_dataset(folder).samples
        tracemalloc.start()
        score_to_folder(
            fitted,
            samples,
            tmp_path / f"out{len(peaks)}",
            root=folder,
            options=ScoreOptions(overlays=False),
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(read_table(tmp_path / "out2/scores.csv")) == 400
    # A map takes 16 kB, so that keeping those of 300 images more would take 4.9 MB.
    assert peaks[2] - peaks[1] < 1e6


# --- images that cannot be read ---------------------------------------------------------------


def test_an_unreadable_file_is_skipped_with_its_reason(fitted, tmp_path):
    write_pngs(tmp_path / "in", phantoms(4))
    (tmp_path / "in/zz.png").write_bytes((tmp_path / "in/000.png").read_bytes()[:100])
    (tmp_path / "in/empty.jpg").touch()
    summary = score(fitted, tmp_path / "in", tmp_path / "out")
    reasons = {Path(r["path"]).name: r["reason"] for r in read_table(tmp_path / "out/skipped.csv")}
    assert set(reasons) == {"empty.jpg", "zz.png"}
    assert "0 bytes" in reasons["empty.jpg"]
    assert (summary.images, summary.skipped) == (4, 2)


def test_deep_images_are_skipped_where_the_model_knows_8_bit_only(fitted, tmp_path, rng):
    write_pngs(tmp_path / "in", phantoms(2))
    write_pngs(tmp_path / "in/deep", rng.integers(0, 4000, (1, 16, 16)).astype(np.uint16))
    score(fitted, tmp_path / "in", tmp_path / "out")
    (row,) = read_table(tmp_path / "out/skipped.csv")
    assert "deeper than 8 bit" in row["reason"]


def test_a_file_that_vanishes_before_it_is_read_or_drawn(fitted, tmp_path):
    paths = write_pngs(tmp_path / "in", phantoms(5))
    data = open_dataset(tmp_path / "in")
    paths[1].unlink()

    def vanish(done, total):
        shutil.rmtree(tmp_path / "in", ignore_errors=True)

    summary = score_to_folder(
        fitted, data.samples, tmp_path / "out", root=tmp_path / "in", progress=vanish
    )
    assert (summary.images, summary.skipped) == (4, 1)
    (row,) = read_table(tmp_path / "out/skipped.csv")
    assert "not there" in row["reason"]
    assert len(files(tmp_path / "out/maps")) == 4
    assert not (tmp_path / "out/overlays").exists()


def test_nothing_readable_is_an_error(fitted, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="none of the 1 images is readable"):
        score(fitted, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out/scores.csv").exists()


# --- interruptions ----------------------------------------------------------------------------


class Stop(Exception):
    """An interruption."""


def stop(*_, **__):
    raise Stop


@pytest.fixture
def by_three(monkeypatch):
    """Score three images at a time, so that there is something between start and end."""
    monkeypatch.setattr("normalis.fitted.detector.BATCH_SIZE", 3)


def interrupted(fitted, source, out, *, after=6, **options):
    def progress(done, total):
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        score(fitted, source, out, progress=progress, **options)
    assert not (out / "scores.csv").exists()


@pytest.mark.usefixtures("by_three")
def test_an_interrupted_scoring_goes_on(fitted, source, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    score(fitted, source, whole)
    interrupted(fitted, source, out)
    heard = []
    score(fitted, source, out, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(9, 12), (12, 12)]
    assert files(out) == files(whole)
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()


@pytest.mark.usefixtures("by_three")
@pytest.mark.parametrize("cut", [1, 3, 40, 400])
def test_a_part_that_was_cut_off_is_scored_again_with_the_same_bits(fitted, source, tmp_path, cut):
    out, whole = tmp_path / "out", tmp_path / "whole"
    score(fitted, source, whole, overlays=False)
    interrupted(fitted, source, out, overlays=False)
    progress = out / "progress.jsonl"
    progress.write_bytes(progress.read_bytes()[:-cut])
    heard = []
    score(fitted, source, out, overlays=False, progress=lambda done, _: heard.append(done))
    assert heard[0] % 3 == 0, "images that were scored together are scored together again"
    assert files(out) == files(whole)
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()


def test_a_volume_cut_off_between_slices_is_scored_whole(deep, tmp_path, rng):
    (tmp_path / "in").mkdir()
    for name in "ab":
        write_nifti(tmp_path / f"in/{name}.nii", rng.integers(0, 999, (9, 9, 4)).astype(np.int16))
    out = tmp_path / "out"
    interrupted(deep, tmp_path / "in", out, after=1, overlays=False)
    lines = (out / "progress.jsonl").read_bytes().splitlines(keepends=True)
    (out / "progress.jsonl").write_bytes(b"".join(lines[:-2]))
    score(deep, tmp_path / "in", out, overlays=False)
    rows = [(Path(r["path"]).name, r["slice"]) for r in read_table(out / "scores.csv")]
    assert rows == [(f"{name}.nii", str(i)) for name in "ab" for i in range(4)]


def test_an_interruption_while_drawing_scores_nothing_again(fitted, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(drawing, "render", stop)
        with pytest.raises(Stop):
            score(fitted, source, out)
    heard, drawn = [], []
    summary = score(
        fitted,
        source,
        out,
        progress=lambda done, total: heard.append(done),
        drawn=lambda done, total: drawn.append((done, total)),
    )
    assert heard == []
    assert drawn == [(number, 12) for number in range(1, 13)]
    assert summary.images == 12
    assert len(files(out / "overlays")) == 12


@pytest.mark.usefixtures("by_three")
def test_only_unreadable_files_left_after_an_interruption(fitted, tmp_path):
    write_pngs(tmp_path / "in", phantoms(4))
    (tmp_path / "in/zz.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    interrupted(fitted, tmp_path / "in", tmp_path / "out", after=4)
    summary = score(fitted, tmp_path / "in", tmp_path / "out")
    assert (summary.images, summary.skipped) == (4, 1)
    assert len(read_table(tmp_path / "out/skipped.csv")) == 1


@pytest.mark.usefixtures("by_three")
def test_an_interrupted_scoring_is_of_one_model_and_one_list(fitted, deep, source, tmp_path):
    interrupted(fitted, source, tmp_path / "out")
    before = (tmp_path / "out/progress.jsonl").read_bytes()
    for other, images in ((deep, source), (fitted, source / "a")):
        with pytest.raises(RunError, match="interrupted scoring of other images or another model"):
            score(other, images, tmp_path / "out")
    assert (tmp_path / "out/progress.jsonl").read_bytes() == before


def test_finished_and_foreign_folders_are_left_alone(fitted, source, scored, tmp_path):
    out, _ = scored
    before = (out / "scores.csv").read_bytes()
    with pytest.raises(RunError, match="holds scores already, of other images"):
        score(fitted, source / "a", out)
    with pytest.raises(RunError, match="holds scores already, of other images"):
        score(fitted, source, out, fpr=0.5)
    assert (out / "scores.csv").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"must be a new or empty folder, holds thesis.tex"):
        score(fitted, source, tmp_path)
    (tmp_path / "empty").mkdir()
    score(fitted, source / "a", tmp_path / "empty", overlays=False)


def test_two_processes_do_not_write_one_output(fitted, source, tmp_path):
    with (
        exclusive(tmp_path / "out/.lock", what="a test"),
        pytest.raises(RunError, match="is being written by another process"),
    ):
        score(fitted, source, tmp_path / "out")


# --- where nothing can be written -------------------------------------------------------------


def test_an_output_that_cannot_be_written(fitted, source, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"cannot be written .*choose another folder"):
        score(fitted, source, tmp_path / "file/out")


@pytest.mark.usefixtures("by_three")
def test_a_disk_that_fills_up_loses_nothing(fitted, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    original, left = os.fsync, [10]  # the table's head, then three maps and their rows, ...

    def filling(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", filling)
        with pytest.raises(RunError, match="No space left on device"):
            score(fitted, source, out)
    kept = (out / "progress.jsonl").read_text().count(".png")
    assert kept == 6
    heard = []
    score(fitted, source, out, progress=lambda done, total: heard.append(done))
    assert heard == [9, 12]


@pytest.mark.usefixtures("by_three")
def test_rows_that_cannot_be_noted_stop_with_a_sentence(fitted, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupted(fitted, source, out, after=3, maps=False)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"progress.jsonl.*No space left .*again"):
            score(fitted, source, out, maps=False)
    score(fitted, source, out, maps=False)
    paths = [row["path"] for row in read_table(out / "scores.csv")]
    assert len(paths) == len(set(paths)) == 12


def test_drift_is_told(tmp_path):
    many = detector(calibration_share=0.6).fit(phantoms(80))
    write_pngs(tmp_path / "in", (255 - phantoms(40) // 2).astype(np.uint8))
    summary = score(many, tmp_path / "in", tmp_path / "out", overlays=False, maps=False)
    assert any("mean intensity" in reason for reason in summary.drift)
    assert json.loads((tmp_path / "out/score.json").read_text())["drift"] == summary.drift


def test_the_strip_of_the_report(scored):
    out, _ = scored
    side = drawing.THUMBNAIL
    with Image.open(out / "thumbnails/b c/000.png") as opened:
        assert opened.size == (3 * side, side)


def test_the_strip_shows_image_reconstruction_and_the_level_of_the_map():
    """A map made by hand: what a tiny training leaves depends on the processor."""
    anomaly_map = np.zeros((16, 16), np.float32)
    anomaly_map[4:8, 4:8] = 10.0
    seen = Detail(
        row=None,
        original=np.full((1, 16, 16), 0.2, np.float32),
        anomaly_score=1.0,
        anomaly_map=anomaly_map,
        reconstruction=np.full((1, 16, 16), 0.6, np.float32),
    )
    strip = np.asarray(drawing.thumbnail(seen, seen.anomaly_map, ColourScale(quiet=2.0, full=10.0)))
    side = drawing.THUMBNAIL
    image, rebuilt, level = (strip[:, i * side : (i + 1) * side] for i in range(3))
    assert (image == round(0.2 * 255)).all()
    assert (rebuilt == round(0.6 * 255)).all()
    inside = level[side // 4 + 8 : side // 2 - 8, side // 4 + 8 : side // 2 - 8]
    assert (inside == 255).all()
    assert (level[side // 2 + 8 :] == 0).all()


# --- names ----------------------------------------------------------------------------------------


def test_no_two_images_share_a_map_or_a_picture(fitted, tmp_path):
    (first, *_) = write_pngs(tmp_path / "in", phantoms(1))
    names = ["IM1", "IM1.png", "b_0003", "b", "d", "d.png/x.png", "e.PNG", "E.png", "x.npy.png"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        shutil.copy(first, tmp_path / "in" / name)
    first.unlink()
    out = tmp_path / "out"
    score(fitted, tmp_path / "in", out)
    for kind in ("maps", "overlays", "thumbnails"):
        assert len(files(out / kind)) == len(names)
    kept = read_scores(out)
    found = find_pictures(out, kept.cases, range(len(names)), kept.details["pictures"])
    assert len(set(found.values())) == len(names)


def test_long_names_are_shortened_and_scored(fitted, tmp_path):
    (first, *_) = write_pngs(tmp_path / "in", phantoms(1))
    for name in ("a" * 251 + ".png", "a" * 250 + "b.png", "ß" * 125 + ".png"):
        shutil.copy(first, tmp_path / "in" / name)
    deep = tmp_path / "in" / Path(*["d" * 200] * 14)
    deep.mkdir(parents=True)
    shutil.copy(first, deep / "x.png")
    out = tmp_path / "out"
    assert score(fitted, tmp_path / "in", out).images == 5
    assert len(files(out / "maps")) == len(files(out / "thumbnails")) == 5
    again = score(fitted, tmp_path / "in", out)
    assert again.images == 5


def test_names_of_any_bytes_go_through_every_output(fitted, tmp_path):
    (first, *_) = write_pngs(tmp_path / "in", phantoms(1))
    names = [os.fsdecode(b"M\xfcller.png"), "a\rb.png", "a\nb.png", "\x1b[2J.png", "=1+1.png",
             "'q.png", "a\tb.png", "\u2028.png"]  # fmt: skip
    for name in names:
        shutil.copy(first, tmp_path / "in" / name)
    (tmp_path / "in" / os.fsdecode(b"bad\xff\r.png")).write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    summary = score(fitted, tmp_path / "in", out, relative_paths=True)
    assert (summary.images, summary.skipped) == (9, 1)
    paths = {row["path"] for row in read_csv(out / "scores.csv")}
    assert paths == {*names, "000.png"}
    assert read_csv(out / "skipped.csv")[0]["path"] == os.fsdecode(b"bad\xff\r.png")
    assert len(files(out / "maps")) == len(files(out / "thumbnails")) == 9
    write_report(out, tmp_path / "page.html")
    assert "M\\\\xfcller" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_relative_paths_tell_nobody_where_the_images_lie(fitted, source, tmp_path):
    out = tmp_path / "out"
    score(fitted, source, out, relative_paths=True)
    assert read_table(out / "scores.csv")[0]["path"] == "a/000.png"
    for file in out.rglob("*"):
        if file.suffix in (".csv", ".json"):
            assert str(source) not in file.read_text()
    write_report(out, tmp_path / "page.html")
    assert str(source) not in (tmp_path / "page.html").read_text()
    kept = read_scores(out)
    assert len(find_pictures(out, kept.cases, range(12), kept.details["pictures"])) == 12


# --- what a scoring is of -------------------------------------------------------------------------


@pytest.mark.usefixtures("by_three")
def test_files_that_changed_since_they_were_scored_are_scored_again(fitted, tmp_path):
    images = write_pngs(tmp_path / "in", phantoms(9))
    out, whole = tmp_path / "out", tmp_path / "whole"
    interrupted(fitted, tmp_path / "in", out, after=6)
    Image.fromarray(anomalies(1)[0]).save(images[0])
    heard = []
    score(fitted, tmp_path / "in", out, progress=lambda done, total: heard.append(done))
    score(fitted, tmp_path / "in", whole)
    assert heard[0] > 6 - 1
    for file in files(whole / "maps"):  # in other batches, which round differently
        np.testing.assert_allclose(
            np.load(out / "maps" / file), np.load(whole / "maps" / file), rtol=1e-4
        )
    found = [read_table(folder / "scores.csv") for folder in (out, whole)]
    assert [r["path"] for r in found[0]] == [r["path"] for r in found[1]]
    scores = [[float(r["anomaly_score"]) for r in rows] for rows in found]
    np.testing.assert_allclose(*scores, rtol=1e-5)


@pytest.mark.usefixtures("by_three")
def test_maps_that_vanished_are_made_again(fitted, source, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    score(fitted, source, whole)
    interrupted(fitted, source, out)
    gone = sorted((out / "maps").rglob("*.npy"))[:3]
    for file in gone:
        file.unlink()
    score(fitted, source, out)
    assert files(out) == files(whole)
    assert all(
        (out / f).read_bytes() == (whole / f).read_bytes() for f in files(whole) if "json" not in f
    )


@pytest.mark.usefixtures("by_three")
def test_another_model_of_the_same_settings_and_data_is_another_model(fitted, source, tmp_path):
    interrupted(fitted, source, tmp_path / "out")
    other = detector(epochs=10, learning_rate=0.01, reduction="mean").fit(phantoms(40))
    with torch.no_grad():
        next(iter(other.model_.parameters())).add_(1e-6)
    with pytest.raises(RunError, match="another model"):
        score(other, source, tmp_path / "out")


def test_the_same_command_again_answers_from_what_is_there(fitted, source, tmp_path):
    out = tmp_path / "out"
    first = score(fitted, source, out)
    before = {f: (out / f).stat().st_mtime_ns for f in files(out)}
    again = score(fitted, source, out)
    assert {f: (out / f).stat().st_mtime_ns for f in files(out)} == before
    assert (again.images, again.skipped, again.flagged) == (12, 0, first.flagged)
    assert [r["path"] for r in again.top] == [r["path"] for r in first.top]
    assert again.top[0]["anomaly_score"] == first.top[0]["anomaly_score"]


@pytest.mark.parametrize("name", ["scores.csv", "score.json", "skipped.csv"])
def test_a_finished_scoring_that_is_damaged_is_not_answered_from(fitted, source, tmp_path, name):
    out = tmp_path / "out"
    score(fitted, source, out, overlays=False, maps=False)
    (out / name).write_bytes(b"\0\xff{")
    with pytest.raises(RunError, match="out"):
        score(fitted, source, out, overlays=False, maps=False)


def test_a_finished_scoring_that_has_lost_rows_or_maps_is_not_answered_from(
    fitted, source, tmp_path
):
    out = tmp_path / "out"
    score(fitted, source, out, overlays=False)
    whole = (out / "scores.csv").read_text()
    (out / "scores.csv").write_text("".join(whole.splitlines(keepends=True)[:4]))
    with pytest.raises(RunError, match=r"3 rows, of 12 images .*--overwrite"):
        score(fitted, source, out, overlays=False)
    (out / "scores.csv").write_text(whole)
    for file in sorted((out / "maps").rglob("*.npy"))[:2]:
        file.unlink()
    with pytest.raises(RunError, match=r"2 maps are gone; .*--overwrite"):
        score(fitted, source, out, overlays=False)
    score(fitted, source, out, overlays=False, overwrite=True)
    assert len(list((out / "maps").rglob("*.npy"))) == 12


# --- replacing ------------------------------------------------------------------------------------


def test_scores_are_replaced_only_once_the_new_are_complete(fitted, source, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    score(fitted, source / "a", out)
    (out / "notes.txt").write_text("mine")
    old = {f: (out / f).read_bytes() for f in files(out)}
    with monkeypatch.context() as patched:
        patched.setattr(drawing, "render", stop)
        with pytest.raises(Stop):
            score(fitted, source, out, overwrite=True)
    assert {f: (out / f).read_bytes() for f in old} == old
    score(fitted, source, out, overwrite=True)
    score(fitted, source, whole)
    assert files(out) == sorted([*files(whole), "notes.txt"])
    assert (out / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    score(fitted, source, out, overwrite=True, maps=False, overlays=False)
    assert files(out) == ["notes.txt", "patients.csv", "score.json", "scores.csv", "skipped.csv"]


def test_an_interrupted_scoring_of_something_else_is_dropped_if_asked(fitted, source, tmp_path):
    interrupted(fitted, source, tmp_path / "out", after=3)
    score(fitted, source / "a", tmp_path / "out", overwrite=True, overlays=False)
    assert len(files(tmp_path / "out/maps")) == 8


@pytest.mark.parametrize("step", range(12))
def test_at_every_step_of_replacing_both_scorings_are_whole(step, tmp_path, monkeypatch):
    for folder, text in ((tmp_path, "old"), (tmp_path / ".new", "new")):
        for name in ("scores.csv", "score.json", "maps/x.npy"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    original, left = Path.replace, [step]

    def replace(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        try:
            replacing.put_in_place(tmp_path)
        except KeyboardInterrupt:
            assert replacing.is_being_replaced(tmp_path)
            with pytest.raises(RunError, match="is being replaced"):
                detect(tmp_path)
            texts = sorted(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
            assert texts == ["new"] * 3 + ["old"] * 3
    replacing.put_in_place(tmp_path)
    assert files(tmp_path) == ["maps/x.npy", "score.json", "scores.csv"]
    assert {(tmp_path / f).read_text() for f in files(tmp_path)} == {"new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["maps", "score.json", "scores.csv"]


def test_large_pictures_keep_their_shape_and_maps_are_on_their_own_scale():
    from normalis.output.pictures import LARGEST, large_picture, own_scale

    wide = large_picture(np.full((1, 700, 2100), 0.5, np.float32))
    assert (wide.size, wide.mode) == ((LARGEST, round(LARGEST / 3)), "L")
    assert np.asarray(wide).min() == np.asarray(wide).max() == 128
    small = large_picture(np.zeros((3, 20, 30), np.float32))
    assert (small.size, small.mode) == ((30, 20), "RGB")
    own = np.asarray(own_scale(np.array([[2.0, 3.0], [2.5, 2.0]])))
    assert own.tolist() == [[0, 255], [128, 0]]
    assert np.asarray(own_scale(np.full((2, 2), 7.0))).max() == 0
