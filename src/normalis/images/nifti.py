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
from normalis.images.raster import check_finite

__all__ = ["probe", "read", "restore_slices", "save_map_volume"]

_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])
MAX_VOXELS = 2**31  # 8 GiB in float32; a gzip of a few megabytes can claim far more


def read(
    stream: BinaryIO,
    path: Path,
    *,
    plane: str = "axial",
    slice_range: tuple[float, float] = (0.0, 1.0),
    **_: Any,
) -> Iterator[Frame]:
    """Yield the slices of a volume as ``uint8`` (8-bit files) or ``float32``."""
    image = _open(stream, path)
    shape = _volume_shape(image, path)
    header = _header(image, path, shape, plane)
    axis = _AXIS[plane]
    raw = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape)
    slices = np.moveaxis(apply_orientation(raw, io_orientation(image.affine)), axis, 0)
    count = len(slices)
    chosen = _chosen(count, slice_range, path)
    header["slice_indices"] = chosen
    for index in chosen:
        values = _lay_out(slices[index])
        pixels = _to_pixels(values, image.dataobj.slope, image.dataobj.inter)
        if pixels.dtype == np.float32:
            check_finite(pixels, path, where=f" in {plane} slice {index}")
        position = {"slice_position": (index + 0.5) / count}
        yield Frame(pixels=pixels, path=path, slice_index=index, header=header | position)


def probe(stream: BinaryIO, path: Path) -> Probe:
    """Say what the header says, for axial slices."""
    image = _open(stream, path)
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
            read (``header["slice_indices"]``), in order.
        fill: value of slices that are not given.

    Returns:
        An array of the shape ``header["volume_shape"]`` and the dtype of maps.

    Raises:
        DataError: if the maps do not fit the volume.
    """
    affine = np.asarray(header["affine"], dtype=float)
    axis = _AXIS[header["plane"]]
    shape = _canonical_shape(header["volume_shape"], affine)
    read_slices = header.get("slice_indices", range(shape[axis]))
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


def _open(stream: BinaryIO, path: Path) -> Any:
    """Make a nibabel image from a stream, so that the file's name plays no role."""
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
    return kind.from_stream(source)


def _volume_shape(image: Any, path: Path) -> tuple[int, int, int]:
    """Return the three lengths, or refuse what is not one volume."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        sizes = " x ".join(map(str, shape))
        raise UnreadableImageError(
            path,
            f"{len(shape)}D ({sizes}): which of its {int(np.prod(shape[3:]))} volumes is meant "
            "is not known; save the one that is as a 3D file",
        )
    if min(shape) < 1 or np.prod(shape, dtype=float) > MAX_VOXELS:
        raise UnreadableImageError(path, f"its header claims {shape} voxels, which is not sane")
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
