"""Every layout, on small files written here; nothing is decoded, so files may hold anything."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from normalis import datasets
from normalis.datasets import LAYOUTS, open_dataset
from normalis.datasets.listing import list_images, natural_key
from normalis.errors import DataError, LayoutError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def names(samples) -> list[str]:
    return [s.path.name for s in samples]


def test_layout_names_are_those_of_the_modules():
    import importlib

    for name, module in LAYOUTS.items():
        assert importlib.import_module(module).LAYOUT == name  # noqa: SIM300


# --- plain folders -----------------------------------------------------------------------------


def test_folder_is_listed_recursively_in_natural_order(tmp_path):
    touch(tmp_path, "a1/s10.png", "a1/s2.png", "b2 ü/s1.dcm", "vol.nii.gz", "noext")
    data = open_dataset(tmp_path)
    assert names(data.samples) == ["s2.png", "s10.png", "s1.dcm", "noext", "vol.nii.gz"]
    assert data.counts() == {("unlabelled", "unlabelled"): 5}
    assert data.to_train_on() == data.to_score() == data.samples
    assert data.layout == "folder of images"


def test_folder_leaves_out_hidden_files_and_counts_what_is_no_image(tmp_path):
    touch(tmp_path, "a.png", ".hidden.png", ".git/b.png", "__MACOSX/._a.png", "x.txt", "y.py")
    data = open_dataset(tmp_path)
    assert names(data.samples) == ["a.png"]
    assert data.notes == ("Left aside files that are not images: 1 .py, 1 .txt.",)


def test_folder_with_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    assert names(open_dataset(tmp_path).samples) == ["1.png"]


def test_a_folder_reached_by_two_ways_is_listed_by_its_own(tmp_path):
    touch(tmp_path, "z/1.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "b").symlink_to(tmp_path / "z")
    assert [s.path for s in open_dataset(tmp_path).samples] == [tmp_path / "z" / "1.png"]


def test_names_that_are_no_unicode(tmp_path):
    name = b"caf\xe9.png"
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    samples = open_dataset(tmp_path).samples
    assert os.fsencode(samples[0].path.name) == name


def test_one_image_is_a_data_set(tmp_path):
    touch(tmp_path, "a.png")
    data = open_dataset(tmp_path / "a.png")
    assert names(data.samples) == ["a.png"]


def test_empty_folder_and_missing_path(tmp_path):
    with pytest.raises(DataError, match="no image found"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(tmp_path / "nope")


def test_100000_files_list_in_seconds(tmp_path):
    for part in range(2):
        folder = tmp_path / str(part)
        folder.mkdir()
        for i in range(500):
            os.close(os.open(folder / f"{i}.png", os.O_CREAT))
    start = time.process_time()
    assert len(list_images(tmp_path).images) == 1000
    assert time.process_time() - start < 0.25  # 100,000 in less than ten seconds of a slow machine


def test_natural_key_orders_numbers_by_value():
    assert sorted(["a10", "a2", "a02", "b", "1"], key=natural_key) == ["1", "a2", "a02", "a10", "b"]


# --- images/ + data.json -----------------------------------------------------------------------


def benchmark(root: Path, lists: dict, *files: str) -> Path:
    touch(root, *(f"images/{f}" for f in files))
    (root / "data.json").write_text(json.dumps(lists))
    return root


LISTS = {
    "train": {"0": ["n2.png", "n1.png"], "unlabeled": {"0": ["gone.png"], "1": ["gone2.png"]}},
    "test": {"0": ["n3.png"], "1": ["a b.png"]},
}


def test_benchmark_keeps_the_order_of_the_list_and_never_reads_unlabeled(tmp_path):
    data = open_dataset(benchmark(tmp_path, LISTS, "n1.png", "n2.png", "n3.png", "a b.png"))
    assert names(data.samples) == ["n2.png", "n1.png", "n3.png", "a b.png"]
    assert [s.is_anomalous for s in data.samples] == [False, False, False, True]
    assert data.notes == ()


def test_benchmark_wins_over_what_lies_beside_it(tmp_path):
    benchmark(tmp_path, LISTS, "n1.png", "n2.png", "n3.png", "a b.png")
    touch(tmp_path, "train/good/1.png", "train/2.png", "test/normal/1.png", "test/tumor/1.png")
    (tmp_path / "list.csv").write_text("path\ntrain/2.png\n")
    (tmp_path / "other.json").write_text("{}")
    np.savez(tmp_path / "arrays.npz", train=np.zeros((2, 4, 4)))
    assert open_dataset(tmp_path).layout == "images + data.json"


def test_benchmark_reports_missing_files_but_not_if_all_are_missing(tmp_path):
    data = open_dataset(benchmark(tmp_path, LISTS, "n1.png"))
    assert names(data.samples) == ["n1.png"]
    assert data.notes == ("3 files that data.json lists are missing: n2.png, n3.png, a b.png.",)
    (tmp_path / "images" / "n1.png").unlink()
    with pytest.raises(DataError, match="none of the 4 files"):
        open_dataset(tmp_path)


def test_benchmark_json_may_be_given_itself(tmp_path):
    benchmark(tmp_path, LISTS, "n1.png", "n3.png")
    other = tmp_path / "data_official.json"
    other.write_text(json.dumps({"train": {"0": ["n3.png"]}}))
    assert names(open_dataset(other).samples) == ["n3.png"]
    assert open_dataset(other).name.endswith("/data_official")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a JSON file"),
        ("[1]", "must have the form"),
        ('{"a": 1}', "must have the form"),
        ('{"train": {"0": "n1.png"}}', "must be a list"),
        ('{"train": {"0": [1]}}', "must be a list"),
        ('{"train": {"0": ["n1.png"], "1": ["x.png"]}}', "normal images only"),
    ],
)
def test_benchmark_refuses_other_json(tmp_path, text, message):
    touch(tmp_path, "images/n1.png")
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_data_json_without_images_is_no_plain_folder(tmp_path):
    touch(tmp_path, "train_png/1.png", "data.json")
    with pytest.raises(LayoutError, match=r"data\.json"):
        open_dataset(tmp_path)


# --- train + test/{normal,tumor,annotation} -------------------------------------------------------


def test_brats_pairs_flair_with_seg(tmp_path):
    touch(
        tmp_path,
        "train/P1_flair_3.png",
        "test/normal/P2_flair_1.png",
        "test/tumor/P2_flair_2.png",
        "test/tumor/plain.png",
        "test/tumor/bare.png",
        "test/annotation/P2_seg_2.png",
        "test/annotation/plain.png",
    )
    data = open_dataset(tmp_path)
    masks = {s.path.name: s.mask and s.mask.name for s in data.samples if s.is_anomalous}
    assert masks == {
        "P2_flair_2.png": "P2_seg_2.png",
        "plain.png": "plain.png",
        "bare.png": None,
    }
    assert data.counts() == {
        ("train", "normal"): 1,
        ("test", "normal"): 1,
        ("test", "anomalous"): 3,
    }
    assert data.notes == ("1 tumour images have no mask: bare.png.",)


# --- MVTec and BMAD ------------------------------------------------------------------------------


def test_mvtec(tmp_path):
    touch(
        tmp_path,
        "train/good/1.png",
        "test/good/2.png",
        "test/crack/3.png",
        "test/hole/4.png",
        "ground_truth/crack/3_mask.png",
        "ground_truth/hole/4.png",
    )
    data = open_dataset(tmp_path)
    assert [(s.path.stem, s.kind, s.mask and s.mask.name) for s in data.samples] == [
        ("1", None, None),
        ("2", None, None),
        ("3", "crack", "3_mask.png"),
        ("4", "hole", "4.png"),
    ]


def test_bmad_nested_and_its_validation(tmp_path):
    touch(
        tmp_path,
        "train/good/img/1.png",
        "valid/good/img/2.png",
        "valid/Ungood/img/3.png",
        "valid/Ungood/label/3.png",
        "test/good/img/4.png",
        "test/good/label/4.png",
        "test/Ungood/img/5.png",
        "test/Ungood/label/5.png",
    )
    data = open_dataset(tmp_path)
    assert data.counts() == {
        ("train", "normal"): 1,
        ("validation", "normal"): 1,
        ("test", "normal"): 1,
        ("test", "anomalous"): 1,
    }
    last = data.samples[-1]
    assert last.mask == tmp_path / "test/Ungood/label/5.png"
    assert last.kind is None
    assert data.notes == (
        "Left aside 1 image of valid/Ungood: validation holds normal images only.",
    )


def test_bmad_anomaly_mask(tmp_path):
    touch(tmp_path, "train/good/1.png", "test/Ungood/2.png", "test/anomaly_mask/Ungood/2.png")
    data = open_dataset(tmp_path)
    assert names(data.samples) == ["1.png", "2.png"]
    assert data.samples[1].mask is not None


# --- what is ambiguous ----------------------------------------------------------------------------


def test_two_layouts_in_one_folder_are_listed(tmp_path):
    touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/crack/3.png")
    (tmp_path / "list.csv").write_text("path\ntest/good/2.png\n")
    with pytest.raises(LayoutError, match=r"MVTec/BMAD; manifest.*test/, train/.*ignore-tables"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, ignore_tables=True).layout == "MVTec/BMAD"


def test_unknown_train_and_test_are_no_plain_folder(tmp_path):
    touch(tmp_path, "train/aa/1.png", "test/bb/2.png")
    with pytest.raises(LayoutError, match="layout is not known"):
        open_dataset(tmp_path)


def test_folder_of_data_sets_names_them(tmp_path):
    touch(tmp_path, "brain/train/good/1.png", "liver/train/good/1.png")
    with pytest.raises(LayoutError, match="brain, liver"):
        open_dataset(tmp_path)


# --- the real images ------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "layout", "counts", "patients"),
    [
        ("brain_tumor", "images + data.json", (1000, 600, 600), None),
        ("kermany_cxr", "images + data.json", (940, 400, 400), "paediatric chest X-rays"),
        ("kermany_cxr/data_official.json", "images + data.json", (1341, 234, 390), None),
        ("lgg_flair", "train + test/{normal,tumor,annotation}", (1258, 704, 466), "TCGA"),
        ("lgg_flair/arrays_64.npz", "arrays", (1258, 704, 466), None),
    ],
)
def test_real_data(real_data, name, layout, counts, patients):
    data = open_dataset(real_data / name)
    keys = (("train", "normal"), ("test", "normal"), ("test", "anomalous"))
    assert data.layout == layout
    assert data.counts() == dict(zip(keys, counts, strict=True))
    assert data.notes == ()
    if patients:
        found = datasets.offer_pattern(data)
        assert found is not None
        assert found[0] == patients
        known = datasets.patients_from_pattern(data, found[1])
        train, test = ({s.patient_id for s in known.split(p)} for p in ("train", "test"))
        assert not train & test
