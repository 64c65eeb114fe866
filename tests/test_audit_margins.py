"""Margins: what a few images have at their edges and most have not is named."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from normalis.audit import audit
from normalis.audit.margins import look_at_margins
from normalis.datasets.base import Dataset, Sample

SIDE = 64


def heads(rng, n, background=0.02):
    """Return (n, 64, 64) bright discs on a dark background."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    images = np.full((n, SIDE, SIDE), background)
    for one in images:
        a, b = rng.uniform(18, 22, 2)
        one[(x / a) ** 2 + (y / b) ** 2 < 1] = rng.uniform(0.4, 0.7)
    return images + rng.normal(0, 0.004, images.shape)


def lettered(image):
    picture = Image.fromarray(np.uint8(255 * np.clip(image, 0, 1)))
    draw = ImageDraw.Draw(picture)
    for at in ((2, 2), (50, 2), (2, 54), (50, 54)):
        draw.text(at, "R", fill=200)
    return np.asarray(picture) / 255


def test_a_set_that_is_alike_has_none(rng):
    assert not look_at_margins(heads(rng, 60)).any.any()


@pytest.mark.parametrize("kind", ["bars", "unlike", "marks"])
def test_each_kind_is_found_where_it_is(rng, kind):
    images = heads(rng, 60)
    if kind == "bars":
        images[:3, :10] = images[:3, -10:] = 0.0
        images[3:] += rng.normal(0, 0.02, images[3:].shape)  # most have noise to the edge
    elif kind == "unlike":
        images[:3, :, :7] = rng.uniform(0.5, 1, (3, SIDE, 7))
        images[:3, :, -7:] = 0.9
    else:
        images[:3] = [lettered(one) for one in images[:3]]
    found = look_at_margins(images).found
    assert np.flatnonzero(found[kind]).tolist() == [0, 1, 2]


def test_what_most_images_have_is_their_own_look(rng):
    images = np.array([lettered(one) for one in heads(rng, 60)])
    assert not look_at_margins(images).any.any()


def test_few_images_have_no_most(rng):
    images = heads(rng, 10)
    images[0] = lettered(images[0])
    assert not look_at_margins(images).any.any()


def test_how_deep_bars_reach_is_what_a_margin_must_leave_out(rng):
    images = heads(rng, 60) + rng.normal(0, 0.02, (60, SIDE, SIDE))
    images[:10, :8] = 0.0
    assert look_at_margins(images).share == pytest.approx(8 / SIDE)


def test_the_audit_names_the_files_and_what_to_do(tmp_path, rng):
    images = heads(rng, 40)
    images[5] = lettered(images[5])
    samples = []
    for i, one in enumerate(images):
        path = tmp_path / f"scan_{i}.png"
        Image.fromarray(np.uint8(255 * np.clip(one, 0, 1))).save(path)
        samples.append(Sample(path=path, split="train", is_anomalous=False))
    data = Dataset(name="made", root=tmp_path, layout="made", samples=tuple(samples))
    found = audit(data)
    (sentence,) = [f.text for f in found.findings if "marks" in f.text]
    assert sentence.startswith("1 of 40 images has small marks")
    assert "scan_5.png" in sentence
    assert "--margin 0.05" in sentence
    assert found.to_dict()["margins"]["marks"] == [str(tmp_path / "scan_5.png")]
