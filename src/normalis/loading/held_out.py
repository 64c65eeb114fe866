"""What a user hands over -> normal images to train on, and normal images held out.

Images are held out by unit (`normalis.loading.units`): a held-out image of a patient, a file or a
group of copies that was trained on would make the model look better on normal images than it is,
and its p-values too small.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets import Dataset, Sample
from normalis.datasets.levels import LEAST_UNITS, plural
from normalis.duplicates import pixel_digests
from normalis.errors import DataError
from normalis.errors.arguments import shown
from normalis.images import IntensityRule
from normalis.loading.arrays import ImageSettings, Loaded, from_array, load, to_unit
from normalis.loading.given import Images, as_dataset, is_array
from normalis.loading.marked import refuse_marked
from normalis.loading.units import Units, find_units, shared_with, some
from normalis.studies.select import chosen_by

__all__ = [
    "HoldOut",
    "Images",
    "Normals",
    "as_dataset",
    "fingerprint",
    "folds",
    "image_marks",
    "is_array",
    "normal_images",
    "samples_to_score",
    "split",
    "take",
    "units_of",
    "with_units",
]

_log = logging.getLogger("normalis.loading")

#: Share of the units to hold out, or what says it of their number; None trains on everything.
HoldOut = float | Callable[[int], float | None] | None


@dataclass(frozen=True, kw_only=True)
class Normals:
    """Normal images, ready for a model.

    Attributes:
        train: to train on.
        held: not to be trained on; None if everything is.
        name: of the data, for the record.
        watched: not to be trained on either, for methods that watch such images while they train;
            not to be calibrated on.
        notes: what is unknown of patients, one sentence each.
    """

    train: Loaded
    held: Loaded | None
    name: str
    watched: Loaded | None = None
    notes: tuple[str, ...] = ()


def normal_images(
    x: Images,
    settings: ImageSettings,
    *,
    patient_ids: Sequence[str | None] | None = None,
    hold_out: HoldOut = None,
    watch: bool = False,
    seed: int = 0,
    rule: IntensityRule | None = None,
    fit_rule: bool = True,
) -> Normals:
    """Read the normal images of a data set, a list of files or an array.

    Args:
        x: of a data set its normal training images count; its validation split, if it has one,
            is what is held out.
        settings: how images are read.
        patient_ids: (N,) for arrays; None, or an id that names nobody, where a patient is unknown.
        hold_out: share of the units to hold out, or a function that says it of their number; None
            trains on everything.
        watch: whether half of what is held out is for the method to watch while it trains.
        seed: of the choice.
        rule: the intensity rule, where one was fitted before.
        fit_rule: whether to fit one to these images.

    Raises:
        DataError: if there is no readable normal image, if there are too few to hold any out, if
            a mask marks something in a normal image, or if the validation split shares patients,
            files or copies with the training images.
    """
    if is_array(x):
        loaded, name = from_array(x, settings, rule=rule, fit_rule=fit_rule), "array"
        loaded = _with_patients(loaded, patient_ids)
        validation: tuple[Sample, ...] = ()
    else:
        data = chosen_by(as_dataset(x), settings.where)
        given: dict[str, Any] = {"rule": rule, "fit_rule": fit_rule, "cache": True}
        normal = data.to_train_on()
        validation = tuple(s for s in data.split("validation") if s.is_anomalous is not True)
        refuse_marked((*normal, *validation))
        loaded, name = load(normal, settings, **given), data.name
    if hold_out is None:
        return Normals(train=loaded, held=None, name=name)
    if validation:
        held = load(validation, settings, rule=loaded.rule, fit_rule=False, cache=True)
        _refuse_shared(loaded, held)
        train, held = loaded, with_units(held)
        notes = units_of(held).notes
    else:
        loaded = with_units(loaded)
        units = units_of(loaded)
        share, notes = hold_out(units.n) if callable(hold_out) else hold_out, units.notes
        if share is None:
            return Normals(train=loaded, held=None, name=name, notes=notes)
        train, held = split(loaded, share, seed)
    watched, held = split(held, 0.5, seed) if watch else (None, held)
    _log.info("%d normal images to train on, %d held out", len(train.rows), len(held.rows))
    return Normals(train=train, held=held, name=name, watched=watched, notes=notes)


def _refuse_shared(train: Loaded, held: Loaded) -> None:
    """Refuse a validation split that holds what was trained on: its p-values would be too small."""
    one_range = train.pixels.dtype == held.pixels.dtype
    pixels = tuple(x.pixels if one_range else to_unit(x.pixels) for x in (train, held))
    names, copies = shared_with(train.rows, held.rows, (pixels[0], pixels[1]))
    if not names and not copies:
        return
    said = []
    if names:
        what = "patients, studies or files" if len(names) > 1 else "patient, study or file"
        said.append(f"{len(names)} {what} ({some(names)})")
    if copies:
        pairs = [f"{Path(copy).name} = {Path(of).name}" for copy, of in copies]
        said.append(f"{len(copies)} {'copies' if len(copies) > 1 else 'copy'} ({some(pairs)})")
    raise DataError(
        "the validation split must share nothing with the training images, since it calibrates the "
        f"p-values, but {' and '.join(said)} are in both; correct the split column, or give no "
        "validation split: then whole patients are held out of the training images"
    )


def samples_to_score(data: Dataset) -> tuple[Sample, ...]:
    """Return the images of a data set that are to be scored, see `Dataset.to_score`."""
    return data.to_score()


def with_units(loaded: Loaded) -> Loaded:
    """Return the images with their units, found once."""
    if loaded.units is not None:
        return loaded
    return replace(loaded, units=find_units(loaded.rows, loaded.pixels))


def units_of(loaded: Loaded) -> Units:
    """Return which images are independent, looking for copies among them unless it is known."""
    return loaded.units or find_units(loaded.rows, loaded.pixels)


def take(loaded: Loaded, chosen: NDArray[np.bool_]) -> Loaded:
    """Return some of the images."""
    rows = [row for row, keep in zip(loaded.rows, chosen, strict=True) if keep]
    units = None if loaded.units is None else loaded.units.take(chosen)
    return replace(loaded, pixels=loaded.pixels[chosen], rows=rows, units=units)


def fingerprint(pixels: NDArray[Any]) -> str:
    """Return a hash of images as the model sees them."""
    head = f"{pixels.dtype} {pixels.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def image_marks(pixels: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a mark (N,) of each image as the model sees it: equal images, equal marks."""
    found = [digest[:8] for digest in pixel_digests(np.ascontiguousarray(pixels))]
    return np.frombuffer(b"".join(found), dtype="<u8").astype(np.uint64)


def _with_patients(loaded: Loaded, patient_ids: Sequence[str | None] | None) -> Loaded:
    if patient_ids is None:
        return loaded
    if isinstance(patient_ids, str | bytes) or not hasattr(patient_ids, "__len__"):
        raise DataError(f"patient_ids must be a list of ids, got {shown(patient_ids)}")
    if len(patient_ids) != len(loaded.rows):
        raise DataError(
            f"patient_ids must have one entry per image, got {len(patient_ids)} for "
            f"{len(loaded.rows)} images"
        )
    named = zip(loaded.rows, patient_ids, strict=True)
    rows = [replace(r, patient_id=None if name is None else str(name)) for r, name in named]
    return replace(loaded, rows=rows)


def split(loaded: Loaded, share: float, seed: int) -> tuple[Loaded, Loaded]:
    """Return the images to keep and those held out, by unit.

    Args:
        loaded: normal images.
        share: of the units to hold out.
        seed: of the choice.

    Raises:
        DataError: if there are fewer than `LEAST_UNITS`.
    """
    loaded = with_units(loaded)
    units = units_of(loaded)
    if units.n < LEAST_UNITS:
        raise DataError(_too_few("calibration", LEAST_UNITS, units))
    count = min(max(1, round(share * units.n)), units.n - 2)
    held = np.isin(units.member, np.random.default_rng(seed).permutation(units.n)[:count])
    return take(loaded, ~held), replace(take(loaded, held), skipped=[])


def folds(loaded: Loaded, count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold (n,) of each image, 0 to count - 1, by unit.

    Args:
        loaded: normal images.
        count: of folds, at least 2.
        seed: of the choice.

    Raises:
        DataError: if there are fewer units than folds.
    """
    units = units_of(loaded)
    if units.n < count:
        raise DataError(_too_few(f"cv+ in {count} folds", count, units))
    order = np.random.default_rng(seed).permutation(units.n)
    return np.asarray((order % count)[units.member])


def _too_few(what: str, least: int, units: Units) -> str:
    fewer = ", ask for fewer folds" if "folds" in what else ""
    notes = "".join(f". Note: {note}" for note in units.notes)
    return (
        f"{what} needs at least {plural(least, units.level)}, got {units.n}: give more{fewer}, or "
        f"fit with calibration none (no p-values){notes}"
    )
