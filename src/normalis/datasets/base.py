"""What a data set is: a list of files that says which are normal, of whom, and in which split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from normalis.errors import DataError

__all__ = ["Dataset", "Options", "Sample", "Split"]

Split = Literal["train", "validation", "test", "unlabelled"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file (or one row of an array file) and what is known of it; nothing is decoded.

    Attributes:
        path: the file.
        split: ``train`` and ``validation`` hold normal images only; ``unlabelled`` are images of
            which nothing is known: `fit` takes them as normal if it is given nothing else, `score`
            scores them.
        is_anomalous: None where nobody said.
        patient_id: None where unknown.
        mask: file of the ground-truth region, None where there is none, which counts as an empty
            one. A normal image may have one too; that it is empty is looked at by
            `normalis.loading.marked`.
        more_masks: further masks of the same image; the region is the union of all.
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
    more_masks: tuple[Path, ...] = ()
    kind: str | None = None
    index: int | None = None
    array: str | None = None
    header: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a user says what a folder or table alone does not.

    Attributes:
        normal_class: names of the classes (folders, or labels of a table) that are normal; ``*``
            means that all are. Empty: only the usual words are understood.
        ignore_tables: read a folder as if no table or list lay in it.
    """

    normal_class: tuple[str, ...] = ()
    ignore_tables: bool = False

    def is_normal(self, name: str) -> bool:
        """Whether a class of this name was said to be normal."""
        return "*" in self.normal_class or _folded(name) in map(_folded, self.normal_class)

    def says(self) -> bool:
        """Whether the user named a normal class."""
        return bool(self.normal_class)


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


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
        unclear: why it is not known which images are normal, and how to say it; empty where it is
            known. Such a data set can be looked at and scored, and not be trained on.
        selected_by: rules that chose these samples (`normalis.studies`); None before any did.
        aside: (path, reason) of what they left aside.
        is_divided: whether the layout itself divided the images, normal ones to train on and
            anomalous ones to test with, since nothing said which are for what.
    """

    name: str
    root: Path
    layout: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    unclear: str = ""
    selected_by: tuple[str, ...] | None = None
    aside: tuple[tuple[Path, str], ...] = ()
    is_divided: bool = False

    def split(self, name: Split) -> tuple[Sample, ...]:
        """Return the samples of one split."""
        return tuple(s for s in self.samples if s.split == name)

    def to_train_on(self) -> tuple[Sample, ...]:
        """Return the normal training images.

        Where nothing is said of any image, as in a plain folder, all are: that they are normal is
        what `fit` is told by being given them.

        Raises:
            DataError: if it is not known which images are normal, or if none is.
        """
        if self.unclear:
            raise DataError(f"{self.root}: {self.unclear}")
        samples = tuple(s for s in self.split("train") if s.is_anomalous is not True)
        if not samples and all(s.split == "unlabelled" for s in self.samples):
            samples = self.samples
        if not samples:
            raise DataError(
                f"{self.root}: must have normal training images, has none "
                f"(layout: {self.layout}; found {self.said_counts()})"
            )
        return samples

    def to_score(self) -> tuple[Sample, ...]:
        """Return the images to be scored: the test split, or those of which nothing is known.

        Raises:
            DataError: if there are neither; training images are never scored in their place.
        """
        samples = self.split("test") or self.split("unlabelled")
        if not samples:
            raise DataError(
                f"{self.root}: must have test or unlabelled images to score, found "
                f"{self.said_counts()} (layout: {self.layout}); to score these very files, give "
                "their folder or a list of files"
            )
        return samples

    def to_evaluate(self) -> Dataset:
        """Return the data set whose test split are the images to evaluate a detector on.

        Where nobody said which images are for training, all labelled ones are for the test: `fit`
        was given others.
        """
        if not self.is_divided:
            return self
        samples = tuple(
            s if s.is_anomalous is None else replace(s, split="test") for s in self.samples
        )
        return replace(self, samples=samples)

    @property
    def has_masks(self) -> bool:
        """Whether any image that may be anomalous has a ground-truth region."""
        return any(s.mask is not None and s.is_anomalous is not False for s in self.samples)

    def counts(self) -> dict[tuple[str, str], int]:
        """Count files by (split, normal | anomalous | unlabelled)."""
        names = {None: "unlabelled", False: "normal", True: "anomalous"}
        return dict(Counter((s.split, names[s.is_anomalous]) for s in self.samples))

    def said_counts(self) -> str:
        """Return the counts as words: ``20 train normal, 5 test anomalous``."""
        found = sorted(self.counts().items())
        return ", ".join(
            f"{n} {split}" + (f" {label}" if label != split else "") for (split, label), n in found
        )
