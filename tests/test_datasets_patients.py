"""Patients from file names: offered, and filled in only when told to."""

from pathlib import Path

import pytest

from normalis.datasets import (
    Dataset,
    Sample,
    offer_pattern,
    open_dataset,
    patients_from_pattern,
)
from normalis.errors import DataError, SettingsError


def dataset(*names: str, **known) -> Dataset:
    samples = tuple(Sample(path=Path("x") / n, split="train", **known) for n in names)
    return Dataset(name="x", root=Path("x"), layout="folder of images", samples=samples)


@pytest.mark.parametrize(
    ("names", "pattern", "patients"),
    [
        (("TCGA_CS_4941_1_flair_2.png", "TCGA_CS_4941_1_flair_3.png"), "TCGA", {"TCGA_CS_4941"}),
        (
            ("IM-0115-0001.jpeg", "NORMAL2-IM-0115-0001-0002.jpeg")
            + 2 * ("person90_virus_1.jpeg",),
            "paediatric chest X-rays",
            {"IM-0115", "NORMAL2-IM-0115", "person90"},
        ),
        (("BraTS2021_00003_flair_1.png", "BraTS2021_00003_flair_9.png"), "BraTS",
         {"BraTS2021_00003"}),
        (("00003_60.png", "00003_70.png"), "BMAD brain", {"00003"}),
    ],
)  # fmt: skip
def test_known_names_are_offered_and_filled(names, pattern, patients):
    data = dataset(*names)
    offered = offer_pattern(data)
    assert offered is not None
    assert offered[0] == pattern
    filled = patients_from_pattern(data, offered[1])
    assert {s.patient_id for s in filled.samples} == patients
    assert [s.path for s in filled.samples] == [s.path for s in data.samples]
    assert offer_pattern(filled) is None


def test_nothing_is_offered_without_a_match_or_without_two_images_of_a_patient():
    assert offer_pattern(dataset("a.png", "b.png")) is None
    assert offer_pattern(dataset("person1_virus_1.jpeg", "person2_virus_2.jpeg")) is None


def test_rows_of_arrays_are_matched_by_the_name_they_kept():
    data = dataset("a.npz", index=0, header={"name": "P7_1.png"})
    assert patients_from_pattern(data, r"(P\d+)").samples[0].patient_id == "P7"


def test_errors():
    with pytest.raises(DataError, match=r"does not match 1 of 2: b\.png"):
        patients_from_pattern(dataset("a1.png", "b.png"), r"(a\d)")
    with pytest.raises(SettingsError, match="must have a group"):
        patients_from_pattern(dataset("a.png"), "a")
    with pytest.raises(SettingsError, match="no expression"):
        patients_from_pattern(dataset("a.png"), "(a")


def test_a_pattern_with_a_slash_reads_the_path_below_the_folder(tmp_path):
    for name in ("a/P1/0.png", "a/P1/1.png", "a/P2/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    data = open_dataset(tmp_path)
    named = patients_from_pattern(data, "^a/([^/]+)/")
    assert [s.patient_id for s in named.samples] == ["P1", "P1", "P2"]
    with pytest.raises(DataError, match=r"with a / in it, it is searched for in the path"):
        patients_from_pattern(data, "(P.)")
