"""Recognise a file's format by its bytes, and read it; the file's name decides nothing.

Whatever goes wrong with one file becomes an `UnreadableImageError` with the reason, since parsers
of damaged bytes raise almost any exception and one bad file must not end a run over many.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from normalis.errors import DataError, SettingsError, UnreadableImageError
from normalis.errors.arguments import path_of
from normalis.images.frame import Frame, Probe
from normalis.images.remarks import collected
from normalis.shelf import Shelf

__all__ = ["FORMATS", "PLANES", "check_slicing", "describe", "probe", "read_frames", "recognise"]

FORMATS = Shelf(
    "format",
    {
        "PNG": "normalis.images.raster",
        "JPEG": "normalis.images.raster",
        "TIFF": "normalis.images.raster",
        "DICOM": "normalis.images.dicom",
        "NIfTI": "normalis.images.nifti",
    },
)
"""Format -> module with ``read`` and ``probe``."""

PLANES = ("axial", "coronal", "sagittal")

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", "a NumPy array; give the array file itself as the data set"),
    (b"PK\x03\x04", "a zip archive or an .npz; give an .npz itself as the data set, unpack others"),
    (b"GIF8", "a GIF; save it as PNG"),
    (b"BM", "a BMP; save it as PNG"),
    (b"\x89HDF", "an HDF5 file; save its arrays as .npy or .npz"),
    (b"NRRD", "an NRRD; save it as NIfTI (.nii.gz)"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 outside a DICOM; save it as PNG"),
    (b"%PDF", "a PDF"),
    (b"CDF\x01", "a MINC (netCDF) file; save it as NIfTI (.nii.gz)"),
    (b"ObjectType", "the header of a MetaImage; save it as NIfTI (.nii.gz)"),
    (b"NDims", "the header of a MetaImage; save it as NIfTI (.nii.gz)"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream; save it as PNG"),
    (b"8BPS", "a Photoshop file; save it as PNG"),
    (b"P5", "a PGM; save it as PNG"),
    (b"P6", "a PPM; save it as PNG"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself: git lfs pull"),
    (b"<!DOCTYPE html", "a web page, perhaps of a download that failed"),
    (b"<html", "a web page, perhaps of a download that failed"),
    (b"<?xml", "an XML file"),
    (b"<svg", "an SVG; save it as PNG"),
    (b"SIMPLE  =", "a FITS; save it as TIFF or NIfTI"),
    (b"v/1\x01", "an OpenEXR; save it as TIFF"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"BZh", "a bzip2 archive; unpack it"),
    (b"\xfd7zXZ", "an xz archive; unpack it"),
)
_MGH = b"\x00\x00\x00\x01"  # FreeSurfer's version 1, big-endian
_ANALYZE = (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c")  # the header's own size, 348
_HEAD = 540 + 12  # bytes that decide: DICOM's magic at 128, NIfTI-1's at 344, NIfTI-2's at 4


def read_frames(
    path: str | Path,
    *,
    plane: str = "axial",
    slice_range: tuple[float, float] = (0.0, 1.0),
    voi: bool = True,
    grey: bool = False,
) -> Iterator[Frame]:
    """Yield every image of a file: one, or the pages, frames or slices that it holds.

    Args:
        path: the file.
        plane: of a NIfTI volume's slices: ``axial``, ``coronal`` or ``sagittal``.
        slice_range: relative positions in [0, 1] between which a NIfTI volume's slices are read;
            a slice's position is that of its centre, (k + 0.5) / count.
        voi: whether a DICOM's window or VOI LUT is applied. False gives modality units (HU in
            a CT), which is what a window of the user's own is stated in.
        grey: whether 8-bit PNG, JPEG and TIFF come out as luma, with the values that `fit_pixels`
            would make of their colours. It saves a third of the time.

    Raises:
        UnreadableImageError: with the reason, possibly after some frames.
        SettingsError: if plane or slice_range is out of range.
    """
    check_slicing(plane, slice_range)
    path = path_of("an image", path, DataError)
    with _reasons(path), path.open("rb") as stream:
        module = FORMATS.load(recognise(stream, path))
        options = {"plane": plane, "slice_range": slice_range, "voi": voi, "grey": grey}
        frames = module.read(stream, path, **options)
        while True:
            with collected(path):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame


def probe(path: str | Path) -> Probe:
    """Say what a file holds from its header, without decoding its pixels.

    Raises:
        UnreadableImageError: with the reason. A file that can be probed may still turn out to be
            truncated when it is read.
    """
    path = Path(path)
    with _reasons(path), path.open("rb") as stream:
        module = FORMATS.load(recognise(stream, path))
        with collected(path):  # imports first: a library's own loggers come with it
            found: Probe = module.probe(stream, path)
        return found


def check_slicing(plane: str, slice_range: tuple[float, float]) -> None:
    """Refuse an unknown plane or an empty range."""
    if not isinstance(plane, str) or plane not in PLANES:
        raise SettingsError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
    try:
        low, high = slice_range
        fits = bool(0 <= low < high <= 1)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise SettingsError(f"slice_range must be 0 <= low < high <= 1, got {slice_range!r}")


def recognise(stream: BinaryIO, path: Path) -> str:
    """Name the format by the first bytes and rewind.

    Raises:
        UnreadableImageError: if the bytes are of no format that is read.
    """
    head = stream.read(_HEAD)
    stream.seek(0)
    if not head:
        raise UnreadableImageError(path, "the file is empty (0 bytes)")
    if head[128:132] == b"DICM":  # first, for the 128 bytes before it may hold a TIFF's header
        return "DICOM"
    for magic, name in _SIGNATURES:
        if head.startswith(magic):
            return name
    volume = _gunzip_head(head, stream) if head.startswith(b"\x1f\x8b") else head
    if _is_nifti(volume):
        return "NIfTI"
    if _is_bare_dicom(head):
        return "DICOM"
    raise UnreadableImageError(path, _why_foreign(path, head, volume))


def _gunzip_head(head: bytes, stream: BinaryIO) -> bytes:
    try:
        return gzip.GzipFile(fileobj=stream).read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return head
    finally:
        stream.seek(0)


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00")


def _is_bare_dicom(head: bytes) -> bool:
    """Whether a data set starts at once, without preamble: group 2 or 8, a sane first element."""
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3] != 0:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") < 256


def _why_foreign(path: Path, head: bytes, volume: bytes) -> str:
    for magic, what in (*_FOREIGN, *_containers(head)):
        if head.startswith(magic):
            return f"not PNG, JPEG, TIFF, DICOM or NIfTI, but {what}"
    if volume.startswith(_MGH):
        return "a FreeSurfer volume (MGH, MGZ); convert it: mri_convert IN.mgz OUT.nii.gz"
    if volume.startswith(_ANALYZE):
        return "the header of an Analyze 7.5 pair (.hdr and .img); convert it to one .nii file"
    if path.name.lower().removesuffix(".gz").endswith(".img"):
        return (
            "probably the voxels of an Analyze or NIfTI pair (.hdr and .img), without the header "
            "that says what they are; convert the pair to one .nii file"
        )
    if volume is not head:
        return f"gzip-compressed, but not a NIfTI volume: it begins with {volume[:8]!r}; unpack it"
    return f"not PNG, JPEG, TIFF, DICOM or NIfTI: its first bytes are {head[:8]!r}"


def _containers(head: bytes) -> Iterator[tuple[bytes, str]]:
    """Yield what a RIFF or an ISO media file holds, which stands some bytes after its start."""
    if head.startswith(b"RIFF"):
        yield b"RIFF", "a WebP; save it as PNG" if head[8:12] == b"WEBP" else "a film or sound"
    if head[4:8] == b"ftyp":
        is_photo = head[8:12] in (b"heic", b"heix", b"mif1", b"avif")
        yield head[:8], "a HEIC or AVIF; save it as PNG" if is_photo else "a film; save its frames"


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Turn any exception of reading into one reason that a person can act on."""
    try:
        yield
    except (UnreadableImageError, SettingsError):
        raise
    except Exception as error:
        raise UnreadableImageError(path, describe(error)) from error
    except BaseException as error:
        # pylibjpeg-rle is written in Rust, whose panic arrives as a BaseException of its own
        if type(error).__name__ != "PanicException":
            raise
        raise UnreadableImageError(path, describe(error)) from error


def describe(error: BaseException) -> str:
    """Return an exception in words that say what to do, where that is known."""
    said = " ".join(str(error).split())
    match error:
        case FileNotFoundError():
            return "the file is not there (removed or renamed since it was listed?)"
        case PermissionError():
            return "permission to read the file is denied"
        case IsADirectoryError():
            return "a folder, where a file was expected"
        case MemoryError():
            return "not enough memory to decode it"
        case EOFError() | zlib.error() | gzip.BadGzipFile():
            return f"truncated or damaged: {said or 'the file ends too early'}"
    kind = type(error).__name__
    return f"cannot be decoded, damaged or of an unusual kind ({kind}): {said or 'no more is said'}"
