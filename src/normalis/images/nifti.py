"""NIfTI volumes through nibabel, slice by slice, and the way back.

A volume is turned to the closest canonical orientation (RAS+: x to the patient's right, y to
anterior, z to superior) without resampling, and each slice is laid out as radiologists look at
it: anterior (axial) or superior (coronal, sagittal) on top; the patient's right on the viewer's
left (axial, coronal), anterior on the viewer's left (sagittal). Slices are numbered along the
canonical axis: inferior to superior, posterior to anterior, left to right.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from normalis.errors import DataError, UnreadableImageError
from normalis.images.frame import Frame, Probe
from normalis.images.limits import MAX_INFLATED, MAX_STREAMED, check_images, check_values
from normalis.images.raster import check_finite

__all__ = ["probe", "read", "restore_slices", "save_map_volume"]

_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])
_SLOWEST = 2  # NIfTI's first axis runs fastest


def read(
    stream: BinaryIO,
    path: Path,
    *,
    plane: str = "axial",
    slice_range: tuple[float, float] = (0.0, 1.0),
    **_: Any,
) -> Iterator[Frame]:
    """Yield the slices of a volume as ``uint8`` (8-bit files) or ``float32``."""
    image, source = _open(stream, path)
    shape = _volume_shape(image, path)
    header = _header(image, path, shape, plane)
    count = _canonical_shape(shape, image.affine)[_AXIS[plane]]
    chosen = _chosen(count, slice_range, path)
    check_images(path, len(chosen), what="slices")
    header["slices_read"] = (chosen[0], chosen[-1] + 1)
    header["units"] = "8 bit" if _is_8_bit(image) else "own"
    slices = _slices(image, source, path, shape, axis=_AXIS[plane], chosen=chosen)
    for index, values in zip(chosen, slices, strict=True):
        pixels = _to_pixels(_lay_out(values), image.dataobj.slope, image.dataobj.inter)
        if pixels.dtype == np.float32:
            check_finite(pixels, path, where=f" in {plane} slice {index}")
        position = {"slice_position": (index + 0.5) / count}
        yield Frame(pixels=pixels, path=path, slice_index=index, header=header | position)


def _is_8_bit(image: Any) -> bool:
    if image.get_data_dtype().names:
        return True
    plain = image.dataobj.slope == 1 and image.dataobj.inter == 0
    return bool(image.get_data_dtype() == np.uint8 and plain)


def _slices(
    image: Any,
    source: Any,
    path: Path,
    shape: tuple[int, int, int],
    *,
    axis: int,
    chosen: Sequence[int],
) -> Iterator[NDArray[Any]]:
    """Yield slices along a canonical axis, holding no more of the volume than must be.

    An uncompressed volume is mapped into memory. Of a compressed one the slices along the axis
    that runs slowest in the file are read one after the other; otherwise it is held whole.
    """
    turn = io_orientation(image.affine)
    stored = [int(a) for a in turn[:, 0]].index(axis)
    flipped = turn[stored, 1] < 0
    dtype = image.get_data_dtype()
    size = dtype.itemsize * shape[0] * shape[1] * shape[2]
    packed = isinstance(source, gzip.GzipFile)
    streamed = packed and stored == _SLOWEST and not flipped
    _check_bytes(path, size, MAX_STREAMED if streamed else MAX_INFLATED, packed=packed)
    at = _offset(image, path)
    if streamed:
        yield from _streamed(source, at, dtype, shape, turn, axis, chosen)
        return
    if packed:
        source.seek(at)
        flat = _fill(source, np.empty(shape[0] * shape[1] * shape[2], dtype))
    else:
        flat = _mapped(source, at, dtype, shape)
    along = np.moveaxis(apply_orientation(flat.reshape(shape, order="F"), turn), axis, 0)
    yield from (along[k] for k in chosen)


def _check_bytes(path: Path, size: int, limit: int, *, packed: bool) -> None:
    if packed and size > limit:
        raise UnreadableImageError(
            path,
            f"its header claims {size >> 20:,} MiB of voxels, beyond the limit of {limit >> 20:,} "
            "MiB for a compressed volume; unpack it to .nii, or save it as 16-bit integers",
        )


def _offset(image: Any, path: Path) -> int:
    """Return where the voxels begin; 0 means at once after the header, as some writers leave it."""
    stated, least = float(image.header["vox_offset"]), int(image.header.sizeof_hdr) + 4
    if stated == 0:
        return least
    if not (np.isfinite(stated) and stated >= least):
        raise UnreadableImageError(
            path, f"its header says that voxels begin at byte {stated:g}, within the header itself"
        )
    return int(stated)


def _streamed(
    source: Any,
    at: int,
    dtype: np.dtype[Any],
    shape: tuple[int, int, int],
    turn: NDArray[Any],
    axis: int,
    chosen: Sequence[int],
) -> Iterator[NDArray[Any]]:
    values = shape[0] * shape[1]
    for index in chosen:
        source.seek(at + index * values * dtype.itemsize)
        one = _fill(source, np.empty(values, dtype)).reshape((*shape[:2], 1), order="F")
        yield np.moveaxis(apply_orientation(one, turn), axis, 0)[0]


def _fill(source: Any, out: NDArray[Any]) -> NDArray[Any]:
    """Read into an array, piece by piece."""
    view = out.view(np.uint8).data
    done = 0
    while done < len(view):
        got = source.readinto(view[done : done + 2**22])
        if not got:
            raise EOFError(f"{done} bytes of voxels, where the header claims {len(view)}")
        done += got
    return out


def _mapped(
    source: Any, at: int, dtype: np.dtype[Any], shape: tuple[int, int, int]
) -> NDArray[Any]:
    count = shape[0] * shape[1] * shape[2]
    held = source.seek(0, 2) - at
    if held < count * dtype.itemsize:
        raise EOFError(
            f"{max(held, 0)} bytes of voxels, where the header claims {count * dtype.itemsize}"
        )
    return np.memmap(source, dtype, "r", at, (count,))


def probe(stream: BinaryIO, path: Path) -> Probe:
    """Say what the header says, for axial slices."""
    image, _ = _open(stream, path)
    header = _header(image, path, _volume_shape(image, path), "axial")
    width, height, depth = _canonical_shape(header["volume_shape"], image.affine)
    return Probe(
        path=path,
        format="NIfTI",
        bits=header["bits"],
        channels=3 if image.get_data_dtype().names else 1,
        height=height,
        width=width,
        frames=depth,
        header=header,
    )


def restore_slices(
    maps: NDArray[Any],
    header: Mapping[str, Any],
    *,
    slices: Sequence[int] | None = None,
    fill: float = 0.0,
) -> NDArray[Any]:
    """Put maps of slices back into a volume in the source's own orientation.

    The inverse of reading: with the source's affine (``header["affine"]``) the volume overlays
    the source voxel by voxel.

    Args:
        maps: (S, H, W) at the slices' own height and width.
        header: of any frame of the volume.
        slices: (S,) the frames' ``slice_index``; None if the maps are of all slices that were
            read (``header["slices_read"]``, first and stop), in order.
        fill: value of slices that are not given.

    Returns:
        An array of the shape ``header["volume_shape"]`` and the dtype of maps.

    Raises:
        DataError: if the maps do not fit the volume.
    """
    affine = np.asarray(header["affine"], dtype=float)
    axis = _AXIS[header["plane"]]
    shape = _canonical_shape(header["volume_shape"], affine)
    read_slices = range(*header.get("slices_read", (shape[axis],)))
    indices = read_slices if slices is None else slices
    rows = [n for a, n in enumerate(shape) if a != axis][::-1]
    if maps.shape != (len(indices), *rows) or any(not 0 <= i < shape[axis] for i in indices):
        raise DataError(
            f"maps must be {(len(indices), *rows)} for {header['plane']} slices of a volume of "
            f"canonical shape {shape}, got {maps.shape}"
        )
    volume = np.full(shape, fill, dtype=maps.dtype)
    along = np.moveaxis(volume, axis, 0)  # a view: writing fills the volume
    for index, one in zip(indices, maps, strict=True):
        along[index] = one.T[::-1, ::-1]
    back = ornt_transform(_CANONICAL, io_orientation(affine))
    return np.ascontiguousarray(apply_orientation(volume, back))


def save_map_volume(
    path: str | Path,
    maps: NDArray[Any],
    header: Mapping[str, Any],
    *,
    slices: Sequence[int] | None = None,
) -> None:
    """Write maps of slices as one gzip-compressed NIfTI with the source's shape and affine.

    Args:
        path: of the file to write; its content is the same for the same maps.
        maps: (S, H, W) at the slices' own height and width, written as float32.
        header: of any frame of the volume.
        slices: as in `restore_slices`; slices without a map are 0.
    """
    volume = restore_slices(maps.astype(np.float32), header, slices=slices)
    image = nib.Nifti1Image(volume, np.asarray(header["affine"], dtype=float))
    image.header.set_xyzt_units("mm")
    Path(path).write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _open(stream: BinaryIO, path: Path) -> tuple[Any, Any]:
    """Make a nibabel image from a stream, so that the file's name plays no role.

    Returns:
        The image, whose voxels are not read, and the stream that they are to be read from.
    """
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    source: Any = gzip.GzipFile(fileobj=stream) if zipped else stream
    head = source.read(348)
    source.seek(0)
    if b"ni1\x00" in head or b"ni2\x00" in head[:8]:
        raise UnreadableImageError(
            path, "the header of a two-file NIfTI (.hdr and .img); convert it to one .nii file"
        )
    kind = nib.Nifti2Image if head[4:7] == b"n+2" else nib.Nifti1Image
    return kind.from_stream(source), source


def _volume_shape(image: Any, path: Path) -> tuple[int, int, int]:
    """Return the three lengths, or refuse what is not one volume."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if not shape or 0 in shape:
        raise UnreadableImageError(path, f"its header claims {shape} voxels: no axis has a length")
    if len(shape) < 3:
        raise UnreadableImageError(
            path, f"its header has {len(shape)} axes ({shape}), where a volume has three; damaged"
        )
    if len(shape) != 3:
        sizes = " x ".join(map(str, shape))
        raise UnreadableImageError(
            path,
            f"{len(shape)}D ({sizes}): which of its {int(np.prod(shape[3:]))} volumes is meant "
            "is not known; save the one that is as a 3D file",
        )
    if min(shape) < 1 or max(shape) > 2**20:
        raise UnreadableImageError(path, f"its header claims {shape} voxels, which is not sane")
    for axis in range(3):
        check_values(path, *(n for a, n in enumerate(shape) if a != axis))
    if image.get_data_dtype().kind == "c":
        raise UnreadableImageError(path, "complex values; save their magnitude")
    return shape[0], shape[1], shape[2]


def _canonical_shape(shape: Sequence[int], affine: NDArray[Any]) -> tuple[int, int, int]:
    target = io_orientation(affine)[:, 0].astype(int)
    lengths = [0, 0, 0]
    for source, canonical in enumerate(target):
        lengths[canonical] = int(shape[source])
    return lengths[0], lengths[1], lengths[2]


def _header(image: Any, path: Path, shape: tuple[int, int, int], plane: str) -> dict[str, Any]:
    affine = np.asarray(image.affine, dtype=float)
    orientation = io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        raise UnreadableImageError(path, "its affine is singular, so its orientation is unknown")
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    mm = [float(sizes[int(np.flatnonzero(orientation[:, 0] == a)[0])]) for a in range(3)]
    along = mm.pop(_AXIS[plane])
    return {
        "format": "NIfTI",
        "bits": 8 if image.get_data_dtype().names else image.get_data_dtype().itemsize * 8,
        "plane": plane,
        "spacing_mm": (mm[1], mm[0]),
        "slice_spacing_mm": along,
        "volume_shape": shape,
        "affine": tuple(tuple(float(v) for v in row) for row in affine),
        "orientation": "".join(str(c) for c in nib.aff2axcodes(affine)),
    }


def _chosen(count: int, slice_range: tuple[float, float], path: Path) -> tuple[int, ...]:
    low, high = slice_range
    chosen = tuple(k for k in range(count) if low <= (k + 0.5) / count <= high)
    if not chosen:
        raise UnreadableImageError(path, f"none of its {count} slices lies in {low}..{high}")
    return chosen


def _lay_out(values: NDArray[Any]) -> NDArray[Any]:
    """Turn (first, second) canonical axes into rows from the top and columns from the left."""
    return values[::-1, ::-1].T


def _to_pixels(values: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    if values.dtype.names:  # RGB24 and RGBA32 are records of bytes
        return np.stack([values[c] for c in ("R", "G", "B")])
    if values.dtype == np.uint8 and slope == 1 and inter == 0:
        return np.ascontiguousarray(values)[None]
    with np.errstate(over="ignore"):
        scaled = values.astype(np.float64) * slope + inter
        return scaled.astype(np.float32)[None]
