"""A data set, and rules about headers -> the images that are meant, and what was left aside.

DICOM files know their study, series, view and plane; the columns of a manifest are known by their
names. Localizers, results of others and of normalis itself are always left aside, with the reason.
What a rule cannot answer is left aside as *unknown*, apart from what does not match. Secondary
captures are what the listing of the data set said: some archives keep their films as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from normalis.datasets.base import Dataset, Sample
from normalis.datasets.objects import CAPTURE
from normalis.errors import DataError
from normalis.studies.index import Entry, Series, index_files, series_of
from normalis.studies.where import Rule, answer, parse_all

__all__ = ["Selection", "chosen_by", "select"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What rules leave of a data set.

    Attributes:
        dataset: the images that are meant, which knows what was left aside; ``header`` of a DICOM
            file's sample holds ``plane``, ``slices`` and ``lie``.
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
    whose = {e.path: s for s in series.values() for e in s.entries}
    kept, aside = [], []
    for sample in dataset.samples:
        entry = entries.get(sample.path)
        known = _known(sample, entry, whose.get(sample.path))
        always = entry.aside if entry is not None and entry.aside != CAPTURE else None
        reason = always or _why_not(rules, known)
        if reason:
            aside.append((sample, reason))
        else:
            kept.append(_described(sample, entry, known))
    chosen = replace(
        dataset,
        samples=tuple(kept),
        selected_by=tuple(map(str, rules)),
        aside=(*dataset.aside, *((sample.path, reason) for sample, reason in aside)),
    )
    found = Selection(dataset=chosen, aside=tuple(aside), series=series)
    if not kept and dataset.samples:
        listed = "; ".join(f"{reason}: {count}" for reason, count in found.reasons().items())
        raise DataError(f"{dataset.root}: no image is left of {len(dataset.samples)} ({listed})")
    return found


def chosen_by(
    dataset: Dataset,
    rules: Sequence[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Return the images of a data set that are meant, reading headers once.

    Args:
        dataset: any; one that these rules chose already comes back as it is.
        rules: as text.
        progress: called as ``progress(done, total)`` while headers are read.

    Raises:
        DataError: if nothing is left.
    """
    if dataset.selected_by == tuple(rules) or not dataset.samples:
        return dataset
    if dataset.samples[0].index is not None and not rules:  # rows of an array have no header
        return dataset
    return select(dataset, parse_all(rules), progress=progress).dataset


def _known(sample: Sample, entry: Entry | None, series: Series | None) -> dict[str, Any]:
    """Return all that is known of a sample by lower-case key; the data set's own columns win."""
    known: dict[str, Any] = {}
    if entry is not None:
        known |= {name.lower(): value for name, value in entry.values.items()}
        known |= dict(entry.columns)
        thickness = entry.values.get("SliceThickness")
        known |= {"plane": entry.plane, "thickness": thickness}
        if series is not None:
            known |= {"slices": series.images, "lie": series.stack.sentence()}
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
    header = {
        name: known[name] for name in ("plane", "slices", "lie") if known.get(name) is not None
    }
    return replace(sample, header={**header, **sample.header})
