"""What is inside a mask, whichever way it was stored, and on which grid it must lie."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from normalis.datasets import Sample
from normalis.errors import DataError, UnreadableImageError
from normalis.images.masks import fit_mask, is_inverted, read_masks
from normalis.loading.arrays import ImageSettings, load, load_masks

Y, X = np.mgrid[0:48, 0:64]
LESION = (Y - 17) ** 2 + (X - 38) ** 2 < 23


def palette(path):
    image = Image.fromarray(LESION.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([255, 255, 255, 255, 0, 0] + [0] * 762)
    image.save(path)


WAYS = {
    "0 and 255": lambda p: Image.fromarray((LESION * 255).astype(np.uint8)).save(p),
    "0 and 1": lambda p: Image.fromarray(LESION.astype(np.uint8)).save(p),
    "16 bit": lambda p: Image.fromarray((LESION * 65535).astype(np.uint16)).save(p),
    "one bit": lambda p: Image.fromarray(LESION).save(p),
    "rgb": lambda p: Image.fromarray(
        np.dstack([LESION * 200, LESION * 0, LESION * 0]).astype(np.uint8)
    ).save(p),
    "alpha over white": lambda p: Image.fromarray(
        np.dstack([np.full((48, 64, 3), 255), LESION * 255]).astype(np.uint8)
    ).save(p),
    "alpha over black": lambda p: Image.fromarray(
        np.dstack([np.zeros((48, 64, 3)), LESION * 255]).astype(np.uint8)
    ).save(p),
    "opaque": lambda p: Image.fromarray(
        np.dstack([LESION * 255, LESION * 255, LESION * 255, np.full((48, 64), 255)]).astype("u1")
    ).save(p),
    "palette": palette,
}


@pytest.mark.parametrize("save", WAYS.values(), ids=WAYS)
def test_ways_to_store_a_mask(tmp_path, save):
    save(tmp_path / "m.png")
    (mask,) = read_masks(tmp_path / "m.png", [None])
    np.testing.assert_array_equal(mask, LESION)


@pytest.mark.parametrize("floor", [1e-6, 1e-3, 0.2])
@pytest.mark.parametrize("top", [1.0, 0.9, 255.0])
def test_a_floor_is_outside(tmp_path, floor, top):
    values = np.where(LESION, top, floor).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "m.tif")
    np.testing.assert_array_equal(read_masks(tmp_path / "m.tif", [None])[0], LESION)
    nib.save(nib.Nifti1Image(values.T[..., None], np.eye(4)), tmp_path / "m.nii")
    assert read_masks(tmp_path / "m.nii", [0])[0].sum() == LESION.sum()


def test_an_empty_mask_of_floats_is_empty(tmp_path):
    Image.fromarray(np.zeros((48, 64), np.float32)).save(tmp_path / "m.tif")
    assert not read_masks(tmp_path / "m.tif", [None])[0].any()


# --- grids ----------------------------------------------------------------------------------------


def rows_of(tmp_path, masks, image=None, labels=None):
    """Load an image of 48 x 64 for each mask that is saved."""
    samples = []
    for i, mask in enumerate(masks):
        Image.fromarray(np.full((48, 64), i, np.uint8) if image is None else image).save(
            tmp_path / f"i{i}.png"
        )
        Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / f"m{i}.png")
        bad = True if labels is None else labels[i]
        path, mask_path = tmp_path / f"i{i}.png", tmp_path / f"m{i}.png"
        samples.append(Sample(path=path, split="test", is_anomalous=bad, mask=mask_path))
    return load(samples, ImageSettings(image_size=16)).rows


def test_half_the_size_is_fine_and_transposed_is_not(tmp_path):
    assert load_masks(rows_of(tmp_path, [LESION[::2, ::2]]), image_size=16).any()
    with pytest.raises(UnreadableImageError, match=r"64 x 48 for .* 48 x 64 \(is it trans"):
        load_masks(rows_of(tmp_path, [LESION.T]), image_size=16)
    with pytest.raises(UnreadableImageError, match="same aspect"):
        load_masks(rows_of(tmp_path, [np.ones((48, 48), bool)]), image_size=16)


def volume(path, values, affine):
    nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), path)
    return path


def test_volumes_lie_on_the_grid_of_their_image(tmp_path):
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (40, 50, 6))
    image = volume(tmp_path / "i.nii", values, affine)
    inside = values > 200

    def masks(path):
        sample = Sample(path=image, split="test", is_anomalous=True, mask=path)
        rows = load([sample], ImageSettings(image_size=64)).rows
        return load_masks(rows, image_size=64)

    same = masks(volume(tmp_path / "same.nii", inside, affine))
    turned = nib.Nifti1Image(inside.astype(np.uint8), affine).as_reoriented(
        np.array([[1, 1], [0, -1], [2, 1]])
    )
    nib.save(turned, tmp_path / "turned.nii")
    np.testing.assert_array_equal(masks(tmp_path / "turned.nii"), same)
    moved = affine.copy()
    moved[0, 3] = 9
    for name, wrong in (
        ("transposed", (inside.transpose(1, 0, 2), affine)),
        ("moved", (inside, moved)),
        ("spaced", (inside, np.diag([-1.0, -1.0, 3.0, 1.0]))),
        ("longer", (np.concatenate([inside, inside], axis=2), affine)),
    ):
        with pytest.raises(UnreadableImageError, match=r"must have the (shape|voxels) of its"):
            masks(volume(tmp_path / f"{name}.nii", *wrong))


# --- small, inverted, whole --------------------------------------------------------------------


def test_no_part_vanishes_and_what_does_not_is_as_nearest_neighbours_say():
    mask = np.zeros((512, 512), bool)
    mask[180:183, 305:308] = True
    mask[40:43, 10:13] = True
    small = fit_mask(mask, image_size=64)
    assert small.sum() == 2
    assert small[22, 38]
    assert small[5, 1]
    assert not fit_mask(mask, image_size=64, keep_small=False).any()
    mask[200:300, 200:300] = True
    both = [fit_mask(mask, image_size=64, keep_small=keep) for keep in (True, False)]
    assert (both[0] ^ both[1]).sum() == 2
    np.testing.assert_array_equal(fit_mask(LESION, image_size=64), fit_mask(LESION, image_size=64))


def test_small_parts_are_said(tmp_path):
    tiny = np.zeros((48, 64), bool)
    tiny[11, 11] = True
    notes: list[str] = []
    masks = load_masks(rows_of(tmp_path, [tiny, LESION]), image_size=16, notes=notes)
    assert masks[0].sum() == 1
    assert notes == [
        "1 of 2 masks have parts smaller than a pixel at 16 x 16, which keep one pixel."
    ]


def test_inverted_masks_are_refused_and_one_odd_one_is_said(tmp_path):
    assert is_inverted(~LESION)
    assert not is_inverted(LESION)
    assert not is_inverted(np.ones((8, 8), bool))
    with pytest.raises(DataError, match="3 of 3 masks mark most of the image"):
        load_masks(rows_of(tmp_path, [~LESION] * 3), image_size=16)
    notes: list[str] = []
    load_masks(rows_of(tmp_path, [~LESION, LESION, LESION]), image_size=16, notes=notes)
    assert notes[0].startswith("1 of 3 masks mark most of the image up to its border")


def test_whole_masks_and_masks_of_normal_images_are_said(tmp_path):
    notes: list[str] = []
    masks = [np.ones((48, 64), bool), LESION]
    load_masks(rows_of(tmp_path, masks, labels=[True, False]), image_size=16, notes=notes)
    assert notes == [
        "1 of 2 masks cover the whole image.",
        "Labelled normal, with marked pixels: 1 image.",
    ]


def test_several_masks_of_one_image_are_joined(tmp_path):
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "i.png")
    for name, part in (("a", slice(0, 8)), ("b", slice(24, 32))):
        mask = np.zeros((32, 32), np.uint8)
        mask[part] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    sample = Sample(
        path=tmp_path / "i.png",
        split="test",
        is_anomalous=True,
        mask=tmp_path / "a.png",
        more_masks=(tmp_path / "b.png",),
    )
    rows = load([sample], ImageSettings(image_size=32)).rows
    assert load_masks(rows, image_size=32)[0].sum() == 16 * 32


# --- what is no mask --------------------------------------------------------------------------


def grey():
    return (60 + X + Y).astype(np.uint8)


NO_MASKS = {
    "image": grey,
    "overlay": lambda: np.dstack([np.maximum(grey(), LESION * 255), grey(), grey()]),
    "red on white": lambda: np.dstack([X * 0 + 255, 255 - LESION * 255, 255 - LESION * 255]),
    "labels 1 and 2": lambda: LESION + 1,
}


@pytest.mark.parametrize("make", NO_MASKS.values(), ids=NO_MASKS)
def test_what_is_no_mask_is_refused(tmp_path, make):
    Image.fromarray(np.asarray(make()).astype(np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(UnreadableImageError, match=r"no pixel is zero: is it an image, an overlay"):
        read_masks(tmp_path / "m.png", [None])
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(tmp_path / "whole.png")
    assert read_masks(tmp_path / "whole.png", [None])[0].all(), "a lesion may fill a patch"


def test_pages_of_a_mask_that_its_image_has_not_are_said(tmp_path):
    page = Image.fromarray((LESION * 255).astype(np.uint8))
    page.save(tmp_path / "m.tif", save_all=True, append_images=[page])
    with pytest.raises(UnreadableImageError, match=r"holds several pages .* image is a single one"):
        read_masks(tmp_path / "m.tif", [None])
