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
from normalis.loading import ImageSettings, Loaded, from_array, load

__all__ = [
    "Images",
    "Normals",
    "as_dataset",
    "fingerprint",
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
    """

    train: Loaded
    held: Loaded | None
    name: str


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
        loaded, name = from_array(x, settings), "array"
        patients = _given_patients(patient_ids, len(loaded.rows))
        validation: tuple[Sample, ...] = ()
    else:
        data = as_dataset(x)
        loaded, name = load(_training_samples(data), settings, cache=True), data.name
        patients = patients_of(loaded)
        validation = tuple(s for s in data.split("validation") if s.is_anomalous is not True)
    if hold_out is None:
        return Normals(train=loaded, held=None, name=name)
    if validation:
        held = load(validation, settings, rule=loaded.rule, fit_rule=False, cache=True)
        return Normals(train=loaded, held=held, name=name)
    train, held = _split(loaded, patients, hold_out, seed)
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


def take(loaded: Loaded, chosen: NDArray[np.bool_]) -> Loaded:
    """Return some of the images."""
    rows = [row for row, keep in zip(loaded.rows, chosen, strict=True) if keep]
    return Loaded(pixels=loaded.pixels[chosen], rows=rows, skipped=loaded.skipped, rule=loaded.rule)


def fingerprint(pixels: NDArray[Any]) -> str:
    """Return a hash of images as the model sees them."""
    head = f"{pixels.dtype} {pixels.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def _given_patients(patient_ids: Sequence[str] | None, n: int) -> list[str] | None:
    if patient_ids is None:
        return None
    if len(patient_ids) != n:
        raise DataError(
            f"patient_ids must have one entry per image, got {len(patient_ids)} for {n} images"
        )
    return [str(p) for p in patient_ids]


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
    return _split(loaded, patients_of(loaded), share, seed)


def _split(
    loaded: Loaded, patients: list[str] | None, share: float, seed: int
) -> tuple[Loaded, Loaded]:
    groups = likeness_groups(loaded.pixels) if patients is None else np.array(patients)
    units = np.unique(groups)
    if len(units) < 3:
        what = "distinct images" if patients is None else "patients"
        raise DataError(
            f"calibration needs at least 3 {what}, got {len(units)}: give more, or fit with "
            "calibration none (no p-values)"
        )
    count = min(max(1, round(share * len(units))), len(units) - 2)
    held = np.isin(groups, np.random.default_rng(seed).permutation(units)[:count])
    return take(loaded, ~held), replace(take(loaded, held), skipped=[])
