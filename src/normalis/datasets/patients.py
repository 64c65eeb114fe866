"""Patients from file names: offered where a data set is known for it, never guessed.

Two images of one patient are not independent, and a patient in both train and test flatters every
method. Where neither manifest nor arrays name the patient, the file name often does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from normalis.datasets.base import Dataset, Sample
from normalis.datasets.listing import quote_some
from normalis.errors import DataError, SettingsError

__all__ = ["KNOWN_PATTERNS", "offer_pattern", "patients_from_pattern"]

KNOWN_PATTERNS: dict[str, str] = {
    "TCGA": r"(TCGA[_-][A-Z0-9]{2}[_-][A-Z0-9]{4})",
    # NORMAL2-IM-0381 and IM-0381 are different patients of the paediatric chest X-rays
    # (Kermany et al., Cell 2018); person90 is one of its patients with pneumonia.
    "paediatric chest X-rays": r"^((?:NORMAL2-)?IM-\d+|person\d+)[_-]",
    "BraTS": r"(BraTS2021_\d{5}|BraTS\d\d_Training_\d{3}|BraTS-[A-Z]{3}-\d{5})",
    "NIH chest X-rays": r"^(\d{8})_\d{3}\.",
    "OASIS": r"(OAS[123]\d{4,5}|OAS[12]_\d{4})",
    "BMAD brain": r"^(\d{5})_\d+\.",
}

_NEARLY_ALL = 0.95


def patients_from_pattern(dataset: Dataset, regex: str) -> Dataset:
    """Fill ``patient_id`` from the file names, or from the folders that files lie in.

    Args:
        dataset: any data set.
        regex: regular expression, searched for in the file's name, or with a ``/`` in it in the
            file's path below the data set's folder (``^([^/]+)/``: the first folder); its first
            group is the patient.

    Returns:
        The same data set with every patient named.

    Raises:
        SettingsError: if the expression is wrong or has no group.
        DataError: if a file name does not match; the message names some.
    """
    pattern = _compile(regex)
    root = dataset.root if "/" in regex else None
    names = [_name(sample, root) for sample in dataset.samples]
    matches = [pattern.search(name) for name in names]
    failed = [name for name, m in zip(names, matches, strict=True) if not (m and m[1])]
    if failed:
        raise DataError(
            f"the patient pattern {regex!r} must match every file name, but does not match"
            f" {len(failed)} of {len(matches)}: {quote_some(failed)}; with a / in it, it is "
            "searched for in the path below the folder"
        )
    samples = (
        dataclasses.replace(sample, patient_id=match[1])
        for sample, match in zip(dataset.samples, matches, strict=True)
        if match
    )
    notes = tuple(note for note in dataset.notes if "--patient-pattern" not in note)  # followed
    return dataclasses.replace(dataset, samples=tuple(samples), notes=notes)


def offer_pattern(dataset: Dataset) -> tuple[str, str] | None:
    """Return the name and expression of the known pattern that nearly all file names match.

    None where patients are known already, where no pattern fits, and where it would give every
    file a patient of its own, which says nothing.
    """
    if any(sample.patient_id is not None for sample in dataset.samples):
        return None
    names = [_name(sample) for sample in dataset.samples]
    for known, regex in KNOWN_PATTERNS.items():
        found = _groups(names, re.compile(regex))
        if len(found) >= _NEARLY_ALL * len(names) and len(set(found)) < len(found):
            return known, regex
    return None


def _groups(names: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    return [match[1] for match in map(pattern.search, names) if match]


def _name(sample: Sample, root: Path | None = None) -> str:
    """Return a file's name; its path below a root, if one is given."""
    if sample.index is not None:
        # A row of an array file has no file of its own, but may have kept the name of one.
        return str(sample.header.get("name", ""))
    if root is None:
        return sample.path.name
    below = sample.path.is_relative_to(root) and sample.path != root
    return (sample.path.relative_to(root) if below else sample.path).as_posix()


def _compile(regex: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise SettingsError(f"the patient pattern {regex!r} is no expression: {error}") from error
    if pattern.groups < 1:
        raise SettingsError(
            f"the patient pattern {regex!r} must have a group that is the patient,"
            r" for instance (TCGA_\w\w_\w{4})"
        )
    return pattern
