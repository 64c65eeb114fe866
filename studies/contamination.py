"""What undetected anomalies among the training normals do to what `fit` does by default.

    python studies/contamination.py DATA_FOLDER [--seeds 0 1]

0, 1, 5 and 10 % of the images that `fit` takes for normal are anomalous ones of patients who are
left out of the test. Each fit writes one file into ``results/contamination``, and is not repeated
if it is there; the table is made from the files.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normalis import AnomalyDetector
from normalis.metrics import auroc, average_precision
from normalis.storage import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results" / "contamination"
SHARES = (0.0, 0.01, 0.05, 0.1)
SETS = ("kermany_cxr", "lgg_flair")


@dataclass(frozen=True)
class Split:
    """Images as ``fit`` gets them, and a test whose patients it has not seen."""

    train: Any
    patients: Any
    test: Any
    is_anomalous: Any


def contaminate(file: Path, share: float, seed: int) -> Split:
    """Mix anomalies of reserved patients into the normals; the test is the same for all shares."""
    with np.load(file) as z:
        train, test, label = z["train"], z["test"], z["test_label"].astype(bool)
        known, member = z["train_patient"], z["test_patient"]
    rng = np.random.default_rng(seed)
    wanted = round(max(SHARES) / (1 - max(SHARES)) * len(train))
    order = rng.permutation(np.unique(member[label]))
    each = np.array([(label & (member == p)).sum() for p in order])
    reserved = np.isin(member, order[: 1 + np.searchsorted(np.cumsum(each), wanted)])
    mixed = rng.permutation(np.flatnonzero(reserved & label))
    mixed = mixed[: round(share / (1 - share) * len(train))]
    return Split(
        np.append(train, test[mixed], axis=0), np.append(known, member[mixed]),
        test[~reserved], label[~reserved],
    )  # fmt: skip


def run(file: Path, share: float, seed: int) -> dict[str, Any]:
    """Fit with the default calibration and return what comes of it on the test."""
    name = file.parent.name
    data = contaminate(file, share, seed)
    detector = AnomalyDetector(method="ae-u", random_state=seed, device="cpu")
    detector.fit(data.train, patient_ids=[str(p) for p in data.patients])
    scores, flagged = detector.anomaly_score(data.test), detector.predict(data.test) == 1
    return {
        "dataset": name,
        "share": share,
        "seed": seed,
        "params": {k: detector.get_params()[k] for k in ("method", "latent_dim", "epochs")},
        "train_images": detector.info_["data"]["train_images"],
        "calibration_images": detector.info_["data"]["calibration_images"],
        "test_normal": int((~data.is_anomalous).sum()),
        "test_anomalous": int(data.is_anomalous.sum()),
        "auroc": auroc(scores, data.is_anomalous),
        "average_precision": average_precision(scores, data.is_anomalous),
        "false_positive_rate": float(flagged[~data.is_anomalous].mean()),
        "sensitivity": float(flagged[data.is_anomalous].mean()),
        "fit_s": detector.info_["fit_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of kermany_cxr and lgg_flair")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    for name in args.sets:
        for seed in args.seeds:
            for share in SHARES:
                out = RESULTS / f"{name}-{share:g}-{seed}.json"
                if not out.exists():
                    write_json(out, run(args.data / name / "arrays_64.npz", share, seed))
                print(out.name, flush=True)
    report()


def report() -> None:
    """Print the table of all files, means over seeds."""
    files = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]
    print("| set | anomalies | fits | AUROC | false-positive rate | sensitivity |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, share in sorted({(f["dataset"], f["share"]) for f in files}):
        rows = [f for f in files if (f["dataset"], f["share"]) == (name, share)]
        cells = [
            f"{100 * np.mean([row[key] for row in rows]):.1f}"
            for key in ("auroc", "false_positive_rate", "sensitivity")
        ]
        print(
            f"| {name} | {100 * share:g} % | {len(rows)} | {cells[0]} "
            f"| {cells[1]} % | {cells[2]} % |"
        )


if __name__ == "__main__":
    main()
