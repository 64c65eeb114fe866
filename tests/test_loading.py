"""From samples to arrays: order, intensities, skip lists, cache, streams, masks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from normalis.datasets.base import Sample
from normalis.errors import (
    DataError,
    NormalisWarning,
    SettingsError,
    UnreadableImageError,
)
from normalis.images import IntensityRule, cache, decoding
from normalis.loading.arrays import ImageSettings, from_array, load, load_masks, stream, to_unit
from test_images_dicom import make as make_dicom
from test_images_dicom import write as write_dicom

SMALL = ImageSettings(image_size=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMALIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sample(path, split="train", **known):
    return Sample(path=path, split=split, **known)


def png(path, values):
    Image.fromarray(values).save(path, format="PNG")
    return path


@pytest.fixture
def eight_bit(tmp_path, rng):
    """Samples of 20 images of mixed sizes and modes."""
    samples = []
    for number in range(20):
        shape = (16 + number, 40 - number, 3) if number % 3 else (16 + number, 16)
        values = rng.integers(0, 256, shape, dtype=np.uint8)
        samples.append(sample(png(tmp_path / f"{number:02}.png", values)))
    return samples


@pytest.fixture
def deep(tmp_path, rng):
    samples = []
    for number in range(6):
        values = rng.integers(1000, 3000, (16, 16)).astype(np.uint16)
        samples.append(sample(png(tmp_path / f"deep{number}.png", values)))
    return samples


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "image_size must be a multiple of 16 from 16 to 1024, got 30"),
        ({"image_size": 2048}, "image_size"),
        ({"channels": 2}, "channels must be 1"),
        ({"plane": "oblique"}, "plane must be one of"),
        ({"slice_range": (0.9, 0.1)}, "slice_range must be"),
        ({"window": (5, 5)}, "window must be"),
        ({"percentiles": (1, 101)}, "percentiles must be"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        ImageSettings(**options)


# --- 8 bit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_stays_uint8_in_the_samples_order(eight_bit, workers, channels):
    settings = ImageSettings(image_size=32, channels=channels)
    done = []
    loaded = load(eight_bit, settings, workers=workers, progress=lambda i, n: done.append((i, n)))
    assert loaded.pixels.dtype == np.uint8
    assert loaded.pixels.shape == (20, channels, 32, 32)
    assert loaded.rule is None
    assert loaded.skipped == []
    assert done == [(i + 1, 20) for i in range(20)]
    assert [r.path for r in loaded.rows] == [s.path for s in eight_bit]
    for pixels, row in zip(loaded.pixels, loaded.rows, strict=True):
        with Image.open(row.path) as image:
            assert row.original_shape == (image.height, image.width)
            grey = image.convert("RGB" if channels == 3 else "L")
            expected = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0).squeeze(), expected)


def test_to_unit_maps_bytes_to_0_to_1_and_leaves_floats():
    unit = to_unit(np.array([0, 51, 255], np.uint8))
    np.testing.assert_array_equal(unit, np.array([0, 0.2, 1], np.float32))
    assert to_unit(np.zeros(2, np.uint8)).dtype == np.float32
    values = np.array([-3, 7], np.float32)
    np.testing.assert_array_equal(to_unit(values), values)


# --- bad files ----------------------------------------------------------------------------------


def test_bad_files_among_good_ones_are_skipped_with_their_reasons(tmp_path, eight_bit):
    empty, cut, gone = tmp_path / "empty.png", tmp_path / "cut ä.png", tmp_path / "gone.png"
    empty.write_bytes(b"")
    whole = eight_bit[0].path.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    mixed = [*eight_bit[:3], sample(empty), sample(cut), *eight_bit[3:], sample(gone)]
    loaded = load(mixed, SMALL)
    assert len(loaded.rows) == len(loaded.pixels) == 20
    assert [p for p, _ in loaded.skipped] == [empty, cut, gone]
    assert "0 bytes" in loaded.skipped[0][1]
    assert "truncated" in loaded.skipped[1][1]
    assert "not there" in loaded.skipped[2][1]


def test_a_file_that_vanishes_while_others_are_read_is_skipped(eight_bit, monkeypatch):
    victim = eight_bit[10].path
    read = decoding.read_frames

    def vanishing(path, **options):
        if path == victim:
            path.unlink()
        return read(path, **options)

    monkeypatch.setattr(decoding, "read_frames", vanishing)
    loaded = load(eight_bit, SMALL)
    assert loaded.skipped == [
        (victim, "the file is not there (removed or renamed since it was listed?)")
    ]
    assert len(loaded.rows) == 19


def test_none_readable_is_an_error_that_lists_the_first_reasons(tmp_path):
    samples = []
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"")
        samples.append(sample(tmp_path / f"{number}.png"))
    with pytest.raises(DataError, match=r"none of the 5 images is readable\. .*0\.png.*2\.png"):
        load(samples, SMALL)
    with pytest.raises(DataError, match="none of the 5 images is readable"):
        list(stream(samples, SMALL, rule=None))


def test_no_samples_is_an_error():
    with pytest.raises(DataError, match="at least one image"):
        load([], SMALL)
    with pytest.raises(DataError, match="at least one image"):
        next(stream([], SMALL, rule=None))


# --- intensities --------------------------------------------------------------------------------


def test_deeper_images_get_a_rule_of_percentiles_that_scoring_applies_unchanged(
    tmp_path, deep, rng
):
    loaded = load(deep, SMALL)
    assert loaded.pixels.dtype == np.float32
    assert 1000 <= loaded.rule.low < 1020
    assert 2980 < loaded.rule.high <= 3000
    bright = sample(png(tmp_path / "b.png", np.full((16, 16), 60_000, np.uint16)))
    scored = load([bright], SMALL, rule=loaded.rule)
    assert scored.rule is loaded.rule
    expected = (60_000 - loaded.rule.low) / (loaded.rule.high - loaded.rule.low)
    np.testing.assert_allclose(scored.pixels, expected, rtol=1e-5)  # kept, not cut off


def test_a_window_of_the_users_own(deep):
    loaded = load(deep, ImageSettings(image_size=16, window=(0, 4000)))
    assert (loaded.rule.low, loaded.rule.high, loaded.rule.voi) == (0, 4000, False)
    with Image.open(deep[0].path) as image:
        np.testing.assert_allclose(loaded.pixels[0, 0], np.asarray(image) / 4000, rtol=1e-6)


def test_8_bit_and_deeper_files_side_by_side(eight_bit, deep):
    alone = load(deep, SMALL)
    with pytest.warns(NormalisWarning, match="20 images are 8 bit, 6 raw stored .*deep0.png"):
        loaded = load([*eight_bit, *deep], SMALL)
    assert loaded.pixels.dtype == np.float32
    assert (loaded.rule.low, loaded.rule.high) == (alone.rule.low, alone.rule.high)
    assert loaded.notes
    assert not alone.notes
    np.testing.assert_array_equal(loaded.pixels[:20], to_unit(load(eight_bit, SMALL).pixels))
    np.testing.assert_array_equal(loaded.pixels[20:], alone.pixels)


def test_without_a_rule_deeper_images_are_skipped_where_none_may_be_fitted(eight_bit, deep):
    loaded = load([*eight_bit, *deep], SMALL, fit_rule=False)
    assert loaded.pixels.dtype == np.uint8
    assert len(loaded.skipped) == 6
    assert "no rule for its intensities" in loaded.skipped[0][1]


def test_constant_deep_images_cannot_give_a_rule(tmp_path):
    path = png(tmp_path / "a.png", np.full((16, 16), 999, np.uint16))
    with pytest.raises(DataError, match="must vary in intensity"):
        load([sample(path)], SMALL)


@pytest.fixture
def ct(tmp_path, rng):
    """Return a function that writes a CT, with or without a window."""

    def write(name, **window):
        values = rng.integers(0, 2000, (16, 16), dtype=np.uint16)
        data = make_dicom(values, bits=12, RescaleSlope=1, RescaleIntercept=-1024, **window)
        return sample(write_dicom(tmp_path / name, data)), values - 1024.0

    return write


def test_windows_are_used_where_every_training_image_has_one(ct):
    window = {"WindowCenter": 40, "WindowWidth": 400}
    with_it = [ct(f"w{i}", **window)[0] for i in range(3)]
    loaded = load(with_it, SMALL)
    assert loaded.rule.voi
    assert -5 < loaded.rule.low < 0 < 1 < loaded.rule.high < 5
    scored = load([with_it[0], ct("without")[0]], SMALL, rule=loaded.rule)
    assert len(scored.rows) == 1
    assert "no window in its header" in scored.skipped[0][1]


def test_windows_are_left_aside_where_only_some_have_one(ct):
    windowed, first = ct("a", WindowCenter=40, WindowWidth=400)
    bare, second = ct("b")
    loaded = load([windowed, bare], SMALL)
    assert not loaded.rule.voi
    np.testing.assert_allclose(loaded.pixels[0, 0], loaded.rule.apply(first), atol=1e-5)
    np.testing.assert_allclose(loaded.pixels[1, 0], loaded.rule.apply(second), atol=1e-5)
    fixed = ImageSettings(image_size=16, window=(-160, 240))
    scored = load([windowed], fixed)
    np.testing.assert_allclose(scored.pixels[0, 0], (first + 160) / 400, atol=1e-5)


# --- rows ---------------------------------------------------------------------------------------


def test_frames_and_patients_of_headers_become_rows(tmp_path, rng):
    values = rng.integers(0, 4096, (3, 16, 16), dtype=np.uint16)
    path = write_dicom(tmp_path / "a", make_dicom(values, bits=12, PatientID="P7"))
    known = {"is_anomalous": True, "kind": "x", "header": {"age": 5}}
    loaded = load([sample(path, "test", **known), sample(path, patient_id="mine")], SMALL)
    assert [r.slice_index for r in loaded.rows] == [0, 1, 2] * 2
    assert [r.patient_id for r in loaded.rows] == ["P7"] * 3 + ["mine"] * 3
    row = loaded.rows[1]
    assert (row.is_anomalous, row.kind, row.header["age"]) == (True, "x", 5)
    assert row.header["format"] == "DICOM"


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_rows_of_array_files(tmp_path, rng, suffix, dtype):
    values = (rng.random((5, 16, 16)) * 200).astype(dtype)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    else:
        np.savez(path, train=values, other=np.zeros(3))
    name = None if suffix == "npy" else "train"
    samples = [sample(path, index=i, array=name) for i in (3, 0, 9)]
    loaded = load(samples, SMALL)
    expected = values[[3, 0]].astype(np.uint8 if dtype == np.uint8 else np.float32)
    if dtype != np.uint8:
        expected = loaded.rule.apply(expected)
    np.testing.assert_array_equal(loaded.pixels[:, 0], expected)
    assert loaded.skipped == [(path, "no row 9: the array has 5")]


def test_array_files_opened_once(tmp_path, rng, monkeypatch):
    np.savez(tmp_path / "a.npz", train=rng.integers(0, 255, (40, 16, 16), dtype=np.uint8))
    opened = []
    original = decoding.open_array
    monkeypatch.setattr(decoding, "open_array", lambda *a: opened.append(a) or original(*a))
    samples = [sample(tmp_path / "a.npz", index=i, array="train") for i in range(40)]
    assert len(load(samples, SMALL).rows) == 40
    assert len(opened) == 1


def test_bad_array_files(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, train=np.zeros((2, 16, 16), bool), x=np.full((2, 16, 16), np.nan))
    for name, reason in (
        ("train", "must be uint8, integers or floats, got dtype bool"),
        ("x", "NaN or infinity in row 1"),
        ("y", "no array 'y' in it; there are: train, x"),
    ):
        with pytest.raises(DataError, match=reason):
            load([sample(path, index=1, array=name)], SMALL)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable array file"):
        load([sample(path, index=0, array="x")], SMALL)


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 1, 16, 16), (4, 3, 16, 16), (4, 40, 20)])
def test_from_array_takes_uint8_as_0_to_255(rng, shape):
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    loaded = from_array(x, SMALL)
    assert loaded.pixels.shape == (4, 1, 16, 16)
    assert loaded.pixels.dtype == np.uint8
    assert loaded.rule is None
    assert loaded.rows[3].original_shape == shape[-2:]
    if shape == (4, 16, 16):
        np.testing.assert_array_equal(loaded.pixels[:, 0], x)
    assert from_array(x, ImageSettings(image_size=16, channels=3)).pixels.shape == (4, 3, 16, 16)


def test_from_array_takes_floats_within_0_to_1_as_they_are(rng):
    x = rng.random((4, 16, 16))
    loaded = from_array(x, SMALL)
    np.testing.assert_array_equal(loaded.pixels[:, 0], x.astype(np.float32))
    assert (loaded.rule.low, loaded.rule.high) == (0, 1)
    scored = from_array(x * 3, SMALL, rule=loaded.rule)
    np.testing.assert_array_equal(scored.pixels[:, 0], (x * 3).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint16])
def test_from_array_fits_a_rule_on_other_units(rng, dtype):
    x = rng.integers(100, 900, (4, 16, 16)).astype(dtype)
    loaded = from_array(x, SMALL)
    assert loaded.pixels.dtype == np.float32
    assert 100 <= loaded.rule.low < loaded.rule.high <= 900
    with pytest.raises(DataError, match="fitted on 8-bit images"):
        from_array(x, SMALL, fit_rule=False)


def test_from_array_takes_tensors(rng):
    torch = pytest.importorskip("torch")
    x = rng.random((2, 1, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(from_array(torch.tensor(x), SMALL).pixels, x)
    half = from_array(torch.tensor(x, requires_grad=True).bfloat16(), SMALL).pixels
    np.testing.assert_allclose(half, x, atol=0.01)
    assert from_array(torch.zeros(2, 16, 16, dtype=torch.uint8), SMALL).pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, 16, 16), bool), "a mask is not an image"),
        (np.zeros((16, 16)), r"for one image give x\[None\]"),
        (np.zeros((4, 16, 16, 3)), r"np.moveaxis\(x, 3, 1\)"),
        (np.zeros((4, 2, 16, 16)), "C = 1 or 3"),
        (np.zeros((0, 16, 16)), "must not be empty"),
        (np.array(["a"]), "got dtype"),
        (np.zeros((4, 16, 16), complex), "got dtype complex128"),
        (np.where(np.arange(4)[:, None, None] == 2, np.nan, np.zeros((4, 16, 16))), "image 2"),
        (np.full((4, 16, 16), np.inf), "image 0 holds NaN or infinity"),
    ],
)
def test_from_array_refuses_what_is_no_image(x, message):
    with pytest.raises(DataError, match=message):
        from_array(x, SMALL)


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_a_stream_is_the_loaded_array_in_batches(eight_bit, tmp_path, batch_size):
    bad = sample(tmp_path / "gone.png")
    samples = [bad, *eight_bit, bad, bad]
    whole = load(samples, SMALL)
    batches = list(stream(samples, SMALL, rule=None, batch_size=batch_size))
    np.testing.assert_array_equal(np.concatenate([b.pixels for b in batches]), whole.pixels)
    assert [r.path for b in batches for r in b.rows] == [r.path for r in whole.rows]
    assert [s for b in batches for s in b.skipped] == whole.skipped
    assert all(len(b.rows) for b in batches)
    assert max(len(b.rows) for b in batches) <= batch_size


def test_a_volume_is_never_divided_between_batches(tmp_path, rng):
    samples = []
    for number in range(3):
        values = rng.integers(0, 256, (8, 8, 5), dtype=np.uint8)
        path = tmp_path / f"{number}.nii"
        path.write_bytes(nib.Nifti1Image(values, np.eye(4)).to_bytes())
        samples.append(sample(path))
    batches = list(stream(samples, SMALL, rule=None, batch_size=7))
    assert [len(b.rows) for b in batches] == [10, 5]
    assert [r.slice_index for r in batches[0].rows] == [0, 1, 2, 3, 4] * 2


def test_a_stream_reads_ahead_but_not_without_bound(tmp_path, rng, monkeypatch):
    values = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    samples = [sample(png(tmp_path / f"{i}.png", values)) for i in range(200)]
    started = []
    original = decoding.read_frames
    monkeypatch.setattr(
        decoding, "read_frames", lambda p, **o: started.append(p) or original(p, **o)
    )
    batches = stream(samples, SMALL, rule=None, batch_size=8, workers=2)
    next(batches)
    time.sleep(0.3)
    assert 16 < len(started) <= 9 + 2 * 16
    batches.close()  # the rest is never read
    assert len(started) <= 9 + 2 * 16
    done = []
    list(stream(samples, SMALL, rule=None, progress=lambda i, n: done.append(i)))
    assert done == list(range(1, 201))


def test_a_stream_applies_the_rule(deep):
    rule = IntensityRule(low=0, high=1000)
    (batch,) = stream(deep, SMALL, rule=rule)
    np.testing.assert_array_equal(batch.pixels, load(deep, SMALL, rule=rule).pixels)
    assert batch.rule is rule


# --- masks --------------------------------------------------------------------------------------


def test_masks_are_resized_by_nearest_neighbour_and_absent_ones_are_empty(tmp_path, rng):
    values = ((rng.random((40, 40)) > 0.7) * 255).astype(np.uint8)
    image = png(tmp_path / "i.png", values)
    mask = png(tmp_path / "m.png", values)
    rows = load([sample(image, mask=mask), sample(image)], SMALL).rows
    masks = load_masks(rows, image_size=16, keep_small=False)
    assert masks.dtype == bool
    expected = Image.fromarray(values).resize((16, 16), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(masks[0], np.asarray(expected) > 0)
    assert not masks[1].any()


def test_masks_of_volumes_go_slice_by_slice(tmp_path, rng):
    values = rng.integers(0, 256, (16, 16, 6), dtype=np.uint8)
    for name, content in (("i.nii", values), ("m.nii", (values > 200).astype(np.uint8))):
        (tmp_path / name).write_bytes(nib.Nifti1Image(content, np.eye(4)).to_bytes())
    settings = ImageSettings(image_size=16, plane="axial", slice_range=(0.3, 0.9))
    loaded = load([sample(tmp_path / "i.nii", mask=tmp_path / "m.nii")], settings)
    assert len(loaded.rows) == 3
    np.testing.assert_array_equal(load_masks(loaded.rows, image_size=16), loaded.pixels[:, 0] > 200)


def test_masks_of_array_files_and_of_jpegs(tmp_path, rng):
    masks = rng.random((4, 16, 16)) > 0.5
    path = tmp_path / "a.npz"
    np.savez(path, test=rng.integers(0, 255, (4, 16, 16), dtype=np.uint8), test_mask=masks)
    rows = load([sample(path, index=i, array="test", mask=path) for i in (2, 1)], SMALL).rows
    np.testing.assert_array_equal(load_masks(rows, image_size=16), masks[[2, 1]])
    square = np.zeros((64, 64), np.uint8)
    square[20:40, 20:40] = 255
    Image.fromarray(square).save(tmp_path / "m.jpg", quality=60)
    with Image.open(tmp_path / "m.jpg") as image:
        assert ((np.asarray(image) > 0) != (square > 0)).any()  # compression smears
    row = load([sample(png(tmp_path / "i.png", square), mask=tmp_path / "m.jpg")], SMALL).rows
    np.testing.assert_array_equal(load_masks(row, image_size=64)[0], square > 0)


def test_an_unreadable_mask_is_an_error(tmp_path):
    image = png(tmp_path / "i.png", np.zeros((8, 8), np.uint8))
    rows = load([sample(image, mask=tmp_path / "gone.png")], SMALL).rows
    with pytest.raises(UnreadableImageError, match="not there"):
        load_masks(rows, image_size=16)


# --- cache --------------------------------------------------------------------------------------


@pytest.fixture
def count_reads(monkeypatch):
    reads = []
    original = decoding.read_frames
    monkeypatch.setattr(
        decoding, "read_frames", lambda p, **o: reads.append(Path(p).name) or original(p, **o)
    )
    monkeypatch.setattr(cache, "_YOUNG_S", 0.0)  # files of a test are younger than real ones
    return reads


def equal(a, b):
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert a.skipped == b.skipped
    assert a.rule == b.rule
    assert len(a.rows) == len(b.rows)
    for one, two in zip(a.rows, b.rows, strict=True):
        assert (one.path, one.slice_index, one.original_shape, one.patient_id, one.header) == (
            two.path,
            two.slice_index,
            two.original_shape,
            two.patient_id,
            two.header,
        )
    return True


@pytest.mark.filterwarnings("ignore:grey values are in different units")
def test_the_second_load_decodes_nothing(eight_bit, deep, ct, tmp_path, count_reads):
    (tmp_path / "bad.png").write_bytes(b"bad")
    volume = np.arange(8 * 8 * 3, dtype=np.int16).reshape(8, 8, 3)
    (tmp_path / "v.nii").write_bytes(nib.Nifti1Image(volume, np.eye(4)).to_bytes())
    samples = [
        *eight_bit,
        sample(tmp_path / "bad.png"),
        *deep,
        ct("c", WindowCenter=4, WindowWidth=9, PatientID="P", PixelSpacing=[1, 2])[0],
        sample(tmp_path / "v.nii"),
    ]
    plain = load(samples, SMALL)
    first = load(samples, SMALL, cache=True)
    count_reads.clear()
    done = []
    second = load(samples, SMALL, cache=True, progress=lambda i, n: done.append((i, n)))
    assert count_reads == []
    assert done[-1] == (len(samples), len(samples))
    assert equal(plain, first)
    assert equal(first, second)
    assert len(second.skipped) == 1


def test_a_changed_file_other_settings_or_another_order_are_decoded_anew(
    eight_bit, count_reads, rng
):
    load(eight_bit, SMALL, cache=True)
    path = eight_bit[4].path
    before = path.stat()
    with Image.open(path) as image:
        shape = np.asarray(image).shape
    png(path, rng.integers(0, 256, shape, dtype=np.uint8))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # a copy that keeps its time
    count_reads.clear()
    fresh = load(eight_bit, SMALL, cache=True)
    assert len(count_reads) == 20
    assert equal(fresh, load(eight_bit, SMALL))
    for again in (
        lambda: load(eight_bit, ImageSettings(image_size=32), cache=True),
        lambda: load(eight_bit[::-1], SMALL, cache=True),
        lambda: load(eight_bit[1:], SMALL, cache=True),
    ):
        count_reads.clear()
        again()
        assert len(count_reads) >= 19


def test_another_rule_uses_the_same_entry(deep, count_reads):
    load(deep, ImageSettings(image_size=16, window=(0, 1)), cache=True)
    count_reads.clear()
    loaded = load(deep, ImageSettings(image_size=16, window=(0, 4000)), cache=True)
    assert count_reads == []
    assert loaded.pixels.max() < 1


def test_a_file_that_changes_while_it_is_read_is_not_cached(
    eight_bit, own_cache, count_reads, monkeypatch
):
    original = decoding.read_frames

    def touching(path, **options):
        os.utime(eight_bit[7].path)
        return original(path, **options)

    monkeypatch.setattr(decoding, "read_frames", touching)
    load(eight_bit, SMALL, cache=True)
    assert not own_cache.exists()


def test_reasons_that_may_pass_are_not_cached(eight_bit, own_cache, count_reads, monkeypatch):
    def refuse(path, **_):
        try:
            raise PermissionError(13, "no")
        except PermissionError as error:
            raise UnreadableImageError(path, "permission denied") from error

    original = decoding.read_frames
    monkeypatch.setattr(
        decoding,
        "read_frames",
        lambda p, **o: refuse(p) if p == eight_bit[0].path else original(p, **o),
    )
    assert len(load(eight_bit, SMALL, cache=True).skipped) == 1
    assert not own_cache.exists()


def test_files_just_written_are_not_cached(eight_bit, own_cache):
    now = time.time()
    assert now - eight_bit[-1].path.stat().st_mtime < 5
    os.utime(eight_bit[-1].path)
    load(eight_bit, SMALL, cache=True)
    assert not own_cache.exists()


# --- real images --------------------------------------------------------------------------------


@pytest.mark.real_data
def test_masks_equal_the_reference(real_data):
    folder = real_data / "lgg_flair"
    arrays = np.load(folder / "arrays_64.npz")
    chosen = np.flatnonzero(arrays["test_label"])[::9]
    samples = []
    for i in chosen:
        name = str(arrays["test_names"][i])
        mask = folder / "test" / "annotation" / name.replace("_flair_", "_seg_")
        samples.append(sample(folder / "test" / "tumor" / name, "test", mask=mask))
    loaded = load(samples, ImageSettings())
    np.testing.assert_array_equal(loaded.pixels[:, 0], arrays["test"][chosen])
    masks = load_masks(loaded.rows, image_size=64, keep_small=False)
    np.testing.assert_array_equal(masks, arrays["test_mask"][chosen] > 0)


def test_the_module_needs_no_torch():
    heavy = {"torch", "pydicom", "nibabel", "scipy", "sklearn"}
    code = f"import normalis.loading.arrays, sys; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_margin_is_blank_in_every_image_however_it_is_read(tmp_path, rng, dtype):
    settings = ImageSettings(image_size=32, margin=0.1)
    images = rng.integers(1, 255, (3, 40, 40)).astype(np.uint8)
    if dtype == np.uint8:
        paths = [tmp_path / f"{i}.png" for i in range(3)]
        for path, one in zip(paths, images, strict=True):
            Image.fromarray(one).save(path)
        samples = [Sample(path=path, split="train", is_anomalous=False) for path in paths]
        found = [load(samples, settings), *stream(samples, settings, rule=None)]
    else:
        found = [from_array(images / np.float32(255), settings)]
    for loaded in found:
        assert not loaded.pixels[..., :3, :].any()
        assert not loaded.pixels[..., :, -3:].any()
        assert (loaded.pixels[..., 3:-3, 3:-3] > 0).all()


def test_a_margin_is_a_share_of_the_side():
    with pytest.raises(SettingsError, match="share of the image's side"):
        ImageSettings(margin=0.5)
