"""Scores, labels and what the audit knows -> `Evaluation`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError
from normalis.evaluation.parts import (
    highest_in_lesion,
    images_coloured,
    lesions_found,
    rates_by_group,
)
from normalis.evaluation.result import Baseline, Evaluation, Subset
from normalis.metrics import (
    Comparison,
    Interval,
    auroc,
    average_precision,
    bootstrap,
    delong,
    holm,
    pixel_bootstrap,
    pixel_metrics,
    sensitivity_at_fpr,
    share,
)
from normalis.metrics.comparison import compare_draws
from normalis.metrics.intervals import Draws, draw_statistics, ends_of, interval_of
from normalis.metrics.pixels import Maps
from normalis.metrics.ranking import check_scores

__all__ = ["baseline_scores", "evaluate"]

_SIGNIFICANT = 0.05


def evaluate(
    anomaly_score: ArrayLike,
    is_anomalous: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    leaked: Mapping[str, ArrayLike] | None = None,
    baselines: Mapping[str, ArrayLike] | None = None,
    kind: Sequence[str | None] | None = None,
    flagged: ArrayLike | None = None,
    rate: float | None = None,
    maps: Maps | None = None,
    masks: Maps | None = None,
    calibrated: Maps | None = None,
    map_level: float | None = None,
    header: Mapping[str, Sequence[Any]] | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate scores of a test set.

    Args:
        anomaly_score: (N,) higher = more anomalous.
        is_anomalous: (N,) bool or 0/1.
        groups: (N,) which images belong together, from `independent_units`; None if none do.
        leaked: name -> (N,) bool, images with a near duplicate in the training set (``"0.95"``:
            a correlation above 0.95); each list gives the figures without it and on it alone.
        baselines: name -> (N,) baseline scores, from `baseline_scores`.
        kind: (N,) name of the anomaly, None where unknown or normal.
        flagged: (N,) bool, whether each image is flagged at ``rate`` by a calibration on normal
            images (``p_value <= rate``).
        rate: the nominal false-positive rate of ``flagged``.
        maps: (N, H, W) anomaly maps, or a list of (H, W).
        masks: ground truth of the same shapes, empty for normal images.
        calibrated: calibrated maps (`normalis.calibration.maps`) of the same shapes, by which
            lesions and coloured images are counted; None takes ``maps``.
        map_level: level of these that 1 in 20 normal images reaches.
        header: column -> (N,) age, sex, scanner, ...; None where unknown.
        n_draws: bootstrap draws.
        seed: of the draws.

    Raises:
        MetricError: if a length differs, a score is not finite, or there is neither a class to
            tell apart nor a flag to count.
    """
    scores, labels = check_scores(anomaly_score, is_anomalous)
    member = np.arange(scores.size) if groups is None else np.asarray(groups)
    flags = None if flagged is None else np.asarray(flagged)
    lists = {name: np.asarray(values).astype(bool) for name, values in (leaked or {}).items()}
    simple = {name: np.asarray(values) for name, values in (baselines or {}).items()}
    kinds = None if kind is None else np.array(["" if k is None else str(k) for k in kind])
    columns = {name: list(values) for name, values in (header or {}).items()}
    _check_lengths(
        scores.size,
        {"groups": member, "flagged": flags, "kind": kinds, "maps": maps, "masks": masks}
        | {"calibrated": calibrated}
        | {f"leaked {n}": v for n, v in lists.items()}
        | {f"baseline {n}": v for n, v in simple.items()}
        | {f"header {n}": v for n, v in columns.items()},
    )
    if flags is None and (labels.all() or not labels.any()):
        raise MetricError(
            "an evaluation needs both classes, or flags of a calibration; got "
            f"{int((~labels).sum())} normal and {int(labels.sum())} anomalous images and no flags"
        )
    notes: list[str] = []
    data = _Data(scores, labels, member, flags, simple, kinds, maps, masks, n_draws, seed, notes)
    subsets = [_subset("all", data, np.ones(scores.size, dtype=bool))]
    for name, is_leaked in lists.items():
        if is_leaked.any():
            subsets.append(_subset(f"without {name}", data, ~is_leaked))
            subsets.append(_subset(f"only {name}", data, is_leaked | labels))
    judged = maps if calibrated is None else calibrated
    by_group, sizes = rates_by_group(columns, labels, flags, member)
    return Evaluation(
        subsets=tuple(subsets),
        unit="image" if np.unique(member).size == scores.size else "group",
        rate=rate,
        groups=by_group,
        group_sizes=sizes,
        lesions=lesions_found(judged, masks, map_level, member),
        coloured=images_coloured(judged, map_level, labels, member),
        highest=highest_in_lesion(judged, masks, member),
        notes=tuple(dict.fromkeys(notes)),
    )


def baseline_scores(
    train: NDArray[Any],
    test: NDArray[Any],
    *,
    file_properties: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return every baseline score of the test images, in both directions where none is natural.

    A direction is never picked by looking at labels: ``NAME_reversed`` is a score of its own.

    Args:
        train: (M, ...) normal training images.
        test: (N, ...) test images of the same shape and range.
        file_properties: one mapping per test image: bytes, pixel size, channels, scanner, ...

    Raises:
        DataError: if the images' shapes differ or there is no training image.
    """
    from normalis import baselines

    scores = dict(baselines.pixel_scores(test, train))
    for name, values in baselines.property_scores(file_properties or []).items():
        scores[name] = values
        scores[f"{name}_reversed"] = -values
    return scores


@dataclass(frozen=True)
class _Data:
    """The checked input, so that a subset is one selection."""

    scores: NDArray[Any]
    labels: NDArray[np.bool_]
    member: NDArray[Any]
    flags: NDArray[Any] | None
    baselines: Mapping[str, NDArray[Any]]
    kinds: NDArray[Any] | None
    maps: Maps | None
    masks: Maps | None
    n_draws: int
    seed: int
    notes: list[str]


def _check_lengths(size: int, parts: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        if part is not None and len(part) != size:
            raise MetricError(f"{name} must have one entry per image, got {len(part)} for {size}")


def _subset(name: str, data: _Data, keep: NDArray[np.bool_]) -> Subset:
    scores, labels, member = data.scores[keep], data.labels[keep], data.member[keep]
    n_normal, n_anomalous = int((~labels).sum()), int(labels.sum())
    both = n_normal > 0 and n_anomalous > 0
    ranking: dict[str, Interval] = {}
    oracle: dict[str, Interval] = {}
    if both:
        for title, metric in (("auroc", auroc), ("average_precision", average_precision)):
            ranking[title] = _interval(metric, scores, labels, member, data)
        oracle["sensitivity_at_5_percent_fpr"] = _interval(
            sensitivity_at_fpr, scores, labels, member, data
        )
        _pixels(data, keep, ranking, oracle)
    else:
        data.notes.append(f"{name}: {n_normal} normal and {n_anomalous} anomalous images, no AUROC")
    return Subset(
        name=name,
        n_images=int(keep.sum()),
        n_normal=n_normal,
        n_anomalous=n_anomalous,
        n_units=int(np.unique(member).size),
        ranking=ranking,
        deployable=_deployable(data, keep),
        oracle=oracle,
        by_kind=_by_kind(data, keep) if both else {},
        kind_images={name: int(_of_kind(data, keep, name).sum()) for name in _kinds(data, keep)},
        baselines=_baselines(data, keep) if both else (),
    )


def _interval(
    metric: Any, scores: NDArray[Any], labels: NDArray[Any], member: NDArray[Any], data: _Data
) -> Interval:
    """Return the bootstrap interval, or the bare value where none can be had."""
    try:
        return bootstrap(metric, scores, labels, groups=member, n=data.n_draws, seed=data.seed)
    except MetricError as error:
        data.notes.append(f"a figure has no interval: {error}")
        return Interval.bare(metric(scores, labels), np.unique(member).size)


def _select(arrays: Maps, keep: NDArray[np.bool_]) -> Maps:
    if isinstance(arrays, np.ndarray):
        return arrays if keep.all() else arrays[keep]
    return [one for one, kept in zip(arrays, keep, strict=True) if kept]


def _pixels(
    data: _Data, keep: NDArray[np.bool_], ranking: dict[str, Interval], oracle: dict[str, Interval]
) -> None:
    """Add the pixel metrics, if some pixel is marked and some is not."""
    if data.maps is None or data.masks is None:
        return
    maps, masks = _select(data.maps, keep), _select(data.masks, keep)
    marked = np.array([bool(np.any(mask)) for mask in masks])
    unmarked = int((data.labels[keep] & ~marked).sum())
    if unmarked:
        data.notes.append(
            f"{unmarked} anomalous images have an empty mask; their pixels count as normal"
        )
    if not marked.any():
        return
    member = data.member[keep]
    try:
        found = pixel_bootstrap(maps, masks, groups=member, n=data.n_draws, seed=data.seed)
    except MetricError as error:
        data.notes.append(f"pixel metrics have no interval: {error}")
        exact, units = pixel_metrics(maps, masks), np.unique(member).size
        names = ("auroc", "average_precision", "best_dice")
        keys = ("pixel_auroc", "pixel_average_precision", "best_dice")
        found = {
            k: Interval.bare(getattr(exact, n), units) for k, n in zip(keys, names, strict=True)
        }
    oracle["best_dice"] = found.pop("best_dice")
    ranking.update(found)


def _deployable(data: _Data, keep: NDArray[np.bool_]) -> dict[str, Interval]:
    """Return sensitivity and false-positive rate of the flags."""
    if data.flags is None:
        return {}
    result = {}
    classes = {"sensitivity": data.labels, "false_positive_rate": ~data.labels}
    for name, of_class in classes.items():
        chosen = keep & of_class
        if chosen.any():
            result[name] = share(data.flags[chosen], groups=data.member[chosen])
    return result


def _kinds(data: _Data, keep: NDArray[np.bool_]) -> list[str]:
    """Return the kinds of anomalies, if there are several."""
    if data.kinds is None:
        return []
    names = sorted(set(data.kinds[keep & data.labels]) - {""})
    return names if len(names) > 1 else []


def _of_kind(data: _Data, keep: NDArray[np.bool_], name: str) -> NDArray[np.bool_]:
    """Return which images are normal or of one kind."""
    return keep & (~data.labels | (data.kinds == name))


def _by_kind(data: _Data, keep: NDArray[np.bool_]) -> dict[str, Interval]:
    """Return the AUROC of each kind of anomaly against all normal images."""
    result = {}
    for name in _kinds(data, keep):
        chosen = _of_kind(data, keep, name)
        result[name] = _interval(
            auroc, data.scores[chosen], data.labels[chosen], data.member[chosen], data
        )
    return result


def _baselines(data: _Data, keep: NDArray[np.bool_]) -> tuple[Baseline, ...]:
    """Return the baseline scores, best first, each compared with the method."""
    labels = data.labels[keep]
    if not data.baselines or min(labels.sum(), (~labels).sum()) < 2:
        return ()
    try:
        rows = list(_against(data, keep))
    except MetricError as error:
        data.notes.append(f"baselines are not compared: {error}")
        return ()
    adjusted = holm([versus.p_value for _, _, versus in rows])
    found = [
        Baseline(
            name=name,
            auroc=own,
            comparison=versus,
            adjusted_p=float(p),
            beaten=bool(versus.difference > 0 and p < _SIGNIFICANT),
        )
        for (name, own, versus), p in zip(rows, adjusted, strict=True)
    ]
    return tuple(sorted(found, key=lambda b: -b.auroc.value))


def _against(data: _Data, keep: NDArray[np.bool_]) -> Iterator[tuple[str, Interval, Comparison]]:
    """Yield each baseline with its interval and its comparison, all on the same draws."""
    scores, labels, member = data.scores[keep], data.labels[keep], data.member[keep]
    units = Draws.of(member, labels.size, n=data.n_draws, seed=data.seed)
    ours, _ = draw_statistics(auroc, scores, labels, units=units)
    value, reach = auroc(scores, labels), ends_of(auroc, labels, units=units)
    for name, baseline in data.baselines.items():
        theirs, rejected = draw_statistics(auroc, baseline[keep], labels, units=units)
        own = interval_of(
            auroc(baseline[keep], labels),
            theirs,
            units=units,
            confidence=0.95,
            rejected=rejected,
            reach=reach,
        )
        if units.n_units == labels.size:
            yield name, own, delong(scores, baseline[keep], labels)
        else:
            yield name, own, compare_draws(value - own.value, ours - theirs, units=units)
