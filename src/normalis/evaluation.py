"""Scores, labels and what the audit knows -> the honest table.

Beside each figure stand the number of images and of independent units (patients, duplicate groups),
an interval that draws whole units, the same figure without leaked images, and what trivial scores
reach on the same images. Three kinds of figures are kept apart:

* ``ranking``: needs no threshold (AUROC, AP, and both of pixels);
* ``deployable``: at a threshold fixed beforehand on normal images (sensitivity, realised
  false-positive rate, lesions found);
* ``oracle``: something was chosen with the very labels it is scored on (best Dice, sensitivity at
  the test's own false-positive rate). Never to be quoted beside the others.

Pure functions of arrays: nothing here reads an image or fits a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.errors import MetricError
from normalis.metrics import (
    Comparison,
    Interval,
    auroc,
    average_precision,
    bootstrap,
    delong,
    find_lesions,
    holm,
    lesion_sensitivity,
    paired_bootstrap,
    pixel_bootstrap,
    pixel_metrics,
    sensitivity_at_fpr,
)
from normalis.metrics.pixels import Maps
from normalis.metrics.ranking import check_scores
from normalis.metrics.shares import share

__all__ = [
    "Baseline",
    "Evaluation",
    "Subset",
    "TableRow",
    "compare",
    "evaluate",
    "independent_units",
    "trivial_scores",
]

_SIGNIFICANT = 0.05
_MANY = 6  # a numeric column of more values is cut into quarters


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A trivial score on the same images, and whether the method beats it.

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
        name: ``all``, ``without NAME`` or ``only NAME`` of a list of leaked images.
        n_images: images in it.
        n_normal: normal ones.
        n_anomalous: anomalous ones.
        n_units: independent units.
        ranking: name -> figure without a threshold.
        deployable: name -> figure at a threshold from normal images.
        oracle: name -> figure for which something was chosen with these labels.
        by_kind: kind of anomaly -> AUROC against all normal images.
        baselines: trivial scores, best first.
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
    """The honest table of one method on one test set.

    Attributes:
        subsets: all images first, then without (and only) the leaked ones.
        unit: what an independent unit is: ``image`` or ``group`` (patients or duplicates).
        rate: nominal false-positive rate of the deployable figures; None without calibration.
        groups: false-positive rate of normal images by header column and value.
        group_sizes: normal images behind each of them.
        lesions: lesions found by size, at the calibrated level of the map.
        notes: what a reader should know, one sentence each.
    """

    subsets: tuple[Subset, ...]
    unit: str
    rate: float | None = None
    groups: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    group_sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lesions: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> Subset:
        """Figures of all images."""
        return self.subsets[0]

    @property
    def beats_baselines(self) -> bool | None:
        """Whether every trivial baseline is beaten on every subset but the leaked images alone."""
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
        for lesion in self.lesions:
            upper = f"{lesion['max_size'] - 1:.0f}" if math.isfinite(lesion["max_size"]) else "more"
            one = Interval(
                value=lesion["sensitivity"],
                low=lesion["low"],
                high=lesion["high"],
                n_units=int(lesion["n_units"]),
            )
            name = f"lesions of {lesion['min_size']:.0f} to {upper} pixels found"
            rows.append(_row("lesion", "all", name, one, int(lesion["n"]), "n counts lesions"))
        return rows + [row for subset in self.subsets for row in _rows_of(subset, "oracle")]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a number that does not exist is None."""
        plain: dict[str, Any] = _plain(asdict(self))
        plain["beats_baselines"] = self.beats_baselines
        for subset, source in zip(plain["subsets"], self.subsets, strict=True):
            subset["beats_baselines"] = source.beats_baselines
        return plain


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
        leaked: name -> (N,) bool, images that have a twin in the training set (``"0.95"``: a
            correlation above 0.95); each list gives the figures without it and on it alone.
        baselines: name -> (N,) trivial scores, from `trivial_scores`.
        kind: (N,) name of the anomaly, None where unknown or normal.
        flagged: (N,) bool, whether each image is flagged at ``rate`` by a calibration on normal
            images (``p_value <= rate``).
        rate: the nominal false-positive rate of ``flagged``.
        maps: (N, H, W) anomaly maps, or a list of (H, W).
        masks: ground truth of the same shapes, empty for normal images.
        map_level: calibrated level of the maps, for lesions.
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
    by_group, sizes = _by_group(columns, labels, flags, member)
    return Evaluation(
        subsets=tuple(subsets),
        unit="image" if np.unique(member).size == scores.size else "group",
        rate=rate,
        groups=by_group,
        group_sizes=sizes,
        lesions=_lesions(maps, masks, map_level, member),
        notes=tuple(dict.fromkeys(notes)),
    )


def independent_units(*namings: Sequence[Any] | None) -> NDArray[np.int64]:
    """Number the groups of images that no naming separates.

    Args:
        *namings: (N,) names such as patients, or groups of duplicates; two images with one name
            belong together, and so do their groups. An entry None joins nothing; None for a whole
            naming that is unknown.

    Returns:
        (N,) numbers from 0.

    Raises:
        MetricError: if no naming is given or their lengths differ.

    Example:
        >>> independent_units(["a", "a", "b", None], [None, 1, 1, None]).tolist()
        [0, 0, 0, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    given = [list(n) for n in namings if n is not None]
    if not given or len({len(n) for n in given}) != 1:
        raise MetricError(
            f"groups need names of equal length, got lengths {[len(n) for n in given]}"
        )
    size = len(given[0])
    rows, columns, nodes = [], [], size
    for naming in given:
        number: dict[str, int] = {}
        for image, name in enumerate(naming):
            if name is not None:
                rows.append(image)
                columns.append(number.setdefault(str(name), nodes + len(number)))
        nodes += len(number)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(nodes, nodes))
    member = connected_components(graph, directed=False)[1][:size]
    _, first, inverse = np.unique(member, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def trivial_scores(
    train: NDArray[Any],
    test: NDArray[Any],
    *,
    file_properties: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return every trivial score of the test images, in both directions where none is natural.

    A direction is never picked by looking at labels: ``NAME_reversed`` is a score of its own.

    Args:
        train: (M, ...) normal training images.
        test: (N, ...) test images of the same shape and range.
        file_properties: one mapping per test image: bytes, pixel size, channels, scanner, ...

    Raises:
        DataError: if the images' shapes differ or there is no training image.
    """
    from normalis import trivial

    scores = dict(trivial.pixel_scores(test, train))
    for name, values in trivial.property_scores(file_properties or []).items():
        scores[name] = values
        scores[f"{name}_reversed"] = -values
    return scores


def compare(
    first: ArrayLike,
    second: ArrayLike,
    is_anomalous: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare the AUROC of two methods on the same images.

    DeLong's test if all images are independent, else a paired bootstrap of whole groups.

    Raises:
        MetricError: if a class is empty or the input is refused.
    """
    if groups is None or np.unique(np.asarray(groups)).size == np.asarray(groups).size:
        return delong(first, second, is_anomalous)
    return paired_bootstrap(auroc, first, second, is_anomalous, groups=groups, seed=seed)


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
        return _bare(metric(scores, labels), np.unique(member).size)


def _bare(value: float, n_units: int) -> Interval:
    nan = float("nan")
    return Interval(value=value, low=nan, high=nan, n_units=n_units, n_draws=0)


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
        found = {k: _bare(getattr(exact, n), units) for k, n in zip(keys, names, strict=True)}
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


def _by_kind(data: _Data, keep: NDArray[np.bool_]) -> dict[str, Interval]:
    """Return the AUROC of each kind of anomaly against all normal images."""
    if data.kinds is None:
        return {}
    names = sorted(set(data.kinds[keep & data.labels]) - {""})
    result = {}
    for name in names if len(names) > 1 else []:
        chosen = keep & (~data.labels | (data.kinds == name))
        result[name] = _interval(
            auroc, data.scores[chosen], data.labels[chosen], data.member[chosen], data
        )
    return result


def _baselines(data: _Data, keep: NDArray[np.bool_]) -> tuple[Baseline, ...]:
    """Return the trivial scores, best first, each compared with the method."""
    labels, member = data.labels[keep], data.member[keep]
    if not data.baselines or min(labels.sum(), (~labels).sum()) < 2:
        return ()
    rows = []
    for name, values in data.baselines.items():
        own = _interval(auroc, values[keep], labels, member, data)
        try:
            versus = compare(data.scores[keep], values[keep], labels, groups=member, seed=data.seed)
        except MetricError as error:
            data.notes.append(f"baseline {name} is not compared: {error}")
            continue
        rows.append((name, own, versus))
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


def _by_group(
    columns: Mapping[str, list[Any]],
    labels: NDArray[np.bool_],
    flags: NDArray[Any] | None,
    member: NDArray[Any],
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, int]]]:
    """Return the false-positive rate of normal images by value of each header column."""
    rates: dict[str, dict[str, Interval]] = {}
    sizes: dict[str, dict[str, int]] = {}
    if flags is None or labels.all():
        return rates, sizes
    for column, values in columns.items():
        names = _binned(values)
        groups = {n: (names == n) & ~labels for n in dict.fromkeys(names.tolist())}
        groups = {n: chosen for n, chosen in groups.items() if chosen.any()}
        if len(groups) > 1:
            rates[column] = {n: share(flags[c], groups=member[c]) for n, c in groups.items()}
            sizes[column] = {n: int(c.sum()) for n, c in groups.items()}
    return rates, sizes


def _binned(values: list[Any]) -> NDArray[Any]:
    """Name each value; cut a numeric column of many values into quarters."""
    known = [v for v in values if v is not None and v == v]  # NaN differs from itself
    numeric = all(isinstance(v, (int, float, np.number)) for v in known)
    if not numeric or len(set(known)) <= _MANY:
        return np.array([str(v) if v is not None and v == v else "unknown" for v in values])
    edges = np.unique(np.quantile(np.array(known, dtype=float), [0, 0.25, 0.5, 0.75, 1]))
    texts = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    places = [
        None if v is None or v != v else int(np.searchsorted(edges[1:-1], v, side="right"))
        for v in values
    ]
    return np.array(["unknown" if p is None else texts[p] for p in places])


def _lesions(
    maps: Maps | None, masks: Maps | None, level: float | None, member: NDArray[Any]
) -> tuple[Mapping[str, float], ...]:
    """Return lesions found by size at the calibrated level, with intervals by unit."""
    if maps is None or masks is None or level is None:
        return ()
    lesions = find_lesions(maps, masks)
    rows = []
    # A pixel is coloured strictly above the level, as a score is flagged strictly above its own.
    threshold = float(np.nextafter(level, np.inf))
    for row in lesion_sensitivity(lesions, threshold=threshold):
        inside = (lesions.size >= row["min_size"]) & (lesions.size < row["max_size"])
        if row["n"]:
            hits = lesions.peak[inside] >= threshold
            one = share(hits, groups=member[lesions.image[inside]])
        else:
            one = _bare(float("nan"), 0)
        rows.append({**row, "low": one.low, "high": one.high, "n_units": one.n_units})
    return tuple(rows)


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
    note = "oracle: chosen with test labels" if section == "oracle" else ""
    if section == "ranking" and subset.beats_baselines is False:
        note = "does not beat every trivial baseline"
    return [
        _row(section, subset.name, name, one, sizes.get(name, subset.n_images), note)
        for name, one in source.items()
    ]


def _plain(value: Any) -> Any:
    """Make nested values fit for JSON: lists for tuples, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
