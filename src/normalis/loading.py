"""Samples become arrays ready for a model: decode, resize, intensity rule, cache, skip list.

Every file is read once, by several threads (Pillow and the codecs release Python's lock while
they decode). A file that cannot be read is left out and reported with its reason; only when none
can be read is that an error.

What the numbers mean
    ``uint8`` images are 0..255 and that is [0, 1]. Anything deeper goes through one
    `IntensityRule`, fitted on training images and applied unchanged to all others. A DICOM's own
    window is used where *all* deep training images have one (the rule is then on windowed values,
    ``rule.voi``); where only some have one, none is used, since windowed and raw values cannot
    stand side by side; with ``settings.window`` it is not used either, for that window is stated
    in modality units (HU in a CT).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.base import Sample
from normalis.errors import DataError, SettingsError, UnreadableImageError
from normalis.images.arrays import as_images, as_numpy, first_not_finite, open_array, row_of
from normalis.images.cache import ArrayCache, cache_key, stamp
from normalis.images.fit import fit_pixels
from normalis.images.intensity import IntensityRule
from normalis.images.reader import check_slicing, read_frames

__all__ = [
    "ImageSettings",
    "Loaded",
    "Row",
    "from_array",
    "load",
    "load_masks",
    "stream",
    "to_unit",
]

Progress = Callable[[int, int], None]
Skipped = list[tuple[Path, str]]
_T = TypeVar("_T")
_R = TypeVar("_R")

_NO_RULE = (
    "deeper than 8 bit, while the model was fitted on 8-bit images only, so there is no rule "
    "for its intensities"
)
_NO_WINDOW = (
    "no window in its header, while all training images have one; fit with a window of your own"
)


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images become arrays.

    Attributes:
        image_size: edge of the square, a multiple of 16 from 16 to 1024.
        channels: 1 (grey) or 3 (colour).
        plane: of the slices of NIfTI volumes: ``axial``, ``coronal``, ``sagittal``.
        slice_range: relative positions between which a NIfTI volume's slices are read.
        window: (low, high) in native units that become 0 and 1, for images deeper than 8 bit;
            None takes percentiles of the training images.
        percentiles: which ones; the default leaves out single hot pixels.
    """

    image_size: int = 64
    channels: int = 1
    plane: str = "axial"
    slice_range: tuple[float, float] = (0.0, 1.0)
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)

    def __post_init__(self) -> None:
        if self.image_size % 16 or not 16 <= self.image_size <= 1024:
            raise SettingsError(
                f"image_size must be a multiple of 16 from 16 to 1024, got {self.image_size}"
            )
        if self.channels not in (1, 3):
            raise SettingsError(f"channels must be 1 (grey) or 3 (colour), got {self.channels}")
        check_slicing(self.plane, self.slice_range)
        window, percentiles = self.window, self.percentiles
        if window is not None and not (len(window) == 2 and window[0] < window[1]):
            raise SettingsError(f"window must be (low, high) with low < high, got {window}")
        if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise SettingsError(f"percentiles must be 0 <= low < high <= 100, got {percentiles}")

    def fixed_rule(self) -> IntensityRule | None:
        """Return the rule that a window of the user's own means, None without one."""
        if self.window is None:
            return None
        low, high = self.window
        return IntensityRule(low=low, high=high, source="window given by the user", voi=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """What is known of one loaded image: a file, or one frame or slice of it.

    Attributes:
        sample: the data set's entry.
        path: the file.
        slice_index: frame or slice in the file; None for a single image.
        patient_id: the data set's, else the header's.
        is_anomalous: None where nobody said.
        mask: file of the ground-truth region.
        kind: name of the anomaly.
        header: the file's header, with the data set's own columns over it.
        original_shape: (H, W) in the file.
    """

    sample: Sample
    path: Path
    slice_index: int | None
    patient_id: str | None
    is_anomalous: bool | None
    mask: Path | None
    kind: str | None
    header: Mapping[str, Any] = field(default_factory=dict)
    original_shape: tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Loaded:
    """Images ready for a model.

    Attributes:
        pixels: (N, C, S, S): ``uint8`` if every image is 8-bit, else ``float32`` with the nominal
            range [0, 1]; `to_unit` makes one of both.
        rows: N entries, in the order of the samples.
        skipped: (path, reason) of the files that could not be read.
        rule: the map of deeper values to [0, 1]; None where every image is 8-bit.
    """

    pixels: NDArray[Any]
    rows: list[Row]
    skipped: Skipped
    rule: IntensityRule | None


@dataclass(frozen=True, eq=False)
class _Image:
    """One decoded and resized image, still in native units."""

    pixels: NDArray[Any]
    slice_index: int | None
    original_shape: tuple[int, int]
    header: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _File:
    """What became of one sample: its images, or why there are none."""

    sample: Sample
    images: list[_Image]
    reason: str | None = None
    passing: bool = False  # the reason may be gone at the next try (no memory, no permission)


def load(
    samples: Sequence[Sample],
    settings: ImageSettings,
    *,
    rule: IntensityRule | None = None,
    fit_rule: bool = True,
    cache: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Loaded:
    """Read samples into one array.

    Args:
        samples: what to read.
        settings: size, channels, slices, intensities.
        rule: for images deeper than 8 bit; None fits one on *these* samples, which must then be
            the normal training images.
        fit_rule: False refuses to fit: without a rule deeper images are skipped. For scoring.
        cache: keep the decoded images in the user's cache folder and look there first.
        progress: called as ``progress(done, total)``, in samples.
        workers: threads; None means one per core.

    Raises:
        DataError: if there is no sample, or none of them is readable.
    """
    if not samples:
        raise DataError("there must be at least one image to load, got an empty list")
    rule = rule or settings.fixed_rule()
    store = ArrayCache() if cache else None

    def decode(voi: bool) -> list[_File]:
        return _decode_all(samples, settings, voi, store, progress, workers)

    files = decode(rule is None or rule.voi)
    if rule is None and fit_rule:
        deep = [i for f in files for i in f.images if i.pixels.dtype != np.uint8]
        windowed = [_is_windowed(i) for i in deep]
        if any(windowed) and not all(windowed):
            files = decode(False)
            deep = [i for f in files for i in f.images if i.pixels.dtype != np.uint8]
        rule = _fit_rule(deep, settings, voi=bool(windowed) and all(windowed))
    placed = [_place(f, rule) for f in files]
    _require_one(placed)
    return _assemble(placed, settings, rule)


def stream(
    samples: Sequence[Sample],
    settings: ImageSettings,
    *,
    rule: IntensityRule | None,
    batch_size: int = 64,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Iterator[Loaded]:
    """Yield batches in the samples' order, in constant memory, while workers read ahead.

    The images of one file are never divided between batches, so that a batch exceeds batch_size
    where a volume does. No batch is empty: files skipped at the end are reported by the last one.

    Args:
        samples: what to read.
        settings: as in `load`.
        rule: the fitted one; None if the model was fitted on 8-bit images.
        batch_size: images, at least.
        progress: called as ``progress(done, total)``, in samples.
        workers: threads; None means one per core.

    Raises:
        DataError: if no sample is readable.
    """
    if not samples:
        raise DataError("there must be at least one image to load, got an empty list")
    rule = rule or settings.fixed_rule()
    waiting: list[_File] = []
    count = 0
    first_skipped: list[_File] = []
    any_read = False
    decoded = _decode(samples, settings, rule is None or rule.voi, workers)
    for done, file in enumerate(decoded, 1):
        placed = _place(file, rule)
        if placed.images and count >= batch_size:
            yield _assemble(waiting, settings, rule)
            waiting, count = [], 0
        waiting.append(placed)
        count += len(placed.images)
        any_read = any_read or bool(placed.images)
        if not any_read and len(first_skipped) < 3:
            first_skipped.append(placed)
        if progress is not None:
            progress(done, len(samples))
    if not any_read:
        _require_one(first_skipped, total=len(samples))
    yield _assemble(waiting, settings, rule)


def from_array(
    x: Any,
    settings: ImageSettings | None = None,
    *,
    rule: IntensityRule | None = None,
    fit_rule: bool = True,
) -> Loaded:
    """Take images from memory.

    ``uint8`` is 0..255. Any other number is in the caller's own units: with a rule, by the rule;
    without one, floats that all lie within [0, 1] are taken as they are, and others get a rule
    fitted on them, as the images of files do.

    Args:
        x: (N, H, W) or (N, C, H, W), a NumPy array or a torch tensor on any device.
        settings: size and channels; images of another size are resized.
        rule: the fitted one, when scoring.
        fit_rule: False refuses to fit one. For scoring.

    Raises:
        DataError: if the shape or dtype is not usable, a value is NaN or infinite, or the values
            need a rule and there is none.
    """
    settings = settings or ImageSettings()
    images = as_images(as_numpy(x))
    if (bad := first_not_finite(images)) is not None:
        raise DataError(f"images must be finite, but image {bad} holds NaN or infinity")
    shape = (int(images.shape[2]), int(images.shape[3]))
    fitted = _fit_many(images, settings)
    rule = rule or settings.fixed_rule()
    if fitted.dtype == np.uint8:
        pixels: NDArray[Any] = fitted
    else:
        if rule is None:
            rule = _rule_of_array(images, fitted, settings, fit_rule=fit_rule)
        pixels = rule.apply(fitted)
    rows = [_array_row(index, shape, str(images.dtype)) for index in range(len(pixels))]
    return Loaded(pixels=pixels, rows=rows, skipped=[], rule=rule)


def to_unit(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return pixels of `Loaded` as float32 with the nominal range [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return np.asarray(pixels, dtype=np.float32)


def load_masks(rows: Sequence[Row], *, image_size: int) -> NDArray[np.bool_]:
    """Read the ground-truth region of each row.

    Masks are resized by nearest neighbour, as in the authors' code; any value above 0 is inside
    (in a JPEG, whose compression smears: above 127). A row without a mask has an empty one.

    Args:
        rows: of `Loaded`.
        image_size: S.

    Returns:
        (N, S, S).

    Raises:
        DataError: if a mask cannot be read: metrics with a silently empty mask would be wrong.
    """
    masks = np.zeros((len(rows), image_size, image_size), dtype=bool)
    by_file: dict[Path, list[int]] = {}
    for number, row in enumerate(rows):
        if row.mask is not None:
            by_file.setdefault(row.mask, []).append(number)

    def read(path: Path) -> None:
        wanted = by_file[path]
        for number, mask in zip(wanted, _read_masks(path, [rows[n] for n in wanted]), strict=True):
            masks[number] = _fit_mask(mask, image_size)

    for _ in _ahead(read, by_file, None):
        pass
    return masks


# --- decoding -----------------------------------------------------------------------------------


def _decode_all(
    samples: Sequence[Sample],
    settings: ImageSettings,
    voi: bool,
    store: ArrayCache | None,
    progress: Progress | None,
    workers: int | None,
) -> list[_File]:
    """Decode samples, or take them from the cache."""
    stamps = _stamps(samples) if store is not None else None
    key = None if stamps is None else _key(samples, settings, voi, stamps)
    if store is not None and key is not None and (entry := store.get(key)) is not None:
        if progress is not None:
            progress(len(samples), len(samples))
        return _unpack(entry, samples)
    files = []
    for done, file in enumerate(_decode(samples, settings, voi, workers), 1):
        files.append(file)
        if progress is not None:
            progress(done, len(samples))
    unchanged = key is not None and stamps == _stamps(samples)
    if store is not None and key is not None and unchanged and not any(f.passing for f in files):
        store.put(key, _pack(files))
    return files


def _decode(
    samples: Sequence[Sample], settings: ImageSettings, voi: bool, workers: int | None
) -> Iterator[_File]:
    arrays = _OpenArrays()
    return _ahead(lambda sample: _read(sample, settings, voi, arrays), samples, workers)


def _ahead(function: Callable[[_T], _R], items: Iterable[_T], workers: int | None) -> Iterator[_R]:
    """Map in threads, in order, at most a few items ahead of the consumer."""
    workers = workers or _cores()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="normalis-read")
    waiting: deque[Future[_R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 16 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    available = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return min(16, len(available(0)) if available else os.cpu_count() or 1)


class _OpenArrays:
    """Array files, each opened once however many of its rows are read."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, str | None], NDArray[Any]] = {}
        self._lock = Lock()

    def __call__(self, path: Path, name: str | None) -> NDArray[Any]:
        with self._lock:
            if (path, name) not in self._open:
                self._open[path, name] = open_array(path, name)
            return self._open[path, name]


def _read(sample: Sample, settings: ImageSettings, voi: bool, arrays: _OpenArrays) -> _File:
    try:
        return _File(sample, list(_images(sample, settings, voi, arrays)))
    except UnreadableImageError as error:
        cause = error.__cause__
        passing = isinstance(cause, MemoryError) or (
            getattr(cause, "errno", None) is not None and not isinstance(cause, FileNotFoundError)
        )
        return _File(sample, [], error.reason, passing)


def _images(
    sample: Sample, settings: ImageSettings, voi: bool, arrays: _OpenArrays
) -> Iterator[_Image]:
    size, channels = settings.image_size, settings.channels
    if sample.index is not None:
        opened = arrays(sample.path, sample.array)
        pixels = row_of(opened, sample.index, sample.path)
        fitted = fit_pixels(pixels, image_size=size, channels=channels)
        header = {"format": "array", "bits": 8 * opened.itemsize, "dtype": str(opened.dtype)}
        yield _Image(fitted, None, (pixels.shape[1], pixels.shape[2]), header)
        return
    frames = read_frames(
        sample.path, plane=settings.plane, slice_range=settings.slice_range, voi=voi
    )
    for frame in frames:
        fitted = fit_pixels(frame.pixels, image_size=size, channels=channels)
        shape = (frame.pixels.shape[1], frame.pixels.shape[2])
        yield _Image(fitted, frame.slice_index, shape, frame.header)


# --- intensities --------------------------------------------------------------------------------


def _is_windowed(image: _Image) -> bool:
    return "window" in image.header or "voi_lut" in image.header


def _fit_rule(
    deep: Sequence[_Image], settings: ImageSettings, *, voi: bool
) -> IntensityRule | None:
    if not deep:
        return None
    values = np.stack([i.pixels for i in deep])
    floats = all(str(i.header.get("dtype", "")).startswith("float") for i in deep)
    if floats and values.min() >= 0 and values.max() <= 1:
        return _as_it_is()
    return IntensityRule.from_pixels(values, percentiles=settings.percentiles, voi=voi)


def _as_it_is() -> IntensityRule:
    return IntensityRule(low=0.0, high=1.0, source="float array within [0, 1]", voi=False)


def _rule_of_array(
    images: NDArray[Any], fitted: NDArray[Any], settings: ImageSettings, *, fit_rule: bool
) -> IntensityRule:
    if images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1:
        return _as_it_is()
    if not fit_rule:
        raise DataError(
            f"images must be uint8, or floats within [0, 1], for a model that was fitted on 8-bit "
            f"images; got {images.dtype} from {images.min():g} to {images.max():g}"
        )
    return IntensityRule.from_pixels(fitted, percentiles=settings.percentiles, voi=False)


def _place(file: _File, rule: IntensityRule | None) -> _File:
    """Leave out a file whose intensities the rule cannot place."""
    for image in file.images:
        if image.pixels.dtype == np.uint8:
            continue
        if rule is None:
            return _File(file.sample, [], _NO_RULE)
        if rule.voi and not _is_windowed(image) and image.header.get("format") == "DICOM":
            return _File(file.sample, [], _NO_WINDOW)
    return file


def _assemble(
    files: Sequence[_File], settings: ImageSettings, rule: IntensityRule | None
) -> Loaded:
    images = [(file.sample, image) for file in files for image in file.images]
    pixels = _combine([i.pixels for _, i in images], settings, rule)
    return Loaded(
        pixels=pixels,
        rows=[_row(sample, image) for sample, image in images],
        skipped=[(f.sample.path, f.reason) for f in files if f.reason is not None],
        rule=rule,
    )


def _combine(
    pixels: Sequence[NDArray[Any]], settings: ImageSettings, rule: IntensityRule | None
) -> NDArray[Any]:
    shape = (len(pixels), settings.channels, settings.image_size, settings.image_size)
    if all(p.dtype == np.uint8 for p in pixels):
        return np.stack(pixels) if pixels else np.empty(shape, np.uint8)
    out = np.empty(shape, np.float32)
    for number, one in enumerate(pixels):
        if one.dtype == np.uint8:
            out[number] = to_unit(one)
        elif rule is not None:  # _place saw to it
            out[number] = rule.apply(one)
    return out


def _row(sample: Sample, image: _Image) -> Row:
    header = {**image.header, **sample.header}
    patient = sample.patient_id or image.header.get("patient_id")
    return Row(
        sample=sample,
        path=sample.path,
        slice_index=image.slice_index,
        patient_id=None if patient is None else str(patient),
        is_anomalous=sample.is_anomalous,
        mask=sample.mask,
        kind=sample.kind,
        header=header,
        original_shape=image.original_shape,
    )


def _array_row(index: int, shape: tuple[int, int], dtype: str) -> Row:
    path = Path("array")
    sample = Sample(path=path, split="test", index=index)
    image = _Image(np.empty(0), None, shape, {"format": "array", "dtype": dtype})
    return _row(sample, image)


def _fit_many(images: NDArray[Any], settings: ImageSettings) -> NDArray[Any]:
    target = (settings.channels, settings.image_size, settings.image_size)
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
    if images.shape[1:] == target:
        return images
    return np.stack([fit_pixels(i, image_size=target[1], channels=target[0]) for i in images])


def _require_one(files: Sequence[_File], *, total: int | None = None) -> None:
    if any(f.images for f in files):
        return
    reasons = "; ".join(f"{f.sample.path}: {f.reason}" for f in files[:3])
    raise DataError(f"none of the {total or len(files)} images is readable. {reasons}")


# --- the cache's entries ------------------------------------------------------------------------


def _stamps(samples: Sequence[Sample]) -> list[tuple[int, int, int]] | None:
    """Return a stamp per file; None if caching is not worth it (arrays) or not safe."""
    if any(s.index is not None for s in samples):
        return None
    stamps = [stamp(s.path) for s in samples]
    known = [s for s in stamps if s is not None]
    return known if len(known) == len(stamps) else None


def _key(
    samples: Sequence[Sample],
    settings: ImageSettings,
    voi: bool,
    stamps: Sequence[tuple[int, int, int]],
) -> str:
    what = {
        "image_size": settings.image_size,
        "channels": settings.channels,
        "plane": settings.plane,
        "slice_range": settings.slice_range,
        "voi": voi,
    }
    paths = [str(s.path.absolute()) for s in samples]
    return cache_key(what, zip(paths, stamps, strict=True))


def _pack(files: Sequence[_File]) -> dict[str, NDArray[Any]]:
    """Turn decoded files into arrays: 8-bit pixels, deeper ones, and the rest as JSON."""
    images = [i for f in files for i in f.images]
    notes = [
        {
            "reason": f.reason,
            "images": [
                [i.pixels.dtype == np.uint8, i.slice_index, i.original_shape, i.header]
                for i in f.images
            ],
        }
        for f in files
    ]
    packed = {"notes": np.frombuffer(json.dumps(notes).encode(), np.uint8)}
    for name, dtype in (("eight_bit", np.uint8), ("deep", np.float32)):
        chosen = [i.pixels for i in images if i.pixels.dtype == dtype]
        if chosen:
            packed[name] = np.stack(chosen)
    return packed


def _unpack(entry: Mapping[str, NDArray[Any]], samples: Sequence[Sample]) -> list[_File]:
    eight_bit, deep = iter(entry.get("eight_bit", ())), iter(entry.get("deep", ()))
    notes = json.loads(entry["notes"].tobytes())
    files = []
    for sample, note in zip(samples, notes, strict=True):
        images = [
            _Image(next(eight_bit if small else deep), index, (shape[0], shape[1]), _tuples(header))
            for small, index, shape, header in note["images"]
        ]
        files.append(_File(sample, images, note["reason"]))
    return files


def _tuples(value: Any) -> Any:
    """Undo JSON's turning of tuples into lists, so that a cached header equals a fresh one."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


# --- masks --------------------------------------------------------------------------------------


def _read_masks(path: Path, rows: Sequence[Row]) -> list[NDArray[np.bool_]]:
    """Read the masks of rows that share a mask file, (H, W) each."""
    indices = [r.sample.index for r in rows]
    if path.suffix.lower() in (".npz", ".npy") and None not in indices:
        name = f"{rows[0].sample.array or 'test'}_mask"
        masks = open_array(path, name)
        return [np.asarray(masks[i]).reshape(masks.shape[-2:]) > 0 for i in indices]
    wanted = {r.slice_index for r in rows}
    plane = str(rows[0].header.get("plane", "axial"))
    found: dict[int | None, NDArray[np.bool_]] = {}
    for frame in read_frames(path, plane=plane, voi=False):
        if frame.slice_index in wanted:
            threshold = 127 if frame.header.get("format") == "JPEG" else 0
            found[frame.slice_index] = np.any(frame.pixels > threshold, axis=0)
    missing = wanted - found.keys()
    if missing:
        raise UnreadableImageError(
            path, f"a mask must have the frames of its image, but lacks {sorted(map(str, missing))}"
        )
    return [found[r.slice_index] for r in rows]


def _fit_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    from PIL import Image

    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.NEAREST)) > 0
