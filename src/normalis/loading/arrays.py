"""Samples become arrays ready for a model: decode, resize, intensity rule, cache, skip list.

Every file is read once, by several threads (Pillow and the codecs release Python's lock while
they decode). A file that cannot be read is left out and reported with its reason; only when none
can be read is that an error.

What the numbers mean
    ``uint8`` images are 0..255 and that is [0, 1]. Anything deeper goes through one
    `IntensityRule`, fitted on training images and applied unchanged to all others, in the units
    that it was fitted in (`normalis.loading.grey_values`). A DICOM's own window is used where *all*
    deep training images have one (the rule is then on windowed values, ``rule.voi``); where only
    some have one, none is used, since windowed and raw values cannot stand side by side; nor is
    it in a CT, whose values are HU in every file; with ``settings.window`` it is not used either,
    for that window is stated in modality units.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.base import Sample
from normalis.errors import DataError, NormalisWarning, SettingsError
from normalis.images.arrays import as_images, as_numpy, first_not_finite, to_float32
from normalis.images.cache import ArrayCache
from normalis.images.decoding import (
    Decoded,
    DecodedImage,
    Recipe,
    Source,
    decode,
    decode_all,
    map_ahead,
    said_of_values,
)
from normalis.images.fit import fit_pixels
from normalis.images.intensity import IntensityRule
from normalis.images.masks import fit_mask, is_inverted, read_masks, read_masks_of_array
from normalis.images.raster import NO_VALUE
from normalis.images.reader import check_slicing
from normalis.images.units import units_of_dtype
from normalis.loading.grey_values import (
    as_it_is,
    needs_stored_values,
    notes_on_rule,
    place,
    rule_of_training,
    to_shown,
    why_not_array,
    without_placeholders,
)
from normalis.studies.where import parse_all

if TYPE_CHECKING:
    from normalis.loading.units import Units

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

# What code reads from a file's header: a manifest's column of such a name does not replace it.
_READERS_OWN = frozenset(
    {
        *("affine", "bits", "dtype", "format", "mode", "orientation", "padding", "plane"),
        *("slice_position", "slice_spacing_mm", "slices_read", "spacing_mm", "stated_window"),
        *("transfer_syntax", "units", "units_without_window", "value_alone", "voi_lut"),
        *("volume_shape", "window"),
    }
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
        margin: share of the side at each edge that is blanked in every image, in [0, 0.4]: what
            lies there, text or the edge of a film, is then neither learned nor scored.
        where: rules that headers or columns must fulfil (`normalis.studies.where`), the same when
            fitting and when scoring.
    """

    image_size: int = 64
    channels: int = 1
    plane: str = "axial"
    slice_range: tuple[float, float] = (0.0, 1.0)
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    margin: float = 0.0
    where: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 0.4:
            raise SettingsError(
                f"margin must be a share of the image's side from 0 to 0.4, got {self.margin}"
            )
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
        parse_all(self.where)

    def recipe(self, *, voi: bool) -> Recipe:
        """Return what decoding depends on; voi as in `images.read_frames`."""
        return Recipe(
            image_size=self.image_size,
            channels=self.channels,
            plane=self.plane,
            slice_range=self.slice_range,
            voi=voi,
        )

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
        header: the file's header, with the data set's own columns over it, except where a column
            has the name of something that this package reads from the header itself.
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
        units: which images are independent; None until `loading.held_out` has asked.
        notes: what should be known of the grey values before a result is trusted.
    """

    pixels: NDArray[Any]
    rows: list[Row]
    skipped: Skipped
    rule: IntensityRule | None
    units: Units | None = None
    notes: tuple[str, ...] = ()


def load(
    samples: Sequence[Sample],
    settings: ImageSettings,
    *,
    rule: IntensityRule | None = None,
    fit_rule: bool = True,
    cache: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
    warn: bool = True,
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
        warn: whether ``notes`` of the result are given as warnings too.

    Raises:
        DataError: if there is no sample, or none of them is readable.

    Warns:
        NormalisWarning: if grey values are in different units, or a few images decide the rule.
    """
    learning = rule is None and fit_rule
    rule = rule or settings.fixed_rule()
    sources = list(map(_source, _some(samples)))
    store = ArrayCache() if cache else None

    def decoded(voi: bool) -> list[Decoded]:
        recipe = settings.recipe(voi=voi)
        return decode_all(sources, recipe, cache=store, progress=progress, workers=workers)

    files = decoded(rule is None or rule.voi)
    notes: list[str] = []
    if learning:
        files, rule, notes = _learn(samples, files, settings, rule, decoded)
    placed = files if learning else [place(file, rule) for file in files]
    if not any(file.images for file in placed):
        raise _none_readable(samples, placed)
    for note in notes if warn else ():
        warnings.warn(note, NormalisWarning, stacklevel=2)
    return _assemble(list(zip(samples, placed, strict=True)), settings, rule, notes)


def _learn(
    samples: Sequence[Sample],
    files: list[Decoded],
    settings: ImageSettings,
    given: IntensityRule | None,
    decoded: Callable[[bool], list[Decoded]],
) -> tuple[list[Decoded], IntensityRule | None, list[str]]:
    """Fit a rule on training files; return them as it asks for, and what to say."""
    had_windows = any(i.is_windowed for f in files for i in f.images)
    stored = given is None and needs_stored_values(files)
    if stored:
        files = decoded(False)
    if given is None:
        files = without_placeholders(files, settings.percentiles)
    rule, notes = rule_of_training(
        [(sample.path, file) for sample, file in zip(samples, files, strict=True)],
        given,
        settings.percentiles,
        voi=had_windows and not stored,
        had_windows=had_windows,
    )
    return files, rule, notes


def stream(
    samples: Sequence[Sample],
    settings: ImageSettings,
    *,
    rule: IntensityRule | None,
    batch_size: int = 64,
    progress: Progress | None = None,
    workers: int | None = None,
    need_one: bool = True,
) -> Iterator[Loaded]:
    """Yield batches in the samples' order, in constant memory, while workers read ahead.

    The images of one file are never divided between batches, so that a batch exceeds batch_size
    where a volume does. No batch is empty, unless nothing is readable and ``need_one`` is False:
    files skipped at the end are reported by the last one.

    Args:
        samples: what to read.
        settings: as in `load`.
        rule: the fitted one; None if the model was fitted on 8-bit images.
        batch_size: images, at least.
        progress: called as ``progress(done, total)``, in samples.
        workers: threads; None means one per core.
        need_one: whether it is an error if no sample is readable.

    Raises:
        DataError: if no sample is readable and ``need_one``.
    """
    rule = rule or settings.fixed_rule()
    recipe = settings.recipe(voi=rule is None or rule.voi)
    files = decode(map(_source, _some(samples)), recipe, workers=workers)
    waiting: list[tuple[Sample, Decoded]] = []
    count, anything, turned = 0, False, False
    for done, (sample, file) in enumerate(zip(samples, files, strict=True), 1):
        placed = place(file, rule)
        if not turned and any(to_shown(image, rule) for image in placed.images):
            turned = True
            warnings.warn(_shown_note(sample), NormalisWarning, stacklevel=2)
        if placed.images and count >= batch_size:
            yield _assemble(waiting, settings, rule)
            waiting, count = [], 0
        waiting.append((sample, placed))
        count += len(placed.images)
        anything = anything or bool(placed.images)
        if progress is not None:
            progress(done, len(samples))
    if need_one and not anything:
        raise _none_readable(samples, [file for _, file in waiting])
    yield _assemble(waiting, settings, rule)


def _shown_note(sample: Sample) -> str:
    return (
        f"the model was fitted on 8-bit images; DICOM images are scored as their own window shows "
        f"them, without clipping (the first is {sample.path.name})"
    )


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

    Warns:
        NormalisWarning: if a few images, or a value far from all others, decide the rule.
    """
    settings = settings or ImageSettings()
    images = as_images(as_numpy(x))
    if (bad := first_not_finite(images)) is not None:
        raise DataError(f"images must be finite, but image {bad} holds NaN or infinity")
    shape = (int(images.shape[2]), int(images.shape[3]))
    fitted = _fit_many(images, settings)
    _check_numbers(fitted)
    learning = rule is None and fit_rule
    rule = rule or settings.fixed_rule()
    units = units_of_dtype(images.dtype)
    headers = [said_of_values(image) for image in images]
    alone = list({h["value_alone"] for h in headers if h})
    if not learning and (reason := why_not_array(_ends(images), units, rule, alone)):
        raise DataError(f"images cannot be scored by this model: {reason}")
    notes: list[str] = []
    if fitted.dtype == np.uint8:
        pixels: NDArray[Any] = fitted
    else:
        if rule is None:
            rule = _rule_of_array(images, fitted, settings, units, learning=learning)
            notes = _notes_on_array(fitted, headers, rule, settings)
        pixels = rule.apply(fitted)
    for note in notes:
        warnings.warn(note, NormalisWarning, stacklevel=2)
    rows = [_array_row(index, shape, str(images.dtype), units) for index in range(len(pixels))]
    return Loaded(
        pixels=_blanked(pixels, settings), rows=rows, skipped=[], rule=rule, notes=tuple(notes)
    )


def to_unit(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return pixels of `Loaded` as float32 with the nominal range [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return np.asarray(pixels, dtype=np.float32)


def load_masks(
    rows: Sequence[Row],
    *,
    image_size: int,
    keep_small: bool = True,
    notes: list[str] | None = None,
) -> NDArray[np.bool_]:
    """Read the ground-truth region of each row, see `normalis.images.masks`.

    A row without a mask has an empty one; of several masks the union counts.

    Args:
        rows: of `Loaded`.
        image_size: S.
        keep_small: keep a pixel of each part that would vanish at this size. The authors' code
            does not.
        notes: what a reader of the figures should know is added to this list.

    Returns:
        (N, S, S).

    Raises:
        DataError: if a mask cannot be read, lies on another grid than its image, or if most masks
            mark the background: metrics with wrong masks would be wrong.
    """
    masks = np.zeros((len(rows), image_size, image_size), dtype=bool)
    by_file: dict[Path, list[int]] = {}
    for number, row in enumerate(rows):
        for path in () if row.mask is None else (row.mask, *row.sample.more_masks):
            by_file.setdefault(path, []).append(number)
    seen = _Seen()

    def fitted(path: Path) -> list[NDArray[np.bool_]]:
        found = _masks_of(path, rows, by_file[path])
        for mask in found:
            seen.add(path, mask)
        fitted = [fit_mask(mask, image_size=image_size) for mask in found]
        plain = [fit_mask(m, image_size=image_size, keep_small=False) for m in found]
        seen.small += sum(bool((a != b).any()) for a, b in zip(fitted, plain, strict=True))
        return fitted if keep_small else plain

    for path, found in zip(by_file, map_ahead(fitted, by_file), strict=True):
        for number, mask in zip(by_file[path], found, strict=True):
            masks[number] |= mask
    seen.check()
    if notes is not None:
        notes += seen.notes(image_size)
        normal = np.array([row.is_anomalous is False for row in rows], dtype=bool)
        if marked := int((normal & masks.any(axis=(1, 2))).sum()):
            notes.append(f"{marked} images are labelled normal and have marked pixels.")
    return masks


@dataclass
class _Seen:
    """What masks look like, all together."""

    count: int = 0
    small: int = 0
    whole: int = 0
    inverted: list[Path] = field(default_factory=list)

    def add(self, path: Path, mask: NDArray[np.bool_]) -> None:
        self.count += bool(mask.any())
        self.whole += bool(mask.all())
        if is_inverted(mask):
            self.inverted.append(path)

    def check(self) -> None:
        """Refuse masks most of which mark the background."""
        if 2 * len(self.inverted) > self.count > 1:
            raise DataError(
                f"{self.inverted[0]}: a mask must mark the lesion, but {len(self.inverted)} of "
                f"{self.count} masks mark most of the image up to its border and leave a hole: "
                "they look inverted; invert them"
            )

    def notes(self, image_size: int) -> list[str]:
        said = {
            "mark most of the image up to its border; are they inverted?": len(self.inverted),
            "cover the whole image": self.whole,
            f"have parts smaller than a pixel at {image_size} x {image_size}, which keep one "
            "pixel": self.small,
        }
        return [f"{n} of {self.count} masks {text}." for text, n in said.items() if n]


def _masks_of(path: Path, rows: Sequence[Row], chosen: list[int]) -> list[NDArray[np.bool_]]:
    """Read the masks of the rows that share a mask file."""
    first, grids = rows[chosen[0]], [_grid(rows[n]) for n in chosen]
    if first.sample.index is not None and path.suffix.lower() in (".npz", ".npy"):
        indices = [rows[n].sample.index or 0 for n in chosen]
        array = first.sample.array or "test"
        return read_masks_of_array(path, indices, array=array, grids=grids)
    return read_masks(
        path,
        [rows[n].slice_index for n in chosen],
        plane=str(first.header.get("plane", "axial")),
        grids=grids,
    )


def _grid(row: Row) -> dict[str, Any]:
    return {
        "shape": row.original_shape,
        "affine": row.header.get("affine"),
        "volume_shape": row.header.get("volume_shape"),
    }


def _some(samples: Sequence[Sample]) -> Sequence[Sample]:
    if not samples:
        raise DataError("there must be at least one image to load, got an empty list")
    return samples


def _source(sample: Sample) -> Source:
    return Source(sample.path, sample.index, sample.array)


def _none_readable(samples: Sequence[Sample], files: Sequence[Decoded]) -> DataError:
    reasons = (f"{s.path}: {f.reason}" for s, f in zip(samples[:3], files, strict=False))
    return DataError(f"none of the {len(samples)} images is readable. {'; '.join(reasons)}")


# --- intensities and rows -------------------------------------------------------------------------


def _check_numbers(fitted: NDArray[Any]) -> None:
    """Refuse images of an array whose numbers stand for missing values or overflow float32."""
    if fitted.dtype == np.uint8:
        return
    for index, image in enumerate(fitted):
        greatest = float(np.abs(image).max())
        if not greatest < NO_VALUE:
            raise DataError(
                f"images must hold measurements, but image {index} holds {greatest:.3g} in 32-bit "
                "floats: such numbers stand for missing values; replace them"
            )


def _ends(images: NDArray[Any]) -> NDArray[Any]:
    """Return the values that decide of units: the ends, and one that is no whole number."""
    if images.dtype.kind != "f":
        return np.array([images.min(), images.max()], np.float64)
    odd = images[images != np.rint(images)][:1]
    return np.array([images.min(), images.max(), *odd], np.float64)


def _rule_of_array(
    images: NDArray[Any],
    fitted: NDArray[Any],
    settings: ImageSettings,
    units: str,
    *,
    learning: bool,
) -> IntensityRule:
    if not learning or (images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1):
        return as_it_is(units)
    return IntensityRule.from_pixels(
        fitted, percentiles=settings.percentiles, voi=False, units=(units,)
    )


def _notes_on_array(
    fitted: NDArray[Any],
    headers: Sequence[Mapping[str, Any]],
    rule: IntensityRule,
    settings: ImageSettings,
) -> list[str]:
    if (rule.low, rule.high) == (0.0, 1.0):
        return []
    pairs = enumerate(zip(fitted, headers, strict=True))
    deep = [(f"image {i}", DecodedImage(x, None, (0, 0), dict(h))) for i, (x, h) in pairs]
    return notes_on_rule(deep, rule, settings.percentiles)


def _blanked(pixels: NDArray[Any], settings: ImageSettings) -> NDArray[Any]:
    """Return images (N, C, S, S) with the margin set to 0, whatever was there."""
    width = round(settings.margin * settings.image_size)
    if not width:
        return pixels
    blank = np.zeros_like(pixels)
    inside = (..., slice(width, -width), slice(width, -width))
    blank[inside] = pixels[inside]
    return blank


def _assemble(
    files: Sequence[tuple[Sample, Decoded]],
    settings: ImageSettings,
    rule: IntensityRule | None,
    notes: Sequence[str] = (),
) -> Loaded:
    images = [(sample, image) for sample, file in files for image in file.images]
    return Loaded(
        pixels=_blanked(_combine([image for _, image in images], settings, rule), settings),
        rows=[_row(sample, image) for sample, image in images],
        skipped=[(sample.path, file.reason) for sample, file in files if file.reason is not None],
        rule=rule,
        notes=tuple(notes),
    )


def _combine(
    images: Sequence[DecodedImage], settings: ImageSettings, rule: IntensityRule | None
) -> NDArray[Any]:
    shape = (len(images), settings.channels, settings.image_size, settings.image_size)
    if not any(image.is_deep for image in images):
        return np.stack([i.pixels for i in images]) if images else np.empty(shape, np.uint8)
    out = np.empty(shape, np.float32)
    for number, image in enumerate(images):
        if not image.is_deep:
            out[number] = to_unit(image.pixels)
        elif rule is None or to_shown(image, rule):  # `place` saw to it that 0 to 1 is what it is
            out[number] = image.pixels
        else:
            out[number] = rule.apply(image.pixels)
    return out


def _row(sample: Sample, image: DecodedImage) -> Row:
    columns = {k: v for k, v in sample.header.items() if k not in _READERS_OWN}
    header = {**image.header, **columns}
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


def _array_row(index: int, shape: tuple[int, int], dtype: str, units: str) -> Row:
    path = Path("array")
    sample = Sample(path=path, split="test", index=index)
    image = DecodedImage(
        np.empty(0), None, shape, {"format": "array", "dtype": dtype, "units": units}
    )
    return _row(sample, image)


def _fit_many(images: NDArray[Any], settings: ImageSettings) -> NDArray[Any]:
    target = (settings.channels, settings.image_size, settings.image_size)
    if images.dtype != np.uint8:
        images = to_float32(images)
    if images.shape[1:] == target:
        return images
    return np.stack([fit_pixels(i, image_size=target[1], channels=target[0]) for i in images])
