"""Manifests: what every column means, and errors that name the line."""

import numpy as np
import pytest

from normalis.datasets import open_dataset
from normalis.errors import DataError, LayoutError


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.png", "a/2 ü.png", "a/3.png", "a/4.png", "m/4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def write(folder, text, name="list.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_column(folder):
    text = (
        "path,label,mask,patient_id,split,Age\n"
        "a/1.png,0,,P1,train,61\n"
        "a/2 ü.png,Normal,,P2,val,\n"
        "a/3.png,,,,test,44\n"
        "\n"
        "a/4.png,ANOMALOUS,m/4.png,007,test,58\n"
    )
    data = open_dataset(write(folder, text))
    assert data.layout == "manifest"
    assert [s.split for s in data.samples] == ["train", "validation", "test", "test"]
    assert [s.is_anomalous for s in data.samples] == [False, False, None, True]
    assert [s.patient_id for s in data.samples] == ["P1", "P2", None, "007"]
    assert data.samples[3].mask == folder / "m/4.png"
    assert data.samples[3].header == {"age": "58"}
    assert data.samples[1].path == folder / "a/2 ü.png"


@pytest.mark.parametrize(("mark", "start"), [(";", ""), ("\t", ""), (",", "\ufeff")])
def test_other_delimiters_and_byte_order_marks(folder, mark, start):
    text = f"{start}label{mark}path\n0{mark}a/1.png\n1{mark}a/2 ü.png\n"
    data = open_dataset(write(folder, text))
    assert [(s.split, s.is_anomalous) for s in data.samples] == [("train", False), ("test", True)]


def test_parquet_equals_csv(folder):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = {
        "Path": ["a/1.png", "a/4.png"],
        "label": [0, 1],
        "mask": [None, "m/4.png"],
        "patient_id": [1.0, float("nan")],
        "split": [None, "test"],
        "age": [61, 58],
    }
    pq.write_table(pa.table(table), folder / "list.parquet")
    one, two = open_dataset(folder / "list.parquet").samples
    assert (one.split, one.is_anomalous, one.patient_id) == ("train", False, "1")
    assert (two.split, two.is_anomalous, two.patient_id) == ("test", True, None)
    assert two.mask == folder / "m/4.png"
    assert two.header == {"age": 58}
    pq.write_table(pa.table({"path": ["a/1.png"], "label": [3]}), folder / "wrong.parquet")
    with pytest.raises(DataError, match="line 2: label must be one of"):
        open_dataset(folder / "wrong.parquet")


def test_a_folder_is_described_by_its_manifest(folder):
    write(folder, "path\na/1.png\n")
    write(folder, "file,other\na/1.png,2\n", "notes.csv")
    data = open_dataset(folder)
    assert data.layout == "manifest"
    assert data.counts() == {("unlabelled", "unlabelled"): 1}
    assert data.notes == (
        "The table has no column of labels, so nothing is known of its images.",
        "Tables that are not read: notes.csv.",
        "4 images of the folder have no row, and are left out: 2 ü.png, 3.png, 4.png and 1 more.",
    )
    write(folder, "path\na/3.png\n", "second.csv")
    with pytest.raises(LayoutError, match=r"list\.csv, second\.csv"):
        open_dataset(folder)


def test_missing_files_and_masks_are_noted(folder):
    data = open_dataset(write(folder, "path,label,mask\na/1.png,1,m/no.png\na/no.png,0,\n"))
    assert data.notes == (
        "1 file of the manifest is missing: a/no.png.",
        "1 mask of the manifest is missing: m/no.png.",
    )
    with pytest.raises(DataError, match="none of the 1 files"):
        open_dataset(write(folder, "path\nno.png\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,label\na/1.png,0\n", "line 1: must name a column path, found a, label"),
        ("", "line 1: must name a column path, found nothing"),
        ("path,label,label\na/1.png,0,0\n", "line 1: the column label is named twice"),
        (
            "path,label\na/1.png,0\na/3.png,flu\n",
            r"line 3: label must be .* got 'flu'.*0 \(1 row\)",
        ),
        ("path,split\na/1.png,other\n", "line 2: split must be one of .* got 'other'"),
        ("path\na/1.png\na/3.png\na/1.png\n", "line 4: a/1.png is already listed in line 2"),
        ("path,label,split\na/1.png,1,train\n", "line 2: train must hold normal images only"),
        ("path,label,split\na/1.png,1,valid\n", "line 2: validation must hold normal images"),
        ("path,label\na/1.png\n", "line 2: must have 2 columns"),
        ("path,label\n,0\n", "line 2: path must not be empty"),
    ],
)
def test_errors_name_the_line(folder, text, message):
    with pytest.raises(DataError, match=message):
        open_dataset(write(folder, text))


def test_numbers_that_are_no_label(folder):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for value in (0.5, float("inf")):
        pq.write_table(pa.table({"path": ["a/1.png"], "label": [value]}), folder / "l.parquet")
        with pytest.raises(DataError, match="line 2: label must be one of"):
            open_dataset(folder / "l.parquet")


def test_a_binary_file_called_csv(folder):
    (folder / "list.csv").write_bytes(np.arange(128, 256, dtype=np.uint8).tobytes())
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(folder / "list.csv")
    (folder / "list.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(folder / "list.parquet")


@pytest.mark.parametrize(
    ("column", "header"),
    [
        ("StudyInstanceUID", "study_uid"),
        ("AccessionNumber", "study_uid"),
        ("study_id", "study_uid"),
        ("Series Instance UID", "series_uid"),
    ],
)
def test_columns_of_studies_and_series_make_units(tmp_path, column, header):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    text = f"path,{column}\n0.png,1.2\n1.png,1.2\n2.png,1.3\n"
    (tmp_path / "m.csv").write_text(text)
    found = [s.header.get(header) for s in open_dataset(tmp_path / "m.csv").samples]
    assert found == ["1.2", "1.2", "1.3"]
    (tmp_path / "m.csv").write_text(text.replace("1.3", "1.2"))  # a project, not a study
    found = [s.header.get(header) for s in open_dataset(tmp_path / "m.csv").samples]
    assert found == [None] * 3
