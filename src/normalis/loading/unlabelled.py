"""Images of which nothing is known, for methods that learn from them beside the normal ones.

They must be other images than the normal ones, which calibrate the p-values, and than the test
images of the same data set: of other patients, studies and files, and no copies. A network that has
seen an image rebuilds it better, whatever is on it: its score is no longer that of a new image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.datasets import Dataset
from normalis.errors import DataError, SettingsError
from normalis.loading.arrays import ImageSettings, Loaded, from_array, load, to_unit
from normalis.loading.held_out import (
    Images,
    Normals,
    as_dataset,
    fingerprint,
    image_marks,
    is_array,
    take,
)
from normalis.loading.units import file_of, shared_with, some
from normalis.studies.select import chosen_by

__all__ = ["LEARNED_FROM", "OVERLAPS", "Unlabelled", "mark_learned_from", "unlabelled_images"]

_log = logging.getLogger("normalis.loading")

#: What may be done about images that are known already.
OVERLAPS = ("refuse", "leave-out")
#: Name in a row's header, and in tables, of images that the method learned from unlabelled.
LEARNED_FROM = "unlabelled_in_fit"


@dataclass(frozen=True, eq=False, kw_only=True)
class Unlabelled:
    """Unlabelled images, ready for a model.

    Attributes:
        loaded: the images; their patients and labels are nobody's business.
        name: of the data, for the record.
        left_out: how many were left out because they are known already.
    """

    loaded: Loaded
    name: str
    left_out: int

    def described(self) -> dict[str, Any]:
        """Return what is written down of them."""
        return {
            "name": self.name,
            "images": len(self.loaded.rows),
            "left_out": self.left_out,
            "skipped": len(self.loaded.skipped),
            "fingerprint": fingerprint(self.loaded.pixels),
        }


def unlabelled_images(
    given: Images,
    settings: ImageSettings,
    *,
    normals: Normals,
    source: Images,
    overlap: str = "refuse",
) -> Unlabelled:
    """Read unlabelled images, and refuse or leave out those that are known already.

    Args:
        given: of a data set those that it calls unlabelled count, else all, whatever their labels.
        settings: how images are read, by the intensity rule of the normal images.
        normals: images that are trained on and calibrated on.
        source: what those were read from; of a data set with a test split the unlabelled images
            must be none of the test images either.
        overlap: ``refuse`` raises; ``leave-out`` goes on without the images that are known.

    Raises:
        DataError: if there is no readable image, if some are known already, or if none is left.
        SettingsError: if ``overlap`` is neither.
    """
    if overlap not in OVERLAPS:
        raise SettingsError(
            f"unlabelled_overlap must be one of {', '.join(OVERLAPS)}, got {overlap!r}"
        )
    loaded, name = _read(given, settings, normals.train)
    keep = np.ones(len(loaded.rows), dtype=bool)
    said: list[str] = []
    for side, known in _known(normals, source, settings).items():
        shared, words = _shared(known, loaded)
        if shared.any():
            said.append(f"{int((shared & keep).sum())} {side} ({words})")
        keep &= ~shared
    if not keep.all() and overlap == "refuse":
        raise DataError(
            f"{name}: unlabelled images must be of other patients, and no copies, but "
            f"{int((~keep).sum())} of {len(keep)} are known already: {'; '.join(said)}. Remove "
            "them, or go on without them: unlabelled_overlap='leave-out' (--unlabelled-overlap "
            "leave-out)"
        )
    if not keep.any():
        raise DataError(f"{name}: no unlabelled image is left: {'; '.join(said)}")
    if not keep.all():
        _log.warning("%s: left out of the unlabelled images: %s", name, "; ".join(said))
    _log.info("%d unlabelled images to learn from", int(keep.sum()))
    left_out = int((~keep).sum())
    return Unlabelled(loaded=take(loaded, keep), name=name, left_out=left_out)


def _read(given: Images, settings: ImageSettings, train: Loaded) -> tuple[Loaded, str]:
    if is_array(given):
        found = from_array(given, settings, rule=train.rule, fit_rule=False)
        where = Path("unlabelled")  # else the first of them were the first of the normal images
        named = [replace(r, path=where, sample=replace(r.sample, path=where)) for r in found.rows]
        return replace(found, rows=named), "array"
    data = chosen_by(as_dataset(given), settings.where)
    samples = data.split("unlabelled") or data.samples
    if not samples:
        raise DataError(f"{data.root}: must have images to learn from unlabelled, has none")
    return load(samples, settings, rule=train.rule, fit_rule=False, cache=True), data.name


def _known(normals: Normals, source: Images, settings: ImageSettings) -> dict[str, Loaded]:
    """Return the images that are known already, by what they are known as."""
    parts = [part for part in (normals.train, normals.watched, normals.held) if part is not None]
    found = {"among the normal images": _joined(parts)}
    test = _test_of(source, settings, normals.train)
    if test is not None:
        found["among the test images"] = test
    return found


def _test_of(source: Images, settings: ImageSettings, train: Loaded) -> Loaded | None:
    if is_array(source):
        return None
    data = source if isinstance(source, Dataset) else as_dataset(source)
    test = chosen_by(data, settings.where).split("test")
    return load(test, settings, rule=train.rule, fit_rule=False, cache=True) if test else None


def _joined(parts: Sequence[Loaded]) -> Loaded:
    pixels = _one_range([part.pixels for part in parts])
    rows = [row for part in parts for row in part.rows]
    return replace(parts[0], pixels=np.concatenate(pixels), rows=rows, units=None)


def _one_range(pixels: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    same = len({x.dtype for x in pixels}) == 1
    return [x if same else to_unit(x) for x in pixels]


def _shared(known: Loaded, loaded: Loaded) -> tuple[NDArray[np.bool_], str]:
    """Return which images (N,) share a patient, study, file or pixels with known ones, in words."""
    first, second = _one_range([known.pixels, loaded.pixels])
    names, copies = shared_with(known.rows, loaded.rows, (first, second))
    common, copied = set(names), {copy for copy, _ in copies}
    found = np.zeros(len(loaded.rows), dtype=bool)
    for i, row in enumerate(loaded.rows):
        uids = (row.header.get("study_uid"), row.header.get("series_uid"))
        of = {str(name).strip() for name in (row.patient_id, file_of(row), *uids) if name}
        found[i] = bool(of & common) or file_of(row) in copied
    pairs = [f"{Path(copy).name} = {Path(of).name}" for copy, of in copies]
    return found, some([*(Path(name).name for name in names), *pairs])


def mark_learned_from(batch: Loaded, marks: NDArray[np.uint64]) -> Loaded:
    """Return a batch whose rows say in their header if the method learned from the very image.

    Args:
        batch: images as the model sees them.
        marks: of the unlabelled images of the fit (`normalis.loading.held_out.image_marks`).
    """
    if not len(marks) or not batch.rows:
        return batch
    seen = np.isin(image_marks(batch.pixels), marks)
    if not seen.any():
        return batch
    rows = [
        replace(row, header={**row.header, LEARNED_FROM: 1}) if known else row
        for row, known in zip(batch.rows, seen, strict=True)
    ]
    return replace(batch, rows=rows)
