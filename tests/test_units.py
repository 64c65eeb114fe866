"""Which images are independent: one notion, image by image, for every input of the kind."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from normalis import AnomalyDetector
from normalis.datasets import open_dataset
from normalis.datasets.levels import plural
from normalis.duplicates.turned import turned_pairs
from normalis.errors import DataError
from normalis.loading.arrays import ImageSettings, from_array
from normalis.loading.held_out import folds, normal_images, split, units_of
from normalis.loading.units import connected, find_units, known_patients, unit_name
from small_runs import detector, phantoms, write_pngs
from test_images_dicom import make as make_dicom
from test_images_dicom import write as write_dicom

SMALL = ImageSettings(image_size=16)


def noise(count, *, seed=0):
    """Return images of which no two are alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16), dtype=np.uint8)


def volumes(folder, count=12, depth=8, *, seed=0):
    """Write NIfTI volumes, each an ellipsoid with blank slices at both ends."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:24, 0:24] - 11.5
    for number in range(count):
        radius = 11 * np.sin(np.linspace(0, np.pi, depth))
        inside = np.hypot(x, y)[..., None] < radius
        voxels = inside * (600 + 200 * rng.random((24, 24, depth)))
        nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.eye(4)), folder / f"v{number:02}.nii")
    return folder


def held_and_trained(found):
    names = [{row.path for row in part.rows} for part in (found.train, found.held)]
    return names[0] & names[1], len(names[1])


def series(folder, ids, *, studies=None):
    """Write a DICOM file for each id; of equal studies one StudyInstanceUID."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, image) in enumerate(zip(ids, noise(len(ids)), strict=True)):
        study = f"1.2.{i}" if studies is None else f"1.3.{studies[i]}"
        data = make_dicom(image.astype(np.uint16), PatientID=name, StudyInstanceUID=study)
        write_dicom(folder / f"IM{i:03}.dcm", data)
    return folder


# --- what belongs together --------------------------------------------------------------------


def test_slices_of_a_file_are_one_unit_and_held_out_whole(tmp_path):
    found = normal_images(volumes(tmp_path), SMALL, hold_out=0.25)
    shared, held = held_and_trained(found)
    assert not shared
    assert held == 3
    assert (found.held.units.n, found.held.units.level) == (3, "file")
    fitted = detector(method="pca").fit(tmp_path)
    assert (fitted.calibration_.n_units, fitted.calibration_.level) == (2, "file")


def test_pages_of_a_tiff_are_one_unit_and_one_fold(tmp_path):
    for i in range(6):
        first, *others = map(Image.fromarray, phantoms(4, seed=i))
        first.save(tmp_path / f"{i}.tif", save_all=True, append_images=others)
    loaded = normal_images(tmp_path, SMALL).train
    fold = folds(loaded, 3, seed=0)
    assert all(len(set(fold[4 * i : 4 * i + 4])) == 1 for i in range(6))
    assert np.bincount(fold).tolist() == [8, 8, 8]


def test_blank_slices_join_nothing(tmp_path):
    loaded = normal_images(volumes(tmp_path, 6), SMALL).train
    assert (loaded.pixels.max((1, 2, 3)) == loaded.pixels.min((1, 2, 3))).sum() >= 12
    assert units_of(loaded).n == 6


def test_a_copied_volume_is_one_unit_with_its_original(tmp_path):
    volumes(tmp_path, 6)
    image = nib.load(tmp_path / "v00.nii")
    again = np.asarray(image.dataobj)[..., 1:-1]  # cut, and stored another way
    nib.save(nib.Nifti1Image(again.astype(np.float32), np.eye(4)), tmp_path / "w00.nii.gz")
    loaded = normal_images(tmp_path, SMALL).train
    member = units_of(loaded).member
    of_file = {row.path.name: set() for row in loaded.rows}
    for row, number in zip(loaded.rows, member, strict=True):
        of_file[row.path.name].add(number)
    assert of_file["v00.nii"] == of_file["w00.nii.gz"]
    assert member.max() == 5


def test_one_missing_id_drops_one_id(tmp_path):
    ids = [f"P{i // 3:02}" for i in range(36)]
    ids[10] = ""
    found = normal_images(series(tmp_path, ids), SMALL, hold_out=0.2)
    patients = [
        {row.patient_id for row in part.rows} - {None} for part in (found.train, found.held)
    ]
    assert not patients[0] & patients[1]
    assert found.train.units.n + found.held.units.n == 13
    assert found.held.units.level == "patient"
    assert found.notes == (
        "1 of 36 files have no patient id: each of them counts as a patient of its own",
    )


@pytest.mark.parametrize(
    "name", ["", " ", "ANONYMOUS", "anonymized", "nan", "None", "unknown", "N/A", "XXXX", "-"]
)
def test_ids_that_name_nobody_are_unknown_and_said(name):
    ids = [name, name, name, "P1", "P1", "P2"]
    known, notes = known_patients(ids, [f"{i}.png" for i in range(6)])
    assert known == [None, None, None, "P1", "P1", "P2"]
    assert "3 of 6 files have" in notes[0]
    assert "counts as a patient of its own" in notes[0]


@pytest.mark.parametrize("name", ["0", "ANON001", "NA12", "Nanna", "x1", "no1", "Unknown7"])
def test_ids_that_name_somebody_are_kept(name):
    assert known_patients([name, "P"], ["a", "b"]) == ([name, "P"], ())


def test_one_id_for_all_files_of_many_is_unknown_in_training_only():
    files = [f"{i}.png" for i in range(12)]
    known, notes = known_patients(["HOSPITAL"] * 12, files)
    assert known == [None] * 12
    assert "all 12 files have the patient id 'HOSPITAL', which is taken as unknown" in notes[0]
    assert known_patients(["P"] * 12, files, one_for_all=False) == (["P"] * 12, ())
    assert known_patients(["P"] * 12, ["volume.nii"] * 12) == (["P"] * 12, ())


@pytest.mark.parametrize("name", ["ANONYMOUS", "nan", "SAME"])
def test_a_folder_of_placeholder_ids_can_be_fitted(name, tmp_path):
    found = normal_images(series(tmp_path, [name] * 20), SMALL, hold_out=0.2)
    assert found.held.units.n == 4
    assert "its own" in found.notes[0]


def test_unknown_patients_of_arrays_are_their_own():
    ids = [None] * 15 + ["a"] * 3 + ["b"] * 2
    fitted = detector(method="pca", calibration="cv+", folds=3).fit(noise(20), patient_ids=ids)
    assert fitted.calibration_.n_units == 17
    assert len(set(fitted.calibration_.unit[15:18])) == 1


def test_files_of_one_study_without_patient_are_one_unit(tmp_path):
    studies = [i // 4 for i in range(24)]
    found = normal_images(series(tmp_path, [""] * 24, studies=studies), SMALL, hold_out=0.34)
    assert (found.held.units.n, found.train.units.n, found.held.units.level) == (2, 4, "study")
    lone = series(tmp_path / "one", [""] * 12, studies=[0] * 12)
    with pytest.raises(DataError, match="at least 3 studies, got 1"):
        normal_images(lone, SMALL, hold_out=0.2)


def test_a_study_that_names_several_patients_joins_nobody(tmp_path):
    ids = [f"P{i // 2}" for i in range(12)]
    loaded = normal_images(series(tmp_path, ids, studies=[0] * 12), SMALL).train
    assert units_of(loaded).n == 6


def test_a_study_gives_a_nameless_file_to_its_patient(tmp_path):
    ids = ["A", "", "B", ""]
    loaded = normal_images(series(tmp_path, ids, studies=[0, 0, 1, 2]), SMALL).train
    assert units_of(loaded).member.tolist() == [0, 0, 1, 2]


def test_copies_join_the_patients_of_both_where_one_is_unknown():
    x = noise(6)
    x[5] = x[0]
    loaded = from_array(x, SMALL)
    ids = ["a", "b", "b", "c", None, None]
    rows = [replace(row, patient_id=p) for row, p in zip(loaded.rows, ids, strict=True)]
    assert connected(["a", None], [None, "x"]).tolist() == [0, 1]
    member = find_units(rows, loaded.pixels).member
    assert member.tolist() == [0, 1, 1, 2, 3, 0]


def test_alike_images_of_different_known_patients_are_no_copies():
    base = phantoms(1)[0].astype(int)
    rng = np.random.default_rng(0)
    x = np.clip(base + rng.integers(-3, 4, (12, 32, 32)), 0, 255).astype(np.uint8)
    loaded = from_array(x, SMALL)
    named = [replace(row, patient_id=f"P{i}") for i, row in enumerate(loaded.rows)]
    assert find_units(named, loaded.pixels).n == 12


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), min_size=1))
def test_connected_parts_are_the_finest_that_no_name_divides(pairs):
    first, second = zip(*pairs, strict=True)
    member = connected(first, second)
    reached = {i: {i} for i in range(len(pairs))}
    for _ in pairs:  # whoever is reached in as many steps as there are images
        for i, others in reached.items():
            near = {j for k in others for j in reached if set(pairs[j]) & set(pairs[k])}
            reached[i] = others | near
    for i, others in reached.items():
        assert others == {j for j, number in enumerate(member) if number == member[i]}


def test_what_a_unit_is_called():
    assert (plural(1, "study"), plural(2, "study")) == ("1 study", "2 studies")
    assert plural(3, "group") == "3 groups of near duplicates"


def test_the_name_of_an_image_that_is_seen_alone(tmp_path):
    ids = ["A", "", "ANONYMOUS"]
    rows = normal_images(series(tmp_path, ids, studies=[0, 1, 1]), SMALL).train.rows
    assert [unit_name(row) for row in rows] == ["A", "1.3.1", "1.3.1"]
    (plain,) = write_pngs(tmp_path / "p", phantoms(1))
    rows = normal_images([plain], SMALL).train.rows
    assert unit_name(rows[0]) == str(plain)


def test_splitting_again_keeps_the_units():
    ids = [f"P{i // 3}" for i in range(30)]
    found = normal_images(phantoms(30), SMALL, patient_ids=ids, hold_out=0.5)
    one, other = split(found.held, 0.5, 0)
    assert one.units.n + other.units.n == 5
    assert not {r.patient_id for r in one.rows} & {r.patient_id for r in other.rows}


# --- a validation split -----------------------------------------------------------------------


def manifest(folder: Path, rows: list[str]) -> Path:
    write_pngs(folder, phantoms(24))
    (folder / "manifest.csv").write_text("path,label,split,patient_id\n" + "\n".join(rows) + "\n")
    return folder / "manifest.csv"


def test_a_validation_split_that_shares_patients_is_an_error_that_names_them(tmp_path):
    rows = [
        f"{i:03}.png,normal,{'validation' if i % 4 == 3 else 'train'},P{i // 4}" for i in range(24)
    ]
    with pytest.raises(DataError, match=r"share nothing.* 6 patients.* \(P0, P1, P2, P3, P4 and 1"):
        AnomalyDetector(method="pca", image_size=16).fit(manifest(tmp_path, rows))


def test_a_validation_split_with_copies_is_an_error_that_names_them(tmp_path):
    rows = [f"{i:03}.png,normal,train,P{i}" for i in range(18)]
    rows += [f"{i:03}.png,normal,validation,P{i}" for i in range(18, 24)]
    file = manifest(tmp_path, rows)
    (tmp_path / "020.png").write_bytes((tmp_path / "004.png").read_bytes())
    with pytest.raises(DataError, match=r"but 1 copy \(020.png = 004.png\) are in both"):
        AnomalyDetector(method="pca", image_size=16).fit(file)


def test_a_clean_validation_split_calibrates(tmp_path):
    rows = [f"{i:03}.png,normal,{'validation' if i > 15 else 'train'},P{i // 2}" for i in range(24)]
    fitted = detector(method="pca").fit(manifest(tmp_path, rows))
    assert (fitted.calibration_.n_units, fitted.calibration_.level) == (4, "patient")
    assert open_dataset(tmp_path).counts()[("validation", "normal")] == 8


@pytest.mark.parametrize(
    "name",
    [
        *("ANONYMOUS^", "Anonymous^Patient", "ANON^ANON", "[REMOVED]", "<NA>", "#N/A", "no_id"),
        *(
            "unbekannt",
            "Unknown Patient",
            "PatientID",
            "subject",
            "TBD",
            "n.a.",
            "\u200b",
        ),
    ],
)
def test_ids_that_name_nobody_in_other_spellings(name):
    ids, notes = known_patients([name, name, "P1", "P2"], ["a", "b", "c", "d"])
    assert ids == [None, None, "P1", "P2"]
    assert "2 of 4 files have" in notes[0]


@pytest.mark.parametrize("name", ["0", "0000", "1", "ANON123", "Anon_0001", "Noname7", "John^Doe"])
def test_ids_that_may_name_somebody_do(name):
    assert known_patients([name, "P1"], ["a", "b"])[0] == [name, "P1"]


@pytest.mark.parametrize("names", [("P1", "p1"), ("7", "007"), ("7", "7.0"), ("Mü", "MÜ")])
def test_spellings_of_one_id_are_one_patient_where_images_are_told_apart(names):
    ids, (note,) = known_patients([*names, "other"], ["a", "b", "c"])
    assert ids == [names[0], names[0], "other"]
    assert f"1 patient ids are spelt in several ways ({names[0]} and {names[1]})" in note
    assert known_patients(["P1", "P10", "1a", "01a"], list("abcd")) == (
        ["P1", "P10", "1a", "01a"],
        (),
    )


def test_images_of_symmetric_things_are_no_turned_copies_of_each_other():
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    noise = np.random.default_rng(0).normal(0, 1, (6, 48, 48))
    images = np.clip(200 * (np.hypot(x, y) < 0.7) + 20 + noise, 0, 255).astype(np.uint8)[:, None]
    assert turned_pairs(images) == []
    clean = images[0, 0].copy()
    clean[5:12, 30:40] = 120
    assert turned_pairs(np.stack([clean, clean[:, ::-1], images[1, 0]])[:, None]) == [(0, 1)]


@pytest.mark.parametrize("size", [16, 40])
def test_flipped_and_turned_copies_are_one_unit(tmp_path, size):
    turns = [lambda x: x[::-1], lambda x: x[:, ::-1], np.rot90, lambda x: x.T, lambda x: x]
    images = phantoms(10, size=size)
    write_pngs(tmp_path / "p1", images)
    write_pngs(tmp_path / "p2", [turns[i % 5](x) for i, x in enumerate(images)])
    loaded = normal_images(tmp_path, ImageSettings(image_size=16)).train
    member = units_of(loaded).member
    assert (member[:10] == member[10:]).all()
    table = tmp_path / "m.csv"
    rows = [
        f"p{n}/{i:03d}.png,{split}" for n, split in ((1, "train"), (2, "val")) for i in range(10)
    ]
    table.write_text("path,split\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"10 copies .* are in both"):
        normal_images(table, ImageSettings(image_size=16), hold_out=0.2)
