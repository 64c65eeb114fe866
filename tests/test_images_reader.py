"""Recognising formats, and the reasons for files that are none."""

import contextlib
import os
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from normalis.errors import SettingsError, UnreadableImageError
from normalis.images import Frame, probe, read_frames, reader, remarks


def reason_of(path):
    with pytest.raises(UnreadableImageError) as caught:
        list(read_frames(path))
    return caught.value.reason


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer; fetch the file itself"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "a film or sound"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "a WebP; save it as PNG"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "a HEIC or AVIF; save it as PNG"),
        (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it"),
        (b"hello, world, this is a text", "its first bytes are b'hello, w'"),
        (b"GIF89a" + bytes(99), "a GIF; save it as PNG"),
        (b"PK\x03\x04" + bytes(99), "a zip archive or an .npz"),
        (b"\x93NUMPY" + bytes(99), "a NumPy array"),
        (b"\x1f\x8b\x08\x00garbage", "not PNG, JPEG, TIFF, DICOM or NIfTI"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "its header is damaged"),
        (b"II*\x00\x08", ""),
        (b"\xff\xd8\xff\xe0", ""),
        (bytes(128) + b"DICM", "no (0002,0010) Transfer Syntax UID"),
        (bytes(344) + b"n+1\x00" + bytes(50), ""),
    ],
)
def test_a_file_that_is_no_image_gets_its_reason(tmp_path, content, expected):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    reason = reason_of(path)
    assert expected in reason
    with pytest.raises(UnreadableImageError):
        probe(path)


def test_missing_file_folder_and_permission(tmp_path):
    assert "is not there" in reason_of(tmp_path / "none.png")
    assert "a folder" in reason_of(tmp_path)
    (tmp_path / "locked.png").write_bytes(b"x")
    (tmp_path / "locked.png").chmod(0)
    if os.geteuid() != 0:  # root reads everything
        assert "permission" in reason_of(tmp_path / "locked.png")


def test_permission_denied_is_said_as_such(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reader, "recognise", refuse)
    (tmp_path / "a.png").write_bytes(b"x")
    assert reason_of(tmp_path / "a.png") == "permission to read the file is denied"


@pytest.mark.parametrize("options", [{"plane": "oblique"}, {"slice_range": (0.5, 0.5)}])
def test_bad_settings_are_an_error_of_their_own(tmp_path, options):
    with pytest.raises(SettingsError, match="must be"):
        list(read_frames(tmp_path / "a.nii", **options))


def test_random_bytes_never_raise_anything_else(tmp_path, rng):
    starts = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", bytes(128) + b"DICM"]
    for number, start in enumerate(starts * 6):
        path = tmp_path / str(number)
        path.write_bytes(start + rng.bytes(600))
        assert reason_of(path)


def test_damaged_copies_of_a_good_file_are_read_or_refused(tmp_path, rng):
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(path, format="TIFF")
    good = bytearray(path.read_bytes())
    for _ in range(60):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), 3):
            bad[at] = rng.integers(256)
        path.write_bytes(bad)
        with contextlib.suppress(UnreadableImageError):  # any other exception fails the test
            assert all(isinstance(f, Frame) for f in read_frames(path))


def test_filters_of_warnings_are_restored_after_reading_in_threads(tmp_path, rng):
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    before = list(warnings.filters)

    def work():
        for _ in range(40):
            list(read_frames(path))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
    assert remarks._users == 0


def test_remarks_of_a_decoder_are_kept_by_kind_with_their_files(tmp_path, recwarn):
    remarks.taken()

    def odd(value):
        source = "/site-packages/pydicom/valuerep.py"
        said = f"Invalid value {value!r} of 1.{value}"
        warnings.warn_explicit(said, UserWarning, source, 1, module="pydicom.valuerep")

    for i in range(3):
        with remarks.collected(tmp_path / str(i)):
            odd(str(i))
            odd(str(i + 1))
            warnings.warn("ours", stacklevel=1)
    assert [str(w.message) for w in recwarn] == ["ours"] * len(recwarn)
    (found,) = remarks.taken()
    assert str(found) == (
        f"pydicom: Invalid value '0' of 1.0 (in 3 files, for instance {tmp_path / '0'})"
    )
    assert not remarks.taken()
