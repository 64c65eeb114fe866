"""DICOM: the grey pipeline, frames, headers, and files that are no images."""

import csv

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from normalis.errors import UnreadableImageError
from normalis.errors.extras import install_line
from normalis.images import dicom, probe, read_frames

MR, SR, DIR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.1.3.10"


def make(values, *, bits=16, signed=False, sop=MR, syntax=ExplicitVRLittleEndian, **tags):
    """Return a data set with (H, W), (F, H, W) or (H, W, 3) values."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    if values is not None:
        colour = values.ndim == 3 and values.shape[-1] == 3
        data.Rows, data.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
        data.BitsAllocated = 8 * values.dtype.itemsize
        data.BitsStored, data.HighBit = bits, bits - 1
        data.PixelRepresentation = int(signed)
        data.SamplesPerPixel = 3 if colour else 1
        data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            data.PlanarConfiguration = 0
        if values.ndim == 3 and not colour:
            data.NumberOfFrames = len(values)
        data.PixelData = values.tobytes()
        data["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def write(path, data):
    data.save_as(path, enforce_file_format=True)
    return path


def one(path, **options):
    (frame,) = read_frames(path, **options)
    return frame


def reason_of(path):
    with pytest.raises(UnreadableImageError) as caught:
        list(read_frames(path))
    return caught.value.reason


@pytest.fixture
def values(rng):
    return rng.integers(0, 4096, (12, 10), dtype=np.uint16)


def test_deeper_than_8_bit_keeps_its_units(tmp_path, values):
    frame = one(write(tmp_path / "a", make(values, bits=12)))
    assert frame.pixels.dtype == np.float32
    assert frame.slice_index is None
    np.testing.assert_array_equal(frame.pixels[0], values)


def test_rescale_gives_modality_units(tmp_path, values):
    data = make(values, bits=12, RescaleSlope=2, RescaleIntercept=-1024)
    frame = one(write(tmp_path / "a", data))
    np.testing.assert_allclose(frame.pixels[0], values * 2.0 - 1024)


@pytest.mark.parametrize(
    ("function", "low", "high"), [(None, 39.5 - 199.5, 39.5 + 199.5), ("LINEAR_EXACT", -160, 240)]
)
def test_a_window_becomes_0_to_1_without_clipping(tmp_path, values, function, low, high):
    data = make(values, bits=12, RescaleSlope=1, RescaleIntercept=-1024)
    data.WindowCenter, data.WindowWidth = [40, 500], [400, 2000]
    if function:
        data.VOILUTFunction = function
    path = write(tmp_path / "a", data)
    frame = one(path)
    expected = (values - 1024.0 - low) / (high - low)
    assert frame.header["window"] == (low, high)
    assert expected.min() < 0
    assert expected.max() > 1
    np.testing.assert_allclose(frame.pixels[0], expected, atol=1e-5)
    without = one(path, voi=False)
    assert "window" not in without.header
    np.testing.assert_allclose(without.pixels[0], values - 1024.0)


def test_the_linear_window_is_the_standards_inside_its_range(tmp_path, values):
    data = make(values, bits=12, WindowCenter=2048, WindowWidth=4096)
    ours = one(write(tmp_path / "a", data)).pixels[0]
    theirs = pydicom.pixels.apply_windowing(values, data) / 4095
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_sigmoid_is_applied_as_it_is(tmp_path, values):
    data = make(values, bits=12, WindowCenter=2000, WindowWidth=500, VOILUTFunction="SIGMOID")
    expected = 1 / (1 + np.exp(-4 * (values - 2000.0) / 500))
    np.testing.assert_allclose(one(write(tmp_path / "a", data)).pixels[0], expected, atol=1e-6)


@pytest.mark.parametrize("width", [0, 1, -5])
def test_a_senseless_window_is_left_aside(tmp_path, values, width):
    path = write(tmp_path / "a", make(values, bits=12, WindowCenter=40, WindowWidth=width))
    np.testing.assert_array_equal(one(path).pixels[0], values)


def lut(first, entries, depth):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, depth]
    item.LUTData = [int(e) for e in entries]
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def test_luts_of_modality_and_voi(tmp_path):
    values = np.array([[0, 9, 10], [11, 12, 4000]], np.uint16)
    data = make(values, bits=12)
    data.ModalityLUTSequence = [lut(10, [5, 6, 7], 8)]
    np.testing.assert_array_equal(
        one(write(tmp_path / "a", data)).pixels[0], [[5, 5, 5], [6, 7, 7]]
    )
    data.ModalityLUTSequence[0].ModalityLUTType = "US"
    data.VOILUTSequence = [lut(5, [0, 1023, 4095], 12)]
    frame = one(write(tmp_path / "b", data))
    assert frame.header["voi_lut"] is True
    np.testing.assert_allclose(frame.pixels[0], [[0, 0, 0], [1023 / 4095, 1, 1]], atol=1e-6)


@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, True)])
def test_monochrome1_is_the_exact_inverse_of_its_twin(tmp_path, rng, windowed, bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    kind = np.uint8 if bits == 8 else (np.int16 if signed else np.uint16)
    values = rng.integers(low, high, (6, 6)).astype(kind)
    data = make(values, bits=bits, signed=signed)
    if windowed:
        data.WindowCenter, data.WindowWidth = 100, 60
    twin = one(write(tmp_path / "a", data)).pixels
    data.PhotometricInterpretation = "MONOCHROME1"
    inverse = one(write(tmp_path / "b", data)).pixels
    assert twin.dtype == inverse.dtype == (np.uint8 if bits == 8 and not windowed else np.float32)
    total = 1 if windowed else low + high - 1
    tolerance = {"atol": 1e-3} if windowed else {"atol": 0}
    np.testing.assert_allclose(twin.astype(float) + inverse.astype(float), total, **tolerance)


def test_8_bit_stays_uint8_also_with_a_window_of_the_whole_range(tmp_path, rng):
    values = rng.integers(0, 256, (6, 6), dtype=np.uint8)
    for number, window in enumerate([{}, {"WindowCenter": 128, "WindowWidth": 256}]):
        frame = one(write(tmp_path / str(number), make(values, bits=8, **window)))
        assert frame.pixels.dtype == np.uint8
        np.testing.assert_array_equal(frame.pixels[0], values)


def test_rgb(tmp_path, rng):
    values = rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    path = write(tmp_path / "a", make(values, bits=8))
    np.testing.assert_array_equal(one(path).pixels, values.transpose(2, 0, 1))
    assert probe(path).channels == 3


def test_a_palette_becomes_rgb(tmp_path, rng):
    values = rng.integers(0, 256, (6, 5), dtype=np.uint8)
    data = make(values, bits=8)
    data.PhotometricInterpretation = "PALETTE COLOR"
    tables = rng.integers(0, 256, (3, 256))
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{name}PaletteColorLookupTableData", (table * 257).astype("<u2").tobytes())
        data[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    np.testing.assert_array_equal(one(write(tmp_path / "a", data)).pixels, tables[:, values])


def test_ybr_becomes_rgb(tmp_path):
    data = make(np.full((4, 4, 3), (76, 85, 255), np.uint8), bits=8)
    data.PhotometricInterpretation = "YBR_FULL"
    pixels = one(write(tmp_path / "a", data)).pixels
    np.testing.assert_allclose(pixels[:, 0, 0], [254, 0, 0], atol=2)


def test_stored_floats_keep_their_values_and_may_not_be_nan(tmp_path, rng):
    values = rng.normal(size=(6, 5)).astype(np.float32)
    data = make(values, bits=32)
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    data.FloatPixelData = values.tobytes()
    np.testing.assert_array_equal(one(write(tmp_path / "a", data)).pixels[0], values)
    values[1, 2] = np.nan
    data.FloatPixelData = values.tobytes()
    assert "NaN or infinite, the first at [0, 1, 2]" in reason_of(write(tmp_path / "b", data))


def test_every_frame_with_its_own_transform(tmp_path, rng):
    values = rng.integers(0, 4096, (3, 5, 4), dtype=np.uint16)
    data = make(values, bits=12)
    groups = []
    for number in range(3):
        rescale, plane, frame = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = number + 1, -number
        plane.ImagePositionPatient = [0, 0, 2.5 * number]
        frame.PixelValueTransformationSequence = [rescale]
        frame.PlanePositionSequence = [plane]
        groups.append(frame)
    data.PerFrameFunctionalGroupsSequence = groups
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [0.5, 0.75]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    path = write(tmp_path / "a", data)
    frames = list(read_frames(path))
    assert [f.slice_index for f in frames] == [0, 1, 2]
    assert [f.header["slice_position_mm"] for f in frames] == [0, 2.5, 5]
    assert frames[0].header["spacing_mm"] == (0.5, 0.75)
    for number, frame in enumerate(frames):
        np.testing.assert_allclose(frame.pixels[0], values[number] * (number + 1.0) - number)
    assert probe(path).frames == 3


def test_what_the_header_says(tmp_path, values):
    data = make(
        values,
        bits=12,
        Modality="MR",
        PatientID=" P 1 ",
        PatientAge="018M",
        PatientSex="F",
        Manufacturer="Maker",
        ManufacturerModelName="Model",
        SeriesInstanceUID="1.2.3",
        PixelSpacing=[0.5, 0.25],
        SliceLocation="-7.5",
    )
    header = one(write(tmp_path / "a", data)).header
    wanted = {
        "format": "DICOM",
        "bits": 12,
        "modality": "MR",
        "patient_id": "P 1",
        "age": 1.5,
        "sex": "F",
        "manufacturer": "Maker",
        "model": "Model",
        "series_uid": "1.2.3",
        "spacing_mm": (0.5, 0.25),
        "slice_position_mm": -7.5,
    }
    assert {k: header[k] for k in wanted} == wanted
    found = probe(tmp_path / "a")
    assert (found.format, found.bits, found.height, found.width) == ("DICOM", 12, 12, 10)


def test_without_preamble_it_is_still_dicom(tmp_path, values):
    for implicit in (True, False):
        data = make(values, bits=12, Modality="MR")
        data.file_meta = FileMetaDataset()
        path = tmp_path / f"a{implicit}"
        data.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
        np.testing.assert_array_equal(one(path).pixels[0], values)


def test_a_preamble_that_holds_a_tiff_header_is_dicom(tmp_path, values):
    path = write(tmp_path / "a.tif", make(values, bits=12))
    path.write_bytes(b"II*\x00" + path.read_bytes()[4:])
    assert probe(path).format == "DICOM"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (make(None), "no (7FE0,0010) Pixel Data (it is a MR Image Storage); is this an image?"),
        (make(None, sop=SR, Modality="SR"), "a structured report, which has no pixels"),
        (make(None, sop=DIR), "a DICOMDIR, which only lists other files"),
        (make(None, Rows=5, Columns=4, BitsAllocated=8), "describes 5 x 4 pixels; truncated"),
        (make(np.zeros((5, 4), np.uint8), bits=8, Rows=0), "pixels without Rows"),
        (make(np.zeros((5, 4), np.uint8), bits=8, Rows=60000, Columns=60000), "beyond the limit"),
        (make(np.zeros((5, 4), np.uint8), bits=8, NumberOfFrames=10**6), "1000000 frames"),
        (make(np.zeros((5, 4), np.uint8), bits=8, Rows=50), "truncated: The number of bytes"),
    ],
)
def test_a_dicom_that_is_no_image_gets_its_reason(tmp_path, data, expected):
    assert expected in reason_of(write(tmp_path / "a", data))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_truncated_at_any_place(tmp_path, values, syntax):
    data = make(values, bits=12)
    if syntax == RLELossless:
        data.compress(RLELossless)
    else:
        data.file_meta.TransferSyntaxUID = syntax
    path = write(tmp_path / "a", data)
    np.testing.assert_array_equal(one(path).pixels[0], values)
    whole = path.read_bytes()
    for kept in range(len(whole) - 20, 140, -37):
        path.write_bytes(whole[:kept])
        assert reason_of(path)
    path.write_bytes(whole[:-30])
    assert "truncated" in reason_of(path)


def test_a_decoder_that_panics_is_a_reason_like_any_other(tmp_path, values, monkeypatch):
    class PanicException(BaseException):
        """As PyO3 raises where Rust code panics."""

    def panic(*_, **__):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(dicom, "stored_frames", panic)
    assert "index out of bounds" in reason_of(write(tmp_path / "a", make(values, bits=12)))


def test_an_interrupt_is_not_swallowed(tmp_path, values, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dicom, "stored_frames", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(read_frames(write(tmp_path / "a", make(values, bits=12))))


def test_a_missing_codec_names_the_install_line(tmp_path, values, monkeypatch):
    pytest.importorskip("jpeg_ls")
    data = make(values, bits=12)
    data.compress(JPEGLSLossless)
    path = write(tmp_path / "a", data)
    np.testing.assert_array_equal(one(path).pixels[0], values)
    decoder = pydicom.pixels.get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    assert "JPEG-LS" in reason_of(path)
    assert install_line("codecs") in reason_of(path)


def test_12_bit_jpeg_extended_names_the_gpl_package(tmp_path, values):
    data = make(values, bits=12)
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc1" + bytes(60)])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    reason = reason_of(write(tmp_path / "a", data))
    assert "pip install pylibjpeg-libjpeg" in reason
    assert "GPL" in reason


def test_an_undecodable_syntax_is_named(tmp_path, values):
    data = make(values, bits=12)
    data.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    data.PixelData = pydicom.encaps.encapsulate([bytes(20)])
    data["PixelData"].is_undefined_length = True
    assert "MPEG2" in reason_of(write(tmp_path / "a", data))


@pytest.mark.real_data
def test_every_real_file_is_read_or_refused_as_its_index_says(real_data):
    folder = real_data / "dicom"
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 22
    for row in rows:
        path = folder / row["file"]
        if row["decode"] != "ok":
            word = "truncated" if "less than expected" in row["decode"] else "(0002,0010)"
            assert word in reason_of(path)
            continue
        frames = list(read_frames(path))
        assert len(frames) == (10 if row["file"] == "emri_small.dcm" else 1)
        for frame in frames:
            assert frame.pixels.shape == (1, int(row["rows"]), int(row["cols"]))
            assert frame.pixels.dtype == (np.uint8 if row["bits"] == "8" else np.float32)
            assert frame.header.get("modality", "") == row["modality"]
            assert np.isfinite(frame.pixels).all()
            assert frame.pixels.std() > 0


@pytest.mark.real_data
def test_twins_among_the_real_files(real_data):
    def pixels(name):
        return one(real_data / "dicom" / f"{name}.dcm").pixels.astype(float)

    whole, lossy = pixels("RG1_UNCR"), pixels("RG1_J2KI")
    assert np.abs(whole - lossy).max() <= 0.02 * (whole.max() - whole.min())
    siim = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819"
    np.testing.assert_array_equal(pixels("Fake_MONOHR1"), 255 - pixels(siim))
    small = pixels("MR_small")
    for name in ("MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"):
        np.testing.assert_array_equal(pixels(name), small)
    np.testing.assert_array_equal(pixels("693_UNCR"), pixels("693_J2KR"))
