"""A normal image whose mask marks something: the label or the mask is wrong, and it is said."""

import json

import numpy as np
import pytest
from PIL import Image

from normalis.audit import audit
from normalis.datasets import Sample, open_dataset
from normalis.errors import DataError
from normalis.evaluation.of_detector import evaluate_detector
from normalis.loading.marked import marked_normals
from small_runs import anomalies, detector, phantoms, write_mvtec, write_pngs

MARKED = np.zeros((32, 32), np.uint8)
MARKED[4:9, 4:9] = 255
EMPTY = np.zeros((32, 32), np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def marked_in(path, **options):
    return marked_normals(open_dataset(path, **options).samples)


def mvtec_test(root):
    save(root / "ground_truth/good/001_mask.png", MARKED)
    save(root / "ground_truth/good/002_mask.png", EMPTY)
    return write_mvtec(root), {}


def mvtec_nested_training(root):
    write_mvtec(root)
    for i in range(3):
        save(root / f"valid/good/img/{i:03d}.png", phantoms(1, seed=40 + i)[0])
    save(root / "valid/good/label/000.png", EMPTY)
    save(root / "valid/good/label/001.png", MARKED)
    return root, {}


def brats(root):
    write_pngs(root / "train", phantoms(3, seed=1))
    write_pngs(root / "test/normal", phantoms(3, seed=2))
    save(root / "test/tumor/100.png", anomalies(1)[0])
    save(root / "test/annotation/100.png", MARKED)
    save(root / "test/annotation/001.png", MARKED)
    save(root / "test/annotation/002.png", EMPTY)
    return root, {}


def data_json(root):
    write_pngs(root / "images", phantoms(4))
    lists = {"train": {"0": ["000.png"]}, "test": {"0": ["001.png", "002.png"], "1": ["003.png"]}}
    (root / "data.json").write_text(json.dumps(lists))
    for name, mask in (("001", MARKED), ("002", EMPTY), ("003", MARKED)):
        save(root / f"masks/{name}.png", mask)
    return root, {}


def classes(root):
    write_pngs(root / "images/healthy", phantoms(3))
    write_pngs(root / "images/tumour", anomalies(3))
    save(root / "masks/healthy/001.png", MARKED)
    save(root / "masks/healthy/002.png", EMPTY)
    return root, {"normal_class": "healthy"}


def manifest(root):
    write_pngs(root, phantoms(4))
    save(root / "masks/m.png", MARKED)
    save(root / "masks/e.png", EMPTY)
    rows = ["000.png,normal,masks/e.png", "001.png,normal,masks/m.png", "002.png,anomalous,"]
    (root / "m.csv").write_text("\n".join(["path,label,mask", *rows]))
    return root / "m.csv", {}


@pytest.mark.parametrize(
    "write", [mvtec_test, mvtec_nested_training, brats, data_json, classes, manifest]
)
def test_every_layout_keeps_the_mask_of_a_normal_image(tmp_path, write):
    path, options = write(tmp_path / "data")
    assert marked_in(path, **options) == ["001.png"]


def test_arrays(tmp_path):
    masks = np.stack([EMPTY, MARKED, EMPTY])
    np.savez(
        tmp_path / "a.npz",
        train=phantoms(3),
        train_mask=masks,
        test=phantoms(3, seed=1),
        test_label=np.array([0, 0, 1]),
        test_mask=np.stack([MARKED, EMPTY, MARKED]),
    )
    assert marked_in(tmp_path / "a.npz") == ["train 1", "test 0"]


def test_bids_takes_a_control_with_an_empty_mask_as_normal(tmp_path):
    import nibabel

    def volume(path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)

    for name in ("1", "2", "3"):
        volume(tmp_path / f"sub-{name}/anat/sub-{name}_T1w.nii.gz", np.ones((8, 8, 2), np.int16))
        mask = np.full((8, 8, 2), name != "1", np.uint8)
        volume(tmp_path / f"derivatives/sub-{name}/anat/sub-{name}_label-lesion_mask.nii.gz", mask)
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tgroup\nsub-1\tcontrol\nsub-2\tcontrol\nsub-3\tpatient\n"
    )
    (tmp_path / "dataset_description.json").write_text("{}")
    found = {s.patient_id: s.is_anomalous for s in open_dataset(tmp_path).samples}
    assert found == {"sub-1": False, "sub-2": False, "sub-3": True}
    assert marked_in(tmp_path) == ["sub-2_T1w.nii.gz"]


def test_fit_refuses_a_marked_training_image(tmp_path):
    path, _ = manifest(tmp_path)
    with pytest.raises(DataError, match=r"1 of the normal training images have a mask .*001\.png"):
        detector().fit(path)


def test_a_mask_that_cannot_be_read_is_not_taken_as_empty(tmp_path):
    image, mask = save(tmp_path / "a.png", phantoms(1)[0]), tmp_path / "m.png"
    mask.write_bytes(b"no image")
    sample = Sample(path=image, split="train", is_anomalous=False, mask=mask)
    (said,) = marked_normals([sample])
    assert said.startswith("a.png (its mask cannot be read: ")


def test_check_and_evaluate_say_it(tmp_path):
    path, _ = mvtec_test(tmp_path)
    data = open_dataset(path)
    found = next(f for f in audit(data).findings if "marks something" in f.text)
    assert found.severity == "leak"
    assert "1 image counts as normal and has a mask that marks something (001.png)" in found.text
    result, _, _ = evaluate_detector(detector().fit(path), data)
    assert "Labelled normal, with marked pixels: 1 image." in result.notes
    for mask in (path / "ground_truth/square").iterdir():
        mask.unlink()
    result, _, _ = evaluate_detector(detector().fit(path), open_dataset(path))
    assert "Labelled normal, with marked pixels: 1 image." in result.notes
