"""The sentences of an audit: what was found, how bad it is, and what to do.

Thresholds are stated here and in the sentences; none was chosen on labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from normalis.audit.confounds import SHIFT_D, SHIFT_DISTANCE
from normalis.audit.margins import KINDS
from normalis.calibration.choice import USUAL_RATE, choose, steady_units
from normalis.datasets.levels import LEAST_UNITS, plural
from normalis.errors.words import counted, verb
from normalis.loading.units import some

if TYPE_CHECKING:
    from collections.abc import Iterator

    from normalis.audit.result import Audit

__all__ = ["SEVERITIES", "Finding", "Severity", "all_alike", "find"]

Severity = Literal["leak", "confound", "shift", "note"]
SEVERITIES: tuple[Severity, ...] = ("leak", "confound", "shift", "note")

# Of two collections of real images whose patients are known and disjoint, 0.2 % and 0.9 % of the
# test images correlate above 0.95 with an image of another patient, and none above 0.999.
CHANCE_RATE = 0.01
ALIKE = 0.8  # share of test images above 0.95 from which likeness is the rule
CONFOUND_LOW = 0.6  # of the interval's lower end
_LEAST_OF_A_CLASS = 10  # below this an interval of a bootstrap is not worth a sentence
_MOST_CONFOUNDS = 6
_MOST_MARGIN = 0.4  # that `fit --margin` takes
_NAMED = 3  # files that a sentence names
_RESIDUALS = ("mean_image_residual", "pca16_residual", "nearest_training")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence, with its severity: ``leak``, ``confound``, ``shift`` or ``note``."""

    severity: Severity
    text: str


def find(audit: Audit) -> tuple[Finding, ...]:
    """Return the sentences about an audit, the most harmful first."""
    parts = (
        _marked,
        _validation,
        _copies,
        _patients,
        _units,
        _confounds,
        _shifts,
        _repeats,
        _margins,
        _baselines,
        _rest,
    )
    found = [finding for part in parts for finding in part(audit)]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def _marked(audit: Audit) -> Iterator[Finding]:
    """Say which normal images have a lesion by their masks."""
    if audit.marked:
        one = len(audit.marked) == 1
        yield Finding(
            severity="leak",
            text=f"{plural(len(audit.marked), 'image')} {'counts' if one else 'count'} as normal "
            f"and {'has' if one else 'have'} a mask that marks something ({some(audit.marked)}): "
            "the label or the mask is wrong, unless the masks are of an organ. `fit` refuses such "
            "training images.",
        )


def _copies(audit: Audit) -> Iterator[Finding]:
    copies, test = audit.copies, audit.is_test
    total = int(test.sum())
    exact = copies.by_bytes & test
    if exact.any():
        count = f"{exact.sum()} of {counted(total, 'test image')}"
        text = f"{count} {verb(exact.sum(), 'is', 'are')} byte for byte in training"
        yield Finding(severity="leak", text=f"{text} ({_by_class(audit, exact)}).")
    strict, near = (copies.has_duplicate(t) & test for t in (0.999, 0.95))
    if near.any():
        yield _near(audit, strict, near, total)
    plain = copies.has_duplicate(0.95)
    seen = ~plain & (copies.mirrored.across >= 0.95) & test
    if seen.any():
        severity = _severity(audit, seen & (copies.mirrored.across >= 0.999), seen)
        mirrored = counted(seen.sum(), "further test image")
        text = f"{mirrored} {verb(seen.sum(), 'mirrors', 'mirror')} a training image"
        text += f" ({_by_class(audit, seen)}"
        yield Finding(severity=severity, text=f"{text}; correlation 0.95 or more).")
    seen = copies.shifted >= 0.95
    if seen.any():
        severity = _severity(audit, copies.shifted >= 0.999, seen)
        moved = counted(seen.sum(), "further test image")
        text = f"{moved} {verb(seen.sum(), 'looks', 'look')} like a training image moved by a few "
        text += "pixels"
        yield Finding(severity=severity, text=f"{text} ({_by_class(audit, seen)}).")
    alike = copies.plain.other_patient[test] >= 0.95
    if alike.any():
        text = (
            f"{counted(alike.sum(), 'test image')} "
            f"{verb(alike.sum(), 'correlates', 'correlate')} at 0.95 or more with a training image "
            "of another "
            "known patient, or one that differs from them inside the outline"
        )
        yield Finding(severity="note", text=f"{text}: near duplicates by chance, not leaks.")


def _near(audit: Audit, strict: NDArray[np.bool_], near: NDArray[np.bool_], total: int) -> Finding:
    severity = _severity(audit, strict, near)
    if severity == "note" and all_alike(audit):
        text = (
            f"{near.sum()} of {total} test images correlate at 0.95 or more with a training image, "
            f"{strict.sum()} at 0.999: the images are so well aligned that 0.95 does not tell "
            "copies from likeness"
        )
        return Finding(severity="note", text=f"{text}.")
    if severity == "note":
        text = (
            f"{near.sum()} of {total} test images correlate at 0.95 or more with a training image, "
            "none at 0.999: about as many as patients who look alike would give. Patients are "
            "not known for all images; if they are named, this can be told"
        )
        return Finding(severity="note", text=f"{text}.")
    duplicates = len(audit.training_duplicates())
    text = (
        f"{strict.sum()} of {total} test images are near duplicates of a training image, with a "
        f"correlation of 0.999 or more, {near.sum()} of 0.95 or more "
        f"({_by_class(audit, near)}), as they lie: report results without them, or train "
        f"without the {duplicates} training images"
    )
    return Finding(severity="leak", text=f"{text}.")


def _severity(audit: Audit, strict: NDArray[np.bool_], near: NDArray[np.bool_]) -> Severity:
    """Call it a leak where likeness by chance does not explain it, or patients are known."""
    known = all(fact.patient_id is not None for fact in audit.facts)
    rare = near.sum() <= CHANCE_RATE * audit.is_test.sum()
    return "note" if (rare and not known and not strict.any()) or all_alike(audit) else "leak"


def all_alike(audit: Audit) -> bool:
    """Say whether likeness at 0.95 is the rule: nearly all test images have it, few more."""
    near = audit.copies.has_duplicate(0.95)[audit.is_test]
    strict = audit.copies.has_duplicate(0.999)[audit.is_test]
    return bool(len(near) and near.mean() >= ALIKE and strict.mean() < (1 - ALIKE))


def _patients(audit: Audit) -> Iterator[Finding]:
    counts = audit.patients()
    if counts["shared"]:
        both = {f.patient_id for f in audit.facts if f.is_test} & {
            f.patient_id for f in audit.facts if not f.is_test
        }
        images = sum(f.patient_id in both for f in audit.facts if f.is_test and f.patient_id)
        n = counts["shared"]
        yield Finding(
            severity="leak",
            text=f"{counted(n, 'patient')} {verb(n, 'is', 'are')} in both "
            f"training and test ({counted(images, 'test image')}): split by patient.",
        )
    elif counts["train"] and counts["test"]:
        text = f"No patient is in both training ({counts['train']}) and test ({counts['test']})."
        yield Finding(severity="note", text=text)
    if audit.pattern is not None:
        name, expression = audit.pattern
        yield Finding(
            severity="note",
            text=f"Patients are unknown, but the file names look like {name}: confirm with "
            f"--patient-pattern '{expression}'.",
        )
    elif counts["train"] is None and audit.is_test.any():
        text = (
            "Patients are unknown: two images of one patient in training and test would not be "
            "noticed, and intervals treat images that are no copies as independent."
        )
        yield Finding(severity="note", text=text)


def _validation(audit: Audit) -> Iterator[Finding]:
    """Say what the images that calibrate share with those that are trained on."""
    names, copies = audit.shared
    if names:
        yield Finding(
            severity="leak",
            text=f"{some(names)} {verb(len(names), 'is', 'are')} in both training and validation: "
            "`fit` calibrates on the "
            "validation split and refuses one that was trained on.",
        )
    if copies:
        pairs = [f"{Path(copy).name} = {Path(of).name}" for copy, of in copies]
        text = (
            f"Copied from training to validation: {counted(len(copies), 'file')} ({some(pairs)})."
        )
        yield Finding(severity="leak", text=text)


def _units(audit: Audit) -> Iterator[Finding]:
    """Say how many units there are to fit and calibrate on, and what that certifies."""
    is_validation = np.array([fact.split == "validation" for fact in audit.facts])
    normal = ~audit.is_test & ~audit.is_anomalous
    count = np.unique(audit.units.member[normal & ~is_validation]).size
    held = np.unique(audit.units.member[normal & is_validation]).size
    if count < 1:
        return
    text = f"The normal training images are {plural(count, audit.units.level)}"
    if audit.units.level in ("image", "file", "group"):
        text += "; patients are unknown, so each file counts as a patient of its own"
    if held:
        text += f". `fit` calibrates on the validation split: {_certify(held, audit)}."
    elif count < LEAST_UNITS:
        text += (
            f". `fit` needs at least {plural(LEAST_UNITS, audit.units.level)} to calibrate with: "
            "give more, or fit with --calibration none (no p-values)."
        )
    else:
        text += f". {_held_out(count, audit)}"
    yield Finding(severity="note", text=text)


def _held_out(count: int, audit: Audit) -> str:
    """Say how many units `fit` holds out of so many, and what a single method would do."""
    panel = choose(count, USUAL_RATE, cross_fit=False)
    text = f"`fit` holds out {_certify(panel.held, audit)}"
    if panel.held < steady_units(USUAL_RATE):
        text += f"; a steady threshold at {USUAL_RATE:g} takes {steady_units(USUAL_RATE)}"
    if choose(count, USUAL_RATE, cross_fit=True).kind == "cv+":
        text += (
            f". A single method (--method NAME) is calibrated on all {count}, by cv+: rates from "
            f"1/{count + 1} = {100 / (count + 1):.2g} %, proven at twice the rate"
        )
    return f"{text}."


def _certify(units: int, audit: Audit) -> str:
    return (
        f"{plural(units, audit.units.level)}, which {verb(units, 'certifies', 'certify')} "
        f"false-positive rates from 1/{units + 1} = {100 / (units + 1):.2g} %"
    )


def _confounds(audit: Audit) -> Iterator[Finding]:
    """Say, for each property, its best score; residuals are baselines, not confounds."""
    test = [f.is_anomalous for f in audit.facts if f.is_test]
    if min(test.count(True), test.count(False)) < _LEAST_OF_A_CLASS:
        return
    seen: set[str] = set()
    for score in audit.baselines:
        family = re.split(r"!?=|_reversed", score.name)[0]
        family = "size" if family in ("width", "height") else family
        if family in seen or score.low < CONFOUND_LOW or family in _RESIDUALS:
            continue
        seen.add(family)
        if len(seen) > _MOST_CONFOUNDS:
            return
        detail = f": {score.detail}" if score.detail else ""
        yield Finding(
            severity="confound",
            text=f"{score.name} alone separates the classes with AUROC {score.auroc:.3f} "
            f"({score.low:.3f} to {score.high:.3f}){detail}.",
        )


def _shifts(audit: Audit) -> Iterator[Finding]:
    for shift in audit.shifts:
        if not shift.notable:
            continue
        if shift.d is None:
            how = f"{shift.distance:.0%} of the images would have to change"
        else:
            how = f"{abs(shift.d):.2f} standard deviations, distance {shift.distance:.2f}"
        yield Finding(
            severity="shift",
            text=f"Normal test images differ from training in {shift.name}: {shift.test} against "
            f"{shift.train} ({how}; notable from {SHIFT_D} or {SHIFT_DISTANCE}).",
        )


def _repeats(audit: Audit) -> Iterator[Finding]:
    counts, train = audit.counts(), int((~audit.is_test).sum())
    if counts["distinct_train"] < train:
        files = counts["distinct_train_by_bytes"]
        by_bytes = f" ({files} by bytes)" if files is not None else ""
        yield Finding(
            severity="note",
            text=f"Of {train} training images {counts['distinct_train']} are distinct at a "
            f"correlation of 0.95{by_bytes}.",
        )
    test = int(audit.is_test.sum())
    if counts["distinct_test"] < test:
        text = f"Of {test} test images {counts['distinct_test']} are distinct at 0.95."
        yield Finding(severity="note", text=text)


def _margins(audit: Audit) -> Iterator[Finding]:
    """Name images with something at their edges, which a model takes for the most abnormal."""
    if audit.margins is None:
        return
    looked_at = int((~audit.is_test).sum()) or len(audit.facts)
    for kind, names in audit.with_margins().items():
        count = int(audit.margins.found[kind].sum())
        if not count:
            continue
        some = ", ".join(Path(name).name for name in names[:_NAMED])
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        text = (
            f"{count} of {counted(looked_at, 'image')} {verb(count, 'has', 'have')} {KINDS[kind]} "
        )
        text += f"that most have not: {some}{more}"
        wide = max(0.05, np.ceil(20 * audit.margins.share) / 20)
        advice = "it can outscore disease: leave such images out, or crop them"
        advice += f", or fit with --margin {wide:.2f}" if wide <= _MOST_MARGIN else ""
        yield Finding(severity="note", text=f"{text}; {advice}.")


def _baselines(audit: Audit) -> Iterator[Finding]:
    best = next((s for s in audit.baselines if s.name in _RESIDUALS), None)
    if best is not None:
        text = (
            f"A method must beat {best.name}, which reaches AUROC {best.auroc:.3f} "
            f"({best.low:.3f} to {best.high:.3f})."
        )
        yield Finding(severity="note", text=text)


def _rest(audit: Audit) -> Iterator[Finding]:
    if audit.unreadable:
        text = f"Could not be read, and left out: {counted(len(audit.unreadable), 'file')}."
        yield Finding(severity="note", text=text)
    if audit.is_test.any() and not audit.baselines:
        text = "The test has no labels of both classes, so no baseline could be checked."
        yield Finding(severity="note", text=text)
    yield from (Finding(severity="note", text=note) for note in audit.notes)


def _by_class(audit: Audit, chosen: NDArray[np.bool_]) -> str:
    anomalous = int((chosen & audit.is_anomalous).sum())
    return f"{int(chosen.sum()) - anomalous} normal, {anomalous} anomalous"
