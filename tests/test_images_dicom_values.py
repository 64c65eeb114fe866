"""DICOM values that headers and codestreams state in contradicting ways: the standard's wins."""

import re

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from normalis.errors import UnreadableImageError
from normalis.images import codecs, probe, read_frames
from test_images_dicom import make, one, reason_of, write

LOSSLESS = [RLELossless, JPEG2000Lossless, JPEGLSLossless]


@pytest.fixture
def values(rng):
    return rng.integers(0, 4096, (40, 36), dtype=np.uint16)


def compressed(words, syntax, *, bits=16, **tags):
    """Compress words as they are, then state something else of them."""
    data = make(words, bits=bits)
    if syntax.is_encapsulated:
        data.compress(syntax)
    else:
        data.file_meta.TransferSyntaxUID = syntax
    for name, value in tags.items():
        setattr(data, name, value)
    return data


# --- bits and signs -----------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *LOSSLESS])
@pytest.mark.parametrize("coded", [12, 16])
def test_the_header_says_the_sign_whatever_the_codestream_says(tmp_path, values, syntax, coded):
    signed = values.astype(int) - 2048
    words = (signed & 0xFFF).astype(np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}
    data = compressed(words, syntax, bits=coded, **tags)
    np.testing.assert_array_equal(one(write(tmp_path / "a", data)).pixels[0], signed)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *LOSSLESS])
def test_bits_beyond_those_stored_are_no_pixel_data(tmp_path, values, syntax):
    words = values.copy()
    words[2:5] |= 0x1000  # an overlay, as old files keep it
    words[7:9] |= 0x8000
    data = compressed(words, syntax, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(one(write(tmp_path / "a", data)).pixels[0], values)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *LOSSLESS])
@pytest.mark.parametrize("signed", [False, True])
def test_samples_end_at_the_high_bit(tmp_path, values, syntax, signed):
    expected = values.astype(int) - 2048 if signed else values
    words = (((expected & 0xFFF) << 4) | 0x5).astype(np.uint16)  # and an overlay below
    tags = {"BitsStored": 12, "HighBit": 15, "PixelRepresentation": int(signed)}
    data = compressed(words, syntax, **tags)
    np.testing.assert_array_equal(one(write(tmp_path / "a", data)).pixels[0], expected)


def test_a_high_bit_that_the_values_contradict_is_refused(tmp_path, values):
    reason = reason_of(write(tmp_path / "a", make(values, bits=12, HighBit=15)))
    assert "High Bit says that samples begin at bit 4" in reason


def test_eight_bits_in_words_of_sixteen_are_eight_bit(tmp_path, rng):
    values = rng.integers(0, 256, (6, 5), dtype=np.uint16)
    frame = one(write(tmp_path / "a", make(values, bits=8)))
    assert frame.pixels.dtype == np.uint8
    assert frame.header["units"] == "8 bit"
    np.testing.assert_array_equal(frame.pixels[0], values)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_uncompressed_syntaxes_give_the_same(tmp_path, values, syntax):
    data = make(values, bits=12)
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        data.PixelData = values.astype(">u2").tobytes()
    np.testing.assert_array_equal(one(write(tmp_path / "a", data)).pixels[0], values)


def test_flags_of_one_bit(tmp_path, rng):
    flags = rng.integers(0, 2, (3, 5, 7), dtype=np.uint8)  # 35 bits a frame: only one begins a byte
    data = make(flags, bits=1, BitsAllocated=1)
    data.PixelData = np.packbits(flags.ravel(), bitorder="little").tobytes()
    frames = list(read_frames(write(tmp_path / "a", data)))
    np.testing.assert_array_equal([f.pixels[0] for f in frames], flags)


# --- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("claimed", [None, 1])
def test_frames_beyond_those_claimed_are_told_apart(tmp_path, rng, syntax, claimed):
    values = rng.integers(0, 4096, (3, 8, 6), dtype=np.uint16)
    data = compressed(values, syntax, bits=12)
    del data.NumberOfFrames
    if claimed:
        data.NumberOfFrames = claimed
    frames = list(read_frames(write(tmp_path / "a", data)))
    assert [f.slice_index for f in frames] == [0, 1, 2]
    np.testing.assert_array_equal([f.pixels[0] for f in frames], values)


# --- decoders -----------------------------------------------------------------------------------


def test_a_decoder_that_dies_is_the_reason_of_its_file(tmp_path, values, monkeypatch):
    path = write(tmp_path / "a", compressed(values, RLELossless, bits=12))
    np.testing.assert_array_equal(one(path).pixels[0], values)
    child = codecs._take()
    child.process.kill()  # while it waits: the next file starts another
    codecs._idle_children.append(child)
    np.testing.assert_array_equal(one(path).pixels[0], values)

    dying = "import os; input(); os.abort()"
    monkeypatch.setattr(codecs, "_START", dying)
    codecs._end_all()
    assert "the decoder crashed (SIGABRT)" in reason_of(path)
    monkeypatch.setattr(codecs, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr(codecs, "TIMEOUT_S", 0.2)
    assert "did not end within 0.2 s" in reason_of(path)
    assert codecs._idle_children == []


def test_gdcm_comes_last():
    from normalis.images import codec_child

    for order in (codec_child._ORDER, codec_child._J2K_ORDER):
        assert order[-1] == "gdcm"


# --- tables -------------------------------------------------------------------------------------


def table(descriptor, data, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", vr, descriptor)
    item.add_new("LUTData", "OW", np.asarray(data, "<u2").tobytes())
    return item


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("vr", "first"), [("SS", -1024), ("US", 64512)])
def test_the_first_value_of_a_lut_is_in_the_sign_of_its_input(tmp_path, values, syntax, vr, first):
    data = make(values, bits=12, RescaleSlope=1, RescaleIntercept=-1024)
    data.file_meta.TransferSyntaxUID = syntax
    data.VOILUTSequence = [table([4096, first, 16], np.arange(4096) * 16, vr)]
    frame = one(write(tmp_path / "a", data))
    np.testing.assert_allclose(frame.pixels[0], values * 16 / 65535, atol=1e-6)


def test_a_lut_that_states_more_bits_than_it_has(tmp_path, values):
    data = make(values, bits=12, VOILUTSequence=[table([4096, 0, 16], np.arange(4096))])
    frame = one(write(tmp_path / "a", data))
    np.testing.assert_allclose(frame.pixels[0], values / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "entries"),
    [
        (16, lambda t: (t * 257).astype("<u2").tobytes()),  # as the standard says
        (16, lambda t: t.astype("<u2").tobytes()),  # 8-bit values in words that claim 16
        (8, lambda t: t.astype("<u2").tobytes()),  # 8 bits, one entry a word
        (8, lambda t: t.astype(np.uint8).tobytes()),
    ],
)
def test_palettes_of_every_kind(tmp_path, rng, depth, entries):
    values = rng.integers(0, 256, (6, 5), dtype=np.uint8)
    tables = np.stack([rng.permutation(256) for _ in range(3)])
    data = make(values, bits=8, PhotometricInterpretation="PALETTE COLOR")
    for name, one_table in zip(("Red", "Green", "Blue"), tables, strict=True):
        stem = f"{name}PaletteColorLookupTable"
        setattr(data, f"{stem}Descriptor", [256, 0, depth])
        data[f"{stem}Descriptor"].VR = "US"
        setattr(data, f"{stem}Data", entries(one_table))
    np.testing.assert_array_equal(one(write(tmp_path / "a", data)).pixels, tables[:, values])


# --- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [-2000, 63536])  # in the other sign, as some write it
def test_padding_becomes_the_darkest_value_of_the_rest(tmp_path, rng, written):
    values = rng.integers(0, 400, (8, 6)).astype(np.int16)
    values[:2] = -2000
    data = make(values, bits=16, signed=True, RescaleSlope=1, RescaleIntercept=-1000)
    data.add_new("PixelPaddingValue", "SS" if written < 0 else "US", written)
    frame = one(write(tmp_path / "a", data))
    inside = values[2:].astype(float) - 1000
    np.testing.assert_array_equal(frame.pixels[0, 2:], inside)
    assert (frame.pixels[0, :2] == inside.min()).all()
    assert frame.header["padding"] == 0.25


def test_padding_of_monochrome1_is_dark_as_well(tmp_path, values):
    values[:3] = 0
    data = make(values, bits=12, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    pixels = one(write(tmp_path / "a", data)).pixels[0]
    inside = 4095 - values[3:].astype(float)
    assert (pixels[:3] == inside[values[3:] > 0].min()).all()
    assert pixels.max() <= 4095


def test_a_range_of_padding_and_padding_beyond_the_bits_stored(tmp_path, values):
    values = values % 3000 + 50
    values[0], values[1] = 3500, 3900
    data = make(values, bits=12, PixelPaddingValue=3400, PixelPaddingRangeLimit=4000)
    pixels = one(write(tmp_path / "a", data)).pixels[0]
    assert (pixels[:2] == values[2:].min()).all()
    words = values.copy()
    words[:2] = 0x8005  # masked to 12 bits it would be the value 5
    pixels = one(write(tmp_path / "b", make(words, bits=12, PixelPaddingValue=0x8005))).pixels[0]
    assert (pixels[:2] == values[2:].min()).all()


@pytest.mark.parametrize("padding", [-3.4e38, np.nan])
def test_padding_of_floats(tmp_path, rng, padding):
    values = rng.normal(size=(6, 5)).astype(np.float32)
    values[0] = padding
    data = make(values, bits=32)
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    data.FloatPixelData, data.FloatPixelPaddingValue = values.tobytes(), padding
    pixels = one(write(tmp_path / "a", data)).pixels[0]
    np.testing.assert_array_equal(pixels[1:], values[1:])
    assert (pixels[0] == values[1:].min()).all()


def test_padding_of_8_bit_stays_8_bit_and_an_image_of_padding_alone_is_dark(tmp_path, rng):
    values = rng.integers(10, 200, (6, 5), dtype=np.uint8)
    values[0] = 255
    frame = one(write(tmp_path / "a", make(values, bits=8, PixelPaddingValue=255)))
    assert frame.pixels.dtype == np.uint8
    assert (frame.pixels[0, 0] == values[1:].min()).all()
    whole = np.full((4, 4), 255, np.uint8)
    frame = one(write(tmp_path / "b", make(whole, bits=8, PixelPaddingValue=255)))
    assert (frame.pixels == 0).all()


# --- attributes that are no numbers -------------------------------------------------------------


def with_text(path, values, keyword, text, **tags):
    """Write a file of which one attribute holds text that no writer of ours would write."""
    data = make(values, bits=12, **tags)
    data.add_new(keyword, "LO", text)
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return write(path, data)


def test_a_decimal_comma_is_read(tmp_path, values):
    path = with_text(tmp_path / "a", values, "WindowCenter", "40,5", WindowWidth=400)
    assert one(path).header["window"] == (-159.5, 239.5)


@pytest.mark.parametrize("keyword", ["WindowCenter", "RescaleSlope"])
def test_what_is_no_number_is_named(tmp_path, values, keyword):
    path = with_text(tmp_path / "a", values, keyword, "wide", WindowWidth=400)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    expected = f"its ({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword} is 'wide', which is no number"
    assert expected in reason_of(path)


@pytest.mark.parametrize("keyword", ["PixelSpacing", "SliceLocation", "PatientAge"])
def test_what_no_pixel_depends_on_costs_no_file(tmp_path, values, keyword):
    path = with_text(tmp_path / "a", values, keyword, "None" if "S" in keyword else "old")
    np.testing.assert_array_equal(one(path).pixels[0], values)
    assert "spacing_mm" not in probe(path).header


@pytest.mark.parametrize("word", ["None", "", "nan"])
def test_a_window_without_a_number_is_none(tmp_path, values, word):
    path = with_text(tmp_path / "a", values, "WindowCenter", word, WindowWidth=400)
    assert "window" not in one(path).header


def test_contradictions_of_the_header_are_named(tmp_path, rng, values):
    colour = rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    capture = make(colour, bits=8, PhotometricInterpretation="MONOCHROME2")
    assert "3 samples a pixel" in reason_of(write(tmp_path / "a", capture))
    empty = make(values, bits=12)
    empty.PixelData = b""
    assert "Pixel Data are empty (0 bytes)" in reason_of(write(tmp_path / "b", empty))
    assert "Bits Stored is 17 of 16" in reason_of(write(tmp_path / "c", make(values, bits=17)))


@pytest.mark.parametrize("uid", ["1.2.3.4", "1.2.840.113619.5.2", "1.2.840.10008.1.2.4.999"])
def test_a_transfer_syntax_that_is_none_is_named(tmp_path, uid):
    path = write(tmp_path / "a", make(np.arange(256, dtype=np.uint16).reshape(16, 16)))
    raw, old = path.read_bytes(), b"1.2.840.10008.1.2.1\0"
    new = uid.encode() + b"\0" * (len(uid) % 2)
    at = raw.index(old)
    raw = raw[: at - 2] + len(new).to_bytes(2, "little") + new + raw[at + len(old) :]
    head = raw.index(b"\x02\x00\x00\x00UL\x04\x00") + 8  # the length of the file meta
    length = int.from_bytes(raw[head : head + 4], "little") + len(new) - len(old)
    path.write_bytes(raw[:head] + length.to_bytes(4, "little") + raw[head + 4 :])
    said = rf"Transfer Syntax UID is '{re.escape(uid)}', which is none of DICOM's.*Export it as"
    with pytest.raises(UnreadableImageError, match=said):
        list(read_frames(path))


def test_one_value_far_below_air_is_padding_of_a_ct_whatever_the_header_says(tmp_path, rng):
    values = rng.integers(0, 400, (8, 6)).astype(np.int16)
    values[:2] = -2000
    scale = {"RescaleSlope": 1, "RescaleIntercept": -1000}
    ct = {"Modality": "CT", **scale}
    frame = one(write(tmp_path / "a", make(values, bits=16, signed=True, **ct)))
    assert frame.pixels.min() == values[2:].min() - 1000
    assert frame.header["padding"] == 0.25
    values[0, 0] = -1900  # several values: measured, for all that is known
    frame = one(write(tmp_path / "b", make(values, bits=16, signed=True, **ct)))
    assert frame.pixels.min() == -3000
    mr = make(values, bits=16, signed=True, Modality="MR", **scale)
    assert one(write(tmp_path / "c", mr)).pixels.min() == -3000


def test_tables_that_are_cut_off_are_said_where_their_end_is_needed(tmp_path, values, rng):
    cut = table([4096, 0, 16], np.arange(2048) * 16)
    data = make(values % 2048, bits=12, VOILUTSequence=[cut])
    assert one(write(tmp_path / "enough", data)).pixels.max() <= 1
    data = make(values % 2048 + 1000, bits=12, VOILUTSequence=[cut])
    with pytest.raises(UnreadableImageError, match="holds 2048 of the 4096 entries stated"):
        one(write(tmp_path / "a", data))
    data = make(np.full((6, 5), 200, np.uint8), bits=8, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        stem = f"{name}PaletteColorLookupTable"
        setattr(data, f"{stem}Descriptor", [256, 0, 16])
        data[f"{stem}Descriptor"].VR = "US"
        setattr(data, f"{stem}Data", (np.arange(128) * 257).astype("<u2").tobytes())
    with pytest.raises(UnreadableImageError, match="holds 128 of the 256 entries stated"):
        one(write(tmp_path / "b", data))
