"""PNG, JPEG and TIFF: modes, depths, pages, damage; equality with the reference reader."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from normalis.errors import DataError, UnreadableImageError
from normalis.images import fit_pixels, probe, read_frames


def read_one(path):
    (frame,) = read_frames(path)
    return frame


def reason_of(path):
    with pytest.raises(UnreadableImageError) as caught:
        list(read_frames(path))
    assert caught.value.path == path
    return caught.value.reason


def noise(rng, *shape, dtype=np.uint8, top=256):
    return rng.integers(0, top, shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_8_bit_comes_out_as_it_is(tmp_path, rng, suffix):
    values = noise(rng, 20, 30)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    frame = read_one(tmp_path / f"a{suffix}")
    assert frame.pixels.dtype == np.uint8
    assert frame.slice_index is None
    assert frame.header["bits"] == 8
    np.testing.assert_array_equal(frame.pixels, values[None])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_is_never_clipped_to_8(tmp_path, rng, suffix):
    values = noise(rng, 20, 30, dtype=np.uint16, top=65536)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    frame = read_one(tmp_path / f"a{suffix}")
    assert frame.pixels.dtype == np.float32
    assert frame.header["bits"] == 16
    np.testing.assert_array_equal(frame.pixels, values[None].astype(np.float32))


@pytest.mark.parametrize(("dtype", "top"), [(np.int32, 2**20), (np.float32, 1000)])
def test_32_bit_tiffs_keep_their_values(tmp_path, rng, dtype, top):
    values = noise(rng, 9, 7, dtype=dtype, top=top) - np.array(top // 2, dtype)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_one(tmp_path / "a.tif").pixels[0], values.astype(np.float32))


def test_big_endian_16_bit_tiff(tmp_path, rng):
    values = noise(rng, 9, 7, dtype=np.uint16, top=65536)
    image = Image.frombytes("I;16B", (7, 9), values.astype(">u2").tobytes())
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_one(tmp_path / "a.tif").pixels[0], values)


def test_16_bit_tiff_whose_white_is_zero_is_turned_round(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    image = Image.fromarray(np.array([[0, 65535], [1, 2]], np.uint16))
    path = tmp_path / "a.tif"
    image.save(path, tiffinfo=tags)
    with Image.open(path) as saved:
        if saved.tag_v2[262] != 0:  # Pillow writes its own value over the tag
            data = path.read_bytes()
            entry = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00")
            path.write_bytes(data[: entry + 8] + b"\x00" + data[entry + 9 :])
    np.testing.assert_array_equal(read_one(path).pixels[0], [[65535, 0], [65534, 65533]])


MODES = {
    ".png": ["1", "L", "LA", "P", "RGB", "RGBA"],
    ".jpg": ["L", "RGB", "CMYK"],
    ".tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
}


@pytest.mark.parametrize(("suffix", "mode"), [(s, m) for s, modes in MODES.items() for m in modes])
def test_every_8_bit_mode_equals_pillows_grey_bilinear(tmp_path, rng, suffix, mode):
    colour = Image.fromarray(noise(rng, 50, 70, 3))
    image = colour.quantize(60) if mode == "P" else colour.convert(mode)
    path = tmp_path / f"a{suffix}"
    image.save(path)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("L").resize((32, 32), Image.Resampling.BILINEAR))
    frame = read_one(path)
    assert frame.pixels.dtype == np.uint8
    fitted = fit_pixels(frame.pixels, image_size=32, channels=1)
    np.testing.assert_array_equal(fitted[0], expected)
    (grey,) = read_frames(path, grey=True)
    assert len(grey.pixels) == 1
    fitted = fit_pixels(grey.pixels, image_size=32, channels=1)
    np.testing.assert_array_equal(fitted[0], expected)


def test_channels_3_keeps_colour_and_repeats_grey(rng):
    colour = noise(rng, 3, 20, 20)
    fitted = fit_pixels(colour, image_size=16, channels=3)
    image = Image.fromarray(colour.transpose(1, 2, 0)).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fitted.transpose(1, 2, 0), np.asarray(image))
    grey = fit_pixels(colour[:1], image_size=16, channels=3)
    assert grey.shape == (3, 16, 16)
    np.testing.assert_array_equal(grey[0], grey[2])


@given(low=st.floats(-1e4, 1e4), scale=st.floats(1e-3, 1e4))
def test_resizing_floats_commutes_with_linear_maps(low, scale):
    values = np.random.default_rng(1).random((1, 40, 56)).astype(np.float32)
    fitted = fit_pixels(values, image_size=16, channels=1)
    mapped = fit_pixels((values * scale + low).astype(np.float32), image_size=16, channels=1)
    np.testing.assert_allclose(mapped, fitted * scale + low, rtol=1e-4, atol=1e-4 * (scale + 1))


def test_a_float_constant_stays_that_constant():
    fitted = fit_pixels(np.full((1, 37, 91), -1000, np.float32), image_size=64, channels=1)
    np.testing.assert_array_equal(fitted, -1000)


def test_float_colour_becomes_luma():
    red = np.zeros((3, 8, 8), np.float32)
    red[0] = 100
    np.testing.assert_allclose(fit_pixels(red, image_size=16, channels=1), 29.9, rtol=1e-6)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((8, 8)), np.zeros((2, 8, 8), np.uint8), np.zeros((1, 8, 8)), np.zeros((1, 0, 8))],
)
def test_fit_pixels_refuses_what_is_not_an_image(pixels):
    with pytest.raises(DataError, match="an image must be"):
        fit_pixels(pixels, image_size=16, channels=1)


def test_one_pixel_and_constant_images_are_images(tmp_path):
    Image.new("L", (1, 1), 7).save(tmp_path / "one.png")
    fitted = fit_pixels(read_one(tmp_path / "one.png").pixels, image_size=64, channels=1)
    np.testing.assert_array_equal(fitted, np.full((1, 64, 64), 7))


def test_every_page_of_a_tiff_is_a_frame(tmp_path, rng):
    pages = [Image.fromarray(noise(rng, 8, 9)) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    frames = list(read_frames(tmp_path / "a.tif"))
    assert [f.slice_index for f in frames] == [0, 1, 2]
    for frame, page in zip(frames, pages, strict=True):
        np.testing.assert_array_equal(frame.pixels[0], np.asarray(page))
    assert probe(tmp_path / "a.tif").frames == 3


def test_the_bytes_decide_and_not_the_name(tmp_path, rng):
    path = tmp_path / "café äöü 日本.jpg"
    Image.fromarray(noise(rng, 8, 9)).save(path, format="PNG")
    assert read_one(path).header["format"] == "PNG"
    assert probe(path).format == "PNG"


def test_exif_orientation_is_ignored(tmp_path, rng):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise(rng, 8, 12)).save(tmp_path / "a.png", exif=exif)
    assert read_one(tmp_path / "a.png").pixels.shape == (1, 8, 12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tiff_with_nan_or_infinity_is_refused(tmp_path, bad):
    values = np.zeros((5, 6), np.float32)
    values[2, 3] = bad
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert "1 values are NaN or infinite, the first at [2, 3]" in reason_of(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path, rng, suffix, share):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(rng, 64, 64)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert reason_of(path)


def test_colour_of_16_bit_is_refused_rather_than_cut_to_8(tmp_path):
    def chunk(name, body):
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    rows = b"".join(b"\x00" + bytes(6 * 4) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert "16-bit colour (RGB), of which Pillow keeps only 8 bits" in reason_of(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, rng):
    path = tmp_path / "a.png"
    Image.fromarray(noise(rng, 60, 60)).save(path)
    for limit in (3000, 1000):  # Pillow warns above its limit and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert f"larger than the limit of {limit} pixels" in reason_of(path)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["brain_tumor", "kermany_cxr", "lgg_flair"])
def test_8_bit_arrays_equal_the_reference_readers(real_data, name):
    arrays = np.load(real_data / name / "arrays_64.npz")
    files = {p.name: p for p in (real_data / name).rglob("*") if p.is_file()}
    chosen = range(0, len(arrays["test"]), 41)
    names = arrays["test_names"]
    for i in chosen:
        fitted = fit_pixels(read_one(files[names[i]]).pixels, image_size=64, channels=1)
        np.testing.assert_array_equal(fitted[0], arrays["test"][i], err_msg=names[i])


@pytest.mark.real_data
def test_tiffs_of_patients_are_read(real_data):
    paths = sorted((real_data / "lgg_tif_sample").rglob("*.tif"))[:20]
    assert paths
    assert {read_one(p).pixels.shape for p in paths} <= {(3, 256, 256), (1, 256, 256)}


def test_an_animated_png_is_no_single_image(tmp_path, rng):
    frames = [Image.fromarray(rng.integers(0, 255, (8, 9), np.uint8)) for _ in range(2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadableImageError, match="an animated PNG of 2 images"):
        list(read_frames(tmp_path / "a.png"))
