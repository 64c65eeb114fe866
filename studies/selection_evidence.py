"""What the study of selection rules keeps of each training: scores, and never an image.

Two folders, so that a rule cannot meet a label: ``normals`` holds the scores of held-out *normal*
images, plain and with each synthetic anomaly; ``outcomes`` the scores of test images with their
labels; each a small committed file for a data set, method and seed. A row is an experiment in one
reading (of a nested latent, at one width).
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from normalis.duplicates import duplicate_groups, likeness_groups
from normalis.entropy import ValidityWarning
from normalis.metrics import average_precision
from normalis.models.base import AnomalyModel
from normalis.models.inputs import as_tensor, to_model_input
from normalis.models.nested_ae import NestedAE, widths_up_to
from normalis.models.rate_ae import RateAE
from normalis.research.data import Arrays, Store
from normalis.research.experiments import Experiment
from normalis.research.jobs import fitted
from normalis.research.packed import rounded, write_table
from normalis.research.records import Records
from normalis.research.selection import gather_evidence
from normalis.research.selection.evidence import normal_geometry
from normalis.research.selection.prior import lesion_prior
from normalis.scorers import build
from normalis.scorers.base import Scorer
from normalis.storage import RunFolder, write_atomically

#: Trainings with held-out normals whose evidence is kept, each in every reading it supports.
METHODS = ("ae", "rate-ae", "nested-ae", "ae-u", "vae", "memae", "ceae", "constrained-ae", "dae")
READINGS = ("native", "median")
SIDES = ("outcomes", "normals")
NOISE = (
    8  # draws of the noise that a rate-constrained map averages over, where it is scored with it
)


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """One way to look at one training: a width of it, a reading; (N, 1, S, S) -> scores and maps.

    Attributes:
        capacity: latent dimension or nats that the model was read at.
        reading: name of the scorer; ``noise`` for a rate that also holds while scoring.
        model: fitted.
        scorer: how its residual is read.
    """

    capacity: float
    reading: str
    model: AnomalyModel
    scorer: Scorer

    @torch.no_grad()
    def read(self, x: torch.Tensor, *, maps: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Return scores (N,) and, if asked for, maps (N, S, S)."""
        parts = [self.scorer.read(self.model, part, maps=maps) for part in x.split(256)]
        scores = np.concatenate([s.numpy() for s, _ in parts])
        return scores, np.concatenate([m.numpy() for _, m in parts]) if maps else None


def views(experiment: Experiment, model: AnomalyModel) -> list[View]:
    """List what is kept of a training: every reading, of a nested latent at every width."""
    widths = {capacity_of(experiment): model}
    if isinstance(model, NestedAE):
        widths = {float(w): model.at(w) for w in widths_up_to(model.settings.latent_dim)}
    found = [
        View(capacity=c, reading=r, model=m, scorer=build(r))
        for c, m in widths.items()
        for r in READINGS
    ]
    if isinstance(model, RateAE):
        noisy = copy.copy(model)
        noisy.settings = replace(model.settings, samples=NOISE)
        capacity = capacity_of(experiment)
        found.append(View(capacity=capacity, reading="noise", model=noisy, scorer=build("native")))
    return found


def gather(results: Path, evidence: Path, root: Path | None) -> list[str]:
    """Keep the evidence of every training with held-out normals; return what has no model."""
    store, gone = Store(results, root), []
    known = {side: read(evidence / side) for side in SIDES}
    done = {row["identity"] for row in known["normals"]}
    for row in Records(results).table():
        experiment = Experiment.from_settings(row["settings"])
        if not experiment.subset.validation_share or experiment.method not in METHODS:
            continue
        if (experiment.scorer, experiment.reduction) != ("native", "mean"):
            continue
        if experiment.identity in done:
            continue
        if not RunFolder(results / "models" / experiment.training_key).finished:
            gone.append(str(experiment))
            continue
        if not store.file(experiment.data).is_file():
            store.fingerprints(experiment.dataset, experiment.images, experiment.subset)
        arrays = every = store.get(experiment.data)
        if experiment.subset.position:  # masks are judged on all slices, images on some
            subset = replace(experiment.subset, position=None)
            every = store.get(store.fingerprints(experiment.dataset, experiment.images, subset)[0])
        model, _ = fitted(experiment, arrays, results, device="cpu")
        seen = views(experiment, model)
        known["outcomes"] += [outcome(experiment, view, arrays, every) for view in seen]
        known["normals"] += evidence_of(experiment, seen, arrays)
        for side in SIDES:  # after each, so that nothing is lost to an interruption
            keep(evidence / side, known[side], part_of(head(experiment, seen[0])))
    return gone


def part_of(row: Mapping[str, Any]) -> str:
    """Name the file that a row is kept in; small ones, since a changed file is committed whole."""
    method = row["method"].replace(", ", "-").replace(" ", "-")
    return f"{row['dataset']}-{method}{'-standardised' * row['standardize']}-{row['seed']}"


def keep(folder: Path, rows: Sequence[dict[str, Any]], part: str) -> None:
    """Write the rows of one part."""
    mine = [row for row in rows if part_of(row) == part]
    mine.sort(key=lambda r: (r["identity"], r.get("reading") or "", r["capacity"]))
    table = pa.Table.from_pylist(mine)
    write_atomically(
        folder / f"{part}.parquet",
        lambda path: pq.write_table(table, path, compression="zstd", write_statistics=False),
    )


def capacity_of(experiment: Experiment) -> float:
    """Return what limits a training: nats of a rate, else latent dimensions, 0 without a latent."""
    if experiment.method == "rate-ae":
        return float(experiment.options.get("rate", 12.0))
    return float(experiment.latent_dim or 0)


def variant(method: str, options: Mapping[str, Any]) -> str:
    """Name a method by those of its options that the study compares."""
    told = {"balance": "balanced", "held_out": "held out", "damping": "damped"}
    told |= {"noise": "floored", "clip": "clipped"}
    return ", ".join([method, *(word for name, word in told.items() if options.get(name))])


def head(experiment: Experiment, view: View) -> dict[str, Any]:
    training = experiment.training
    return {
        "identity": experiment.identity,
        "dataset": experiment.dataset,
        "method": variant(experiment.method, experiment.options),
        "capacity": view.capacity,
        "reading": view.reading,
        "standardize": training.standardize,
        "seed": experiment.seed,
        "epochs": training.epochs,
        "recipe": training.recipe,
        "learning_rate": training.learning_rate,
        "train_data": experiment.train_data,
    }


def outcome(experiment: Experiment, view: View, arrays: Arrays, every: Arrays) -> dict[str, Any]:
    """Return the labelled side; of test images of unknown patients one of each group of copies."""
    test = np.flatnonzero(arrays.split == "test")
    groups, rows = arrays.patient_id[test], np.arange(len(test))
    if (groups == "").any():
        groups = likeness_groups(arrays.of("test"))
        rows = np.sort(np.unique(groups, return_index=True)[1])
    sick = arrays.is_anomalous[test][rows]
    x = model_input(arrays.of("test")[rows], experiment)
    pixels = None
    if len(every.masks):
        maps = view.read(model_input(every.of("test"), experiment), maps=True)[1]
        pixels = float(average_precision(maps.ravel(), every.masks.ravel()))
    return {
        **head(experiment, view),
        "scores": view.read(x)[0].astype(np.float32).tolist(),
        "is_anomalous": sick.tolist(),
        "groups": np.unique(groups[rows], return_inverse=True)[1].tolist(),
        "pixel_average_precision": pixels,
        "rate_normal": rate_of(view, x[~sick]),
        "rate_anomalous": rate_of(view, x[sick]),
    }


def rate_of(view: View, x: torch.Tensor) -> float | None:
    """Measure the nats that a rate-constrained latent holds; None of other models."""
    if not isinstance(view.model, RateAE):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ValidityWarning)  # NaN says it
        return view.model.rate_of(x)


def model_input(pixels: np.ndarray, experiment: Experiment) -> torch.Tensor:
    return to_model_input(as_tensor(pixels), standardize=experiment.training.standardize)


def evidence_of(
    experiment: Experiment, views: Sequence[View], arrays: Arrays
) -> list[dict[str, Any]]:
    """Return the unlabelled side: training and held-out normals, and anomalies made of them."""

    def score(images: np.ndarray) -> np.ndarray:
        x = model_input(images[:, None].astype(np.float32), experiment)
        return np.stack([view.read(x)[0] for view in views])

    held, train = in_unit(arrays, "validation"), in_unit(arrays, "train")
    names = [f"{view.capacity:g} {view.reading}" for view in views]
    found = gather_evidence(score, candidates=names, validation=held)
    training_errors, groups = score(train).mean(axis=1), held_groups(arrays).tolist()
    rows = [
        head(experiment, view)
        | {
            "validation_scores": found.validation_scores[i].astype(np.float32).tolist(),
            "synthetic": {
                f: s[i].astype(np.float32).tolist() for f, s in found.synthetic_scores.items()
            },
            "groups": groups,
            "validation_error": float(found.validation_scores[i].mean()),
            "training_error": float(training_errors[i]),
            "rate_validation": rate_of(view, model_input(arrays.of("validation"), experiment)),
            "rate_training": rate_of(view, model_input(arrays.of("train"), experiment)),
            "intrinsic_dimension": None,  # of a rate, neither it nor the prior says anything
            "lesion_prior": None,
        }
        for i, view in enumerate(views)
    ]
    if experiment.method in ("ae", "nested-ae"):
        add_geometry(rows, _Held(arrays, experiment.train_data, experiment.training.standardize))
    return rows


def add_geometry(rows: Sequence[dict[str, Any]], held: "_Held") -> None:
    """Add what normal images alone say of latent dimensions."""
    geometry = _geometry(held)
    sizes = lesion_prior(
        geometry["normal"],
        geometry["normal_energies"],
        geometry["normal_outside"],
        latent_dims=[row["capacity"] for row in rows],
    )
    for i, row in enumerate(rows):
        row["intrinsic_dimension"] = geometry["intrinsic_dimension"]
        row["lesion_prior"] = {name: float(value[i]) for name, value in sizes.items()}


class _Held:
    """Arrays with a name, so that their geometry is computed once."""

    def __init__(self, arrays: Arrays, name: str, standardize: bool) -> None:
        self.arrays, self.name = arrays, (name, standardize)

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.name == other.name


@lru_cache(maxsize=2)
def _geometry(held: _Held) -> dict[str, Any]:
    train, rest = (
        in_unit(held.arrays, split, standardize=held.name[1]) for split in ("train", "validation")
    )
    return normal_geometry(train.astype(np.float64), rest)


def in_unit(arrays: Arrays, split: str, *, standardize: bool = False) -> np.ndarray:
    """Return (N, S, S) images in [0, 1]; standardised ones are centred on 0.5 and not clipped."""
    x = to_model_input(torch.from_numpy(arrays.of(split)), standardize=standardize)
    images = ((x + 1) / 2)[:, 0].numpy()
    return images if standardize else images.clip(0, 1)


def held_groups(arrays: Arrays) -> np.ndarray:
    patients = arrays.patient_id[arrays.split == "validation"]
    if (patients == "").any():
        pixels = arrays.of("validation")
        return likeness_groups(pixels, duplicate_groups(pixels))
    return np.unique(patients, return_inverse=True)[1]


def read(folder: Path) -> list[dict[str, Any]]:
    """Read what `gather` kept of one side, and what was packed of it."""
    rows = [
        row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    packed = folder.with_suffix(".parquet")
    if packed.exists():
        rows += [_nested(row) for row in pq.read_table(packed).to_pylist()]
    return rows


def pack(evidence: Path, out: Path) -> None:
    """Write each side into one compact file; scores keep `BITS` bits of their fraction."""
    for side in SIDES:
        rows = [_flat(row) for row in read(evidence / side)]
        floats = {k for row in rows for k, v in row.items() if k in LISTS or k.startswith("synth")}
        for row in rows:
            row.update({k: rounded(row[k], BITS) for k in floats if row.get(k) is not None})
        write_table(out / f"{side}.parquet", rows, floats=sorted(floats))


#: Bits that the fraction of a packed score keeps: a relative error of at most 1e-4.
BITS = 12
LISTS = ("validation_scores", "scores")
_NESTED = ("synthetic", "lesion_prior")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in row.items() if k not in _NESTED}
    for name in _NESTED:
        flat |= {f"{name}.{k}": v for k, v in (row.get(name) or {}).items()}
    return flat


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    nested = {k: v for k, v in row.items() if k.partition(".")[0] not in _NESTED}
    for name in _NESTED:
        inside = {k: v for k, v in row.items() if k.startswith(f"{name}.") and v is not None}
        if inside:
            nested[name] = {k.partition(".")[2]: v for k, v in inside.items()}
    return nested
