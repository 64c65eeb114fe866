"""Small files that claim much are refused before memory is taken; one bad file stays one."""

import gzip
import io
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from normalis.datasets import open_dataset
from normalis.datasets.base import Sample
from normalis.errors import DataError, UnreadableImageError
from normalis.images import IntensityRule, ahead, decoding, dicom, nifti, read_frames
from normalis.images.arrays import ArrayRows, open_array
from normalis.images.decoding import Recipe, Source, decode
from normalis.loading.arrays import ImageSettings, load, stream
from test_images_dicom import make, write

SMALL = Recipe(image_size=16, channels=1)


def reason_of(path):
    with pytest.raises(UnreadableImageError) as caught:
        list(read_frames(path))
    return caught.value.reason


def volume(shape, dtype=np.uint8, affine=None):
    values = np.arange(np.prod(shape)).reshape(shape) % 251
    kind = nib.Nifti2Image if max(shape) > 32767 else nib.Nifti1Image
    return kind(values.astype(dtype), np.eye(4) if affine is None else affine).to_bytes()


# --- claims ---------------------------------------------------------------------------------------


def test_a_volume_of_too_many_slices(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(volume((1, 1, 40_000))))
    assert "claims 40000 slices, beyond the limit of 10,000" in reason_of(path)


def test_a_compressed_volume_that_claims_gigabytes(tmp_path):
    raw = bytearray(volume((4, 4, 4), np.float64))
    raw[42:48] = np.array([1000, 1000, 400], "<i2").tobytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw)))
    assert "claims 3,051 MiB of voxels" in reason_of(path)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_streamed_volume_is_the_mapped_one(tmp_path, plane, turned):
    affine = np.diag([-1.0, 2, -3, 1]) if turned else np.eye(4)
    raw = volume((4, 5, 6), np.int16, affine)
    (tmp_path / "a.nii").write_bytes(raw)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw))
    mapped, packed = (
        [(f.slice_index, f.pixels) for f in read_frames(tmp_path / n, plane=plane)]
        for n in ("a.nii", "b.nii.gz")
    )
    assert [i for i, _ in mapped] == [i for i, _ in packed]
    np.testing.assert_array_equal([p for _, p in mapped], [p for _, p in packed])


def test_voxels_that_begin_at_byte_0_begin_after_the_header(tmp_path):
    raw = bytearray(volume((4, 5, 6), np.int16))
    (tmp_path / "a.nii").write_bytes(raw)
    raw[108:112] = np.float32(0).tobytes()
    (tmp_path / "b.nii").write_bytes(raw)
    good, zero = ([f.pixels for f in read_frames(tmp_path / n)] for n in ("a.nii", "b.nii"))
    np.testing.assert_array_equal(good, zero)
    raw[108:112] = np.float32(100).tobytes()
    (tmp_path / "b.nii").write_bytes(raw)
    assert "vox offset 100 too low" in reason_of(tmp_path / "b.nii")


def test_a_deflated_dicom_is_inflated_within_a_limit(tmp_path, monkeypatch):
    values = np.arange(120, dtype=np.uint16).reshape(12, 10)
    data = make(values, bits=12, syntax=DeflatedExplicitVRLittleEndian)
    data.add_new(0x00091010, "OB", bytes(2**20))
    path = write(tmp_path / "a", data)
    (frame,) = read_frames(path)
    np.testing.assert_array_equal(frame.pixels[0], values)
    monkeypatch.setattr(dicom, "MAX_INFLATED", 2**19)
    assert "more than 0 MiB when inflated" in reason_of(path)


def test_images_of_too_many_values(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (9000, 6000)).save(path)
    assert "beyond the limit of 50,000,000 values" in reason_of(path)
    Image.new("RGBA", (5000, 4000)).save(path)
    assert "4000 x 5000 x 3" in reason_of(path)


def test_pages_frames_and_kept_bytes(tmp_path, monkeypatch):
    page = Image.new("L", (4, 4))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page] * 4)
    data = make(np.zeros((5, 4, 4), np.uint8), bits=8)
    write(tmp_path / "b", data)
    monkeypatch.setattr("normalis.images.limits.MAX_IMAGES", 3)
    assert "4 pages" in reason_of(tmp_path / "a.tif")
    assert "5 frames" in reason_of(tmp_path / "b")
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "MAX_KEPT", 2 * 16 * 16)
    (file,) = decode([Source(tmp_path / "a.tif")], SMALL)
    assert "its first 3 images take more than" in file.reason


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc")
def test_memory_stays_small_for_a_file_of_half_a_kilobyte(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(volume((1, 1, 400_000))))
    code = (
        "import sys; from normalis.images import read_frames\n"
        "try: list(read_frames(sys.argv[1]))\nexcept ValueError as e: print(e)\n"
        "print(*[x for x in open('/proc/self/status') if 'VmHWM' in x])"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "beyond the limit" in done.stdout
    assert int(done.stdout.split()[-2]) < 400_000  # kB


# --- reading ahead ------------------------------------------------------------------------------


def test_what_waits_is_bounded_in_bytes_however_many_threads_read(tmp_path, monkeypatch):
    for number in range(12):
        (tmp_path / f"{number}.nii").write_bytes(volume((8, 8, 20)))
    sources = [Source(tmp_path / f"{n}.nii") for n in range(12)]
    one = 20 * 16 * 16  # bytes of a file's images
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 3 * one)
    most, held, lock = 0, 0, threading.Lock()
    real = ahead.Budget.take

    def take(self, number, nbytes):
        nonlocal most
        real(self, number, nbytes)
        with lock:
            most = max(most, sum(self._taken.values()))

    monkeypatch.setattr(ahead.Budget, "take", take)
    files = list(decode(sources, SMALL, workers=8))
    assert [len(f.images) for f in files] == [20] * 12
    assert one < most <= 4 * one  # three that wait, and the one that is next
    next(decode(sources, SMALL, workers=8))  # an abandoned reading ends at once
    assert held == 0


# --- one file is one file -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RecursionError("deep"), KeyError("x"), DataError("odd"), OSError(5, "io")],
)
def test_whatever_one_file_raises_is_its_reason(tmp_path, monkeypatch, error):
    samples = []
    for number in range(4):
        Image.new("L", (16, 16), number * 40).save(tmp_path / f"{number}.png")
        samples.append(Sample(path=tmp_path / f"{number}.png", split="train"))
    real = decoding.fit_pixels

    def fit(pixels, **settings):
        if pixels[0, 0, 0] == 80:
            raise error
        return real(pixels, **settings)

    monkeypatch.setattr(decoding, "fit_pixels", fit)
    loaded = load(samples, ImageSettings(image_size=16))
    assert len(loaded.rows) == 3
    ((path, reason),) = loaded.skipped
    assert path.name == "2.png"
    assert reason


def test_a_reason_holds_no_control_characters(tmp_path, monkeypatch):
    Image.new("L", (16, 16)).save(tmp_path / "a.png")

    def fit(*_, **__):
        raise ValueError("\x1b]0;title\x07 \x00")

    monkeypatch.setattr(decoding, "fit_pixels", fit)
    (file,) = decode([Source(tmp_path / "a.png")], SMALL)
    assert file.reason.isprintable()
    assert "\\x1b]0;title\\x07" in file.reason


def test_columns_of_the_user_never_replace_what_a_reader_says(tmp_path):
    (tmp_path / "a.nii").write_bytes(volume((8, 8, 3)))
    columns = {"plane": "AX", "format": "MR", "age": 7, "units": "mm"}
    sample = Sample(path=tmp_path / "a.nii", split="test", header=columns)
    header = load([sample], ImageSettings(image_size=16)).rows[0].header
    assert (header["plane"], header["format"], header["age"]) == ("axial", "NIfTI", 7)
    assert header["units"] == "8 bit"


# --- array files --------------------------------------------------------------------------------


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def test_a_header_that_claims_more_than_the_file_holds(tmp_path):
    raw = npy(np.zeros((3, 16, 16), np.uint8))
    big = raw.replace(b"(3, 16, 16), }" + b" " * 12, b"(3000000000000, 16, 16), }")
    assert big != raw
    (tmp_path / "a.npy").write_bytes(big)
    with pytest.raises(DataError, match=r"claims the shape .*3000000000000.* but it holds"):
        open_dataset(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.npy", big)
    with pytest.raises(DataError, match="claims the shape"):
        open_dataset(tmp_path / "a.npz")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_headers_of_arrays_are_said(tmp_path, seed):
    rng = np.random.default_rng(seed)
    raw = bytearray(npy(np.zeros((3, 16, 16), np.uint8)))
    for _ in range(3):
        raw[int(rng.integers(6, 100))] = int(rng.integers(0, 256))
    (tmp_path / "a.npy").write_bytes(raw)
    try:
        found = open_dataset(tmp_path / "a.npy")
    except DataError:
        return
    files = decode([Source(s.path, s.index, s.array) for s in found.samples[:3]], SMALL)
    assert all(f.images or f.reason for f in files)


def test_a_large_compressed_array_is_read_row_by_row(tmp_path, monkeypatch, rng):
    values = rng.integers(0, 256, (30, 16, 16), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", train=values)
    monkeypatch.setattr("normalis.images.arrays._HELD_BYTES", 100)
    rows = open_array(tmp_path / "a.npz", "train")
    assert isinstance(rows, ArrayRows)
    for index in (0, 5, 3, 29, 0):
        np.testing.assert_array_equal(rows[index], values[index])
    sources = [Source(tmp_path / "a.npz", n, "train") for n in range(30)]
    files = decode(sources, SMALL, workers=4)
    np.testing.assert_array_equal([f.images[0].pixels[0] for f in files], values)


@pytest.mark.parametrize("bad", [1e308, 3e38, np.inf])
def test_numbers_that_are_no_measurements_are_their_files_reason(tmp_path, rng, bad):
    values = rng.random((5, 16, 16))
    values[2, 3, 4] = bad
    np.savez(tmp_path / "a.npz", test=values)
    samples = [
        Sample(path=tmp_path / "a.npz", split="test", index=n, array="test") for n in range(5)
    ]
    rule = IntensityRule(low=0, high=1)
    (batch,) = stream(samples, ImageSettings(image_size=16), rule=rule)
    assert len(batch.rows) == 4
    ((_, reason),) = batch.skipped
    assert "row 2" in reason
    assert np.isfinite(batch.pixels).all()


# --- other formats ------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_alike(tmp_path, rng, orientation, compression):
    values = rng.integers(0, 256, (6, 9), dtype=np.uint8)
    image, exif = Image.fromarray(values), Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.tif", tiffinfo={274: orientation}, compression=compression)
    image.save(tmp_path / "a.png", exif=exif)
    for name in ("a.tif", "a.png"):
        (frame,) = read_frames(tmp_path / name)
        np.testing.assert_array_equal(frame.pixels[0], values)
    from normalis.images import probe

    found = probe(tmp_path / "a.tif")
    assert (found.height, found.width) == (6, 9)


def tiff(path, values, *, photometric, sample_format):
    """Write an uncompressed TIFF of one strip, as Pillow writes none."""
    height, width = values.shape
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8 * values.itemsize),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8 + 2 + 12 * 9 + 4),
        (277, 3, 1),
        (279, 4, values.nbytes),
        (339, 3, sample_format),
    ]
    head = b"II*\x00" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little")
    for number, kind, value in tags:
        head += number.to_bytes(2, "little") + kind.to_bytes(2, "little")
        head += (1).to_bytes(4, "little") + value.to_bytes(4, "little")
    path.write_bytes(head + bytes(4) + values.tobytes())


def test_signed_bytes_and_white_is_zero(tmp_path, rng):
    signed = rng.integers(-100, 74, (5, 6)).astype(np.int8)
    tiff(tmp_path / "a.tif", signed, photometric=1, sample_format=2)
    (frame,) = read_frames(tmp_path / "a.tif")
    assert frame.pixels.dtype == np.float32
    np.testing.assert_array_equal(frame.pixels[0], signed)
    tiff(tmp_path / "b.tif", signed.astype(np.float32), photometric=0, sample_format=3)
    assert "WhiteIsZero" in reason_of(tmp_path / "b.tif")


def test_foreign_volumes_are_named(tmp_path):
    values = np.zeros((4, 5, 6), np.int16)
    nib.save(nib.MGHImage(values.astype(np.float32), np.eye(4)), tmp_path / "x.mgz")
    nib.save(nib.AnalyzeImage(values, np.eye(4)), tmp_path / "a.hdr")
    assert "mri_convert" in reason_of(tmp_path / "x.mgz")
    assert "Analyze 7.5" in reason_of(tmp_path / "a.hdr")
    assert "(.hdr and .img)" in reason_of(tmp_path / "a.img")
    raw = bytearray(volume((4, 5, 6), np.int16))
    raw[40:42] = b"\0\0"
    (tmp_path / "d.nii").write_bytes(raw)
    assert "no axis has a length" in reason_of(tmp_path / "d.nii")


def test_decoders_write_nothing_to_the_terminal(tmp_path, capfd, rng):
    values = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.tif", compression="tiff_lzw")
    whole = (tmp_path / "a.tif").read_bytes()
    for at in range(20, 400, 23):
        (tmp_path / "b.tif").write_bytes(whole[:at] + b"\xff\xff\xff" + whole[at + 3 :])
        list(decode([Source(tmp_path / "b.tif")], SMALL))
    raw = bytearray(volume((4, 5, 6), np.int16))
    raw[70:72] = b"\x55\x55"  # an unknown data type, which nibabel logs
    (tmp_path / "c.nii").write_bytes(raw)
    list(decode([Source(tmp_path / "c.nii")], SMALL))
    assert capfd.readouterr() == ("", "")


def test_the_limits_of_volumes_leave_everyday_ones_alone():
    assert nifti.MAX_INFLATED > 512 * 512 * 1000 * 2
    assert nifti.MAX_STREAMED > 512 * 512 * 1000 * 4
