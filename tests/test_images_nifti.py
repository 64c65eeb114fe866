"""NIfTI: orientation, planes, ranges, refusals, and the way back into a volume."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest

from normalis.errors import DataError, UnreadableImageError
from normalis.images import probe, read_frames, restore_slices, save_map_volume

PLANES = ("axial", "coronal", "sagittal")


def write(path, values, affine=None, kind=nib.Nifti1Image):
    path.write_bytes(kind(values, np.eye(4) if affine is None else affine).to_bytes())
    return path


def all_orientations():
    """Affines of the 48 ways in which axes can be permuted and flipped."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.zeros((4, 4))
            affine[3, 3] = 1
            for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
                affine[row, column] = sign * (column + 1.0)
            affine[:3, 3] = (5, -6, 7)
            yield affine


def reason_of(path):
    with pytest.raises(UnreadableImageError) as caught:
        list(read_frames(path))
    return caught.value.reason


@pytest.fixture
def volume(rng):
    return rng.integers(-500, 3000, (4, 5, 6)).astype(np.int16)


def test_axial_slices_show_anterior_on_top_and_the_patients_right_on_the_left(tmp_path):
    x, y, z = np.meshgrid(range(4), range(5), range(6), indexing="ij")  # RAS: right, anterior, up
    path = write(tmp_path / "a", (100 * x + 10 * y + z).astype(np.int16))
    frames = list(read_frames(path))
    assert [f.slice_index for f in frames] == list(range(6))
    for number, frame in enumerate(frames):
        pixels = frame.pixels[0]
        assert pixels.shape == (5, 4)
        assert pixels[0, 0] == 300 + 40 + number  # most right, most anterior
        assert pixels[-1, -1] == number
    (coronal, *_) = read_frames(path, plane="coronal")
    assert coronal.pixels[0, 0, 0] == 300 + 5  # most right, most superior
    (sagittal, *_) = read_frames(path, plane="sagittal")
    assert sagittal.pixels[0, 0, 0] == 40 + 5  # most anterior, most superior


@pytest.mark.parametrize("plane", PLANES)
def test_the_same_anatomy_in_any_orientation_gives_the_same_slices(tmp_path, volume, plane):
    first = None
    canonical = nib.Nifti1Image(volume, np.diag([1.0, 2, 3, 1]))
    for number, affine in enumerate(all_orientations()):
        ornt = nib.orientations.ornt_transform(
            nib.io_orientation(canonical.affine), nib.io_orientation(affine)
        )
        turned = canonical.as_reoriented(ornt)
        path = write(tmp_path / str(number), np.asarray(turned.dataobj), turned.affine)
        pixels = np.stack([f.pixels for f in read_frames(path, plane=plane)])
        first = pixels if first is None else first
        np.testing.assert_array_equal(pixels, first)


@pytest.mark.parametrize("plane", PLANES)
def test_maps_go_back_to_the_sources_own_voxels(tmp_path, volume, plane):
    for number, affine in enumerate(all_orientations()):
        path = write(tmp_path / str(number), volume, affine)
        frames = list(read_frames(path, plane=plane))
        maps = np.stack([f.pixels[0] for f in frames])
        np.testing.assert_array_equal(restore_slices(maps, frames[0].header), volume)


def test_maps_of_some_slices_leave_the_others_at_the_fill_value(tmp_path, volume):
    path = write(tmp_path / "a", volume, next(itertools.islice(all_orientations(), 13, None)))
    frames = list(read_frames(path, slice_range=(0.3, 0.7)))
    maps = np.stack([f.pixels[0] for f in frames]) + 10_000
    back = restore_slices(maps, frames[0].header, fill=-1)
    assert back.shape == volume.shape
    assert (back != -1).sum() == maps.size
    np.testing.assert_array_equal(back[back != -1], volume[back != -1] + 10_000.0)
    same = restore_slices(
        maps[::-1], frames[0].header, slices=[f.slice_index for f in frames][::-1], fill=-1
    )
    np.testing.assert_array_equal(same, back)


def test_a_map_volume_lies_over_its_source(tmp_path, volume):
    affine = next(itertools.islice(all_orientations(), 29, None))
    path = write(tmp_path / "a", volume, affine)
    frames = list(read_frames(path))
    maps = np.stack([f.pixels[0] for f in frames])
    save_map_volume(tmp_path / "m.nii.gz", maps, frames[0].header)
    saved = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(saved.affine, affine)
    np.testing.assert_array_equal(saved.get_fdata(), volume)
    assert saved.get_data_dtype() == np.float32


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 5), (5, 5, 4), (7, 5, 4)])
def test_maps_that_do_not_fit_are_refused(tmp_path, volume, shape):
    header = next(read_frames(write(tmp_path / "a", volume))).header
    with pytest.raises(DataError, match=r"maps must be \(6, 5, 4\) for axial slices"):
        restore_slices(np.zeros(shape), header)


def test_the_range_is_taken_at_the_slices_centres(tmp_path, rng):
    path = write(tmp_path / "a", rng.integers(0, 255, (3, 3, 10), dtype=np.uint8))
    chosen = [f.slice_index for f in read_frames(path, slice_range=(0.25, 0.5))]
    assert chosen == [2, 3, 4]
    with pytest.raises(UnreadableImageError, match=r"none of its 10 slices lies in 0.3..0.31"):
        list(read_frames(path, slice_range=(0.3, 0.31)))


def test_dtypes_and_scaling(tmp_path, rng):
    bytes_ = rng.integers(0, 256, (3, 4, 2), dtype=np.uint8)
    assert next(read_frames(write(tmp_path / "a", bytes_))).pixels.dtype == np.uint8
    image = nib.Nifti1Image(rng.normal(size=(3, 4, 2)), np.eye(4))
    image.set_data_dtype(np.int16)  # nibabel then writes a slope and an intercept
    (tmp_path / "b").write_bytes(image.to_bytes())
    expected = nib.Nifti1Image.from_bytes((tmp_path / "b").read_bytes()).get_fdata()
    frames = list(read_frames(tmp_path / "b"))
    assert frames[0].pixels.dtype == np.float32
    np.testing.assert_allclose(restore_slices(np.stack([f.pixels[0] for f in frames]),
                                              frames[0].header), expected, rtol=1e-6)  # fmt: skip


def test_rgb_volumes(tmp_path, rng):
    values = rng.integers(0, 256, (3, 4, 2, 3), dtype=np.uint8)
    record = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    frames = list(read_frames(write(tmp_path / "a", values.view(record)[..., 0])))
    assert frames[0].pixels.shape == (3, 4, 3)
    np.testing.assert_array_equal(frames[1].pixels[:, 0, 0], values[2, 3, 1])


def test_the_bytes_decide_compressed_or_not_nifti_1_or_2(tmp_path, volume):
    plain = write(tmp_path / "a.nii.gz", volume)  # not compressed, whatever its name says
    packed = tmp_path / "b.nii"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    second = write(tmp_path / "c.png", volume, kind=nib.Nifti2Image)
    first = [f.pixels for f in read_frames(plain)]
    for path in (packed, second):
        np.testing.assert_array_equal([f.pixels for f in read_frames(path)], first)
        assert probe(path).format == "NIfTI"


def test_4d_is_refused_unless_it_is_one_volume(tmp_path, volume):
    several = np.stack([volume] * 3, axis=-1)
    reason = reason_of(write(tmp_path / "a", several))
    assert reason.startswith("4D (4 x 5 x 6 x 3): which of its 3 volumes is meant is not known")
    assert len(list(read_frames(write(tmp_path / "b", several[..., :1])))) == 6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path, bad):
    values = np.zeros((3, 4, 2), np.float32)
    values[0, 0, 1] = bad
    assert "1 values are NaN or infinite in axial slice 1" in reason_of(
        write(tmp_path / "a", values)
    )


def test_other_refusals(tmp_path, volume):
    flat = bytearray(write(tmp_path / "a", volume).read_bytes())
    flat[312:328] = bytes(16)  # srow_z: the affine's third row
    (tmp_path / "a").write_bytes(flat)
    assert "singular" in reason_of(tmp_path / "a")
    assert "complex" in reason_of(write(tmp_path / "b", volume.astype(np.complex64)))
    path = write(tmp_path / "c", volume)
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    assert reason_of(path)
    packed = gzip.compress(whole)
    path.write_bytes(packed[: len(packed) - 30])
    assert "truncated" in reason_of(path)
    path.write_bytes(whole[:344] + b"ni1\x00" + whole[348:])
    assert "two-file NIfTI" in reason_of(path)
    huge = bytearray(whole)
    huge[42:48] = np.array([30000] * 3, "<i2").tobytes()
    path.write_bytes(huge)
    assert "beyond the limit" in reason_of(path)


def test_what_the_header_says(tmp_path, volume):
    frame = next(read_frames(write(tmp_path / "a", volume, np.diag([-0.5, 2, 3, 1]))))
    assert frame.header["orientation"] == "LAS"
    assert frame.header["spacing_mm"] == (2, 0.5)  # rows run along y, columns along x
    assert frame.header["slice_spacing_mm"] == 3
    assert frame.header["slice_position"] == pytest.approx(0.5 / 6)
    found = probe(tmp_path / "a")
    assert (found.frames, found.height, found.width, found.bits) == (6, 5, 4, 16)


@pytest.mark.real_data
def test_every_real_volume_is_read_or_refused(real_data):
    frames = {}
    for path in sorted((real_data / "nifti").iterdir()):
        if path.name in ("example4d.nii.gz", "functional.nii"):
            assert reason_of(path).startswith("4D (")
            continue
        found = list(read_frames(path, slice_range=(0.4, 0.6)))
        frames[path.name] = found
        maps = np.stack([f.pixels[0] for f in found])
        assert restore_slices(maps, found[0].header).shape == nib.load(path).shape
    assert len(frames) == 8
    mni = frames["mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"]
    assert mni[0].pixels.shape == (1, 233, 197)
    assert mni[0].pixels.dtype == np.uint8
    assert frames["anatomical.nii"][0].pixels.dtype == np.float32
