"""Data as archives have it: BIDS, nnU-Net and Decathlon, MOOD, a CD as a ZIP, a DICOMDIR."""

import io
import json
import stat
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from dicom_studies import image, lesion_slices, series, study, write
from normalis.datasets import open_dataset
from normalis.datasets.layouts.archive import Limits, take_out
from normalis.errors import DataError, LayoutError
from normalis.studies.select import chosen_by


def touch(root, *names, text=""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


# --- BIDS ---


@pytest.fixture
def bids(tmp_path):
    root = tmp_path / "study"
    touch(root, "dataset_description.json", text="{}")
    for n in (1, 2, 3):
        touch(root, f"sub-{n:02d}/ses-1/anat/sub-{n:02d}_ses-1_T1w.nii.gz")
        touch(root, f"sub-{n:02d}/ses-1/anat/sub-{n:02d}_ses-1_FLAIR.nii.gz")
        touch(root, f"sub-{n:02d}/ses-1/anat/sub-{n:02d}_ses-1_FLAIR.json", text="{}")
    derived = root / "derivatives/manual"
    touch(derived, "sub-02/ses-1/anat/sub-02_ses-1_FLAIR_label-lesion_mask.nii.gz")
    touch(derived, "sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii.gz")
    touch(derived, "sub-01/ses-1/anat/sub-01_ses-1_desc-smooth_T1w.nii.gz")
    return root


def names(samples):
    return sorted(sample.path.name for sample in samples)


def test_bids_knows_patients_sessions_suffixes_and_masks(bids):
    data = open_dataset(bids)
    assert data.layout == "BIDS"
    assert len(data.samples) == 6
    assert not any("derivatives" in s.path.parts for s in data.samples)
    assert {s.patient_id for s in data.samples} == {"sub-01", "sub-02", "sub-03"}
    one = data.samples[0].header
    assert (one["suffix"], one["modality"], one["session"], one["datatype"]) == (
        "FLAIR", "FLAIR", "1", "anat"
    )  # fmt: skip
    (lesion,) = [s for s in data.samples if s.mask is not None]
    assert lesion.path.name == "sub-02_ses-1_FLAIR.nii.gz", "the mask names its image"
    assert (lesion.split, lesion.is_anomalous) == ("test", True)
    assert "Several kinds of images" in data.notes[0]
    assert "1 masks of lesions are used" in data.notes[2]


def test_rules_choose_among_the_columns_of_bids(bids):
    (bids / "participants.tsv").write_text(
        "participant_id\tage\tgroup\nsub-01\t30\tcontrol\nsub-02\t40\tpatient\n03\t50\tcontrol\n"
    )
    data = open_dataset(bids)
    chosen = chosen_by(data, ["suffix=T1w", "group=control"])
    assert names(chosen.samples) == ["sub-01_ses-1_T1w.nii.gz", "sub-03_ses-1_T1w.nii.gz"]
    assert {s.split for s in chosen.samples} == {"train"}, "control is a word for normal"
    assert chosen.samples[0].header["age"] == "30"
    assert names(chosen_by(data, ["age>35", "suffix=T1w"]).samples)[-1].startswith("sub-03")


def test_bids_without_labels_is_what_fit_is_told(bids):
    for mask in (bids / "derivatives").rglob("*lesion*"):
        mask.unlink()
    data = open_dataset(bids)
    assert {(s.split, s.is_anomalous) for s in data.samples} == {("unlabelled", None)}
    assert "No participant is said to be normal" in data.notes[1]


@pytest.mark.parametrize("column", ["group", "Diagnosis", "dx"])
def test_groups_of_bids_that_are_no_words_for_normal_are_asked_about(bids, column):
    rows = f"participant_id\t{column}\nsub-01\tCN\nsub-02\tAD\nsub-03\tCN\n"
    (bids / "participants.tsv").write_text(rows)
    for mask in (bids / "derivatives").rglob("*lesion*"):
        mask.unlink()
    with pytest.raises(DataError, match=rf"{column}: CN \(4 images\), AD .*--normal-class NAME"):
        open_dataset(bids).to_train_on()
    assert len(open_dataset(bids).to_score()) == 6
    told = open_dataset(bids, normal_class="cn")
    assert {s.patient_id for s in told.to_train_on()} == {"sub-01", "sub-03"}
    assert {s.patient_id for s in told.samples if s.is_anomalous} == {"sub-02"}
    assert len(open_dataset(bids, normal_class="*").to_train_on()) == 6
    with pytest.raises(DataError, match=rf"no participant is HC.*{column}: CN"):
        open_dataset(bids, normal_class="HC")


def test_participants_of_whom_nothing_is_said_are_counted(bids):
    (bids / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tcontrol\n")
    (note,) = [n for n in open_dataset(bids).notes if "left out" in n]
    assert note == "2 participants are neither normal nor anomalous, and left out."


# --- nnU-Net and Decathlon ---


def segmentation(root, labels, channels=None, *, version=2):
    key = "channel_names" if version == 2 else "modality"
    names_ = {n: str(i) for i, n in enumerate(labels)} if version == 2 else dict(enumerate(labels))
    root.mkdir(parents=True, exist_ok=True)
    described = {key: channels or {"0": "T1w", "1": "FLAIR"}, "labels": names_}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_channels_are_chosen_by_their_names_and_masks_are_masks(tmp_path, version):
    root = segmentation(tmp_path / "d", ["background", "edema", "tumor core"], version=version)
    for case in ("A_1", "A_2"):
        touch(root, f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz")
        touch(root, f"labelsTr/{case}.nii.gz")
    touch(root, "imagesTs/A_3_0000.nii.gz", "imagesTs/A_3_0001.nii.gz")
    data = open_dataset(root)
    assert data.layout == "nnU-Net/Decathlon"
    assert not any("labels" in str(s.path.parent.name) for s in data.samples)
    assert "Several channels" in data.notes[0]
    flair = chosen_by(data, ["channel=FLAIR"])
    assert names(flair.samples) == [f"A_{n}_0001.nii.gz" for n in (1, 2, 3)]
    assert [s.patient_id for s in flair.samples] == ["A_1", "A_2", "A_3"]
    assert [s.mask and s.mask.name for s in flair.samples] == ["A_1.nii.gz", "A_2.nii.gz", None]
    assert Counter(s.split for s in flair.samples) == {"test": 2, "unlabelled": 1}


def test_labels_of_organs_are_no_anomalies(tmp_path):
    root = segmentation(tmp_path, ["background", "liver", "cancer"], {"0": "CT"})
    touch(root, "imagesTr/liver_1.nii.gz", "labelsTr/liver_1.nii.gz")
    data = open_dataset(root)
    (sample,) = data.samples
    assert (sample.mask, sample.is_anomalous, sample.header["channel"]) == (None, None, "CT")
    assert "liver, cancer" in data.notes[0]


def test_a_damaged_description_is_said(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(LayoutError, match=r"dataset\.json"):
        open_dataset(tmp_path)


# --- MOOD ---


def test_mood(tmp_path):
    touch(tmp_path, *(f"brain_train/{i:05d}.nii.gz" for i in range(3)))
    touch(tmp_path, "toy/toy_0.nii.gz", "toy/toy_1.nii.gz", "toy/toy_2.nii.gz")
    touch(tmp_path, "toy_label/pixel/toy_0.nii.gz", "toy_label/pixel/toy_1.nii.gz")
    touch(tmp_path, "toy_label/sample/toy_0.nii.gz.txt", text="1\n")
    touch(tmp_path, "toy_label/sample/toy_1.nii.gz.txt", text="0")
    data = open_dataset(tmp_path)
    assert data.layout == "MOOD"
    assert len(data.to_train_on()) == 3
    first, second, third = (s for s in data.samples if s.path.parent.name == "toy")
    assert (first.is_anomalous, first.mask.name) == (True, "toy_0.nii.gz")
    assert (second.is_anomalous, second.mask.name) == (False, "toy_1.nii.gz")
    assert third.split == "unlabelled"
    assert "1 images of toy have no label" in data.notes[0]


# --- DICOMDIR ---


@pytest.fixture
def cd(tmp_path):
    """A CD of two patients, with its table of contents."""
    files = FileSet()
    film = image("DX", lesion_slices(seed=1)[2], study("A"), series=generate_uid())
    for data in (film, *series("MR", lesion_slices(slices=3), study("B"), number=2)):
        data.StudyID = "S1"
        files.add(data)
    files.write(tmp_path / "cd")
    files._stage["t"].cleanup()
    return tmp_path / "cd"


def test_a_dicomdir_names_its_images_and_their_patients(cd):
    data = open_dataset(cd / "DICOMDIR")
    assert data.layout == "DICOMDIR"
    assert Counter(s.patient_id for s in data.samples) == {"A": 1, "B": 3}
    for sample in data.samples:
        assert str(pydicom.dcmread(sample.path).PatientID) == sample.patient_id
    as_folder = open_dataset(cd)
    assert {s.path for s in as_folder.samples} >= {s.path for s in data.samples}
    assert len(chosen_by(as_folder, []).samples) == 4


def test_names_in_another_case_and_missing_files(cd):
    files = [s.path for s in open_dataset(cd / "DICOMDIR").samples]
    files[0].unlink()
    files[1].rename(files[1].with_name(files[1].name.lower()))
    data = open_dataset(cd / "DICOMDIR")
    assert len(data.samples) == 3
    assert "1 image that is missing" in data.notes[0]


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_a_directory_that_leads_out_of_its_folder_is_not_followed(cd):
    touch(cd.parent, "SECRET")
    directory = pydicom.dcmread(cd / "DICOMDIR")
    for record in directory.DirectoryRecordSequence:
        if record.DirectoryRecordType == "IMAGE":
            record.ReferencedFileID = ["..", "SECRET"]
    directory.save_as(cd / "DICOMDIR", enforce_file_format=True)
    with pytest.raises(DataError, match="names no image that is there"):
        open_dataset(cd / "DICOMDIR")


def test_no_dicomdir(tmp_path):
    touch(tmp_path, "DICOMDIR", text="hello")
    with pytest.raises(DataError, match="DICOMDIR"):
        open_dataset(tmp_path / "DICOMDIR")


# --- ZIP ---


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMALIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(folder, file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return file


def test_a_cd_as_a_zip(cd, cache, tmp_path):
    file = zipped(cd, tmp_path / "CD.zip")
    data = chosen_by(open_dataset(file), [])
    assert data.layout == "ZIP: folder of images"
    assert data.name == "CD"
    assert len(data.samples) == 4
    assert all(s.path.is_relative_to(cache) for s in data.samples)
    assert stat.S_IMODE((cache / "archives").stat().st_mode) & 0o077 == 0
    again = open_dataset(file)
    assert {s.path for s in again.samples} >= {s.path for s in data.samples}


def test_a_zip_of_classes(cache, tmp_path):
    touch(tmp_path / "in/x", "NORMAL/1.png", "NORMAL/2.png", "TUMOR/1.png", text="x")
    data = open_dataset(zipped(tmp_path / "in", tmp_path / "a.zip"), normal_class="NORMAL")
    assert len(data.to_train_on()) == 2
    assert "one folder per class" in data.layout


def evil(file, *members):
    with zipfile.ZipFile(file, "w") as archive:
        for name, text, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, text)
    return file


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_dangerous_stays_out(tmp_path):
    file = evil(
        tmp_path / "a.zip",
        ("good/1.png", "x", 0o644),
        ("../out.png", "x", 0o644),
        ("/abs.png", "x", 0o644),
        ("C:\\win.png", "x", 0o644),
        ("a/../../b.png", "x", 0o644),
        ("good/link.png", "/etc/passwd", stat.S_IFLNK | 0o777),
        ("good/inner.zip", "x", 0o644),
        ("good/1.png", "y", 0o644),
    )
    (tmp_path / "to").mkdir()
    left = take_out(file, tmp_path / "to")
    assert [p for p in (tmp_path / "to").rglob("*") if p.is_file()] == [tmp_path / "to/good/1.png"]
    assert (tmp_path / "to/good/1.png").read_text() == "x"
    assert left == {
        "names that lead out of the folder": 4, "links": 1, "archives in the archive": 1,
        "names that are there twice": 1,
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "to"]


def test_a_bomb_stops_by_what_it_becomes(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(20_000_000))
    (tmp_path / "to").mkdir()
    with pytest.raises(DataError, match="becomes more than"):
        take_out(file, tmp_path / "to", Limits(bytes=10_000_000))
    with pytest.raises(DataError, match="the disk"):
        take_out(file, tmp_path / "to2", Limits(free_bytes=1 << 62))
    many = evil(tmp_path / "b.zip", *((f"{i}.png", "", 0o644) for i in range(5)))
    with pytest.raises(DataError, match="holds 5 files"):
        take_out(many, tmp_path / "to", Limits(members=4))


def test_a_zip_that_is_cut_or_lies_is_said_and_leaves_nothing(cache, tmp_path):
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", np.random.default_rng(0).bytes(5000))
    damaged = bytearray(body.getvalue())
    damaged[200:300] = bytes(100)
    (tmp_path / "a.zip").write_bytes(damaged)
    (tmp_path / "b.zip").write_bytes(body.getvalue()[:-200])
    for name in ("a.zip", "b.zip"):
        with pytest.raises(DataError, match=f"{name}: cannot be taken out, it is damaged"):
            open_dataset(tmp_path / name)
    assert [p for p in (cache / "archives").iterdir() if p.is_dir()] == []


def test_an_error_names_the_archive_and_what_was_left_out_of_it_each_time(cache, tmp_path):
    evil(tmp_path / "a.zip", ("inner.zip", "x", 0o644))
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.zip: no image.*1 archives in the arch") as caught:
            open_dataset(tmp_path / "a.zip")
        assert str(cache) not in str(caught.value)
    evil(tmp_path / "b.zip", ("inner.zip", "x", 0o644), ("1.png", "x", 0o644))
    notes = [open_dataset(tmp_path / "b.zip").notes for _ in range(2)]
    assert notes[0] == notes[1]
    assert "1 archives in the archive" in notes[0][1]


def test_only_zips_are_taken_for_zips(tmp_path):
    np.savez(tmp_path / "x.npz", train=np.zeros((2, 8, 8), np.uint8))
    assert open_dataset(tmp_path / "x.npz").layout == "arrays"
    (tmp_path / "no.zip").write_text("hello")
    assert not open_dataset(tmp_path / "no.zip").layout.startswith("ZIP")


def test_patients_of_a_folder_are_never_lost(cd):
    assert isinstance(Path(cd), Path)
    write(cd / "more", [image("DX", lesion_slices()[2], study("C"), series=generate_uid())])
    assert len(chosen_by(open_dataset(cd), []).samples) == 5
