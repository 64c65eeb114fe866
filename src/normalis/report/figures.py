"""The charts of a page: training, scores, accuracy where labels are known, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from normalis.calibration.conformal import realised_rate_interval
from normalis.metrics import auroc, average_precision
from normalis.report import charts
from normalis.report.curves import Curve, precision_recall, roc
from normalis.report.sources import Cases, Source
from normalis.report.tiles import _known, percent
from normalis.report.triage import level_thresholds

__all__ = ["Chart", "draw_charts"]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure: title, SVG, what it shows in words, its caption, and whether it is a wide one."""

    title: str
    svg: str
    alt: str
    caption: str = ""
    wide: bool = False


def draw_charts(source: Source) -> list[Chart]:
    """Return the figures that the folder allows."""
    found = [_training(source), _scores(source)]
    if source.cases is not None:
        found += [*_accuracy(source.cases), _calibration(source, source.cases)]
    return [chart for chart in found if chart is not None]


def _training(source: Source) -> Chart | None:
    history = source.details.get("history") or []
    if not history:
        return None
    last = ", ".join(f"{name} {value:.4g}" for name, value in history[-1].items())
    return Chart(
        title="Training",
        svg=charts.training_curve(history),
        alt=f"Line chart of the losses over {len(history)} epochs; the last are {last}.",
        caption=f"Mean losses of each of {len(history)} epochs, on the training images.",
        wide=True,
    )


def _scores(source: Source) -> Chart | None:
    groups = dict(_score_groups(source))
    if not groups:
        return None
    levels = dict(level_thresholds(source))
    rate = source.details.get("fpr") or 0.05
    threshold = levels.get(rate) or levels.get(0.05)
    parts = [
        f"{name}: {values.size}, median {np.median(values):.4g}" for name, values in groups.items()
    ]
    pooled = np.concatenate(list(groups.values()))
    shown = charts.largest_shown(pooled)
    caption = "Higher is more anomalous."
    caption += " Vertical line: the calibrated threshold." if threshold is not None else ""
    beyond = int((pooled > shown).sum())
    caption += f" The last bar holds {beyond:,} scores up to {pooled.max():.3g}." if beyond else ""
    return Chart(
        title="Anomaly scores",
        svg=charts.histogram(groups, threshold),
        alt=f"Histograms of the anomaly score. {'; '.join(parts)}.",
        caption=caption,
        wide=True,
    )


def _score_groups(source: Source) -> Iterator[tuple[str, Any]]:
    held = "held-out normal" if source.calibration is not None else "training normal"
    cases = source.cases
    if cases is not None:
        scores, known = cases.anomaly_score, np.isfinite(cases.anomaly_score)
        normal, anomalous = cases.labelled & ~cases.anomalous & known, cases.anomalous & known
        unlabelled = ~cases.labelled & known
        if normal.any():
            yield f"normal (n = {normal.sum():,})", scores[normal]
        elif unlabelled.any():
            yield f"scored (n = {unlabelled.sum():,})", scores[unlabelled]
        if anomalous.any():
            yield f"anomalous (n = {anomalous.sum():,})", scores[anomalous]
    if source.normal_scores.size:
        yield f"{held} (n = {source.normal_scores.size:,})", source.normal_scores


def _accuracy(cases: Cases) -> Iterator[Chart]:
    known = _known(cases)
    if known is None:
        return
    scores, labels, groups = known
    unit = "images" if groups is None else "patients"
    found = roc(scores, labels, groups=groups)
    band = f"Band: 95 % of bootstrap draws of whole {unit}." if found.low.size else ""
    value = auroc(scores, labels)
    yield Chart(
        title="ROC curve",
        svg=charts.roc_chart(found),
        alt=f"ROC curve with an area of {value:.3f}.",
        caption=f"Area {value:.3f}. {band} Dotted: chance.",
    )
    ap, prevalence = average_precision(scores, labels), float(labels.mean())
    recall = precision_recall(scores, labels, groups=groups)
    yield Chart(
        title="Precision and recall",
        svg=charts.precision_recall_chart(recall, prevalence),
        alt=f"Precision by recall with an average precision of {ap:.3f}.",
        caption=f"Average precision {ap:.3f}. {band} Dotted: share of anomalous images, "
        f"{percent(prevalence)}.",
    )


def _calibration(source: Source, cases: Cases) -> Chart | None:
    normal = cases.labelled & ~cases.anomalous & np.isfinite(cases.p_value)
    if source.calibration is None or not normal.any():
        return None
    units = int(normal.sum())
    band = None
    # With patients, images are not independent; within groups each has a band of its own.
    if source.calibration.level == "image" and not source.grouped_by:
        band = _expected_band(source.calibration.n_units, units)
    p_values = cases.p_value[normal]
    at_5 = float((p_values <= 0.05).mean())
    more = "Grey: where 95 % of splits lie if new normals are like the held-out ones."
    return Chart(
        title="Calibration",
        svg=charts.calibration_chart(p_values, band),
        alt=f"Share of {units} normal images flagged by stated rate; {percent(at_5)} at 5 %.",
        caption=f"Of {units:,} images labelled normal, {percent(at_5)} are flagged at 5 %. "
        + (more if band is not None else "Dotted: exact calibration."),
    )


def _expected_band(n_calibration: int, n_test: int) -> Curve | None:
    rates = np.linspace(0, 1, 51)[1:-1]
    rates = rates[rates >= 1 / (n_calibration + 1)]
    if not rates.size:
        return None
    ends = [realised_rate_interval(n_calibration, n_test, float(rate)) for rate in rates]
    low, high = np.array(ends).T
    return Curve(x=rates, y=rates, grid=rates, low=low, high=high)
