"""A data set, and rules about headers -> the images that are meant, and what was left aside.

DICOM files know their study, series, view and plane; the columns of a manifest are known by their
names. Result objects, localizers and what normalis itself wrote are always left aside, with the
reason. What a rule cannot answer is left aside as *unknown*, apart from what does not match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from normalis.datasets.base import Dataset, Sample
from normalis.errors import DataError
from normalis.studies.index import Entry, Series, index_files, series_of
from normalis.studies.where import Rule, answer

__all__ = ["Selection", "select"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What rules leave of a data set.

    Attributes:
        dataset: the images that are meant; ``header`` of a DICOM file's sample holds the columns
            of `normalis.studies.index.ATTRIBUTES`, ``plane`` and ``slices``.
        aside: (sample, reason) of what was left aside.
        series: by Series Instance UID, of all DICOM files.
    """

    dataset: Dataset
    aside: tuple[tuple[Sample, str], ...]
    series: Mapping[str, Series]

    def reasons(self) -> dict[str, int]:
        """Count what was left aside by reason, most frequent first."""
        return dict(Counter(reason for _, reason in self.aside).most_common())


def select(
    dataset: Dataset,
    rules: Sequence[Rule] = (),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Keep the images that all rules hold for.

    Args:
        dataset: samples; files of any format.
        rules: what must hold.
        progress: called as ``progress(done, total)`` while headers are read.

    Raises:
        DataError: if nothing is left; the message counts the reasons.
    """
    entries = index_files((s.path for s in dataset.samples), progress=progress)
    series = series_of(e for e in entries.values() if e.aside is None)
    slices = {e.path: s.images for s in series.values() for e in s.entries}
    kept, aside = [], []
    for sample in dataset.samples:
        entry = entries.get(sample.path)
        known = _known(sample, entry, slices.get(sample.path))
        reason = (entry.aside if entry else None) or _why_not(rules, known)
        if reason:
            aside.append((sample, reason))
        else:
            kept.append(_described(sample, entry, known))
    found = Selection(
        dataset=replace(dataset, samples=tuple(kept)), aside=tuple(aside), series=series
    )
    if not kept and dataset.samples:
        listed = "; ".join(f"{reason}: {count}" for reason, count in found.reasons().items())
        raise DataError(f"{dataset.root}: no image is left of {len(dataset.samples)} ({listed})")
    return found


def _known(sample: Sample, entry: Entry | None, slices: int | None) -> dict[str, Any]:
    """Return all that is known of a sample by lower-case key; the data set's own columns win."""
    known: dict[str, Any] = {}
    if entry is not None:
        known |= {name.lower(): value for name, value in entry.values.items()}
        known |= dict(entry.columns)
        thickness = entry.values.get("SliceThickness")
        known |= {"plane": entry.plane, "slices": slices, "thickness": thickness}
    known |= {str(name).lower(): value for name, value in sample.header.items()}
    if sample.patient_id:
        known["patient_id"] = sample.patient_id
    return known


def _why_not(rules: Sequence[Rule], known: Mapping[str, Any]) -> str | None:
    holds, rule = answer(rules, known)
    if holds:
        return None
    return f"unknown: nothing says {rule.key}" if holds is None and rule else f"not {rule}"


def _described(sample: Sample, entry: Entry | None, known: Mapping[str, Any]) -> Sample:
    if entry is None:
        return sample
    header = {**entry.columns, "plane": known.get("plane"), "slices": known.get("slices")}
    header = {name: value for name, value in header.items() if value is not None}
    return replace(sample, header={**header, **sample.header})
