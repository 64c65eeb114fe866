"""Read a data set once and ask it everything: `audit`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis import baselines
from normalis.audit.confounds import (
    BaselineScore,
    ClassDifference,
    Shift,
    class_differences,
    find_shifts,
    separate,
)
from normalis.audit.copies import Progress, compare_images
from normalis.audit.inventory import Fact, take_inventory
from normalis.audit.margins import Margins, look_at_margins
from normalis.audit.result import Audit
from normalis.datasets.base import Dataset
from normalis.errors.arguments import check_kind

if TYPE_CHECKING:
    from normalis.loading.arrays import Loaded, Row

__all__ = ["audit"]

_log = logging.getLogger("normalis.audit")

_LEAST_TO_COMPARE = 10  # images of a side


def audit(
    dataset: Dataset | str | Path,
    *,
    image_size: int = 64,
    patient_pattern: str | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Say what is wrong with a data set.

    Args:
        dataset: of `normalis.datasets.open_dataset`, or a folder or file that it opens.
        image_size: edge at which images are compared; the thresholds are meant for 64.
        patient_pattern: regular expression whose first group, in a file's name, is the patient.
            Without it patients come from manifest and headers only.
        progress: called with the name of the stage and the share of it that is done.

    Returns:
        What was found.

    Raises:
        DataError: if no image is readable, or the pattern does not match every name.
        SettingsError: if the pattern is not usable.
    """
    from normalis.datasets.patients import offer_pattern, patients_from_pattern
    from normalis.loading.given import as_dataset
    from normalis.loading.marked import marked_normals
    from normalis.loading.units import find_units

    dataset = as_dataset(dataset)
    check_kind("image_size", image_size, "whole")
    check_kind("patient_pattern", patient_pattern, "text?")

    if patient_pattern is not None:
        dataset = patients_from_pattern(dataset, patient_pattern)
    tell = progress or (lambda stage, share: None)
    pixels, rows, unreadable, about_values = _read(dataset, image_size, tell)
    _log.info("comparing %d images of %s, %d unreadable", len(rows), dataset.name, len(unreadable))
    facts = take_inventory(rows, progress=lambda share: tell("headers", share))
    facts = _with_known_patients(facts, rows)
    copies = compare_images(pixels, facts, progress=tell)
    units = find_units(rows, pixels[:, None], alike=copies.plain.group)
    found = _confounds(pixels, facts, units.member, tell)
    offered = offer_pattern(dataset) if all(f.patient_id is None for f in facts) else None
    return Audit(
        name=dataset.name,
        root=Path(dataset.root),
        layout=dataset.layout,
        facts=tuple(facts),
        unreadable=tuple((str(path), reason) for path, reason in unreadable),
        copies=copies,
        units=units,
        shared=_shared(pixels, rows),
        baselines=tuple(found[0]),
        differences=tuple(found[1]),
        shifts=tuple(_shifts(pixels, facts, units.member)),
        notes=(*dataset.notes, *map(_sentence, (*about_values, *units.notes))),
        pattern=offered,
        marked=tuple(marked_normals(dataset.samples)),
        margins=_margins(pixels, np.array([fact.is_test for fact in facts], dtype=bool), tell),
    )


def _margins(pixels: NDArray[Any], is_test: NDArray[np.bool_], tell: Progress) -> Margins:
    """Look at what is to be learned from; at the test alone only where there is nothing else."""
    from normalis.loading.arrays import to_unit

    tell("margins", 0.0)
    chosen = ~is_test if (~is_test).any() else is_test
    seen = look_at_margins(to_unit(pixels[chosen]))
    found = {kind: np.zeros(len(pixels), bool) for kind in seen.found}
    for kind, has in seen.found.items():
        found[kind][chosen] = has
    tell("margins", 1.0)
    return Margins(found=found, share=seen.share)


def _read(
    dataset: Dataset, image_size: int, tell: Progress
) -> tuple[NDArray[Any], list[Any], list[tuple[Path, str]], list[str]]:
    """Read the fitted side, then the test by the same intensity rule."""
    from normalis.loading.arrays import ImageSettings, load, to_unit

    settings = ImageSettings(image_size=image_size)
    sides = (
        [s for s in dataset.samples if s.split != "test"],
        [s for s in dataset.samples if s.split == "test"],
    )
    parts: list[Loaded] = []
    for name, samples in zip(("training images", "test images"), sides, strict=True):
        if samples:
            rule = parts[0].rule if parts else None

            def show(done: int, total: int, name: str = name) -> None:
                tell(name, done / total)

            # the test is read as `score` would: in the training images' units, or not at all
            learning = not parts
            part = load(samples, settings, rule=rule, fit_rule=learning, progress=show, warn=False)
            parts.append(part)
    arrays = [part.pixels for part in parts]
    if len({a.dtype for a in arrays}) > 1:
        arrays = [to_unit(a) for a in arrays]
    return (
        np.concatenate(arrays)[:, 0],
        [row for part in parts for row in part.rows],
        [one for part in parts for one in part.skipped],
        [note for part in parts for note in part.notes],
    )


def _with_known_patients(facts: Sequence[Fact], rows: Sequence[Row]) -> list[Fact]:
    """Drop ids that name nobody; see `normalis.loading.units`."""
    from normalis.loading.units import file_of, known_patients

    patients, _ = known_patients([fact.patient_id for fact in facts], list(map(file_of, rows)))
    pairs = zip(facts, patients, strict=True)
    return [dataclasses.replace(fact, patient_id=patient) for fact, patient in pairs]


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."


def _shared(
    pixels: NDArray[Any], rows: Sequence[Row]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return what the validation split shares with the training images."""
    from normalis.loading.units import shared_with

    train, held = (
        [i for i, row in enumerate(rows) if row.sample.split == split and not row.is_anomalous]
        for split in ("train", "validation")
    )
    if not train or not held:
        return (), ()
    sides = [rows[i] for i in train], [rows[i] for i in held]
    names, copies = shared_with(*sides, (pixels[train][:, None], pixels[held][:, None]))
    return tuple(names), tuple(copies)


def _confounds(
    pixels: NDArray[Any], facts: Sequence[Fact], member: NDArray[np.int64], tell: Progress
) -> tuple[list[BaselineScore], list[ClassDifference]]:
    """Score the labelled test images by the baselines; nothing without both classes."""
    chosen = [i for i, f in enumerate(facts) if f.is_test and f.is_anomalous is not None]
    is_anomalous = np.array([facts[i].is_anomalous for i in chosen], dtype=np.bool_)
    units = member[chosen]
    if is_anomalous.all() or not is_anomalous.any() or len(set(units.tolist())) < 2:
        return [], []
    tell("baselines", 0.0)
    train = pixels[[not fact.is_test for fact in facts]]
    properties = [facts[i].properties for i in chosen]
    by_property = baselines.property_scores(properties)
    found = separate(by_property, is_anomalous, groups=units, either=True)
    if len(train):
        by_pixels = baselines.pixel_scores(pixels[chosen], train)
        found += separate(by_pixels, is_anomalous, groups=units)
    tell("baselines", 1.0)
    found.sort(key=lambda score: -score.auroc)
    return found, class_differences(properties, is_anomalous)


def _shifts(pixels: NDArray[Any], facts: Sequence[Fact], units: NDArray[np.int64]) -> list[Shift]:
    """Compare normal images of training and test."""
    train = [i for i, f in enumerate(facts) if not f.is_test]
    test = [i for i, f in enumerate(facts) if f.is_test and f.is_anomalous is False]
    if len(train) < _LEAST_TO_COMPARE or len(test) < _LEAST_TO_COMPARE:
        return []
    ours, theirs = (_columns([facts[i].properties for i in side]) for side in (train, test))
    threshold = baselines.foreground_threshold(pixels[train])
    for columns, side in ((ours, train), (theirs, test)):
        x = pixels[side]
        columns["mean_intensity"] = baselines.mean_intensity(x)
        columns["contrast"] = baselines.contrast(x)
        columns["foreground_area"] = baselines.foreground_area(x, threshold=threshold)
    # PCA is fitted on half of the training, by patient: its own images' residuals are too small.
    half, rest = ([i for i in train if units[i] % 2 == k] for k in (0, 1))
    if half and rest:
        residual = baselines.pca_residual(pixels[rest + test], pixels[half])
        ours["pca16_residual"], theirs["pca16_residual"] = np.split(residual, [len(rest)])
    return find_shifts(ours, theirs)


def _columns(properties: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return property -> values, all numbers or all text, of those that most images have."""
    names = dict.fromkeys(key for row in properties for key in row)
    columns: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in properties if name in row]
        if 2 * len(values) < len(properties):
            continue
        numeric = all(isinstance(value, (int, float)) for value in values)
        columns[name] = [float(v) if numeric else str(v) for v in values]
    return columns
