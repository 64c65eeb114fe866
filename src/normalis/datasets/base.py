"""What a data set is: a list of files that says which are normal, of whom, and in which split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Dataset", "Sample", "Split"]

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file (or one row of an array file) and what is known of it; nothing is decoded.

    Attributes:
        path: the file.
        split: ``train`` and ``validation`` hold normal images only.
        is_anomalous: None where nobody said.
        patient_id: None where unknown.
        mask: file of the ground-truth region, None where there is none. A normal test image of a
            data set with masks has None and counts as an empty mask.
        kind: name of the anomaly (``glioma``), None where unknown.
        index: row in an array file; None for a file of its own.
        array: name of the array inside an ``.npz``; None elsewhere.
        header: further columns of a manifest (age, sex, scanner, ...).
    """

    path: Path
    split: Split
    is_anomalous: bool | None = None
    patient_id: str | None = None
    mask: Path | None = None
    kind: str | None = None
    index: int | None = None
    array: str | None = None
    header: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: its samples, and how its layout was recognised.

    Attributes:
        name: short name for tables, by default the folder's.
        root: the folder or file that was opened.
        layout: name of the layout recognised, for instance ``images + data.json``.
        samples: in a stable order.
        notes: what a reader should know (files that the listing names and that are missing,
            things left aside), one sentence each.
    """

    name: str
    root: Path
    layout: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    def split(self, name: Split) -> tuple[Sample, ...]:
        """Return the samples of one split."""
        return tuple(s for s in self.samples if s.split == name)

    @property
    def has_masks(self) -> bool:
        """Whether any test image has a ground-truth region."""
        return any(s.mask is not None for s in self.samples)

    def counts(self) -> dict[tuple[str, str], int]:
        """Count files by (split, normal | anomalous | unlabelled)."""
        names = {None: "unlabelled", False: "normal", True: "anomalous"}
        return dict(Counter((s.split, names[s.is_anomalous]) for s in self.samples))
