"""What an audit found: lists of images, numbers, sentences, and tables to print."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalis.audit.confounds import BaselineScore, ClassDifference, Shift
from normalis.audit.copies import THRESHOLDS, Copies
from normalis.audit.findings import Finding, find
from normalis.audit.inventory import Fact, count_properties
from normalis.audit.margins import KINDS, Margins
from normalis.loading.units import Units

__all__ = ["Audit"]

Table = tuple[str, list[str], list[list[str]]]
_LABELS = {
    "exact_across_splits": "test images that are byte for byte training images",
    "pixel_across_splits": "test images with a training image's pixels",
    "near_across_splits": "test images that are near duplicates of a training image, as they lie",
    "reencoded_across_splits": "of these at 0.999, in another file",
    "mirrored_across_splits": "test images that mirror a training image",
    "near_or_mirrored_across_splits": "test images that are near duplicates of a training image, "
    "as they lie or mirrored",
    "shifted_across_splits": "further test images that show a training image moved",
    "lookalikes_across_splits": "test images that look like a training image and are no copy",
    "distinct_train": "training images distinct at 0.95",
    "distinct_train_by_bytes": "training files distinct by bytes",
    "distinct_test": "test images distinct at 0.95",
    "groups_count": "groups of near duplicates, both sides",
    "groups_images": "images in such groups",
    "groups_largest": "images in the largest group",
    "patients_train": "patients in training",
    "patients_test": "patients in the test",
    "patients_shared": "patients in both",
}
_LISTED = 1000  # near duplicates written out; the counts are always complete


@dataclass(frozen=True, eq=False, kw_only=True)
class Audit:
    """What `audit` found.

    Attributes:
        name: of the data set.
        root: the folder or file that was opened.
        layout: how it was recognised.
        facts: N entries, one per image that was read, in the data set's order.
        unreadable: (path, reason) of the files that were not.
        copies: near duplicates across the sides.
        units: which images are independent (`normalis.loading.units`).
        shared: names of patients, studies and files in both training and validation, and pairs
            (validation file, the training file that it copies).
        baselines: AUROC of scores that know nothing of anatomy; empty without labels.
        differences: of the classes' headers.
        shifts: between normal images of training and test.
        notes: sentences of the data set and about what could not be checked.
        pattern: name and expression of a file-name pattern that would give patients, if one fits
            and was not confirmed.
        marked: names of images that count as normal and have a mask that marks something.
        margins: which images have something at their edges that most have not; None if that was
            not looked at.
    """

    name: str
    root: Path
    layout: str
    facts: tuple[Fact, ...]
    unreadable: tuple[tuple[str, str], ...]
    copies: Copies
    units: Units
    shared: tuple[tuple[str, ...], tuple[tuple[str, str], ...]]
    baselines: tuple[BaselineScore, ...]
    differences: tuple[ClassDifference, ...]
    shifts: tuple[Shift, ...]
    notes: tuple[str, ...]
    pattern: tuple[str, str] | None
    margins: Margins | None = None
    marked: tuple[str, ...] = ()

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of the N images, as `image_key` gives them."""
        return tuple(fact.key for fact in self.facts)

    @cached_property
    def is_test(self) -> NDArray[np.bool_]:
        """(N,) the side of each image."""
        return np.array([fact.is_test for fact in self.facts], dtype=bool)

    @cached_property
    def is_anomalous(self) -> NDArray[np.bool_]:
        """(N,) whether an image is labelled anomalous; unlabelled ones are not."""
        return np.array([fact.is_anomalous is True for fact in self.facts], dtype=bool)

    @cached_property
    def groups(self) -> dict[str, int]:
        """Image -> number of its unit, for clustered intervals."""
        return dict(zip(self.keys, self.units.member.tolist(), strict=True))

    def training_units(self) -> int:
        """Return the number of independent units that ``fit`` trains on and calibrates with."""
        return len(np.unique(self.units.member[~self.is_test & ~self.is_anomalous]))

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Sentences, the most harmful first."""
        return find(self)

    @property
    def has_leaks(self) -> bool:
        """Whether any finding is a leak."""
        return any(finding.severity == "leak" for finding in self.findings)

    def leaked(
        self, threshold: float = 0.95, *, mirrored: bool = False, shifted: bool = False
    ) -> frozenset[str]:
        """Return the test images with a training duplicate, by key; as `Copies.has_duplicate`."""
        found = self.copies.has_duplicate(threshold, mirrored=mirrored, shifted=shifted)
        return self._names(found & self.is_test)

    def training_duplicates(
        self, threshold: float = 0.95, *, mirrored: bool = False
    ) -> frozenset[str]:
        """Return the training and validation images with a duplicate in the test, by key."""
        found = self.copies.has_duplicate(threshold, mirrored=mirrored)
        return self._names(found & ~self.is_test)

    def repeated(self) -> frozenset[str]:
        """Return the images that repeat an earlier one of their own side (greedily, at 0.95)."""
        return self._names(~self.copies.plain.distinct)

    def patients(self) -> dict[str, int | None]:
        """Count patients of training (with validation), of the test, and of both."""
        sides: tuple[set[str], set[str]] = (set(), set())
        for fact in self.facts:
            if fact.patient_id is not None:
                sides[fact.is_test].add(fact.patient_id)
        train, test = sides
        if not train and not test:
            return {"train": None, "test": None, "shared": None}
        return {"train": len(train), "test": len(test), "shared": len(train & test)}

    def counts(self) -> dict[str, Any]:
        """Return the duplicates of test images in training, and of training images in training."""
        c, test = self.copies, self.is_test
        again = c.has_duplicate(THRESHOLDS[0]) & ~c.by_bytes & test
        return {
            "exact_across_splits": int((c.by_bytes & test).sum()),
            "pixel_across_splits": int((c.by_pixels & test).sum()),
            "near_across_splits": self._at(lambda t: c.has_duplicate(t)),
            "reencoded_across_splits": int(again.sum()),
            "mirrored_across_splits": self._at(lambda t: c.mirrored.across >= t),
            "near_or_mirrored_across_splits": self._at(lambda t: c.has_duplicate(t, mirrored=True)),
            "shifted_across_splits": self._at(lambda t: c.shifted >= t),
            "lookalikes_across_splits": self._at(lambda t: c.plain.other_patient >= t),
            "distinct_train": int((c.plain.distinct & ~test).sum()),
            "distinct_train_by_bytes": self._distinct_files(),
            "distinct_test": int((c.plain.distinct & test).sum()),
            "groups": self._group_sizes(),
        }

    def with_margins(self) -> dict[str, list[str]]:
        """Return the images with something at their edges, by kind, keys of those that have it."""
        if self.margins is None:
            return {}
        found = self.margins.found
        return {kind: sorted(self._names(found[kind]))[:_LISTED] for kind in KINDS}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "name": self.name,
            "root": str(self.root),
            "layout": self.layout,
            "images": len(self.facts),
            "unreadable": len(self.unreadable),
            "unreadable_files": [{"path": p, "reason": r} for p, r in self.unreadable],
            "duplicates": {**self.counts(), "twins": self._pairs()},
            "patients": self.patients(),
            "units": {"level": self.units.level, "train": self.training_units()},
            "patient_pattern_offered": self.pattern and list(self.pattern),
            "trivial": {
                s.name: {"auroc": s.auroc, "low": s.low, "high": s.high}
                | ({"detail": s.detail} if s.detail else {})
                for s in self.baselines
            },
            "differences": [dataclasses.asdict(d) for d in self.differences],
            "margins": self.with_margins(),
            "shifts": [dataclasses.asdict(s) for s in self.shifts],
            "findings": [dataclasses.asdict(f) for f in self.findings],
            "tables": [
                {"title": title, "columns": columns, "rows": rows}
                for title, columns, rows in self.tables()
            ],
        }

    def tables(self) -> list[Table]:
        """Return (title, columns, rows) of text, for a terminal or a page; no table is empty.

        The findings are not among them: they are sentences.
        """
        tables: list[Table] = [
            ("What was read", *self._counted()),
            ("Not readable", ["file", "reason"], [list(pair) for pair in self.unreadable]),
            (
                "Copies and patients",
                ["what", "count", *(f"at {t}" for t in THRESHOLDS)],
                self._count_rows(),
            ),
            (
                "What a baseline separates",
                ["score", "AUROC", "95 % interval", "detail"],
                [
                    [s.name, f"{s.auroc:.3f}", f"{s.low:.3f} to {s.high:.3f}", s.detail]
                    for s in self._better()
                ],
            ),
            (
                "How the classes' headers differ",
                ["property", "anomalous", "normal"],
                [[d.name, d.anomalous, d.normal] for d in self.differences],
            ),
            (
                "Normal images, training against test",
                ["quantity", "train", "test", "d", "distance", "notable"],
                [_shift_row(shift) for shift in self.shifts],
            ),
        ]
        return [table for table in tables if table[2]]

    def _counted(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows of what was read, without the columns that are empty."""
        columns = ["property", "value", "train", "test normal", "test anomalous", "test unlabelled"]
        rows = count_properties(self.facts)
        keep = [i for i in range(len(columns)) if any(row[i] != "0" for row in rows)]
        return [columns[i] for i in keep], [[row[i] for i in keep] for row in rows]

    def _better(self) -> list[BaselineScore]:
        """Return the baseline scores; of one that is listed in both directions the better one."""
        names = {score.name for score in self.baselines}
        return [s for s in self.baselines if s.auroc >= 0.5 or _turned(s.name) not in names]

    def _names(self, chosen: NDArray[np.bool_]) -> frozenset[str]:
        return frozenset(self.keys[i] for i in np.flatnonzero(chosen))

    def _at(self, found: Callable[[float], NDArray[np.bool_]]) -> dict[str, int]:
        return {str(t): int((found(t) & self.is_test).sum()) for t in THRESHOLDS}

    def _distinct_files(self) -> int | None:
        digests = [f.digest for f in self.facts if not f.is_test and f.digest is not None]
        return len(set(digests)) if digests else None

    def _group_sizes(self) -> dict[str, int]:
        sizes = np.bincount(self.copies.group)
        several = sizes[sizes > 1]
        return {
            "count": len(several),
            "images": int(several.sum()),
            "largest": int(several.max(initial=0)),
        }

    def _count_rows(self) -> list[list[str]]:
        """Return the counts as text, one line each; what needs a test only where there is one."""
        counts = self.counts()
        groups, patients = counts.pop("groups"), self.patients()
        counts |= {f"groups_{name}": value for name, value in groups.items()}
        counts |= {f"patients_{name}": value for name, value in patients.items()}
        rows = []
        for name, label in _LABELS.items():
            value, needs_test = counts[name], "train" not in name and "groups" not in name
            if value is None or (needs_test and not self.is_test.any()):
                continue
            several = isinstance(value, Mapping)
            shown = ["", *map(str, value.values())] if several else [str(value), "", ""]
            rows.append([label, *shown])
        return rows

    def _pairs(self) -> list[dict[str, Any]]:
        """Return the test images with a duplicate, each with that and how they are related."""
        found = np.flatnonzero(self.copies.has_duplicate(0.95, mirrored=True, shifted=True))
        return [self._pair(int(i)) for i in found if self.is_test[i]][:_LISTED]

    def _pair(self, i: int) -> dict[str, Any]:
        c = self.copies
        plain, mirrored = c.plain, c.mirrored
        ways = [
            ("as it lies", plain.across[i], plain.duplicate[i]),
            ("mirrored", mirrored.across[i], mirrored.duplicate[i]),
            ("shifted", c.shifted[i], c.shifted_duplicate[i]),
        ]
        # An image that is alike as it lies is also alike when shifted by a pixel.
        relation, ncc, duplicate = next((w for w in ways if w[1] >= 0.95), ways[0])
        relation = "bytes" if c.by_bytes[i] else "pixels" if c.by_pixels[i] else relation
        return {
            "image": self.keys[i],
            "twin": self.keys[duplicate] if duplicate >= 0 else None,
            "relation": relation,
            "correlation": round(float(ncc), 5),
        }


def _shift_row(shift: Shift) -> list[str]:
    d = "" if shift.d is None else f"{shift.d:+.2f}"
    distance = f"{shift.distance:.2f}"
    return [shift.name, shift.train, shift.test, d, distance, "yes" if shift.notable else ""]


def _turned(name: str) -> str:
    """Return the name of a score in the other direction."""
    end = "_reversed"
    return name.removesuffix(end) if name.endswith(end) else name + end
