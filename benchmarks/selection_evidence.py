"""What the study of selection rules keeps of each training: scores, and never an image.

Two files for each data set, so that a rule cannot meet a label: ``normals/NAME.parquet`` holds the
scores of held-out *normal* images, plain and with each synthetic anomaly; ``outcomes/NAME.parquet``
the scores of test images with their labels. A row is an experiment; both are small and committed.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from normalis.duplicates import duplicate_groups, likeness_groups
from normalis.experiment_data import Arrays, Store
from normalis.experiments import Experiment
from normalis.jobs import fitted
from normalis.models.base import AnomalyModel
from normalis.models.inputs import to_model_input
from normalis.records import Records, RunFolder, write_atomically
from normalis.selection import gather_evidence
from normalis.selection.evidence import normal_geometry
from normalis.selection.prior import lesion_prior

METHODS = ("ae", "rate-ae")
SIDES = ("outcomes", "normals")


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
        arrays = store.get(experiment.data)
        record = Records(results).read(experiment.identity)
        model, _ = fitted(experiment, arrays, results, device="cpu")
        known["outcomes"].append(outcome(experiment, record, arrays))
        known["normals"].append(evidence_of(experiment, model, arrays))
        for side in SIDES:  # after each, so that nothing is lost to an interruption
            mine = [r for r in known[side] if r["dataset"] == experiment.dataset]
            keep(evidence / side / f"{experiment.dataset}.parquet", mine)
    return gone


def keep(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of one data set."""
    rows = sorted(rows, key=lambda r: r["identity"])
    table = pa.Table.from_pylist(rows)
    write_atomically(
        file, lambda path: pq.write_table(table, path, compression="zstd", write_statistics=False)
    )


def head(experiment: Experiment) -> dict[str, Any]:
    return {
        "identity": experiment.identity,
        "dataset": experiment.dataset,
        "method": experiment.method,
        "capacity": float(experiment.options.get("rate", 12.0))
        if experiment.method == "rate-ae"
        else float(experiment.latent_dim),
        "standardize": experiment.training.standardize,
        "seed": experiment.seed,
        "epochs": experiment.training.epochs,
        "train_data": experiment.train_data,
    }


def outcome(experiment: Experiment, record: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Return the labelled side; of test images of unknown patients one of each group of copies."""
    test = np.flatnonzero(arrays.split == "test")
    groups, rows = arrays.patient_id[test], np.arange(len(test))
    if (groups == "").any():
        groups = likeness_groups(arrays.of("test"))
        rows = np.sort(np.unique(groups, return_index=True)[1])
    place = {path: i for i, path in enumerate(record["path"])}
    at = [place[p] for p in arrays.path[test][rows]]
    return {
        **head(experiment),
        "scores": np.array(record["anomaly_score"], np.float32)[at].tolist(),
        "is_anomalous": np.array(record["is_anomalous"], bool)[at].tolist(),
        "groups": np.unique(groups[rows], return_inverse=True)[1].tolist(),
        "pixel_average_precision": record.get("pixel_average_precision"),
    }


def evidence_of(experiment: Experiment, model: AnomalyModel, arrays: Arrays) -> dict[str, Any]:
    """Return the unlabelled side: training and held-out normals, and anomalies made of them."""
    standardize = experiment.training.standardize

    @torch.no_grad()
    def score(images: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(images[:, None].astype(np.float32)).split(256)
        inputs = [to_model_input(part, standardize=standardize) for part in parts]
        return np.concatenate([model.anomaly_score(x).numpy() for x in inputs])[None]

    held, train = in_unit(arrays, "validation"), in_unit(arrays, "train")
    found = gather_evidence(score, candidates=("this",), validation=held)
    row = head(experiment) | {
        "validation_scores": found.validation_scores[0].astype(np.float32).tolist(),
        "synthetic": {
            f: s[0].astype(np.float32).tolist() for f, s in found.synthetic_scores.items()
        },
        "groups": held_groups(arrays).tolist(),
        "validation_error": float(found.validation_scores.mean()),
        "training_error": float(score(train).mean()),
        "intrinsic_dimension": None,  # of a rate, neither it nor the prior says anything
        "lesion_prior": None,
    }
    if experiment.method == "ae":
        geometry = _geometry(_Held(arrays, experiment.train_data, standardize))
        row["intrinsic_dimension"] = geometry["intrinsic_dimension"]
        sizes = lesion_prior(
            geometry["normal"],
            geometry["normal_energies"],
            geometry["normal_outside"],
            latent_dims=[experiment.latent_dim],
        )
        row["lesion_prior"] = {name: float(value[0]) for name, value in sizes.items()}
    return row


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
    """Read what `gather` kept of one side."""
    return [
        row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
