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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets.base import Sample
from normalis.errors import DataError, NormalisWarning
from normalis.images.arrays import as_images, as_numpy, first_not_finite, to_float32
from normalis.images.cache import ArrayCache
from normalis.images.decoding import (
    Decoded,
    DecodedImage,
    Source,
    decode,
    decode_all,
    said_of_values,
)
from normalis.images.fit import fit_pixels
from normalis.images.intensity import IntensityRule
from normalis.images.raster import NO_VALUE
from normalis.images.units import units_of, units_of_dtype
from normalis.loading.grey_values import (
    as_it_is,
    needs_stored_values,
    notes_on_rule,
    place,
    rule_of_training,
    to_shown,
    why_below,
    why_not_array,
    why_unlike,
    without_placeholders,
)
from normalis.loading.images import ImageSettings, Loaded, Row
from normalis.loading.masks import load_masks

if TYPE_CHECKING:
    pass

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

# What code reads from a file's header: a manifest's column of such a name does not replace it.
_READERS_OWN = frozenset(
    {
        *("affine", "bits", "dtype", "format", "mode", "orientation", "padding", "plane"),
        *("slice_position", "slice_spacing_mm", "slices_read", "spacing_mm", "stated_window"),
        *("transfer_syntax", "units", "units_without_window", "value_alone", "voi_lut"),
        *("volume_shape", "window"),
    }
)


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
    count, anything, turned, unlike = 0, False, False, False
    for done, (sample, file) in enumerate(zip(samples, files, strict=True), 1):
        placed = place(file, rule)
        if not turned and any(to_shown(image, rule) for image in placed.images):
            turned = True
            warnings.warn(_shown_note(sample), NormalisWarning, stacklevel=2)
        if not unlike and (reason := _unlike(placed, rule)):
            unlike = True
            warnings.warn(f"{sample.path.name}: {reason}", NormalisWarning, stacklevel=2)
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


def _unlike(file: Decoded, rule: IntensityRule | None) -> str | None:
    """Say of the first image of a file that spans quite another range than those of training."""
    said = (why_unlike(i.pixels, units_of(i.header, i.pixels.dtype), rule) for i in file.images)
    return next(filter(None, said), None)


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
    if not learning and rule is not None:
        for number, image in enumerate(fitted):
            if reason := why_below(image, units, rule):
                raise DataError(f"image {number} cannot be scored by this model: {reason}")
        said = (why_unlike(image, units, rule) for image in fitted)
        if other := next(((n, why) for n, why in enumerate(said) if why), None):
            warnings.warn(f"image {other[0]}: {other[1]}", NormalisWarning, stacklevel=3)
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
