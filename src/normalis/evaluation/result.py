"""What an evaluation returns, and its rows as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from normalis.metrics import Comparison, Interval

__all__ = ["Baseline", "Evaluation", "Subset", "TableRow"]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline score on the same images, and whether the method beats it.

    Attributes:
        name: of the score.
        auroc: its own.
        comparison: AUROC of the method minus that of the baseline, paired.
        adjusted_p: the comparison's p-value after Holm's correction over all baselines.
        beaten: whether the method is better and ``adjusted_p`` is below 0.05.
    """

    name: str
    auroc: Interval
    comparison: Comparison
    adjusted_p: float
    beaten: bool


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Figures of one selection of the test images.

    Attributes:
        name: ``all``; ``without NAME``: without the images of a list of leaked ones;
            ``only NAME``: its normal images against all anomalous ones.
        n_images: images in it.
        n_normal: normal ones.
        n_anomalous: anomalous ones.
        n_units: independent units.
        ranking: name -> figure without a threshold.
        deployable: name -> figure at a threshold from normal images.
        oracle: name -> figure for which something was chosen with these labels.
        by_kind: kind of anomaly -> AUROC against all normal images.
        kind_images: kind of anomaly -> images behind its AUROC, its own and the normal ones.
        baselines: baseline scores, best first.
    """

    name: str
    n_images: int
    n_normal: int
    n_anomalous: int
    n_units: int
    ranking: Mapping[str, Interval] = field(default_factory=dict)
    deployable: Mapping[str, Interval] = field(default_factory=dict)
    oracle: Mapping[str, Interval] = field(default_factory=dict)
    by_kind: Mapping[str, Interval] = field(default_factory=dict)
    kind_images: Mapping[str, int] = field(default_factory=dict)
    baselines: tuple[Baseline, ...] = ()

    @property
    def beats_baselines(self) -> bool | None:
        """Whether every baseline is beaten; None if there is none."""
        return all(b.beaten for b in self.baselines) if self.baselines else None


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of the table.

    Attributes:
        section: ``ranking``, ``deployable``, ``oracle``, ``kind``, ``baseline``, ``group`` or
            ``lesion``.
        subset: which images.
        name: of the figure.
        value: the figure.
        low: lower end of its interval, NaN if there is none.
        high: upper end.
        n_images: images behind it.
        n_units: independent units behind it.
        note: what a reader must know.
    """

    section: str
    subset: str
    name: str
    value: float
    low: float
    high: float
    n_images: int
    n_units: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of one method on one test set.

    Attributes:
        subsets: all images first, then without (and only) the leaked ones.
        unit: what an independent unit is: ``image`` or ``group`` (patients or duplicates).
        rate: nominal false-positive rate of the deployable figures; None without calibration.
        groups: false-positive rate of normal images by header column and value.
        group_sizes: normal images behind each of them.
        lesions: lesions found by size, at the calibrated level of the map.
        coloured: class -> share of its images with a place above that level.
        highest: how often the map's highest place lies in the lesion, by pixels of the image's
            mask.
        notes: what a reader should know, one sentence each.
    """

    subsets: tuple[Subset, ...]
    unit: str
    rate: float | None = None
    groups: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    group_sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lesions: tuple[Mapping[str, float], ...] = ()
    coloured: Mapping[str, Interval] = field(default_factory=dict)
    highest: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> Subset:
        """Figures of all images."""
        return self.subsets[0]

    @property
    def beats_baselines(self) -> bool | None:
        """Whether every baseline is beaten on every subset but the leaked images alone."""
        judged = [s.beats_baselines for s in self.subsets if not s.name.startswith("only ")]
        known = [j for j in judged if j is not None]
        return all(known) if known else None

    def table(self) -> list[TableRow]:
        """Return all figures as rows, section by section, oracles last."""
        rows = [
            row
            for section in ("ranking", "kind", "baseline", "deployable")
            for subset in self.subsets
            for row in _rows_of(subset, section)
        ]
        for column, values in self.groups.items():
            for value, one in values.items():
                n = self.group_sizes[column][value]
                name = f"false-positive rate, {column} {value}"
                rows.append(_row("group", "all", name, one, n))
        rows += self._map_rows()
        return rows + [row for subset in self.subsets for row in _rows_of(subset, "oracle")]

    def _map_rows(self) -> list[TableRow]:
        """Return what maps show: lesions and images coloured, and where the highest place is."""
        rows = []
        for kind, one in self.coloured.items():
            n = self.all.n_normal if kind == "normal" else self.all.n_anomalous
            rows.append(_row("lesion", "all", f"{kind} images coloured", one, n))
        for lesion in self.lesions:
            name = f"lesions found, {_sizes(lesion['min_size'], lesion['max_size'])} pixels"
            rows.append(_by_size(name, lesion, lesion["sensitivity"], "n counts lesions"))
        for images in self.highest:
            size = _sizes(images["min_size"], images["max_size"])
            rows.append(_by_size(f"highest place in the lesion, {size} pixels", images))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a number that does not exist is None."""
        plain: dict[str, Any] = _plain(asdict(self))
        plain["beats_baselines"] = self.beats_baselines
        for subset, source in zip(plain["subsets"], self.subsets, strict=True):
            subset["beats_baselines"] = source.beats_baselines
        return plain


def _row(
    section: str, subset: str, name: str, one: Interval, n_images: int, note: str = ""
) -> TableRow:
    return TableRow(
        section=section,
        subset=subset,
        name=name,
        value=one.value,
        low=one.low,
        high=one.high,
        n_images=n_images,
        n_units=one.n_units,
        note=note,
    )


def _by_size(
    name: str, row: Mapping[str, float], value: float | None = None, note: str = ""
) -> TableRow:
    """Return the line of one class of sizes."""
    one = Interval(
        value=row["value"] if value is None else value,
        low=row["low"],
        high=row["high"],
        n_units=int(row["n_units"]),
    )
    return _row("lesion", "all", name, one, int(row["n"]), note)


def _rows_of(subset: Subset, section: str) -> list[TableRow]:
    """Return the rows of one section of one subset."""
    if section == "baseline":
        return [
            _row(
                section,
                subset.name,
                b.name,
                b.auroc,
                subset.n_images,
                "" if b.beaten else f"not beaten (adjusted p = {b.adjusted_p:.2g})",
            )
            for b in subset.baselines
        ]
    source = {
        "ranking": subset.ranking,
        "deployable": subset.deployable,
        "oracle": subset.oracle,
        "kind": subset.by_kind,
    }[section]
    sizes = {"sensitivity": subset.n_anomalous, "false_positive_rate": subset.n_normal}
    if section == "kind":
        sizes = dict(subset.kind_images)
    note = "label-tuned: chosen with test labels" if section == "oracle" else ""
    better = [b.name for b in subset.baselines if not b.beaten]
    notes = {"auroc": f"does not beat {_first(better)}"} if better and section == "ranking" else {}
    return [
        _row(
            section, subset.name, name, one, sizes.get(name, subset.n_images), notes.get(name, note)
        )
        for name, one in source.items()
    ]


def _sizes(low: float, high: float) -> str:
    return f"{low:.0f} to {high - 1:.0f}" if math.isfinite(high) else f"{low:.0f} or more"


def _first(names: list[str], most: int = 3) -> str:
    """Name a few and count the rest."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _plain(value: Any) -> Any:
    """Make nested values fit for JSON: lists for tuples, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
