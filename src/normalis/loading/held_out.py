"""What a user hands over -> normal images to train on, and normal images held out.

Images are held out by patient where patients are known, and by group of near duplicates elsewhere:
a held-out image that resembles a training image would make the model look better on normal images
than it is, and its p-values too small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from normalis.datasets import Dataset, Sample, open_dataset
from normalis.duplicates import likeness_groups
from normalis.errors import DataError
from normalis.loading.arrays import ImageSettings, Loaded, from_array, load

__all__ = [
    "Images",
    "Normals",
    "as_dataset",
    "fingerprint",
    "folds",
    "groups_of",
    "is_array",
    "normal_images",
    "patients_of",
    "samples_to_score",
    "split",
    "take",
]

#: What users hand over as images.
Images = str | Path | Sequence[str | Path] | Dataset | NDArray[Any] | Tensor


@dataclass(frozen=True, kw_only=True)
class Normals:
    """Normal images, ready for a model.

    Attributes:
        train: to train on.
        held: not to be trained on; None if everything is.
        name: of the data, for the record.
        watched: not to be trained on either, for methods that watch such images while they train;
            not to be calibrated on.
    """

    train: Loaded
    held: Loaded | None
    name: str
    watched: Loaded | None = None


def normal_images(
    x: Images,
    settings: ImageSettings,
    *,
    patient_ids: Sequence[str] | None = None,
    hold_out: float | None = None,
    seed: int = 0,
) -> Normals:
    """Read the normal images of a data set, a list of files or an array.

    Args:
        x: of a data set its normal training images count; its validation split, if it has one,
            is what is held out.
        settings: how images are read.
        patient_ids: (N,) for arrays.
        hold_out: share of the patients or groups to hold out; None trains on everything.
        seed: of the choice.

    Raises:
        DataError: if there is no readable normal image, or too few to hold any out.
    """
    if is_array(x):
        loaded, name = _with_patients(from_array(x, settings), patient_ids), "array"
        validation: tuple[Sample, ...] = ()
    else:
        data = as_dataset(x)
        loaded, name = load(_training_samples(data), settings, cache=True), data.name
        validation = tuple(s for s in data.split("validation") if s.is_anomalous is not True)
    if hold_out is None:
        return Normals(train=loaded, held=None, name=name)
    if validation:
        held = load(validation, settings, rule=loaded.rule, fit_rule=False, cache=True)
        return Normals(train=loaded, held=held, name=name)
    train, held = split(loaded, hold_out, seed)
    return Normals(train=train, held=held, name=name)


def is_array(x: Images) -> bool:
    """Whether images are given as numbers rather than as files."""
    if isinstance(x, np.ndarray | Tensor):
        return True
    if isinstance(x, str | Path | Dataset):
        return False
    return len(x) > 0 and not isinstance(x[0], str | Path)


def as_dataset(x: Any) -> Dataset:
    """Return the data set of a folder, of a list of files, or the one given."""
    if isinstance(x, Dataset):
        return x
    if isinstance(x, str | Path):
        return open_dataset(x)
    if len(x) == 0:
        raise DataError("at least one image is needed, got an empty list")
    samples = tuple(Sample(path=Path(p), split="train", is_anomalous=None) for p in x)
    return Dataset(name="files", root=samples[0].path.parent, layout="files", samples=samples)


def samples_to_score(data: Dataset) -> tuple[Sample, ...]:
    """Return the images of a data set that are to be scored: its test split, else all.

    Without a test split nothing is known of the images: that a plain folder counts as normal is
    what `fit` is told by being given it, and no label of what is to be scored.
    """
    return data.split("test") or tuple(replace(s, is_anomalous=None) for s in data.samples)


def patients_of(loaded: Loaded) -> list[str] | None:
    """Return the patient of each image, None unless all are known."""
    patients = [row.patient_id for row in loaded.rows]
    return None if any(p is None for p in patients) else [str(p) for p in patients]


def groups_of(loaded: Loaded) -> NDArray[Any]:
    """Return the patient of each image, or where not all are known its group of near copies."""
    patients = patients_of(loaded)
    return likeness_groups(loaded.pixels) if patients is None else np.array(patients)


def take(loaded: Loaded, chosen: NDArray[np.bool_]) -> Loaded:
    """Return some of the images."""
    rows = [row for row, keep in zip(loaded.rows, chosen, strict=True) if keep]
    return Loaded(pixels=loaded.pixels[chosen], rows=rows, skipped=loaded.skipped, rule=loaded.rule)


def fingerprint(pixels: NDArray[Any]) -> str:
    """Return a hash of images as the model sees them."""
    head = f"{pixels.dtype} {pixels.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def _with_patients(loaded: Loaded, patient_ids: Sequence[str] | None) -> Loaded:
    if patient_ids is None:
        return loaded
    if len(patient_ids) != len(loaded.rows):
        raise DataError(
            f"patient_ids must have one entry per image, got {len(patient_ids)} for "
            f"{len(loaded.rows)} images"
        )
    named = zip(loaded.rows, patient_ids, strict=True)
    return replace(loaded, rows=[replace(row, patient_id=str(name)) for row, name in named])


def _training_samples(data: Dataset) -> tuple[Sample, ...]:
    samples = tuple(s for s in data.split("train") if s.is_anomalous is not True)
    if not samples:
        raise DataError(
            f"{data.root}: must have normal training images, has none "
            f"(layout: {data.layout}; found {data.counts()})"
        )
    return samples


def split(loaded: Loaded, share: float, seed: int) -> tuple[Loaded, Loaded]:
    """Return the images to keep and those held out, by patient or group of near duplicates.

    Args:
        loaded: normal images.
        share: of the patients or groups to hold out.
        seed: of the choice.

    Raises:
        DataError: if there are fewer than three patients or groups.
    """
    units, member, what = _units(loaded)
    if len(units) < 3:
        raise DataError(
            f"calibration needs at least 3 {what}, got {len(units)}: give more, or fit with "
            "calibration none (no p-values)"
        )
    count = min(max(1, round(share * len(units))), len(units) - 2)
    held = np.isin(units[member], np.random.default_rng(seed).permutation(units)[:count])
    return take(loaded, ~held), replace(take(loaded, held), skipped=[])


def folds(loaded: Loaded, count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold (n,) of each image, 0 to count - 1, by patient or group of near duplicates.

    Args:
        loaded: normal images.
        count: of folds, at least 2.
        seed: of the choice.

    Raises:
        DataError: if there are fewer patients or groups than folds.
    """
    units, member, what = _units(loaded)
    if len(units) < count:
        raise DataError(
            f"cv+ in {count} folds needs at least {count} {what}, got {len(units)}: give more, ask "
            "for fewer folds, or fit with calibration none (no p-values)"
        )
    order = np.random.default_rng(seed).permutation(len(units))
    return np.asarray((order % count)[member])


def _units(loaded: Loaded) -> tuple[NDArray[Any], NDArray[np.intp], str]:
    """Return what is held out whole: names, the number of each image's, and what they are."""
    units, member = np.unique(groups_of(loaded), return_inverse=True)
    return units, member, "distinct images" if patients_of(loaded) is None else "patients"
