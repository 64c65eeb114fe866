"""Masks belong to their images: by path, by documented endings, and never by chance."""

import json
from pathlib import Path, PurePath

import pytest

from normalis.datasets import open_dataset
from normalis.datasets.pairing import divide, pair_masks
from normalis.errors import DataError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def paired(images, masks):
    """Pair files by their relative paths; return them as text, and what is left."""
    pairs = pair_masks(
        [(Path("i") / name, PurePath(name)) for name in images],
        [(Path("m") / name, PurePath(name)) for name in masks],
    )
    found = {
        str(image.relative_to("i")): [str(mask.relative_to("m")) for mask in found]
        for image, found in pairs.masks.items()
    }
    return found, [str(mask.relative_to("m")) for mask in pairs.left]


@pytest.mark.parametrize(
    "mask",
    [
        *("000.png", "000_mask.png", "000_MASK.PNG", "000-seg.tif", "000_seg.nii.gz", "000_gt.png"),
        *("000_label.png", "mask_000.png", "000mask.png", "000_segmentation.png"),
    ],
)
def test_documented_endings(mask):
    assert paired(["000.png", "001.png"], [mask]) == ({"000.png": [mask]}, [])


def test_the_path_decides_and_not_the_name_alone():
    images = [f"P{p}/000.png" for p in range(4)]
    masks = [f"P{p}/000_mask.png" for p in range(4)]
    found, left = paired(images, masks)
    assert found == {image: [mask] for image, mask in zip(images, masks, strict=True)}
    assert left == []


def test_a_kind_without_masks_gets_none_of_another_kind():
    found, left = paired(
        ["bleed/000.png", "tumour/000.png", "bleed/007.png"],
        ["tumour/000_mask.png", "tumour/007_mask.png"],
    )
    assert found == {"tumour/000.png": ["tumour/000_mask.png"]}
    assert left == ["tumour/007_mask.png"]


def test_several_masks_in_a_folder_named_like_the_image():
    masks = ["logical/000/000.png", "logical/000/001.png", "logical/001/000.png"]
    found, left = paired(["logical/000.png", "logical/001.png", "logical/003.png"], masks)
    assert found == {"logical/000.png": masks[:2], "logical/001.png": masks[2:]}
    assert left == []


def test_flat_masks_count_where_the_name_is_unique():
    assert paired(["a/1.png", "b/2.png"], ["1_mask.png"])[0] == {"a/1.png": ["1_mask.png"]}
    assert paired(["a/1.png", "b/1.png"], ["1_mask.png"]) == ({}, ["1_mask.png"])
    assert paired(["1.png"], ["x/1_mask.png", "y/1_mask.png"])[0] == {}


def test_contrasts_and_channels():
    assert paired(["P_flair_77.png"], ["P_seg_77.png"])[1] == []
    assert paired(["case_0000.nii.gz"], ["case.nii.gz"])[1] == []
    assert paired(["sub-01_T1w.nii.gz"], ["sub-01_seg.nii.gz"])[1] == []


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["000.png"], ["000_mask.png", "000_seg.png"]),
        (["000.png"], ["000.png", "000_mask.png"]),
        (["000.png", "000.jpg"], ["000_mask.png"]),
    ],
)
def test_two_files_of_one_key_are_an_error(images, masks):
    with pytest.raises(DataError, match=r"masks have its name|two images of one name"):
        paired(images, masks)


def test_images_and_masks_of_one_folder():
    root = Path("r")
    files = [root / name for name in ("a.png", "a_mask.png", "labels/b.png", "P1/c.png")]
    assert divide(files, root) == (
        (root / "a.png", root / "P1/c.png"),
        (root / "a_mask.png", root / "labels/b.png"),
    )


# --- layouts --------------------------------------------------------------------------------------


def masks_of(data):
    return {
        str(s.path.relative_to(data.root)): s.mask and str(s.mask.relative_to(data.root))
        for s in data.samples
        if s.is_anomalous
    }


def test_brats_and_mvtec_with_a_folder_per_patient(tmp_path):
    touch(tmp_path / "b", "train/1.png", "test/normal/P0/0.png")
    touch(tmp_path / "m", "train/good/1.png", "test/good/2.png")
    for p in range(3):
        touch(tmp_path / "b", f"test/tumor/P{p}/0.png", f"test/annotation/P{p}/0.png")
        touch(tmp_path / "m", f"test/tumor/P{p}/0.png", f"ground_truth/tumor/P{p}/0_mask.png")
    assert masks_of(open_dataset(tmp_path / "b")) == {
        f"test/tumor/P{p}/0.png": f"test/annotation/P{p}/0.png" for p in range(3)
    }
    assert masks_of(open_dataset(tmp_path / "m")) == {
        f"test/tumor/P{p}/0.png": f"ground_truth/tumor/P{p}/0_mask.png" for p in range(3)
    }


@pytest.mark.parametrize("folder", ["ground_truth", "Ground_Truth", "GT", "masks", "test/masks"])
@pytest.mark.parametrize("name", ["{}_mask.png", "{}_seg.png", "{}_MASK.PNG", "{}.png"])
def test_folders_of_masks_in_any_case(tmp_path, folder, name):
    touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/tumour/3.png")
    touch(tmp_path, f"{folder}/tumour/{name.format(3)}")
    data = open_dataset(tmp_path)
    assert list(masks_of(data).values()) == [f"{folder}/tumour/{name.format(3)}"]
    assert data.notes == ()


def test_masks_left_and_images_without_are_said(tmp_path):
    touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/tumour/3.png")
    touch(tmp_path, "ground_truth/tumour/odd_name.png")
    notes = open_dataset(tmp_path).notes
    assert "1 mask matches no image by name; the first is odd_name.png." in notes
    assert "1 anomalous images have no mask: 3.png." in notes


def test_loco(tmp_path):
    touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/logical/000.png")
    touch(tmp_path, "ground_truth/logical/000/000.png", "ground_truth/logical/000/001.png")
    (sample,) = (s for s in open_dataset(tmp_path).samples if s.is_anomalous)
    assert sample.mask == tmp_path / "ground_truth/logical/000/000.png"
    assert sample.more_masks == (tmp_path / "ground_truth/logical/000/001.png",)


def test_masks_beside_images_and_data_json(tmp_path):
    touch(tmp_path, "images/1.png", "images/2.png", "images/3.png", "masks/3.png", "masks/4.png")
    lists = {"train": {"0": ["1.png"]}, "test": {"0": ["2.png"], "1": ["3.png"]}}
    (tmp_path / "data.json").write_text(json.dumps(lists))
    data = open_dataset(tmp_path)
    assert masks_of(data) == {"images/3.png": "masks/3.png"}
    assert data.notes == ("1 mask matches no image by name; the first is 4.png.",)


def test_masks_of_class_folders(tmp_path):
    touch(tmp_path, "normal/1.png", "tumour/2.png", "tumour/2_mask.png")
    data = open_dataset(tmp_path, normal_class="normal")
    assert masks_of(data) == {"tumour/2.png": "tumour/2_mask.png"}


def test_images_never_include_masks_of_the_same_folder(tmp_path):
    touch(tmp_path, "train/good/1.png", "test/good/2.png", "test/bad/3.png", "test/bad/3_mask.png")
    data = open_dataset(tmp_path)
    assert masks_of(data) == {"test/bad/3.png": "test/bad/3_mask.png"}
    assert len(data.samples) == 3


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".json"])
def test_files_of_folders_of_masks_that_are_no_images_are_said(tmp_path, suffix):
    touch(tmp_path / "m", "train/good/1.png", "test/good/2.png", "test/bad/3.png")
    touch(tmp_path / "m", f"ground_truth/bad/3_mask{suffix}")
    touch(tmp_path / "b", "train/1.png", "test/normal/2.png", "test/tumor/3.png")
    touch(tmp_path / "b", f"test/annotation/3{suffix}")
    touch(tmp_path / "j", "images/1.png", "images/3.png", f"masks/3{suffix}")
    lists = {"train": {"0": ["1.png"]}, "test": {"1": ["3.png"]}}
    (tmp_path / "j/data.json").write_text(json.dumps(lists))
    for folder in "mbj":
        assert (
            f"Files of folders of masks that are no images are not read as masks: 1 {suffix}."
            in open_dataset(tmp_path / folder).notes
        )
