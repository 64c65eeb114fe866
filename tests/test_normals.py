"""From what a user hands over to images to train on and images held out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normalis.datasets import Dataset, Sample, open_dataset
from normalis.errors import DataError
from normalis.loading.arrays import ImageSettings, from_array
from normalis.loading.held_out import (
    as_dataset,
    fingerprint,
    is_array,
    normal_images,
    samples_to_score,
    split,
    take,
)
from small_runs import phantoms, write_mvtec, write_pngs

SMALL = ImageSettings(image_size=16)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.zeros((2, 4, 4)), True),
        (torch.zeros(2, 4, 4), True),
        ([np.zeros((4, 4)), np.zeros((4, 4))], True),
        ("folder", False),
        (Path("folder"), False),
        (["a.png"], False),
        ([Path("a.png")], False),
        (Dataset(name="x", root=Path(), layout="x", samples=()), False),
        ([], False),
    ],
)
def test_numbers_are_told_from_files(given, expected):
    assert is_array(given) is expected


def test_a_list_of_files_is_a_data_set_of_unlabelled_images():
    data = as_dataset(["b.png", Path("a.png")])
    assert [s.path.name for s in data.samples] == ["b.png", "a.png"]
    assert {s.is_anomalous for s in data.samples} == {None}
    assert as_dataset(data) is data


def test_the_test_split_is_scored_where_there_is_one(tmp_path):
    write_pngs(tmp_path / "plain", phantoms(3))
    assert len(samples_to_score(open_dataset(tmp_path / "plain"))) == 3
    write_mvtec(tmp_path / "mvtec", train=5, test=2)
    chosen = samples_to_score(open_dataset(tmp_path / "mvtec"))
    assert len(chosen) == 4
    assert {s.split for s in chosen} == {"test"}


def test_anomalous_images_are_never_trained_on(tmp_path):
    write_pngs(tmp_path, phantoms(6))
    labels = [None, False, True, None, False, True]
    samples = tuple(
        Sample(path=tmp_path / f"{i:03d}.png", split="train", is_anomalous=label)
        for i, label in enumerate(labels)
    )
    data = Dataset(name="x", root=tmp_path, layout="x", samples=samples)
    found = normal_images(data, SMALL)
    assert [row.path.name[:3] for row in found.train.rows] == ["000", "001", "003", "004"]
    assert found.held is None
    assert found.name == "x"


def test_test_images_are_neither_trained_on_nor_held_out(tmp_path):
    write_mvtec(tmp_path, train=12, test=5)
    found = normal_images(tmp_path, SMALL, hold_out=0.25)
    for half, count in ((found.train, 9), (found.held, 3)):
        assert len(half.rows) == len(half.pixels) == count
        assert {row.sample.split for row in half.rows} == {"train"}


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_both_halves_have_something(share):
    found = normal_images(phantoms(12), SMALL, hold_out=share)
    train, held = len(found.train.rows), len(found.held.rows)
    assert train + held == 12
    assert train >= 2
    assert held == min(max(1, round(12 * share)), 10)


def test_the_choice_follows_from_the_seed():
    def chosen(seed):
        held = normal_images(phantoms(20), SMALL, hold_out=0.3, seed=seed).held
        return [row.sample.index for row in held.rows]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


def test_halves_are_the_images_that_their_rows_name():
    x = phantoms(20, size=16)
    found = normal_images(x, SMALL, hold_out=0.3)
    for half in (found.train, found.held):
        for pixels, row in zip(half.pixels, half.rows, strict=True):
            np.testing.assert_array_equal(pixels[0], x[row.sample.index])


def test_splitting_again_and_taking():
    loaded = from_array(phantoms(10), SMALL)
    one, other = split(loaded, 0.5, 0)
    assert sorted(r.sample.index for r in [*one.rows, *other.rows]) == list(range(10))
    few = take(loaded, np.arange(10) < 3)
    assert [r.sample.index for r in few.rows] == [0, 1, 2]
    np.testing.assert_array_equal(few.pixels, loaded.pixels[:3])
    with pytest.raises(DataError, match="at least 3 groups of near duplicates, got 1"):
        split(take(loaded, np.arange(10) < 2), 0.5, 0)


def test_the_rule_of_training_images_is_applied_to_those_held_out(tmp_path, rng):
    root = write_mvtec(tmp_path, train=6, valid=3)
    for path in sorted((root / "train/good").glob("*.png")):
        write_pngs(path.parent, rng.integers(0, 1000, (6, 16, 16)).astype(np.uint16))
    write_pngs(root / "valid/good", rng.integers(0, 5000, (3, 16, 16)).astype(np.uint16))
    found = normal_images(root, SMALL, hold_out=0.2)
    assert found.held.rule == found.train.rule
    assert found.held.pixels.max() > 3


def test_a_fingerprint_tells_pixels_order_and_type_apart(rng):
    x = rng.integers(0, 255, (5, 1, 4, 4)).astype(np.uint8)
    known = fingerprint(x)
    assert known == fingerprint(np.asfortranarray(x))
    others = [x[::-1], x[:4], x.astype(np.float32), x.reshape(5, 1, 2, 8), x ^ 1]
    assert len({known, *map(fingerprint, others)}) == 6


def test_images_to_score_carry_no_label_that_nobody_gave(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "new.png")
    data = open_dataset(tmp_path)
    assert [s.is_anomalous for s in data.samples] == [None]
    assert [s.is_anomalous for s in samples_to_score(data)] == [None]
