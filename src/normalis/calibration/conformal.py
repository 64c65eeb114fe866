"""Scores of held-out normal images -> p-values and thresholds with a stated false-positive rate.

**Split conformal.** Let the scores of K held-out normal images and of a new one be exchangeable if
the new one is normal. Then ::

    p = (1 + #{k : s_k >= s}) / (K + 1),        P(p <= alpha) <= alpha     for every alpha,

whatever the model, the score and its distribution (Vovk, Gammerman and Shafer, *Algorithmic
Learning in a Random World*, 2005; for outliers Bates, Candès, Lei, Romano and Sesia, Annals of
Statistics 51, 2023). An image is flagged if p <= alpha, that is, if its score is *above* the
ceil((K+1)(1-alpha))-th smallest of the K. No p-value is below 1/(K+1): K images certify no
smaller rate. The statement is an average over calibration sets; the rate that one set realises has
a beta distribution, see `realised_rate_interval`.

**Patients.** Slices of one patient are not exchangeable with those of a new one; counted as if
independent they promise rates that do not hold. With K patients, the k-th having n_k images,

* one image of a new patient gets the hierarchical p-value (Dunn, Wasserman and Ramdas, JASA 118,
  2023; Lee, Barber and Willett, 2023), in which every patient weighs the same ::

      p = (1 + sum_k #{j : s_kj >= s} / n_k) / (K + 1)

  It is the default for a list of images, since it is what the list shows, holds exactly for an
  image drawn at random from a new normal patient, and is the formula above if all n_k are 1. Over
  a new patient's images, the *expected share* flagged is at most alpha; flags of one patient come
  together.
* a patient as a whole has the largest of its scores, compared with the K largest scores: among
  normal patients at most a share alpha has *any* flagged image (`Calibration.patient_p_values`).

Both rest on K patients, so neither certifies below 1/(K+1).

**CV+.** With few images, each is scored by the model that was fitted without its fold, and a new
image by all models, each compared with its own fold (Vovk, Annals of Mathematics and AI 74, 2015;
Barber, Candès, Ramdas and Tibshirani, Annals of Statistics 49, 2021). No image is lost to
calibration, but the proven rate is **twice** the nominal one, and a little more
(`Calibration.guaranteed_rate`); in practice it is near the nominal one.

**Maps.** What is calibrated is the maximum over the image: a colour then says "a spot this high
occurs in fewer than 1 in 20 normal images". Rates per pixel would paint 5 % of every image.

**Randomisation.** With ties the p-values are conservative. Smoothed ones (ties broken by a random
number) would be exactly uniform; they are off by default because an image must get the same verdict
twice.

Libraries: MAPIE and crepes make prediction sets for regression and classification, puncc and
nonconform wrap a detector and its fit; none weighs patients. The formulas are a few exact lines on
arrays, so they are here; SciPy has the beta-binomial and Benjamini-Hochberg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.calibration.drift import SCORE, Drift, find_drift, unit_medians
from normalis.calibration.levels import (
    EPS,
    Floats,
    benjamini_hochberg,
    realised_rate_interval,
    tail,
    weighted_quantile,
)
from normalis.calibration.panel import (
    Readings,
    panel_p_values,
    panel_patient_p_values,
    surprise,
)
from normalis.datasets.levels import NAMES, Level, plural
from normalis.errors import MetricError, SettingsError

__all__ = [
    "Calibration",
    "benjamini_hochberg",
    "calibrate",
    "realised_rate_interval",
]

Kind = Literal["split", "cv+", "none"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """Scores of held-out normal images, and what follows from them. Make it with `calibrate`.

    Attributes:
        kind: ``split``, ``cv+``, or ``none`` where nothing was held out.
        scores: (n,) one per held-out normal image.
        unit: (n,) number of each image's patient, 0 to n_units - 1.
        level: what a unit is, as in `normalis.loading.units`: an ``image``, a ``patient``, a
            ``study``, a ``file`` of several images, or a ``group`` of near duplicates.
        fold: (n,) number of the model that scored each image; zeros for ``split``.
        map_maxima: (n,) maximum of each image's anomaly map; None where no maps were made.
        statistics: name -> (n,) of each image (mean intensity, ...), for the drift check.
        readings: of a panel, what its readings are; its ``scores`` are made of them.
        held_readings: (V, n) of a panel.
    """

    kind: Kind
    scores: Floats
    unit: NDArray[np.int64]
    level: Level = "image"
    fold: NDArray[np.int64]
    map_maxima: Floats | None = None
    statistics: Mapping[str, Floats] = field(default_factory=dict)
    readings: Readings | None = None
    held_readings: Floats | None = None

    @property
    def n_units(self) -> int:
        """Independent units K: patients, or images where no patient is known."""
        return int(self.unit.max(initial=-1)) + 1

    @property
    def n_images(self) -> int:
        """Held-out normal images."""
        return int(self.scores.size)

    @property
    def n_models(self) -> int:
        """Models that a new image must be scored by; more than 1 only for ``cv+``."""
        return int(self.fold.max(initial=0)) + 1

    @property
    def smallest_rate(self) -> float:
        """Smallest false-positive rate that can be certified, 1 / (K + 1)."""
        return 1.0 / (self.n_units + 1)

    # ------------------------------------------------------------------ p-values

    def p_values(self, scores: ArrayLike, *, seed: int | None = None) -> Floats:
        """Return the p-value of each new image, valid for one image of a new patient.

        Args:
            scores: (M,) anomaly scores; for ``cv+`` (n_models, M), by each fold's model; of a
                panel its readings (V, M), which it ranks without ties.
            seed: break ties by random numbers of this seed (see the module's docstring); by
                default ties count against the image.

        Returns:
            (M,) in [1 / (K + 1), 1].

        Raises:
            SettingsError: if nothing was held out.
            MetricError: for a wrong shape or a score that is not finite.
        """
        self._need_scores()
        if self.readings is not None and self.held_readings is not None:
            return panel_p_values(scores, self.held_readings, self.unit, self.readings)
        new = self._check(scores)
        tie: Floats = np.ones(new.shape[1])
        if seed is not None:
            tie = np.random.default_rng(seed).random(size=new.shape[1:])
        weight = 1.0 / np.bincount(self.unit)[self.unit]
        above = np.zeros(new.shape[1])
        for k in range(self.n_models):
            mine = self.fold == k
            at_least = tail(self.scores[mine], weight[mine], new[k], ties=True)
            beyond = tail(self.scores[mine], weight[mine], new[k], ties=False)
            above += beyond + tie * (at_least - beyond)
        return np.minimum((tie + above) / (self.n_units + 1), 1.0)

    def patient_p_values(
        self, scores: ArrayLike, patients: Sequence[Any] | NDArray[Any]
    ) -> tuple[NDArray[Any], Floats]:
        """Return new patients, sorted, and the p-value of each one's largest score.

        With ``cv+`` a patient's largest score by each model is compared with the patients of that
        model's fold; the guarantee is then that of `guaranteed_rate`.

        Args:
            scores: (M,) anomaly scores; of a panel its readings (V, M); for ``cv+``
                (n_models, M), by each fold's model.
            patients: (M,) name of each image's patient; an image with None is a patient of its
                own, named ``image NUMBER``.

        Raises:
            SettingsError: if nothing was held out.
            MetricError: for a wrong shape or a score that is not finite.
        """
        self._need_scores()
        new = self._check(scores)
        names, member = np.unique(_names(patients), return_inverse=True)
        if member.shape != new.shape[1:]:
            raise MetricError(
                f"each score needs one patient, got {new.shape[1]} scores and {member.size} "
                "patients"
            )
        if self.readings is not None and self.held_readings is not None:
            given = scores, member, self.held_readings, self.unit
            return names, panel_patient_p_values(*given, self.readings)
        ours, fold = self._patient_scores(), np.zeros(self.n_units, dtype=np.int64)
        fold[self.unit] = self.fold
        above = np.zeros(names.size)
        for k in range(self.n_models):
            mine = ours[fold == k]
            above += tail(mine, np.ones(mine.size), _largest(new[k], member))
        return names, (1.0 + above) / (ours.size + 1)

    def images_per_unit(self) -> NDArray[np.int64]:
        """Return (K,) the number of held-out images of each unit."""
        return np.bincount(self.unit)

    def flags(self, p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
        """Return which images are flagged at a false-positive rate: those with ``p <= rate``.

        Args:
            p_values: (M,) of `p_values`.
            rate: false-positive rate alpha; see `check_rate`.
        """
        return np.asarray(p_values, dtype=np.float64) <= rate + EPS

    def seen_by(self, scores: ArrayLike) -> list[str]:
        """Return the member of a panel that is most surprised by each image, else empty texts.

        Args:
            scores: as of `p_values`.
        """
        if self.readings is None or self.held_readings is None:
            return [""] * np.asarray(scores).shape[-1]
        return self.readings.most_surprised(surprise(scores, self.held_readings, self.readings)[1])

    # ------------------------------------------------------------------ thresholds

    def threshold(self, rate: float, *, unit: Literal["image", "patient"] = "image") -> float:
        """Return the score *above* which an image is flagged at a false-positive rate.

        ``score > threshold`` and ``p_value <= rate`` are the same statement; of a panel nearly so,
        whose p-values measure with the new image among the others (`calibration.panel`).

        Args:
            rate: false-positive rate alpha.
            unit: ``image`` for the rate among images of new patients, ``patient`` for the rate of
                patients with any image above it.

        Raises:
            SettingsError: if the units are too few to certify the rate, or the calibration is not
                a split one (with ``cv+`` each model has its own scale: compare p-values).
        """
        self._need_split("a threshold")
        self.check_rate(rate)
        if unit == "patient":
            ours = self._patient_scores()
            return weighted_quantile(ours, np.ones(ours.size), rate, n_units=ours.size)
        weight = 1.0 / np.bincount(self.unit)[self.unit]
        return weighted_quantile(self.scores, weight, rate, n_units=self.n_units)

    def map_p_values(self, peaks: ArrayLike) -> Floats:
        """Return the share of normal images whose map is as high anywhere, for each peak (M,).

        Valid for the highest place of an image of a new normal unit; of its other places the more
        so. For ``cv+`` the maxima of all models are pooled, which is approximate.

        Args:
            peaks: (M,) values of calibrated maps.

        Raises:
            SettingsError: if no maxima of maps were given.
            MetricError: if a peak is not finite.
        """
        maxima = self._need_maxima()
        new = np.atleast_1d(np.asarray(peaks, dtype=np.float64))
        if not np.isfinite(new).all():
            raise MetricError("peaks of maps must be finite, got NaN or infinity")
        weight = 1.0 / np.bincount(self.unit)[self.unit]
        return (1.0 + tail(maxima, weight, new)) / (self.n_units + 1)

    def _need_maxima(self) -> Floats:
        self._need_scores()
        if self.map_maxima is None:
            raise SettingsError(
                "levels for maps need the maxima of the calibration images' maps; "
                "pass map_maxima to calibrate()"
            )
        return self.map_maxima

    def certifies_rate(self, rate: float) -> bool:
        """Return whether there are units enough for a false-positive rate: 1 / (K + 1) at least."""
        return rate >= self.smallest_rate - EPS

    def check_rate(self, rate: float) -> None:
        """Say so if a false-positive rate cannot be certified.

        Raises:
            SettingsError: if the rate is not in (0, 1) or below 1 / (K + 1).
        """
        if not 0.0 < rate < 1.0:
            raise SettingsError(f"a false-positive rate must be between 0 and 1, got {rate}")
        self._need_scores()
        if not self.certifies_rate(rate):
            n, smallest = self.n_units, self.smallest_rate
            raise SettingsError(
                f"{plural(n, self.level)} cannot certify a false-positive rate below "
                f"1/{n + 1} = {100 * smallest:.2g} %, got {100 * rate:.3g} %; "
                "ask for a larger rate or hold out more normal images"
            )

    def guaranteed_rate(self, rate: float) -> float:
        """Return the rate that is proven if images with ``p <= rate`` are flagged.

        ``rate`` itself for ``split``. For ``cv+`` with K units in F folds, Theorem 4 of Barber et
        al. (2021): 2 rate + min(2 (1 - 1/F) / (K/F + 1), (1 - F/K) / (F + 1)), proven for one
        image per unit.
        """
        self._need_scores()
        if self.kind == "split":
            return rate
        k, f = float(self.n_units), float(self.n_models)
        return min(1.0, 2 * rate + min(2 * (1 - 1 / f) / (k / f + 1), (1 - f / k) / (f + 1)))

    def statement(self, rate: float) -> str:
        """Say in one sentence what flagging at a rate promises."""
        proven = self.guaranteed_rate(rate)
        what = "images of new normal patients" if self.level == "patient" else "new normal images"
        few = f"calibrated on {self.n_images} held-out normal images"
        few += f" in {plural(self.n_units, self.level)}" * (self.level != "image")
        aim = f"flags about {100 * rate:.3g} % of {what}"
        proof = f"at most {100 * proven:.3g} % on average over calibration sets"
        return f"{aim} ({proof}; {few}, {self.kind})."

    def advice(self, rate: float) -> tuple[str, ...]:
        """Say what is weak about flagging at a rate, one sentence each; empty if nothing is."""
        try:
            self.check_rate(rate)
        except SettingsError as error:
            return (str(error),)
        above = int(rate * (self.n_units + 1) + EPS)  # held-out scores that a flag must exceed
        if above > 2:
            return ()
        which = "the highest" if above < 2 else "the second highest"
        cross_fits = self.kind == "split" and self.readings is None  # a panel is fitted once
        others = "--calibration cv+ makes use of all" if cross_fits else "give more"
        return (
            f"at {rate:g} an image is flagged if it scores above {which} of "
            f"{plural(self.n_units, self.level)} held out, so that an odd one among them can hide "
            f"every anomaly; {others}, or ask for a larger rate",
        )

    def certifies(self) -> str:
        """Say how many units calibrate and which rates they certify."""
        n = self.n_units
        return (
            f"calibrated on {plural(n, self.level)} ({self.kind}), which certify "
            f"false-positive rates from 1/{n + 1} = {100 * self.smallest_rate:.2g} %"
        )

    def of_unknown_patients(self) -> tuple[str, ...]:
        """Say so if it is not known which held-out images are of one patient; empty if it is."""
        if self.level in ("patient", "study"):
            return ()
        return (
            "patients are unknown: each file counts as a patient of its own; if some are of one "
            "patient, name the patients in a manifest, by --patient-pattern, or in Python by "
            "patient_ids",
        )

    # ------------------------------------------------------------------ drift

    def drift(
        self,
        scores: ArrayLike,
        *,
        patients: Sequence[Any] | NDArray[Any] | None = None,
        statistics: Mapping[str, ArrayLike] | None = None,
        max_anomalous: float = 0.5,
        false_alarm: float = 0.01,
    ) -> Drift:
        """Test whether new images could contain the same kind of normal ones (`calibration.drift`).

        Args:
            scores: (M,) anomaly scores; for ``cv+`` (n_models, M), of which the first is used; of
                a panel its readings (V, M).
            patients: (M,) name of each image's patient.
            statistics: name -> (M,) of the new images; names that the calibration lacks are left.
            max_anomalous: largest share of anomalous units that is not drift.
            false_alarm: chance of a warning without drift.

        Raises:
            SettingsError: if nothing was held out, or a share is out of range.
            MetricError: for a wrong shape or a value that is not finite.
        """
        self._need_scores()
        new = self._check(scores)[0]
        names = np.arange(new.size) if patients is None else _names(patients)
        first = self.fold == 0
        pairs = {SCORE: (self.scores[first], self.unit[first], new)}
        for name, values in (statistics or {}).items():
            if name in self.statistics:
                pairs[name] = (self.statistics[name], self.unit, np.asarray(values, dtype=float))
        for name, (_, _, values) in pairs.items():
            if values.shape != names.shape or not np.isfinite(values).all():
                raise MetricError(
                    f"drift needs one finite {name} per image, got shape {values.shape} "
                    f"for {names.size} images"
                )
        member = np.unique(names, return_inverse=True)[1]
        medians = {
            name: (unit_medians(old, unit), unit_medians(values, member))
            for name, (old, unit, values) in pairs.items()
        }
        return find_drift(medians, max_anomalous=max_anomalous, false_alarm=false_alarm)

    # ------------------------------------------------------------------ storage

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON keeps exactly."""
        return {
            "kind": self.kind,
            "level": self.level,
            "scores": self.scores.tolist(),
            "unit": self.unit.tolist(),
            "fold": self.fold.tolist(),
            "map_maxima": None if self.map_maxima is None else self.map_maxima.tolist(),
            "statistics": {name: values.tolist() for name, values in self.statistics.items()},
            "readings": None if self.readings is None else self.readings.to_dict(),
            "held_readings": (None if self.held_readings is None else self.held_readings.tolist()),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Calibration:
        """Restore what `to_dict` returned.

        Raises:
            SettingsError: if a part is missing or the lengths disagree.
        """
        try:
            calibration = cls(
                kind=stored["kind"],
                level=stored["level"],
                scores=np.asarray(stored["scores"], dtype=np.float64),
                unit=np.asarray(stored["unit"], dtype=np.int64),
                fold=np.asarray(stored["fold"], dtype=np.int64),
                map_maxima=_optional(stored["map_maxima"]),
                statistics={
                    name: np.asarray(values, dtype=np.float64)
                    for name, values in stored["statistics"].items()
                },
                readings=Readings.from_dict(stored["readings"]) if stored.get("readings") else None,
                held_readings=_optional(stored.get("held_readings")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SettingsError(f"a stored calibration is damaged: {error!r}; fit again") from error
        parts = (
            calibration.unit,
            calibration.fold,
            calibration.map_maxima,
            *calibration.statistics.values(),
            *(calibration.held_readings if calibration.held_readings is not None else ()),
        )
        if any(part is not None and part.shape != calibration.scores.shape for part in parts):
            raise SettingsError("a stored calibration is damaged: lengths disagree; fit again")
        if reason := calibration._why_damaged(stored):
            raise SettingsError(f"a stored calibration is damaged: {reason}; fit again")
        return calibration

    def _why_damaged(self, stored: Mapping[str, Any]) -> str | None:
        """Say what in a stored calibration no fit writes; None if all may be."""
        if self.kind not in ("split", "cv+") or self.level not in NAMES:
            return f"it is of the kind {self.kind!r} and the level {self.level!r}"
        numbers = (self.scores, self.map_maxima, self.held_readings)
        if not all(part is None or np.isfinite(part).all() for part in numbers):
            return "a number is not finite"
        if not all(type(number) is int for name in ("unit", "fold") for number in stored[name]):
            return "units and folds must be whole numbers"
        units = np.unique(self.unit)
        if units.tolist() != list(range(len(units))):
            return "its units are not counted from 0 without a gap"
        if self.fold.min(initial=0) < 0 or (self.kind != "cv+" and self.fold.any()):
            return "its folds are none of its kind"
        return None

    # ------------------------------------------------------------------ checks

    def _need_scores(self) -> None:
        if self.kind == "none" or self.scores.size == 0:
            raise SettingsError(
                "no normal images were held out at fit, so there are no p-values and no "
                "thresholds; fit again with --calibration split (or cv+)"
            )

    def _need_split(self, what: str) -> None:
        self._need_scores()
        if self.kind != "split":
            raise SettingsError(
                f"{what} needs a split calibration, got {self.kind}: its models have no common "
                "scale; compare p_values() with the rate instead"
            )

    def _check(self, scores: ArrayLike) -> Floats:
        """Return scores as (n_models, M), of a panel's readings (V, M) as (1, M)."""
        new = np.asarray(scores, dtype=np.float64)
        if self.readings is not None and self.held_readings is not None and new.ndim == 2:
            return surprise(new, self.held_readings, self.readings)[0][None]
        rows = new[None] if new.ndim == 1 and self.n_models == 1 else new
        if rows.ndim != 2 or len(rows) != self.n_models:
            want = "(M,)" if self.n_models == 1 else f"({self.n_models}, M), one row per fold"
            raise MetricError(f"new scores must have shape {want}, got {new.shape}")
        if not np.isfinite(rows).all():
            raise MetricError("new scores must be finite; leave out what could not be scored")
        return rows

    def _patient_scores(self) -> Floats:
        return _largest(self.scores, self.unit)


def calibrate(
    scores: ArrayLike,
    *,
    patients: Sequence[Any] | NDArray[Any] | None = None,
    kind: Kind = "split",
    fold: ArrayLike | None = None,
    map_maxima: ArrayLike | None = None,
    statistics: Mapping[str, ArrayLike] | None = None,
) -> Calibration:
    """Make a calibration from scores of normal images that the model was not fitted on.

    Args:
        scores: (n,) anomaly scores, higher = more anomalous; for ``cv+`` each by the model that
            was fitted without the image's fold.
        patients: (n,) patient (or duplicate group) of each image; an entry None is a unit of its
            own. None if all images are independent.
        kind: ``split``, ``cv+``, or ``none`` (then pass no scores).
        fold: (n,) fold of each image, 0 to F - 1, for ``cv+``; no patient lies in two folds.
        map_maxima: (n,) maximum of each image's map.
        statistics: name -> (n,) of the images themselves, for `Calibration.drift`.

    Raises:
        SettingsError: for an unknown kind, a fold without ``cv+``, or a patient in two folds.
        MetricError: for unequal lengths, no scores, or values that are not finite.
    """
    if kind not in ("split", "cv+", "none"):
        raise SettingsError(f"calibration must be split, cv+ or none, got {kind!r}")
    values = np.asarray(scores, dtype=np.float64)
    if kind == "none":
        empty = np.empty(0, dtype=np.int64)
        return Calibration(kind=kind, scores=np.empty(0), unit=empty, fold=empty)
    if (kind == "cv+") != (fold is not None):
        raise SettingsError("cv+ needs the fold of each image, and only cv+ has one")
    unit, level = _units(patients, values.size)
    folds = np.zeros(values.size, dtype=np.int64) if fold is None else np.asarray(fold)
    extra = {name: np.asarray(v, dtype=np.float64) for name, v in (statistics or {}).items()}
    maxima = _optional(map_maxima)
    named = {"scores": values, "unit": unit, "fold": folds, "map_maxima": maxima, **extra}
    for name, part in named.items():
        if part is not None and (part.shape != values.shape or not np.isfinite(part).all()):
            raise MetricError(
                f"calibration needs one finite value per image, got {name} of shape {part.shape} "
                f"for {values.size} images, or a value that is not finite"
            )
    if values.ndim != 1 or not values.size:
        raise MetricError(f"calibration needs at least one normal image, got shape {values.shape}")
    if len(np.unique(np.stack([unit, folds]), axis=1).T) > unit.max() + 1:
        raise SettingsError("all images of a patient must be in one fold")
    return Calibration(
        kind=kind,
        scores=values,
        unit=unit,
        level=level,
        fold=np.unique(folds, return_inverse=True)[1],
        map_maxima=maxima,
        statistics=extra,
    )


def _units(
    patients: Sequence[Any] | NDArray[Any] | None, size: int
) -> tuple[NDArray[np.int64], Literal["image", "patient"]]:
    """Number the patients; an unknown one is a unit of its own."""
    if patients is None:
        return np.arange(size), "image"
    known = any(p is not None for p in patients)
    return np.unique(_names(patients), return_inverse=True)[1], "patient" if known else "image"


def _names(patients: Sequence[Any] | NDArray[Any]) -> NDArray[np.str_]:
    return np.array([f"image {i}" if p is None else str(p) for i, p in enumerate(patients)])


def _largest(scores: Floats, member: NDArray[np.int64]) -> Floats:
    largest = np.full(member.max(initial=-1) + 1, -np.inf)
    np.maximum.at(largest, member, scores)
    return largest


def _optional(values: Any) -> Floats | None:
    return None if values is None else np.asarray(values, dtype=np.float64)
