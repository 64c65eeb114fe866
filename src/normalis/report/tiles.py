"""The tiles at the head of a page: what was scored, and how well where labels are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from normalis.errors import MetricError
from normalis.metrics import Interval, auroc, average_precision, bootstrap
from normalis.report.sources import Cases, Source

__all__ = ["Tile", "percent", "seconds", "tiles"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number that a reader looks for first."""

    label: str
    value: str
    note: str = ""


def tiles(source: Source) -> list[Tile]:
    """Return the figures at the top of the page."""
    info, params = source.details.get("info") or {}, source.details.get("params") or {}
    data = info.get("data") or {}
    if source.cases is not None:
        return list(_score_tiles(source, source.cases))
    width = (source.details.get("model_settings") or {}).get("latent_dim")
    latent = f"d = {width}" if width else ""
    held = "held out for calibration" if source.calibration else "nothing held out"
    return [
        Tile(label="method", value=str(params.get("method", "unknown")), note=latent),
        Tile(label="training images", value=_count(data.get("train_images")), note="normal"),
        Tile(label="calibration images", value=_count(data.get("calibration_images")), note=held),
        Tile(label="fitted in", value=seconds(info.get("fit_s")), note=str(info.get("device", ""))),
    ]


def _score_tiles(source: Source, cases: Cases) -> Iterator[Tile]:
    patients = len({p for p in cases.patient_id if p})
    note = f"of {patients:,} patients" if patients else "patients unknown"
    if source.skipped:
        note += f", {len(source.skipped)} not readable"
    yield Tile(label="images scored", value=f"{len(cases):,}", note=note)
    labelled, anomalous = cases.labelled, cases.anomalous
    if labelled.any():
        value = f"{int((labelled & ~anomalous).sum()):,} / {int(anomalous.sum()):,}"
        rest = int((~labelled).sum())
        yield Tile(
            label="normal / anomalous",
            value=value,
            note="as labelled" + (f", {rest:,} unlabelled" if rest else ""),
        )
    rate = source.details.get("fpr") or 0.05
    if source.calibration is not None:
        flagged = int((cases.p_value <= rate).sum())
        yield Tile(
            label=f"flagged at {percent(rate)}",
            value=f"{flagged:,}",
            note=f"{percent(flagged / max(len(cases), 1))} of the images",
        )
    for title, metric in (("AUROC", auroc), ("average precision", average_precision)):
        found = _metric(metric, cases)
        if found is not None:
            yield Tile(label=title, value=f"{found.value:.3f}", note=_range(found.low, found.high))


def _metric(metric: Any, cases: Cases) -> Interval | None:
    known = _known(cases)
    if known is None:
        return None
    scores, labels, groups = known
    try:
        return bootstrap(metric, scores, labels, groups=groups)
    except MetricError:
        return None


def _known(cases: Cases) -> tuple[Any, Any, Any] | None:
    """Return scores, labels and patients of the labelled cases, None without both classes."""
    use = cases.labelled & np.isfinite(cases.anomaly_score)
    labels = cases.anomalous[use]
    if labels.all() or not labels.any():
        return None
    groups = cases.groups
    return cases.anomaly_score[use], labels, None if groups is None else groups[use]


def _range(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"95 % interval {low:.3f} to {high:.3f}"


def percent(share: float) -> str:
    """Return a share in words."""
    return f"{100 * share:.3g} %"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown"


def seconds(value: Any) -> str:
    """Return a duration in words."""
    if not isinstance(value, int | float):
        return "unknown"
    if value < 100:
        return f"{value:.3g} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
