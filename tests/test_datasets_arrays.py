"""Array files: rows, their columns, and what is refused."""

import numpy as np
import pytest

from normalis.datasets import open_dataset
from normalis.errors import DataError, LayoutError


@pytest.fixture
def arrays():
    return {
        "train": np.zeros((3, 4, 4), np.uint8),
        "train_patient": np.array(["a", "a", "b"]),
        "test": np.zeros((2, 4, 4), np.uint8),
        "test_label": np.array([0, 1], np.uint8),
        "test_names": np.array(["x.png", "y.png"]),
        "test_slice_pos": np.array([0.25, 0.5], np.float32),
        "test_mask": np.zeros((2, 4, 4), np.uint8),
        "unlabeled": np.zeros((5, 4, 4), np.uint8),
        "unlabeled_label": np.ones(5),
    }


def test_npz(tmp_path, arrays):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, **arrays)
    data = open_dataset(file)
    assert data.layout == "arrays"
    assert [(s.array, s.index) for s in data.samples] == [
        ("train", 0), ("train", 1), ("train", 2), ("test", 0), ("test", 1),
    ]  # fmt: skip
    assert [s.is_anomalous for s in data.samples] == [False, False, False, False, True]
    assert [s.patient_id for s in data.samples] == ["a", "a", "b", None, None]
    assert data.samples[4].mask == file
    assert data.samples[0].mask is None
    assert data.samples[4].header == {"slice_pos": 0.5, "name": "y.png"}


def test_npz_without_labels_is_unlabelled_in_test_only(tmp_path, arrays):
    del arrays["test_label"]
    np.savez(tmp_path / "a.npz", **arrays)
    assert open_dataset(tmp_path / "a.npz").counts() == {
        ("train", "normal"): 3,
        ("test", "unlabelled"): 2,
    }


def test_npz_alone_in_a_folder_and_two_of_them(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    assert open_dataset(tmp_path).layout == "arrays"
    np.save(tmp_path / "b.npy", arrays["train"])
    with pytest.raises(LayoutError, match=r"a\.npz, b\.npy"):
        open_dataset(tmp_path)


def test_arrays_beside_images_are_left_aside(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "1.png").touch()
    data = open_dataset(tmp_path)
    assert data.layout == "folder of images"
    assert data.notes == ("Left aside files that are not images: 1 .npz.",)


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 3, 4, 4)])
def test_npy_is_images_of_which_nothing_is_known(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    data = open_dataset(tmp_path / "a.npy")
    assert data.counts() == {("unlabelled", "unlabelled"): 6}
    assert data.samples[5].index == 5
    assert data.samples[5].array is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_label": np.array([0])}, "test_label must have one entry for each of the 2"),
        ({"test_label": np.array([0, 2])}, "test_label must hold 0 and 1, got 2"),
        ({"test_label": np.array([0, np.nan])}, "test_label must hold 0 and 1, got nan"),
        ({"train_label": np.array([0, 0, 1])}, "train must hold normal images only"),
        ({"train": np.zeros((4, 4))}, r"must have shape \(N, H, W\)"),
        ({"test": np.array([None, 1])}, "Python objects"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, change, message):
    np.savez(tmp_path / "a.npz", **(arrays | change), allow_pickle=True)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "a.npz")


def test_npz_without_images_and_broken_files(tmp_path):
    np.savez(tmp_path / "a.npz", weights=np.zeros(3))
    with pytest.raises(DataError, match="must hold an array train"):
        open_dataset(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"PK no zip")
    (tmp_path / "b.npy").write_bytes(b"no array")
    for name in ("b.npz", "b.npy"):
        with pytest.raises(DataError, match=r"cannot be read|not a NumPy array"):
            open_dataset(tmp_path / name)
    np.savez_compressed(tmp_path / "cut.npz", train=np.zeros((2, 4, 4)), train_patient=["a", "b"])
    whole = bytearray((tmp_path / "cut.npz").read_bytes())
    at = whole.index(b"train_patient.npy") + 17
    whole[at : at + 30] = bytes(30)
    (tmp_path / "cut.npz").write_bytes(whole)
    with pytest.raises(DataError, match=r"cannot be read|not a NumPy array"):
        open_dataset(tmp_path / "cut.npz")
    np.save(tmp_path / "c.npy", np.zeros((0, 4, 4)))
    with pytest.raises(DataError, match="no image"):
        open_dataset(tmp_path / "c.npy")


def test_labels_of_one_column_are_read_and_of_several_refused(tmp_path):
    x = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", train=x, test=x, test_label=np.array([[0], [1], [0], [1]]))
    found = open_dataset(tmp_path / "a.npz").split("test")
    assert [s.is_anomalous for s in found] == [False, True, False, True]
    np.savez(tmp_path / "b.npz", train=x, test=x, test_label=np.eye(4))
    with pytest.raises(DataError, match=r"test_label must be a column with one value for each"):
        open_dataset(tmp_path / "b.npz")
