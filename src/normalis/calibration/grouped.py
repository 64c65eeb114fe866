"""p-values within groups: each scanner, site or sex is compared with its own normal images.

A split calibration promises its rate for new normal patients of the mix that calibrates, on average
over groups: it may flag 20 % of the normal patients of one scanner and none of the others. Within a
group the same formula promises the rate for that group alone, if its units and the new one are
exchangeable (Mondrian conformal prediction: Vovk, Gammerman and Shafer, *Algorithmic Learning in a
Random World*, 2005, 4.5; Angelopoulos and Bates, arXiv:2107.07511, 4.1). The price is that each
group rests on its own units: with K_g of them no p-value is below 1 / (K_g + 1).

Nothing is pooled in silence. A new image of a group that calibrates with too few units for a rate
is not flagged at it and `Grouped.too_few` says so; of a group that nothing calibrates its p-value
is NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.calibration.conformal import Calibration, calibrate
from normalis.calibration.levels import EPS
from normalis.datasets.levels import Level, plural
from normalis.errors import MetricError, SettingsError

__all__ = ["UNKNOWN", "Grouped", "calibrate_groups", "group_name", "unit_p_values"]

#: Group of images whose value nobody gave.
UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False, kw_only=True)
class Grouped:
    """One calibration for each group. Make it with `calibrate_groups`.

    Attributes:
        by: column that names the group: ``scanner``, ``sex``, ...
        groups: group -> its calibration.
    """

    by: str
    groups: Mapping[str, Calibration]

    def p_values(self, scores: ArrayLike, group: Sequence[Any]) -> NDArray[np.float64]:
        """Return the p-value of each new image within its group; NaN where that has no units.

        Args:
            scores: (M,) anomaly scores.
            group: (M,) value of ``by`` of each image; None where unknown.

        Raises:
            MetricError: for a wrong shape or a score that is not finite.
        """
        values = np.asarray(scores, dtype=np.float64)
        names = np.array([group_name(value) for value in group])
        if values.ndim != 1 or values.shape != names.shape:
            raise MetricError(
                f"each score needs one {self.by}, got scores of shape {values.shape} and "
                f"{names.size} values"
            )
        found = np.full(values.size, np.nan)
        for name in np.unique(names):
            known, mine = self.groups.get(str(name)), names == name
            if known is not None:
                found[mine] = known.p_values(values[mine])
        return found

    def flags(self, p_values: ArrayLike, group: Sequence[Any], rate: float) -> NDArray[np.bool_]:
        """Return which images are flagged; none of a group that cannot certify the rate."""
        p = np.asarray(p_values, dtype=np.float64)
        able = np.array([self._certifies(group_name(value), rate) for value in group])
        return np.asarray((p <= rate + EPS) & able)

    def patient_p_values(
        self, scores: ArrayLike, patients: Sequence[Any], group: Sequence[Any]
    ) -> dict[str, tuple[float, int]]:
        """Return patient -> p-value of its largest score, and the number of units behind it.

        A patient whose images are all of one group is compared with the units of that group: the
        p-value is exact, as `Calibration.patient_p_values` is. One with images in g groups has a
        p-value in each, of which the smallest times g is given (Bonferroni): it is never too small,
        and may be too large. Images of groups that nothing calibrates say nothing; with no others,
        the p-value is NaN and the number 0.

        Args:
            scores: (M,) anomaly scores.
            patients: (M,) name of each image's patient.
            group: (M,) value of ``by`` of each image; None where unknown.
        """
        values, names = np.asarray(scores, dtype=np.float64), [group_name(v) for v in group]
        found: dict[str, list[tuple[float, int]]] = {str(patient): [] for patient in patients}
        for name in sorted(set(names) & set(self.groups)):
            mine, known = [i for i, n in enumerate(names) if n == name], self.groups[name]
            units, p_values = known.patient_p_values(values[mine], [patients[i] for i in mine])
            for unit, p in zip(units, p_values, strict=True):
                found[str(unit)].append((float(p), known.n_units))
        return {
            patient: (min(1.0, len(said) * min(said)[0]), min(said)[1]) if said else (np.nan, 0)
            for patient, said in found.items()
        }

    def too_few(
        self, rate: float, group: Sequence[Any] = (), *, of_these: bool = False
    ) -> tuple[str, ...]:
        """Say which groups cannot certify a rate, one sentence each.

        Args:
            rate: false-positive rate alpha.
            group: (M,) values of new images, for groups that nothing calibrates.
            of_these: whether to speak of the groups of these images alone.
        """
        here = {group_name(value) for value in group}
        said = [
            f"{self.by} {name}: {plural(known.n_units, known.level)} certify no false-positive "
            f"rate below 1/{known.n_units + 1} = {100 * known.smallest_rate:.2g} %, so that none "
            f"of its images is flagged at {100 * rate:.3g} %"
            for name, known in self.groups.items()
            if not self._certifies(name, rate) and (not of_these or name in here)
        ]
        strange = Counter(group_name(v) for v in group if group_name(v) not in self.groups)
        said += [
            f"{self.by} {name}: no normal image of it calibrates, so that its {count} images have "
            "no p-value"
            for name, count in strange.items()
        ]
        return tuple(said)

    def statement(self, rate: float) -> str:
        """Say in one sentence what flagging at a rate promises, and for which groups."""
        able = [
            f"{name} ({plural(known.n_units, known.level)})"
            for name, known in self.groups.items()
            if self._certifies(name, rate)
        ]
        if not able:
            return f"no {self.by} has enough normal images to certify {100 * rate:.3g} %"
        return (
            f"flags at most {100 * rate:.3g} % of new normal images of each {self.by} on average "
            f"over calibration sets: {', '.join(able)}"
        )

    def _certifies(self, name: str, rate: float) -> bool:
        known = self.groups.get(name)
        return known is not None and known.certifies_rate(rate)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON keeps exactly."""
        return {"by": self.by, "groups": {n: known.to_dict() for n, known in self.groups.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Grouped:
        """Restore what `to_dict` returned.

        Raises:
            SettingsError: if a part is missing or damaged.
        """
        try:
            by, groups = str(stored["by"]), dict(stored["groups"])
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(f"a stored calibration is damaged: {error!r}; fit again") from error
        return cls(by=by, groups={n: Calibration.from_dict(part) for n, part in groups.items()})


def calibrate_groups(
    scores: ArrayLike,
    group: Sequence[Any],
    *,
    by: str,
    patients: Sequence[Any] | NDArray[Any] | None = None,
    level: Level = "image",
) -> Grouped:
    """Make one calibration for each group, of images that the model was not fitted on.

    A patient with images in two groups is a unit of both: within a group it is one of many.

    Args:
        scores: (n,) anomaly scores.
        group: (n,) value of ``by`` of each image; those of None are a group of their own,
            ``unknown``.
        by: what the groups are.
        patients: (n,) unit of each image; None if all are independent.
        level: what a unit is.

    Raises:
        MetricError: if the lengths differ or a score is not finite.
        SettingsError: if no image has a value.
    """
    values = np.asarray(scores, dtype=np.float64)
    names = np.array([group_name(value) for value in group])
    units = np.arange(values.size) if patients is None else np.asarray(patients)
    if not values.shape == names.shape == units.shape:
        raise MetricError(
            f"each score needs one {by} and one unit, got {values.size} scores, {names.size} "
            f"values and {units.size} units"
        )
    if set(names.tolist()) <= {UNKNOWN}:
        raise SettingsError(
            f"no normal image says its {by}; name a column of the manifest or a header field that "
            "they have"
        )
    found = {}
    for name in np.unique(names).tolist():
        mine = names == name
        one = calibrate(values[mine], patients=units[mine])
        found[name] = Calibration(
            kind="split", scores=one.scores, unit=one.unit, fold=one.fold, level=level
        )
    return Grouped(by=by, groups=found)


def unit_p_values(
    known: Calibration | Grouped,
    scores: NDArray[np.float64],
    units: Sequence[Any],
    group: Sequence[Any],
) -> dict[str, tuple[float, int]]:
    """Return unit -> p-value of its largest score, and the number of units behind it.

    Args:
        known: calibration, of all or of groups.
        scores: (..., M) what it reads of the images.
        units: (M,) name of each image's patient or study.
        group: (M,) value of what groups; read where it is one of groups.
    """
    if isinstance(known, Grouped):
        return known.patient_p_values(scores, units, group)
    names, p_values = known.patient_p_values(scores, units)
    return {str(name): (float(p), known.n_units) for name, p in zip(names, p_values, strict=True)}


def group_name(value: Any) -> str:
    """Return a group's name; None, NaN and blanks are unknown."""
    if value is None or value != value:
        return UNKNOWN
    return str(value).strip() or UNKNOWN
