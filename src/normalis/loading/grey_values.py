"""Which intensity rule fits some images, and which images fit a rule.

The units of each image (`normalis.images.units`) are compared within training and with training
when scoring: nothing that means something else is put on one scale without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.images.alone import PLACEHOLDERS, Alone
from normalis.images.decoding import Decoded, DecodedImage
from normalis.images.intensity import IntensityRule
from normalis.images.units import (
    SHOWN,
    UNSTATED,
    are_comparable,
    in_words,
    listed,
    mixture,
    units_of,
)

__all__ = [
    "Named",
    "as_it_is",
    "needs_stored_values",
    "notes_on_rule",
    "place",
    "rule_of_training",
    "to_shown",
    "why_below",
    "why_not_array",
    "why_unlike",
    "without_placeholders",
]

Named = tuple[Path, Decoded]

FAR = 1e4
"""Ranges of the training images beyond which a value stands for something else."""

_WIDE = 10.0  # ranges of the usual training image beyond which a rule deserves a word
_ALONE_WIDE = 2.0  # the same, where a value stands alone
_BELOW = 0.1  # of the range, by which most of an image must lie below it to be refused
_ABOVE = 1.0  # of the range, above it, from where most of an image is said to be
_UNIT_SLACK = 10.0  # a float image for a rule on [0, 1] may reach so far, and no image in 0..255
_NO_WINDOW = (
    "no window in its header, while all training images have one; fit with a window of your own"
)


def as_it_is(
    *units: str, voi: bool = False, source: str = "float array within [0, 1]"
) -> IntensityRule:
    """Return the rule of values whose 0 and 1 mean 0 and 1."""
    return IntensityRule(low=0.0, high=1.0, source=source, voi=voi, units=tuple(sorted(units)))


def needs_stored_values(files: Sequence[Decoded]) -> bool:
    """Say whether the files' windows must be left aside.

    They must where only some DICOM or deep images have one: windowed and other values cannot stand
    side by side. In a CT whose values are HU they are not needed: HU mean the same in every file,
    whatever window each was shown with.
    """
    images = [image for file in files for image in file.images]
    windowed = [image for image in images if image.is_windowed]
    if not windowed:
        return False
    for image in images:
        is_dicom = image.header.get("format") == "DICOM"
        if not image.is_windowed and (image.is_deep or is_dicom):
            return True
    has_8_bit = len(windowed) < len(images)
    return not has_8_bit and all(i.header.get("units_without_window") == "HU" for i in windowed)


@dataclass(frozen=True, eq=False)
class _Range:
    """What the usual training image spans, and what each does."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    least: NDArray[np.float64]
    greatest: NDArray[np.float64]

    @classmethod
    def of(cls, images: Sequence[DecodedImage], percentiles: tuple[float, float]) -> _Range:
        ends = np.array(
            [np.percentile(i.pixels, (0, *percentiles, 100)) for i in images], np.float64
        )
        return cls(ends[:, 1], ends[:, 2], ends[:, 0], ends[:, 3])

    @property
    def usual(self) -> tuple[float, float]:
        return float(np.median(self.low)), float(np.median(self.high))

    def beyond(self, ranges: float, *, whole: bool) -> NDArray[np.bool_]:
        """Return which images reach further than so many usual ranges from the usual one."""
        low, high = self.usual
        room = ranges * (high - low)
        least, greatest = (self.least, self.greatest) if whole else (self.low, self.high)
        return (least < low - room) | (greatest > high + room)


def without_placeholders(
    files: Sequence[Decoded], percentiles: tuple[float, float]
) -> list[Decoded]:
    """Leave out training files with values so far from all others that they are no measurement."""
    deep = [image for file in files for image in file.images if image.is_deep]
    if len(deep) < 3:
        return list(files)
    spans = _Range.of(deep, percentiles)
    low, high = spans.usual
    if low == high:
        return list(files)
    far = dict(zip(map(id, deep), spans.beyond(FAR, whole=True), strict=True))

    def reason(file: Decoded) -> str | None:
        worst = [i for i in file.images if i.is_deep and far[id(i)]]
        return _placeholder(worst[0].pixels, low, high) if worst else None

    return [replace(f, images=[], reason=r) if (r := reason(f)) else f for f in files]


def _placeholder(pixels: NDArray[Any], low: float, high: float) -> str:
    worst = max((float(pixels.min()), float(pixels.max())), key=abs)
    return (
        f"it holds {worst:.4g}, where the training images usually lie within {low:.4g} and "
        f"{high:.4g}: a placeholder for missing values? Replace it by the background's value, or "
        "fit with a window of your own"
    )


def rule_of_training(
    files: Sequence[Named],
    given: IntensityRule | None,
    percentiles: tuple[float, float],
    *,
    voi: bool,
    had_windows: bool,
) -> tuple[IntensityRule | None, list[str]]:
    """Return the rule of training images, None where all are plain 8 bit, and what to say.

    Args:
        files: the training files, decoded as the rule will ask for.
        given: a rule of the user's own; only the units are put into it.
        percentiles: of the training images' values.
        voi: whether the files' windows were applied.
        had_windows: whether some had one.
    """
    images = [(path.name, image) for path, file in files for image in file.images]
    units = [units_of(image.header, image.pixels.dtype) for _, image in images]
    kinds = tuple(sorted(set(units)))
    deep = [(name, image) for name, image in images if image.is_deep]
    said = mixture(units, [name for name, _ in images])
    notes = [said] if said else []
    if given is not None:
        return replace(given, units=kinds), notes
    if not deep:
        if not had_windows:
            return None, notes
        source = "8-bit values as stored: not all files have a window"
        return IntensityRule(low=0.0, high=255.0, source=source, units=kinds), notes
    if set(kinds) == SHOWN:
        source = "what is shown: 8-bit images, and DICOM images by their windows"
        return as_it_is(*kinds, voi=True, source=source), notes
    values = np.stack([image.pixels for _, image in deep])
    floats = all(u == "float" for u, (_, i) in zip(units, images, strict=True) if i.is_deep)
    if floats and values.min() >= 0 and values.max() <= 1:
        return as_it_is(*kinds), notes
    rule = IntensityRule.from_pixels(values, percentiles=percentiles, voi=voi, units=kinds)
    return rule, notes + notes_on_rule(deep, rule, percentiles) + _windows(deep)


def notes_on_rule(
    deep: Sequence[tuple[str, DecodedImage]], rule: IntensityRule, percentiles: tuple[float, float]
) -> list[str]:
    """Say which images make a rule wider than the usual values would.

    Args:
        deep: name and image of all training images deeper than 8 bit.
        rule: fitted on them.
        percentiles: of the rule.
    """
    return _alone(deep, rule, percentiles) or _wide(deep, rule, percentiles)


def _alone(
    deep: Sequence[tuple[str, DecodedImage]], rule: IntensityRule, percentiles: tuple[float, float]
) -> list[str]:
    """Say which value, far from all others, decides the rule, in however many images."""
    found = [(name, alone) for name, image in deep if (alone := _alone_in(image))]
    if not found:
        return []
    ends = np.array(
        [
            (alone.low, alone.high)
            if (alone := _alone_in(i))
            else np.percentile(i.pixels, percentiles)
            for _, i in deep
        ]
    )
    low, high = np.median(ends, axis=0)
    guilty = [(n, a) for n, a in found if rule.low <= a.value < low or high < a.value <= rule.high]
    if not guilty or rule.high - rule.low <= _ALONE_WIDE * (high - low):
        return []
    common, count = Counter(a.value for _, a in guilty).most_common(1)[0]
    names = list(dict.fromkeys(n for n, a in guilty if a.value == common))
    share = np.mean([a.share for _, a in guilty if a.value == common])
    return [
        f"{count} of {len(deep)} training images hold {common:.6g} ({share:.0%} of their pixels; "
        f"{listed(names)}), far from all their other values, and the intensity rule therefore runs "
        f"from {rule.low:.4g} to {rule.high:.4g}, while the usual training image lies within "
        f"{low:.4g} and {high:.4g} and becomes nearly flat. If it stands for missing values, "
        "replace it by the background's value, in the images to be scored too"
    ]


def _alone_in(image: DecodedImage) -> Alone | None:
    found = image.header.get("value_alone")
    return None if found is None else Alone(*found)


def _wide(
    deep: Sequence[tuple[str, DecodedImage]], rule: IntensityRule, percentiles: tuple[float, float]
) -> list[str]:
    """Say which few images make the rule many times wider than the others would."""
    spans = _Range.of([image for _, image in deep], percentiles)
    low, high = spans.usual
    if low == high or rule.high - rule.low <= _WIDE * (high - low):
        return []
    guilty = spans.beyond(_WIDE / 2, whole=False)
    names = list(dict.fromkeys(n for (n, _), g in zip(deep, guilty, strict=True) if g))
    return [
        f"the intensity rule runs from {rule.low:.4g} to {rule.high:.4g} because of "
        f"{len(names)} files ({listed(names)}), while the usual training image lies within "
        f"{low:.4g} and {high:.4g} and becomes nearly flat; leave them out, or give a window"
    ]


def _windows(deep: Sequence[tuple[str, DecodedImage]]) -> list[str]:
    """Say that the files of a CT were meant to be shown differently, and that HU are used."""
    shown = Counter(
        image.header["stated_window"] for _, image in deep if "stated_window" in image.header
    )
    if len(shown) < 2:
        return []
    common = ", ".join(
        f"{low:g} to {high:g} in {n} images" for (low, high), n in shown.most_common(3)
    )
    return [
        f"the files' windows differ ({common}{', ...' if len(shown) > 3 else ''}), so that equal "
        "tissue would get different values; they are left aside, and values are in HU. To look "
        "through one window give --window LOW,HIGH"
    ]


# --- scoring --------------------------------------------------------------------------------------


def place(file: Decoded, rule: IntensityRule | None) -> Decoded:
    """Leave out a file whose intensities the rule cannot place, with the true reason."""
    for image in file.images:
        reason = _why_not(image, rule)
        if reason is not None:
            return Decoded([], reason)
    return file


def _why_not(image: DecodedImage, rule: IntensityRule | None) -> str | None:
    units = units_of(image.header, image.pixels.dtype)
    if rule is None:
        return _why_not_8_bit(image.pixels, units)
    if rule.voi and image.is_deep and not image.is_windowed:
        return _NO_WINDOW
    if rule.units is not None:
        reason = _other_units(image.pixels, units, rule)
        if reason is not None:
            return reason
    return _too_far(image, rule) or why_below(image.pixels, units, rule)


def why_below(pixels: NDArray[Any], units: str, rule: IntensityRule) -> str | None:
    """Say that an image in units that nothing states lies below the training images, as negated.

    An image that is dark all over lies at the lower end of their range, not below it. Where a user
    gave the window, values may lie anywhere.
    """
    if units not in UNSTATED or pixels.dtype == np.uint8 or not rule.is_of_training:
        return None
    if float(np.median(pixels)) >= rule.low - _BELOW * (rule.high - rule.low):
        return None
    return (
        f"its values run from {pixels.min():.4g} to {pixels.max():.4g}, most of them below the "
        f"{rule.low:.4g} to {rule.high:.4g} of the training images: negated, or in other units? "
        "Export it as those were"
    )


def why_unlike(pixels: NDArray[Any], units: str, rule: IntensityRule | None) -> str | None:
    """Say that an image spans quite another range than the training images, as other bits do.

    It is scored all the same, since nothing states its units: an anomaly may be bright.

    Args:
        pixels: of one image, before the rule.
        units: of it.
        rule: of the training images.
    """
    if rule is None or units not in UNSTATED | {"raw"} or not rule.is_of_training:
        return None
    span = rule.high - rule.low
    middle, most = (float(v) for v in np.percentile(pixels, (50, 99.5)))
    if middle > rule.high + _ABOVE * span:
        where = "above"
    elif most < rule.low + _BELOW * span and float(pixels.min()) < most:
        where = "in the lowest tenth of"
    else:
        return None
    return (
        f"its values run from {pixels.min():.4g} to {pixels.max():.4g}, most of them {where} the "
        f"{rule.low:.4g} to {rule.high:.4g} of the training images. If it is in other units, or "
        "stored with other bits, its score and p-value say only that; export it as those were"
    )


def _why_not_8_bit(pixels: NDArray[Any], units: str) -> str | None:
    """Say why a model of 8-bit images cannot score an image."""
    if units in SHOWN or _is_unit(pixels, units):
        return None
    return (
        f"its values are {in_words(units)}, deeper than 8 bit and without a window, while the "
        "model was fitted on 8-bit images only, so there is no rule for its intensities"
    )


def _is_unit(pixels: NDArray[Any], units: str) -> bool:
    return units == "float" and bool(pixels.min() >= 0 and pixels.max() <= 1)


def _is_unit_rule(rule: IntensityRule) -> bool:
    return (rule.low, rule.high) == (0.0, 1.0) and not rule.voi


def _other_units(pixels: NDArray[Any], units: str, rule: IntensityRule) -> str | None:
    """Say why an image in some units is not what the rule was fitted on."""
    known = rule.units or ()
    trained = " and ".join(map(in_words, known))
    if units == "8 bit":
        if "8 bit" in known or _is_unit_rule(rule):
            return None
        return (
            f"8 bit, while the model was fitted on deeper images only ({trained}): which of their "
            "values 0 to 255 stand for is not known; give the file that it was made from"
        )
    if not are_comparable(units, known):
        return (
            f"its values are {in_words(units)}, while those of the training images are {trained}; "
            "export it as those were, or fit on images of its kind"
        )
    if units != "float":
        return None
    if _is_unit_rule(rule) and max(-pixels.min(), pixels.max()) > _UNIT_SLACK:
        return (
            f"its values run from {pixels.min():.4g} to {pixels.max():.4g}, while the model was "
            "fitted on floats within 0 and 1; divide them by what stands for 1"
        )
    fractions = bool((pixels != np.rint(pixels)).any())
    if rule.high - rule.low > _UNIT_SLACK and _is_unit(pixels, units) and fractions:
        return (
            f"its values lie within 0 and 1, while the model was fitted on values of about "
            f"{rule.low:.4g} to {rule.high:.4g}; bring them back to those units"
        )
    return None


def _too_far(image: DecodedImage, rule: IntensityRule) -> str | None:
    if not image.is_deep:
        return None
    span = rule.high - rule.low
    alone = _alone_in(image)
    if (
        alone
        and alone.value in PLACEHOLDERS
        and not rule.low - span <= alone.value <= rule.high + span
    ):
        return _placeholder(np.array([alone.value]), rule.low, rule.high)
    least, greatest = float(image.pixels.min()), float(image.pixels.max())
    if rule.low - FAR * span <= least and greatest <= rule.high + FAR * span:
        return None
    return _placeholder(image.pixels, rule.low, rule.high)


def to_shown(image: DecodedImage, rule: IntensityRule | None) -> bool:
    """Say whether a window turns an image into what a model of 8-bit images was fitted on."""
    return image.is_windowed and (rule is None or "windowed" not in (rule.units or ("windowed",)))


def why_not_array(
    images: NDArray[Any], units: str, rule: IntensityRule | None, alone: Sequence[Any] = ()
) -> str | None:
    """Say why images of an array do not fit a rule, None if they do.

    Args:
        images: the values that decide.
        units: of them.
        rule: of the model.
        alone: of the header ``value_alone`` of the images, those that there are.
    """
    if rule is None:
        return _why_not_8_bit(images, units)
    if rule.units is not None and (reason := _other_units(images, units, rule)):
        return reason
    headers: list[dict[str, Any]] = [{}, *({"value_alone": one} for one in alone)]
    reasons = (_too_far(DecodedImage(images, None, (0, 0), h), rule) for h in headers)
    return next(filter(None, reasons), None)
