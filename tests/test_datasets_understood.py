"""What is not understood is never normal: tables, class folders, masks, results, odd entries."""

import json
import os

import numpy as np
import pytest

from normalis.datasets import open_dataset, patients_from_pattern
from normalis.datasets.words import is_class_name, is_mask_name, meaning, split_of
from normalis.errors import DataError, LayoutError, SettingsError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def numbered(folder, count=3):
    return [f"{folder}/{i}.png" for i in range(count)]


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("NORMAL", "normal"),
        ("No Finding", "normal"),
        ("no_finding", "normal"),
        ("NonDemented", "normal"),
        ("0.0", "normal"),
        ("Healthy", "normal"),
        ("Abnormal", "anomalous"),
        ("1", "anomalous"),
        ("1.0", "anomalous"),
        ("positive", "anomalous"),
        ("None", "unknown"),
        ("", "unknown"),
        ("N/A", "unknown"),
        ("pneumonia", None),
        ("2", None),
        ("-1", None),
    ],
)
def test_words(word, said):
    assert meaning(word) == said


def test_names_of_classes_masks_and_splits():
    assert all(
        map(is_class_name, ("PNEUMONIA", "glioma", "covid-19", "CNV", "Normal_cases", "yes"))
    )
    assert not any(
        map(is_class_name, ("P001", "sub-01", "Thomas", "axial", "site_A", "1", "IM_03"))
    )
    masks = ("masks", "labelsTr", "Ground_Truth", "000_mask", "x-seg", "anomaly_mask", "x_MASK")
    assert all(map(is_mask_name, masks))
    assert all(map(is_mask_name, ("SegmentationClass", "Masken", "masques", "outlines", "x_matte")))
    assert not any(map(is_mask_name, ("images", "mask_1_image", "P001", "labelled")))
    assert [split_of(n) for n in ("Training", "VAL", "test", "fold1")] == [
        "train",
        "validation",
        "test",
        None,
    ]


# --- tables -------------------------------------------------------------------------------------

HEAD = "path,label,split,patient_id"
EXPECTED = {("train", "normal"): 4, ("test", "normal"): 1, ("test", "anomalous"): 1}


@pytest.fixture
def table(tmp_path):
    """Write six images, and a table of them after a change to its text; return its folder."""

    def write(change=lambda text: text, encoding="utf-8", name="manifest.csv"):
        touch(tmp_path, *numbered("img", 6))
        labels = ["normal,train"] * 4 + ["normal,test", "anomalous,test"]
        rows = [f"img/{i}.png,{label},Mü{i}" for i, label in enumerate(labels)]
        text = change("\n".join([HEAD, *rows]) + "\n")
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(table, encoding):
    data = open_dataset(table(encoding=encoding))
    assert data.counts() == EXPECTED
    assert data.samples[0].patient_id == "Mü0"
    assert data.notes == ()


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_an_old_encoding_is_read_and_said(table, encoding):
    data = open_dataset(table(encoding=encoding))
    assert data.counts() == EXPECTED
    assert data.samples[0].patient_id == "Mü0"
    assert "Windows-1252" in data.notes[0]


CHANGES = {
    "semicolon": lambda t: t.replace(",", ";"),
    "tab": lambda t: t.replace(",", "\t"),
    "pipe": lambda t: t.replace(",", "|"),
    "sep": lambda t: "sep=;\n" + t.replace(",", ";"),
    "quoted sep": lambda t: '"sep=|"\r\n' + t.replace(",", "|"),
    "comment": lambda t: "# exported 2024\n#\n" + t,
    "comment below": lambda t: t + "# end of export\n",
    "title": lambda t: "Export of the archive\n\n" + t,
    "crlf": lambda t: t.replace("\n", "\r\n"),
    "trailing commas": lambda t: t.replace("\n", ",\n"),
    "quotes": lambda t: "\n".join(
        ",".join(f'"{cell}"' for cell in line.split(",")) for line in t.split("\n") if line
    ),
    "backslashes": lambda t: t.replace("img/", "img\\"),
    "names": lambda t: t.replace("path,label", "Image Path,Class"),
    "filename": lambda t: t.replace("path", "filename"),
    "no folder": lambda t: t.replace("img/", ""),
    "no suffix": lambda t: t.replace("img/", "").replace(".png", ""),
    "target": lambda t: t.replace("label", "target").replace("split", "set"),
    "numbers": lambda t: t.replace("normal", "0").replace("anomalous", "1"),
    "is_normal": lambda t: (
        t.replace("label", "is_normal").replace("anomalous", "0").replace(",normal", ",1")
    ),
    "sets": lambda t: t.replace("train,", "Training,").replace("test,", "TEST,"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_forms_of_a_table(table, change):
    assert open_dataset(table(change)).counts() == EXPECTED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("path", "thing"), "has no column path"),
        (lambda t: t.replace(HEAD + "\n", ""), "has no column path"),
        (lambda t: t.replace("img/", "elsewhere/"), "none of the 6 files that it lists"),
        (lambda t: t.replace("label", "Befund"), "looks like a label"),
        (lambda t: t + "img/5.png,normal\n", "must have 4 columns"),
        (lambda t: t + "img/5.png,normal,test,P\n", "line 8: .* listed in line 7 as anomalous"),
        (lambda t: t.replace("anomalous", "pneumonia"), "line 7: label .*--normal-class 'normal'"),
        (lambda t: t.replace(",normal,test", ",-1,test"), "line 6: label must be one of"),
        (lambda t: t.replace("patient_id", "label"), "named twice"),
    ],
)
def test_a_table_that_is_not_understood_is_an_error(table, change, message):
    with pytest.raises(DataError, match=message):
        open_dataset(table(change))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.xlsx", b"PK\x03\x04", "save it as CSV"),
        ("labels.csv", bytes(range(256)), "bytes are not text"),
        ("labels.parquet", b"PAR1 no", "cannot be read"),
        ("test.txt", b"img/0.png 1\nimg/1.png 0\n", "names images of this folder"),
        ("coco.json", b'{"0.png": 1, "1.png": 0}', "names images of this folder"),
        ("scanner.csv", b"a,b\n1,2\n", "has no column path"),
        ("labels.csv.gz", b"\x1f\x8b\x08\x00", "unpack it, or save it as CSV"),
        ("labels.npy", b"\x93NUMPY\x01\x00", "save it as CSV"),
        ("study.sqlite", b"SQLite format 3\x00", "tables of other programs"),
        ("list", b"path,label\n0.png,1\n1.png,0\n", "names images of this folder"),
        ("list.csv.bak", b"path,label\n0.png,1\n1.png,0\n", "names images of this folder"),
        ("study.sqlite3", b"", "tables of other programs"),
    ],
)
def test_what_may_be_a_table_is_an_error_until_told(tmp_path, name, content, message):
    touch(tmp_path, *numbered("img"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LayoutError, match=rf"{name}.*{message}.*--ignore-tables"):
        open_dataset(tmp_path)
    ignored = open_dataset(tmp_path, ignore_tables=True).samples
    assert sum(s.path.suffix == ".png" for s in ignored) == 3
    assert open_dataset(tmp_path / "img").counts() == {("unlabelled", "unlabelled"): 3}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.txt", "im_0\nim_1\n"),
        ("labels.json", '{"im_0": {"label": 1}, "im_1": {"label": 0}}'),
        ("split", "im_0 1\nim_1 0\n"),
    ],
)
def test_lists_of_names_without_suffix_are_lists(tmp_path, name, text):
    touch(tmp_path, *(f"img/im_{i}.png" for i in range(4)))
    (tmp_path / name).write_text(text)
    with pytest.raises(LayoutError, match=rf"{name}.*names images of this folder"):
        open_dataset(tmp_path)
    (tmp_path / name).write_text("Of im_0 and im_1 the paper says more, in many other words.")
    assert len(open_dataset(tmp_path).samples) >= 4


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("path,label,is_abnormal\n0.png,normal,0\n1.png,normal,1\n", "line 3: .*correct one"),
        ("path,label,healthy\n0.png,1,1\n1.png,0,1\n", "line 2: .*correct one"),
        ("path,label,is_train\n0.png,0,1\n1.png,0,0\n", "is_train looks like a split"),
        ("path,anomaly_score,p_value\n0.png,1,1\n", "scores that normalis wrote"),
    ],
)
def test_columns_that_contradict_each_other_or_are_not_meant_as_read(tmp_path, rows, said):
    touch(tmp_path, "0.png", "1.png")
    (tmp_path / "m.csv").write_text(rows)
    with pytest.raises(DataError, match=said):
        open_dataset(tmp_path)


def test_a_status_beside_a_label_contradicts_nothing_and_rows_that_lack_are_said(tmp_path):
    touch(tmp_path, "0.png", "1.png", "2.png", "notes.docx")
    (tmp_path / "m.csv").write_text("path,label,status\n0.png,0,ok\n1.png,1,ok\n")
    data = open_dataset(tmp_path)
    assert data.notes == ("1 images of the folder have no row, and are left out: 2.png.",)


def test_an_encoding_that_is_a_guess_is_said_with_the_label(tmp_path):
    touch(tmp_path, "0.png")
    (tmp_path / "m.csv").write_bytes("path,label\n0.png,норма\n".encode("cp1251"))
    with pytest.raises(DataError, match="read as Windows-1252; if it is in another encoding, save"):
        open_dataset(tmp_path)


def test_a_manifest_in_a_sub_folder_is_named(tmp_path):
    touch(tmp_path, *numbered("img"))
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/labels.csv").write_text("path,label\nimg/0.png,1\nimg/1.png,0\n")
    with pytest.raises(LayoutError, match=r"meta/labels\.csv.*sub-folder"):
        open_dataset(tmp_path)


def test_notes_beside_images_and_sidecars_are_no_tables(tmp_path):
    touch(tmp_path, *numbered("img"), "LICENSE.txt", "a.png")
    (tmp_path / "a.json").write_text('{"EchoTime": 0.1, "SourceFile": ["a.png", "0.png", "1.png"]}')
    assert len(open_dataset(tmp_path).samples) == 4


def test_classes_of_a_table_with_a_normal_class(table):
    def named(text):
        return text.replace("anomalous", "pneumonia").replace(",normal", ",No disease seen")

    folder = table(named)
    data = open_dataset(folder, normal_class="no disease seen")
    assert data.counts() == EXPECTED
    assert [s.kind for s in data.samples if s.is_anomalous] == ["pneumonia"]
    with pytest.raises(DataError, match=r"no row has the label clear.*holds the classes"):
        open_dataset(folder, normal_class="clear")


def test_a_class_in_training_is_left_aside_with_its_count(table):
    folder = table(lambda t: t.replace("normal,train", "flu,train", 1))
    data = open_dataset(folder, normal_class="normal")
    assert data.counts()["train", "normal"] == 3
    assert "Left aside 1 anomalous rows of train" in data.notes[0]


def test_rows_without_a_label_are_not_trained_on(table):
    data = open_dataset(table(lambda t: t.replace("normal,train", ",train", 1)))
    assert data.counts() == EXPECTED | {("train", "normal"): 3, ("unlabelled", "unlabelled"): 1}
    assert len(data.to_train_on()) == 3
    assert any("left out by fit and evaluate: 1 row." in note for note in data.notes)
    empty = open_dataset(table(lambda t: t.replace("normal", "").replace("anomalous", "")))
    with pytest.raises(DataError, match="column label has a label"):
        empty.to_train_on()


def test_names_that_fit_several_files_are_refused(table):
    folder = table(lambda t: t.replace("img/", ""))
    touch(folder, "other/0.png")
    with pytest.raises(DataError, match=r"line 2: 0\.png may be img/0\.png, other/0\.png"):
        open_dataset(folder)


# --- class folders --------------------------------------------------------------------------------

PAIRS = [
    ("NORMAL", "PNEUMONIA"),
    ("no", "yes"),
    ("0", "1"),
    ("good", "defect"),
    ("healthy", "tumor"),
    ("Non_Demented", "Mild_Demented"),
    ("benign", "malignant"),
]


@pytest.mark.parametrize(("normal", "other"), PAIRS)
def test_class_folders_are_not_trained_on_until_told(tmp_path, normal, other):
    touch(tmp_path, *numbered(normal), *numbered(other, 2))
    data = open_dataset(tmp_path)
    assert data.counts() == {("unlabelled", "unlabelled"): 5}
    assert len(data.to_score()) == 5
    with pytest.raises(DataError, match=rf"{normal} \(3 images\).*--normal-class"):
        data.to_train_on()
    told = open_dataset(tmp_path, normal_class=normal)
    assert told.counts() == {("train", "normal"): 3, ("test", "anomalous"): 2}
    assert {s.kind for s in told.samples if s.is_anomalous} == {other}
    every = open_dataset(tmp_path, normal_class="*")
    assert every.counts() == {("train", "normal"): 5}


def test_classes_by_split_as_in_chest_x_rays(tmp_path):
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        touch(tmp_path, *numbered(f"{split}/NORMAL", count), *numbered(f"{split}/PNEUMONIA", count))
    with pytest.raises(DataError, match="--normal-class NORMAL"):
        open_dataset(tmp_path).to_train_on()
    assert len(open_dataset(tmp_path).to_score()) == 4
    data = open_dataset(tmp_path, normal_class=["normal"])
    assert data.counts() == {
        ("train", "normal"): 4,
        ("validation", "normal"): 1,
        ("test", "normal"): 2,
        ("test", "anomalous"): 2,
    }
    assert "4 of train/PNEUMONIA, 1 of validation/PNEUMONIA" in " ".join(data.notes)


def test_a_class_by_a_word_for_normal_that_was_not_named_is_said(tmp_path):
    touch(tmp_path, *numbered("normal"), *numbered("test/good"), *numbered("test/tumor"))
    (said,) = open_dataset(tmp_path, normal_class="normal").notes
    assert "good counts as anomalous" in said
    assert "--normal-class good" in said
    both = open_dataset(tmp_path, normal_class=["normal", "good"])
    assert both.notes == ()
    assert both.counts()["test", "normal"] == 3


def test_classes_below_other_folders(tmp_path):
    touch(tmp_path, *numbered("siteA/normal"), *numbered("siteA/CNV"), *numbered("siteB/DME", 2))
    data = open_dataset(tmp_path, normal_class="normal")
    kinds = {s.kind for s in data.samples if s.is_anomalous}
    assert kinds == {"CNV", "DME"}
    assert data.counts() == {("train", "normal"): 3, ("test", "anomalous"): 5}


def test_one_folder_of_anomalies_among_images(tmp_path):
    touch(tmp_path, "1.png", "2.png", "defects/3.png")
    with pytest.raises(DataError, match="defects"):
        open_dataset(tmp_path).to_train_on()


@pytest.mark.parametrize(
    "folders",
    [("P001", "P002"), ("sub-01", "sub-02"), ("1", "2", "3"), ("site A", "GE_T1"), ("normal",)],
)
def test_folders_of_patients_are_a_plain_folder(tmp_path, folders):
    touch(tmp_path, *(name for folder in folders for name in numbered(folder)))
    data = open_dataset(tmp_path)
    assert data.layout == "folder of images"
    assert len(data.to_train_on()) == 3 * len(folders)


@pytest.mark.parametrize("folders", [("0", "1", "2"), ("P0", "P1", "P2")])
def test_numbered_folders_are_patients_where_dicom_headers_say_so(tmp_path, folders):
    for i, folder in enumerate(folders):
        for k in range(2):
            dicom(tmp_path / folder / f"IM{k}", STORAGE + "2", patient=f"P{i}")
    data = open_dataset(tmp_path)
    assert data.layout == "folder of images"
    assert len(data.to_train_on()) == 6
    if folders[0] == "0":
        assert "The folders 0, 1, 2 are patients by their DICOM headers" in data.notes[0]
        told = open_dataset(tmp_path, normal_class="0")  # what the user says counts
        assert told.counts() == {("train", "normal"): 2, ("test", "anomalous"): 4}


@pytest.mark.parametrize(
    "patients",
    [("AB", "CD", "EF"), ("A", "B"), ("A", "B", ""), ("A", "A", "A"), ("A", "AB", "C")],
)
def test_numbered_folders_of_no_three_patients_are_asked_about(tmp_path, patients):
    for i, named in enumerate(patients):
        for k, patient in enumerate(named if len(named) > 1 else [named] * 2):
            dicom(tmp_path / str(i) / f"IM{k}", STORAGE + "2", patient=patient)
    assert "--normal-class 0" in open_dataset(tmp_path).unclear


def test_a_few_folders_of_words_are_said_to_count_alike(tmp_path):
    touch(tmp_path, *numbered("GE"), *numbered("Siemens"))
    assert "(GE, Siemens) count alike" in open_dataset(tmp_path).notes[0]


WORDS = [
    ("frisk", "sjuk"), ("zdrowy", "chory"), ("정상", "비정상"), ("before", "after"), ("N", "P"),
    ("Glaucoma_Negative", "Glaucoma_Positive"), ("images", "excluded"), ("img", "heatmaps"),
]  # fmt: skip


@pytest.mark.parametrize("below", ["", "data/all/"])
@pytest.mark.parametrize("folders", WORDS)
def test_folders_of_words_in_any_language_are_not_trained_on_until_told(tmp_path, folders, below):
    touch(tmp_path, *(name for f in folders for name in numbered(below + f)))
    with pytest.raises(DataError, match="not known what the names of its folders mean"):
        open_dataset(tmp_path).to_train_on()
    assert len(open_dataset(tmp_path).to_score()) == 6
    assert len(open_dataset(tmp_path, normal_class="*").to_train_on()) == 6
    assert len(open_dataset(tmp_path, normal_class=folders[0]).to_train_on()) == 3


def test_classes_in_other_words_below_splits_are_asked_about_by_name(tmp_path):
    for split in ("train", "test"):
        touch(tmp_path, *numbered(f"{split}/frisk"), *numbered(f"{split}/sjuk"))
    with pytest.raises(LayoutError, match="if folders below train and test are classes, name the"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, normal_class="frisk").to_train_on()) == 3


def test_a_folder_of_a_word_among_images_or_patients_is_asked_about(tmp_path):
    touch(tmp_path / "a", "1.png", "2.png", "rejected/3.png")
    touch(tmp_path / "b", *numbered("P1"), *numbered("P2"), *numbered("rejected"))
    for folder, count in (("a", 3), ("b", 9)):
        assert "rejected" in open_dataset(tmp_path / folder).unclear
        assert len(open_dataset(tmp_path / folder, normal_class="*").to_train_on()) == count
    touch(tmp_path / "c", *(f"{name * 2}/0.png" for name in "abcdefghijklmno"))
    assert open_dataset(tmp_path / "c").unclear == "", "so many names are those of patients"


@pytest.mark.parametrize("folders", [("00", "01"), ("1", "2"), ("BIRADS1", "BIRADS4")])
def test_numbered_folders_are_said_with_the_pattern_that_names_patients(tmp_path, folders):
    touch(tmp_path, *(name for folder in folders for name in numbered(f"all/{folder}")))
    data = open_dataset(tmp_path)
    assert len(data.to_train_on()) == 6
    (note,) = data.notes
    assert "2 numbered folders" in note
    assert "--normal-class" in note
    pattern = note.split("'")[1]
    assert patients_from_pattern(data, pattern).notes == ()
    patients = [s.patient_id for s in patients_from_pattern(data, pattern).samples]
    assert patients == [folders[0]] * 3 + [folders[1]] * 3


@pytest.mark.parametrize("end", ["_drawn", "-overlay", " flip", ".heat"])
def test_files_named_like_others_with_a_word_more_are_asked_about(tmp_path, end):
    touch(tmp_path, *(f"{i}{more}.png" for i in range(3) for more in ("", end)))
    assert f"3 files are named like others with '{end[1:]}' more" in open_dataset(tmp_path).unclear
    assert len(open_dataset(tmp_path, normal_class="*").to_train_on()) == 6
    touch(tmp_path / "b", *(f"{i}{more}.png" for i in range(3) for more in ("", "_L", "_2")))
    assert open_dataset(tmp_path / "b").unclear == "", "sides and numbers are images of their own"


@pytest.mark.parametrize(
    ("folders", "likely"),
    [(("CNV-1", "NORMAL-2"), "'NORMAL-2'"), (("tumor", "stroke"), "NAME"), (("no", "yes"), "no")],
)
def test_no_anomaly_is_offered_as_the_normal_class(tmp_path, folders, likely):
    touch(tmp_path, *(name for folder in folders for name in numbered(folder)))
    assert f"--normal-class {likely} (" in open_dataset(tmp_path).unclear


def test_a_normal_class_that_nothing_has_is_an_error(tmp_path):
    touch(tmp_path, *numbered("P1"))
    with pytest.raises(SettingsError, match=r"no folder of that name \(folders: P1\)"):
        open_dataset(tmp_path, normal_class="NORMAL")
    touch(tmp_path, *numbered("yes"), *numbered("no"))
    with pytest.raises(DataError, match="no folder is named NORMAL"):
        open_dataset(tmp_path, normal_class="NORMAL")
    touch(tmp_path / "m", "train/good/1.png", "test/good/2.png")
    with pytest.raises(SettingsError, match="says itself"):
        open_dataset(tmp_path / "m", normal_class="NORMAL")


# --- other layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["normal", "GOOD", "healthy", "ok"])
def test_test_images_of_another_word_for_good_are_normal(tmp_path, word):
    touch(tmp_path, "train/good/1.png", f"test/{word}/2.png", "test/tumor/3.png")
    assert open_dataset(tmp_path).counts() == {
        ("train", "normal"): 1,
        ("test", "normal"): 1,
        ("test", "anomalous"): 1,
    }


def test_training_images_of_another_word_for_good(tmp_path):
    touch(tmp_path, "train/normal/1.png", "test/normal/2.png", "test/tumour/3.png")
    assert open_dataset(tmp_path).layout == "MVTec/BMAD"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": {"0": ["0.png"], "2": ["1.png"]}}, 'the list "2", which is not understood'),
        ({"train": {"0": ["0.png"]}, "extra": {"0": ["1.png"]}}, "holds extra, which is no split"),
        (
            {"train": {"0": ["0.png"]}, "test": {"0": ["1.png"], "1": ["1.png"]}},
            r"1\.png as normal",
        ),
        ({"train": {"0": ["0.png"]}, "test": {"1": ["0.png"]}}, r"0\.png as normal \(in train\)"),
    ],
)
def test_lists_that_contradict_or_are_unknown(tmp_path, lists, message):
    touch(tmp_path, *numbered("images"))
    (tmp_path / "data.json").write_text(json.dumps(lists))
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_lists_by_words_twice_and_with_a_name_no_file_can_have(tmp_path):
    touch(tmp_path, *numbered("images"))
    lists = {
        "name": "a title",
        "train": {"normal": ["0.png", "0.png", "x" * 300]},
        "test": {"normal": ["0.png"], "anomaly": ["2.png"]},
    }
    (tmp_path / "data.json").write_text(json.dumps(lists))
    data = open_dataset(tmp_path)
    assert data.counts() == {
        ("train", "normal"): 1,
        ("test", "normal"): 1,
        ("test", "anomalous"): 1,
    }
    notes = " ".join(data.notes)
    assert "lists 1 file more than once" in notes
    assert "1 file in two splits, which is a leak" in notes
    assert "1 file that data.json lists is missing" in notes
    (tmp_path / "data.json").write_text('{"train": {"0": ["0.png"], "0": ["1.png"]}}')
    with pytest.raises(LayoutError, match="comes twice"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (("dataset_description.json", "anat/01_T1w.nii.gz"), "BIDS"),
        (("anat/01_T1w.nii.gz", "derivatives/x/01_mask.nii.gz"), "BIDS"),
        (("toy/1.nii.gz", "toy_label/1.nii.gz"), "MOOD"),
    ],
)
def test_archives_with_masks_beside_images_are_refused(tmp_path, files, what):
    touch(tmp_path, *files)
    with pytest.raises(LayoutError, match=what):
        open_dataset(tmp_path)


def test_masks_are_never_samples_of_a_folder(tmp_path):
    touch(tmp_path, *numbered("images"), *numbered("masks"), "images/0_seg.png")
    data = open_dataset(tmp_path)
    assert [s.path.parent.name for s in data.samples] == ["images"] * 3
    with pytest.raises(DataError, match="4 of its files are masks"):
        data.to_train_on()
    assert len(open_dataset(tmp_path / "masks").samples) == 3  # told: they are what is meant


def test_names_that_all_end_like_masks_are_images(tmp_path):
    touch(tmp_path, "1_roi.png", "2_roi.png")
    assert len(open_dataset(tmp_path).to_train_on()) == 2


@pytest.mark.parametrize("file", ["score.json", "progress.csv"])
def test_our_own_output_is_left_aside(tmp_path, file):
    touch(tmp_path, *numbered("img"), *numbered("out/scored/overlays"), "out/scored/maps/1.npy")
    (tmp_path / "out/scored" / file).write_text("path,slice,patient_id,anomaly_score\n")
    if file == "score.json":
        (tmp_path / "out/scored/scores.csv").write_text("path,slice,patient_id,anomaly_score\n")
    data = open_dataset(tmp_path)
    assert len(data.samples) == 3
    assert "that normalis itself wrote" in data.notes[0]
    with pytest.raises(LayoutError, match="that normalis wrote"):
        open_dataset(tmp_path / "out/scored")


def test_what_is_scored_is_never_what_was_trained_on(tmp_path):
    touch(tmp_path, *numbered("images"))
    (tmp_path / "data.json").write_text(json.dumps({"train": {"0": ["0.png", "1.png"]}}))
    with pytest.raises(DataError, match="must have test or unlabelled images to score, found 2"):
        open_dataset(tmp_path).to_score()


# --- entries that are neither file nor folder -----------------------------------------------------


def test_bad_entries_end_no_listing(tmp_path):
    touch(tmp_path, "1.png", "sub/2.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    data = open_dataset(tmp_path)
    assert len(data.samples) == 2
    (note,) = data.notes
    assert "Left aside as no readable file or folder: 3 entries, gone.png (a broken link)" in note


def test_one_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    from normalis.datasets import listing

    touch(tmp_path, "1.png", "closed/2.png")
    scan = listing._scan

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise DataError(f"{folder}: the folder cannot be read (Permission denied)")
        return scan(folder)

    monkeypatch.setattr(listing, "_scan", refuse)
    found = listing.list_images(tmp_path)
    assert len(found.images) == 1
    assert "Permission denied" in found.notes()[0]


# --- DICOM objects --------------------------------------------------------------------------------


def dicom(path, sop_class, *, ours=False, patient="P1"):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.PatientID = patient
    if ours:
        item = Dataset()
        item.Manufacturer = "normalis"
        data.ContributingEquipmentSequence = [item]
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


STORAGE = "1.2.840.10008.5.1.4.1.1."
OBJECTS = {
    "7": "a secondary capture",
    "66.4": "a segmentation",
    "30": "a parametric map",
    "11.1": "a presentation state",
    "88.33": "a structured report",
    "88.59": "a key object selection",
    "481.5": "a radiotherapy object",
}


@pytest.mark.parametrize(("number", "kind"), OBJECTS.items())
def test_dicom_results_are_left_aside_with_their_kind(tmp_path, number, kind):
    for i in range(3):
        dicom(tmp_path / f"IM{i}", STORAGE + "2")
    dicom(tmp_path / "R1", STORAGE + number)
    data = open_dataset(tmp_path)
    assert [s.path.name for s in data.samples] == ["IM0", "IM1", "IM2"]
    assert f"Left aside as no acquired images ({kind}) 1 DICOM file: R1" in data.notes[0]
    (tmp_path / "list.csv").write_text("path\nIM0\nR1\n")
    assert len(open_dataset(tmp_path).samples) == 2  # told


@pytest.mark.parametrize("number", ["7", "66.4"])
def test_dicom_results_without_meta_information_are_left_aside(tmp_path, number):
    from pydicom.dataset import Dataset

    touch(tmp_path, "1.png", "2.png")
    data = Dataset()
    data.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{number}"
    data.save_as(tmp_path / "old", implicit_vr=True, little_endian=True)
    found = open_dataset(tmp_path)
    assert len(found.samples) == 2
    assert "Left aside as no acquired images" in found.notes[0]


def test_a_folder_of_captures_is_what_the_user_means_but_never_our_own(tmp_path):
    for i in range(2):
        dicom(tmp_path / f"C{i}", STORAGE + "7")
    dicom(tmp_path / "ours", STORAGE + "7", ours=True)
    data = open_dataset(tmp_path)
    assert [s.path.name for s in data.samples] == ["C0", "C1"]
    assert "All 2 images are DICOM secondary captures" in data.notes[0]
    assert "a result that normalis wrote) 1 DICOM file: ours" in data.notes[1]


def test_arrays_with_labels_in_the_plural_and_arrays_of_no_split(tmp_path):
    zeros = np.zeros((2, 4, 4), np.uint8)
    file = tmp_path / "a.npz"
    np.savez(file, train=zeros, test=zeros, test_labels=[0, 1], test_patient_id=["a", "b"], foo=[1])
    data = open_dataset(file)
    assert data.counts()["test", "anomalous"] == 1
    assert [s.patient_id for s in data.split("test")] == ["a", "b"]
    assert data.notes == ("Arrays that are not read: foo.",)


# --- other languages, labels in names, annotations that are no masks ----------------------------


@pytest.mark.parametrize(
    ("normal", "other"),
    [("gesund", "krank"), ("sain", "malade"), ("正常", "異常"), ("class0", "class1")],
)
def test_class_folders_in_other_words(tmp_path, normal, other):
    data = open_dataset(touch(tmp_path, *numbered(normal), *numbered(other)))
    assert "--normal-class" in data.unclear
    said = open_dataset(tmp_path, normal_class=normal)
    assert sum(s.is_anomalous is False for s in said.samples) == 3


def test_labels_in_the_names_of_files_are_said(tmp_path):
    data = open_dataset(touch(tmp_path, "normal_1.png", "normal_2.png", "tumor_3.png"))
    assert any("1 of 3 images speak of a finding (tumor_3.png)" in note for note in data.notes)


def test_names_without_a_finding_are_not_doubted(tmp_path):
    names = ("normal_1.png", "IM-0115.png", "TCGA_CS_4941_7.png", "axial_true.png", "scan no 1.png")
    assert not open_dataset(touch(tmp_path, *names)).notes


def test_annotations_that_are_no_masks_are_not_passed_over(tmp_path):
    data = open_dataset(touch(tmp_path, *numbered("images"), "labels/0.txt", "labels/2.txt"))
    assert "2 files annotate its images" in data.unclear


def test_a_column_that_may_hold_labels_is_named(tmp_path):
    touch(tmp_path, *numbered("img", 2))
    (tmp_path / "m.csv").write_text("path,is_sick,split\nimg/0.png,1,train\nimg/1.png,1,train\n")
    assert any("other columns: is_sick" in note for note in open_dataset(tmp_path / "m.csv").notes)


@pytest.mark.parametrize("values", [("0", "1"), ("no", "yes"), ("False", "True"), ("neg", "pos")])
@pytest.mark.parametrize("split", [True, False])
def test_a_column_of_two_values_that_may_be_labels_is_asked_about(tmp_path, values, split):
    rows = ["path,split,pneumonia"] if split else ["path,pneumonia"]
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"x")
        part = ("train," if i < 4 else "test,") if split else ""
        rows.append(f"{i}.png,{part}{values[i % 2]}")
    table = tmp_path / "m.csv"
    table.write_text("\n".join(rows))
    with pytest.raises(DataError, match=rf"column pneumonia holds {values[0]} \(3 rows\), .*label"):
        open_dataset(table)
    assert len(open_dataset(table, normal_class="*").samples) == 6
    table.write_text("\n".join(rows).replace("pneumonia", "sex"))
    assert len(open_dataset(table).samples) == 6
    table.write_text("\n".join(rows).replace("pneumonia", "label").replace("train", "test"))
    assert {s.is_anomalous for s in open_dataset(table).samples} == {True, False}


def images(root, count=6):
    touch(root, *(f"{i}.png" for i in range(count)))
    return [f"{i}.png" for i in range(count)]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("meta.jsonl", '{{"file_name": "{}", "label": {}}}'),
        ("meta.ndjson", '{{"file_name": "{}", "label": {}}}'),
        ("labels.yaml", "{}: {}"),
        ("labels.yml", "{}: {}"),
        ("labels.xml", "<image name='{}' label='{}'/>"),
        ("train.lst", "{} {}"),
    ],
)
def test_lists_of_other_formats_are_errors_until_told(tmp_path, name, line):
    lines = [line.format(image, i % 2) for i, image in enumerate(images(tmp_path))]
    (tmp_path / name).write_text("\n".join(lines))
    with pytest.raises(LayoutError, match=f"holds {name}, which may say which images are normal"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, ignore_tables=True).samples) == 6


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("3.json", '{"version": "5", "shapes": [{"label": "tumor"}]}'),
        ("3.json", '{"annotations": [{"bbox": [1, 2, 3, 4]}]}'),
        ("3.xml", "<annotation><object><name>tumor</name></object></annotation>"),
        ("annotations/3.xml", "<annotation/>"),
    ],
)
def test_outlines_beside_images_are_not_passed_over(tmp_path, name, text):
    images(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"1 file annotates its images \(.*nothing says which are"):
        open_dataset(tmp_path).to_train_on()
    (tmp_path / name).write_text('{"EchoTime": 0.03}')
    if "/" not in name:
        assert len(open_dataset(tmp_path).to_train_on()) == 6, "a sidecar of the scanner"


def test_an_ambiguous_name_in_a_table_names_the_table(tmp_path):
    touch(tmp_path, "0.png", "0.jpg", "1.png")
    (tmp_path / "m.csv").write_text("id,label\n0,0\n1,1\n")
    with pytest.raises(DataError, match=r"m\.csv.*0 may be 0\.jpg, 0\.png; give the path"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["pneumonia", "tumour", "abnormal", "Malignant_cases"])
def test_a_folder_that_is_itself_named_like_an_anomaly_is_said(tmp_path, name):
    images(tmp_path / name)
    (said,) = open_dataset(tmp_path / name).notes
    assert said == f"The folder itself is named {name}: are its images normal?"
    for normal in ("normal", "normal_films", "healthy-volunteers"):
        images(tmp_path / normal)
        assert open_dataset(tmp_path / normal).notes == ()


def test_masks_that_may_be_of_lesions_keep_a_segmentation_set_from_being_normal(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    with pytest.raises(DataError, match="its masks are not described, so some images may show a"):
        open_dataset(tmp_path).to_train_on()
    said = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "cancer": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match="its masks are liver, cancer, so some images may show a"):
        open_dataset(tmp_path).to_train_on()
    for lesion in ("Läsion", "GTV", "lésion", "target"):
        (tmp_path / "dataset.json").write_text(json.dumps(said | {"labels": {lesion: 1}}))
        assert f"its masks are {lesion}" in open_dataset(tmp_path).unclear
    del said["labels"]["cancer"]
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    assert len(open_dataset(tmp_path).to_train_on()) == 1, "organs say nothing of lesions"
