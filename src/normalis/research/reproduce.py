"""The paper's tables and figure, planned as sweeps and drawn from records beside its numbers.

Cai, Chen and Cheng, "Rethinking Autoencoders for Medical Anomaly Detection from A Theoretical
Perspective", MICCAI 2024: Table 1 (AE by latent dimension), Table 2 (methods at latent dimension
16, and AE at its best), Figure 3 (errors of training, normal and anomalous images by latent
dimension). Its numbers are in ``paper.json``.

Drawing reads records only. Whether a difference is within sampling error is asked with Welch's
test where there are several seeds, against the paper's mean and deviation taken as three runs (it
does not say how many; the authors' later script uses three). With one seed the paper's mean is
compared with the interval of a bootstrap over test images, which is wider than what separates two
runs on the same images: it can show that two numbers disagree, hardly that they agree.

No number stands alone: where test images have twins among the training images, the AUROC without
them is a column of its own, and below the networks stands the best method without one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from normalis.errors import DataError, SettingsError
from normalis.research.records import Records
from normalis.scorers import default_reduction
from normalis.training.settings import TrainingSettings

__all__ = [
    "PARTS",
    "Cell",
    "Comparison",
    "Curve",
    "compare",
    "datasets_under",
    "figure3",
    "is_standard",
    "part",
    "plan_of",
    "reference",
]

PAPER_RUNS = 3  # see the module's docstring
DIMS = (1, 2, 4, 8, 16, 32, 64, 128)
FIGURE_DIMS = (*DIMS, 256, 384, 512, 640, 768, 896, 1024)
_TABLE2 = {"AE": "ae", "VAE": "vae", "MemAE": "memae", "CeAE": "ceae"}
METRICS = (
    "auroc", "auroc_without_twins", "average_precision", "pixel_average_precision", "best_dice",
)  # fmt: skip
TITLES = {
    "auroc": "AUROC",
    "auroc_without_twins": "AUROC without twins",
    "average_precision": "AP",
    "pixel_average_precision": "pixel AP",
    "best_dice": "best Dice",
}
#: What can be reproduced, and what it is called.
PARTS = {
    "table1": "AE by latent dimension (Table 1 of the paper)",
    "table2": "Methods at latent dimension 16 (Table 2 of the paper)",
    "figure3": "Reconstruction errors by latent dimension (Figure 3 of the paper)",
    "methods": "Every method, baseline and reading at latent dimension 16",
}
#: A test image is a twin of a training image from this correlation on, as in the audit.
TWIN = 0.95
#: Where fewer test images have one, they are look-alikes of other patients and no leak.
_FEW = 0.01
_PAPER_TRAINING = TrainingSettings().to_dict()


@cache
def reference() -> dict[str, Any]:
    """Return the paper's numbers, in percent: (mean, deviation) by table, data set and row."""
    text = files("normalis.research").joinpath("paper.json").read_text(encoding="utf-8")
    body: dict[str, Any] = json.loads(text)
    return body


def datasets_under(root: str | Path) -> list[str]:
    """Return the data sets in a folder that experiments can use: with normal and anomalous tests.

    Raises:
        DataError: if there is none.
    """
    from normalis.datasets import open_dataset

    found = []
    folders = sorted(p for p in Path(root).iterdir() if p.is_dir()) if Path(root).is_dir() else []
    for folder in folders:
        try:
            counts = open_dataset(folder).counts()
        except DataError:
            continue
        if all(counts.get(k) for k in _NEEDED):
            found.append(folder.name)
    if not found:
        raise DataError(
            f"{root}: must hold data sets as subfolders, each with training normals and labelled "
            f"test images, found none among {', '.join(p.name for p in folders) or 'no folder'}"
        )
    return found


_NEEDED = (("train", "normal"), ("test", "normal"), ("test", "anomalous"))


def plan_of(name: str, datasets: Sequence[str], *, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the sweep of a table or figure, as `normalis.research.experiments.plan` takes it.

    Args:
        name: one of `PARTS`.
        datasets: names below the data folder.
        seeds: one training each.

    Raises:
        SettingsError: if there is no such part.
    """
    if name not in PARTS:
        raise SettingsError(f"must be one of {', '.join(PARTS)}, got {name!r}")
    table: dict[str, Any] = {"datasets": list(datasets), "seeds": list(seeds)}
    if name == "table1":
        return {**table, "latent_dims": list(DIMS)}
    if name == "figure3":
        return {**table, "latent_dims": list(FIGURE_DIMS)}
    if name == "methods":
        from normalis.models import MODELS

        methods = [m for m in MODELS if m not in (*_NOT_BY_DEFAULT, *_OWN_TRAINING)]
        default = {"methods": _networks(methods), "scorers": ["median"]}
        own = [
            {"methods": [method], "scorers": ["native", "median"], **training}
            for method, training in _OWN_TRAINING.items()
        ]
        return {**table, "methods": methods, "include": [*map(dict, _VARIANTS), default, *own]}
    # The last row, AE at its best latent dimension, is the best of Table 1.
    best = {"methods": ["ae"], "latent_dims": list(DIMS)}
    return {**table, "methods": list(_TABLE2.values()), "include": [best]}


def _networks(methods: Iterable[str]) -> list[str]:
    from normalis.models import model_class
    from normalis.models.base import Autoencoder

    return [m for m in methods if issubclass(model_class(m), Autoencoder)]


# It needs a file of weights.
_NOT_BY_DEFAULT = ("ae-perceptual",)

#: What is trained otherwise in the table of methods; its row says so. A step of the U-Net takes ten
#: of the autoencoder, and there is no code that many epochs would have to fill.
_OWN_TRAINING: dict[str, dict[str, Any]] = {"dae": {"epochs": 40, "recipe": "fast"}}

#: What the table of methods has besides each method as it is. Readings share its training.
_VARIANTS: tuple[dict[str, Any], ...] = (
    {"methods": ["ae"], "options": {"loss": "ssim"}},
    {"methods": ["ae"], "options": {"loss": "l1"}},
    {"methods": ["intensity"], "options": {"sign": "dark"}},
    {"methods": ["ae"], "scorers": ["l1", "ssim", "gradient", "normalised", "mahalanobis"]},
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table beside the paper's, all in percent.

    Attributes:
        dataset: name of the data set.
        row: what the row is: a latent dimension or a method.
        metric: name of the metric.
        values: one per seed.
        low: lower end of the bootstrap interval over test images, averaged over seeds; NaN where
            the record has none.
        high: its upper end.
        paper: (mean, deviation), None where the paper has no such number.
        p_value: of Welch's test; None with one seed or without the paper's number.
        fit_s: seconds of training, mean over seeds.
    """

    dataset: str
    row: str
    metric: str
    values: tuple[float, ...]
    low: float
    high: float
    paper: tuple[float, float] | None
    p_value: float | None
    fit_s: float

    @property
    def mean(self) -> float:
        """Our mean over seeds."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Our standard deviation over seeds, None with one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.paper is None else self.mean - self.paper[0]

    @property
    def within(self) -> bool | None:
        """Whether the difference is within sampling error; None where that cannot be asked."""
        if self.paper is None:
            return None
        if self.p_value is not None:
            return self.p_value >= 0.05
        return None if math.isnan(self.low) else self.low <= self.paper[0] <= self.high

    @property
    def asked(self) -> str:
        """How `within` was asked."""
        if self.within is None:
            return ""
        return "bootstrap" if self.p_value is None else f"Welch p = {self.p_value:.2g}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table: title, and cells in the order of its rows.

    Attributes:
        name: a key of `PARTS`.
        cells: by data set, row and metric.
        missing: rows of the paper's table that have no record yet.
    """

    name: str
    cells: tuple[Cell, ...]
    missing: tuple[str, ...] = ()
    title: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", PARTS[self.name])

    @property
    def datasets(self) -> list[str]:
        """Return the data sets, in order."""
        return list(dict.fromkeys(c.dataset for c in self.cells))


def compare(name: str, results: str | Path) -> Comparison:
    """Draw a table from the records of a results folder.

    Args:
        name: ``table1``, ``table2`` or ``methods``.
        results: the results folder.
    """
    store, variants = Records(results), name == "methods"
    everything = [r for r in store.table() if is_standard(r, variants=True)]
    groups = _grouped(name, [r for r in everything if variants or is_standard(r)])
    if not variants:
        groups = _with_best_plain(groups, everything)
    for record in {id(r): r for group in groups.values() for r in group}.values():
        _add_without_twins(record, store)
    cells = [
        _cell(dataset, row, metric, group, _paper(name, dataset, row, metric))
        for (dataset, row), group in groups.items()
        for metric in METRICS
        if all(r.get(metric) is not None for r in group)
    ]
    return Comparison(name=name, cells=tuple(cells), missing=tuple(_missing(name, groups)))


def is_standard(record: Mapping[str, Any], *, variants: bool = False) -> bool:
    """Whether a record was made as the paper says: all images, its training, its score.

    Args:
        record: of an experiment.
        variants: whether other options of the method, and other scorers, are let in.
    """
    settings = record["settings"]
    if record["reduction"] != default_reduction(record["scorer"]):
        return False
    if settings.get("scorer_options"):
        return False
    if not variants and (record["scorer"] != "native" or settings["options"]):
        return False
    if any(settings["subset"].values()) or settings["images"] or settings["image_size"] != 64:
        return False
    training = {**_PAPER_TRAINING, **settings["training"]}  # older records lack later settings
    usual = reference()["epochs"].get(record["dataset"], 250)
    right = {**_PAPER_TRAINING, "epochs": usual if record["n_parameters"] else training["epochs"]}
    own = _OWN_TRAINING.get(record["method"], {}) if variants else {}
    return training in (right, {**right, **own})


Groups = dict[tuple[str, str], list[Any]]


def _grouped(name: str, records: Iterable[Mapping[str, Any]]) -> Groups:
    """Return the records of each row, by data set and row, rows in the table's order."""
    groups: Groups = {}
    for record in sorted(records, key=_order):
        for row in _rows_of(name, record):
            groups.setdefault((record["dataset"], row), []).append(record)
    if name == "table2":
        groups |= _best(groups)
    kept = {k: v for k, v in groups.items() if not k[1].startswith("d=")}
    return dict(sorted(kept.items(), key=lambda item: item[0][0]))


def _with_best_plain(groups: Groups, records: Iterable[Mapping[str, Any]]) -> Groups:
    """Add to each data set the method without a network that has the best AUROC."""
    best: dict[str, Mapping[str, Any]] = {}
    for record in records:
        dataset = record["dataset"]
        if (
            record["n_parameters"] == 0
            and record["auroc"] > best.get(dataset, {"auroc": -1})["auroc"]
        ):
            best[dataset] = record
    known = dict.fromkeys(dataset for dataset, _ in groups)
    plain: Groups = {
        (d, f"{', '.join(p for p in (best[d]['method'], _variant(best[d])) if p)} (no network)"): [
            best[d]
        ]
        for d in known
        if d in best
    }
    return dict(sorted((groups | plain).items(), key=lambda item: item[0][0]))


def _add_without_twins(record: dict[str, Any], store: Records) -> None:
    """Add the AUROC without the test images that have a twin, if they are more than a few."""
    from normalis.metrics import auroc, bootstrap

    full = store.read(record["id"])
    test = np.array(full["split"]) == "test"
    twin = np.array(full.get("nearest_ncc") or np.zeros(len(test)), float)[test] >= TWIN
    labels, scores = (
        np.array(full["is_anomalous"], bool)[test],
        np.array(full["anomaly_score"])[test],
    )
    if twin.mean() < _FEW or len(np.unique(labels[~twin])) < 2:
        return
    patients = np.array([p or "" for p in full.get("patient_id") or [""] * len(test)])[test][~twin]
    groups = None if (patients == "").any() else patients
    found = bootstrap(auroc, scores[~twin], labels[~twin], groups=groups)
    record["auroc_without_twins"] = found.value
    record["metrics"]["auroc_without_twins"] = found.to_dict()


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    methods = list(_TABLE2.values())
    method = record["method"]
    place = methods.index(method) if method in methods else len(methods)
    latent_dim, seed = record["latent_dim"] or 0, record["seed"]
    return record["dataset"], place, method, latent_dim, _variant(record), seed


def _variant(record: Mapping[str, Any]) -> str:
    """Return what sets a record apart from its method as it is, empty for none."""
    options = ", ".join(f"{k} = {v}" for k, v in record["settings"]["options"].items())
    reading = "" if record["scorer"] == "native" else f"read by {record['scorer']}"
    training = record["settings"]["training"]
    own = _OWN_TRAINING.get(record["method"], {})
    shorter = bool(own) and all(training[k] == v for k, v in own.items())
    named = f"{training['epochs']} epochs, recipe {training['recipe']}" if shorter else ""
    return ", ".join(part for part in (options, named, reading) if part)


def _rows_of(name: str, record: Mapping[str, Any]) -> list[str]:
    method, latent_dim = record["method"], record["latent_dim"]
    if name in ("table1", "figure3"):
        dims = DIMS if name == "table1" else FIGURE_DIMS
        return [str(latent_dim)] if method == "ae" and latent_dim in dims else []
    rows = []
    if name == "methods" and latent_dim in (16, None):
        rows.append(", ".join(part for part in (method, _variant(record)) if part))
    if name == "table2":
        titles = {v: k for k, v in _TABLE2.items()}
        if method in titles and latent_dim == 16:
            rows.append(titles[method])
        if method == "ae" and latent_dim in DIMS:
            rows.append(f"d={latent_dim}")
    return rows


def _best(groups: Groups) -> Groups:
    """Return the last row of Table 2: AE at the latent dimension whose test AUROC is best.

    As in the paper it is chosen with the test's labels; the row says so by its name.
    """
    best: dict[str, tuple[float, str]] = {}
    for (dataset, row), group in groups.items():
        if row.startswith("d="):
            score = float(np.mean([r["auroc"] for r in group]))
            best[dataset] = max(best.get(dataset, (-1.0, "")), (score, row))
    return {
        (d, f"AE, best {row.replace('=', ' = ')}"): groups[(d, row)] for d, (_, row) in best.items()
    }


def _paper(name: str, dataset: str, row: str, metric: str) -> tuple[float, float] | None:
    body = reference()
    key = "table1_ae_by_latent_dim" if name == "table1" else "table2_methods_at_latent_dim_16"
    rows = body[key].get(dataset, {})
    if name == "methods":
        row = {v: k for k, v in _TABLE2.items()}.get(row, row)
    if row.startswith("AE, best"):
        row = next((k for k in rows if k.startswith("AE[")), row)
    found = rows.get(row)
    if metric not in body["metrics"]:
        return None
    place = body["metrics"].index(metric)
    return tuple(found[place]) if found and place < len(found) else None


def _cell(
    dataset: str,
    row: str,
    metric: str,
    group: Sequence[Mapping[str, Any]],
    paper: tuple[float, float] | None,
) -> Cell:
    values = tuple(100 * r[metric] for r in group)
    ends = [r["metrics"][metric] for r in group]
    return Cell(
        dataset=dataset,
        row=row,
        metric=metric,
        values=values,
        low=float(np.mean([100 * e.get("low", math.nan) for e in ends])),
        high=float(np.mean([100 * e.get("high", math.nan) for e in ends])),
        paper=paper,
        p_value=None if paper is None or len(values) < 2 else _welch(values, paper),
        fit_s=float(np.mean([r["fit_s"] for r in group])),
    )


def _welch(values: Sequence[float], paper: tuple[float, float]) -> float:
    """Return the p-value of equal means, the paper's taken as `PAPER_RUNS` runs."""
    from scipy.stats import ttest_ind_from_stats

    mean, deviation = np.mean(values), np.std(values, ddof=1)
    if deviation == 0 and paper[1] == 0:
        return float(mean == paper[0])
    found = ttest_ind_from_stats(mean, deviation, len(values), *paper, PAPER_RUNS, equal_var=False)
    return float(found.pvalue)


def _missing(name: str, groups: Groups) -> list[str]:
    """Return the rows of a table that data sets with records lack."""
    wanted = {"table1": [str(d) for d in DIMS], "table2": list(_TABLE2)}.get(name, [])
    present = dict.fromkeys(dataset for dataset, _ in groups)
    return [f"{d} {row}" for d in present for row in wanted if (d, row) not in groups]


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """Figure 3's three lines of one data set; means over images, then over seeds.

    Attributes:
        dataset: name of the data set.
        latent_dims: (K,) ascending.
        errors: group -> (K,) mean squared error of pixels in [-1, 1].
        auroc: (K,).
        n_seeds: (K,) trainings per point.
    """

    dataset: str
    latent_dims: list[int]
    errors: dict[str, list[float]]
    auroc: list[float]
    n_seeds: list[int]


def figure3(results: str | Path) -> list[Curve]:
    """Return the curves of Figure 3 for every data set that has AE records."""
    store = Records(results)
    groups = _grouped("figure3", [r for r in store.table() if is_standard(r)])
    curves = []
    for dataset in dict.fromkeys(d for d, _ in groups):
        rows = {int(row): group for (d, row), group in groups.items() if d == dataset}
        points = [(k, [_errors(store.read(r["id"])) for r in rows[k]]) for k in sorted(rows)]
        curves.append(
            Curve(
                dataset=dataset,
                latent_dims=[k for k, _ in points],
                errors={
                    g: [float(np.mean([e[g] for e in several])) for _, several in points]
                    for g in ("train normal", "test normal", "test anomalous")
                },
                auroc=[float(np.mean([r["auroc"] for r in rows[k]])) for k, _ in points],
                n_seeds=[len(several) for _, several in points],
            )
        )
    return curves


def _errors(record: Mapping[str, Any]) -> dict[str, float]:
    scores = np.array(record["anomaly_score"])
    split, anomalous = np.array(record["split"]), np.array(record["is_anomalous"])
    return {
        "train normal": float(scores[split == "train"].mean()),
        "test normal": float(scores[(split == "test") & ~anomalous].mean()),
        "test anomalous": float(scores[(split == "test") & anomalous].mean()),
    }


def part(name: str, results: str | Path) -> Comparison | list[Curve]:
    """Return a table's cells or the figure's curves."""
    return figure3(results) if name == "figure3" else compare(name, results)
