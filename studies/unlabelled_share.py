"""What DDAD gains from unlabelled images, by the share of anomalies among them.

    python studies/unlabelled_share.py DATA_FOLDER [--seeds 0 1] [--csv FILE]

DATA_FOLDER holds ``kermany_cxr/arrays_64.npz``. The patients of its test are divided into halves:
one gives the unlabelled images, the other is the test, the same for all shares. Normal images for
the unlabelled ones come from a quarter of the training patients as well, whom no fit sees as
normal. The unlabelled images are as many for each share: 0, 10, 30 and 60 % of them are anomalous;
the first row is the method without any. Beside what the tool reads by default stand the means of
the maps: ``rec``, ``intra``, ``inter`` and the refined ``asr``, the authors' reading.

Each fit writes one file into ``results/unlabelled_share`` and is not repeated if it is there; one
that was killed goes on. With --csv the table is written too (docs/data/unlabelled_share.csv).
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalis import AnomalyDetector
from normalis.files import write_csv
from normalis.metrics import auroc
from normalis.models.ddad import DDAD
from normalis.models.inputs import to_model_input
from normalis.storage import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results" / "unlabelled_share"
SHARES = (None, 0.0, 0.1, 0.3, 0.6)
READINGS = ("rec", "intra", "inter", "asr")
COLUMNS = ("share", "fits", "auroc", *READINGS, "false_positive_rate", "sensitivity", "fit_s")


@dataclass(frozen=True)
class Split:
    """Images by what they are for; no patient is in two of them."""

    normal: NDArray[Any]
    patients: NDArray[Any]
    unlabelled: NDArray[Any] | None
    test: NDArray[Any]
    is_anomalous: NDArray[np.bool_]


def _name(share: float | None) -> str:
    return "none" if share is None else f"{share:g}"


def halves(patients: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which images (N,) are of a random share of the patients."""
    names = np.unique(patients)
    return np.isin(patients, rng.permutation(names)[: round(share * len(names))])


def divide(file: Path, share: float | None, count: int, seed: int) -> Split:
    """Divide the images of a set; ``share`` of ``count`` unlabelled ones are anomalous."""
    with np.load(file) as z:
        train, test, label = z["train"], z["test"], z["test_label"].astype(bool)
        known, member = z["train_patient"], z["test_patient"]
    rng = np.random.default_rng(seed)
    spare, pool = halves(known, 0.25, rng), halves(member, 0.5, rng)
    well = rng.permutation(np.concatenate([train[spare], test[pool & ~label]]))
    sick = rng.permutation(test[pool & label])
    unlabelled = None
    if share is not None:
        anomalous = round(share * count)
        if anomalous > len(sick) or count - anomalous > len(well):
            raise SystemExit(f"--count {count} is too many: {len(well)} normal, {len(sick)} not")
        unlabelled = np.concatenate([sick[:anomalous], well[: count - anomalous]])
    return Split(train[~spare], known[~spare], unlabelled, test[~pool], label[~pool])


def run(args: argparse.Namespace, share: float | None, seed: int, out: Path) -> dict[str, Any]:
    """Fit once and read the test in every way."""
    data = divide(args.data / "kermany_cxr" / "arrays_64.npz", share, args.count, seed)
    detector = AnomalyDetector(
        method="ddad", recipe="fast", epochs=args.epochs, random_state=seed, device="cpu",
        method_options={"members": args.members, "network": args.network},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few held-out images
        detector.fit(
            data.normal, patient_ids=[str(p) for p in data.patients], unlabelled=data.unlabelled,
            run=out.with_suffix(""),
        )  # fmt: skip
    scores, flagged = detector.anomaly_score(data.test), detector.predict(data.test) == 1
    sick = data.is_anomalous
    return {
        "share": share,
        "seed": seed,
        "params": {k: getattr(args, k) for k in ("network", "members", "epochs", "count")},
        "normal": len(data.normal),
        "test_normal": int((~sick).sum()),
        "test_anomalous": int(sick.sum()),
        "auroc": auroc(scores, sick),
        **{name: auroc(value, sick) for name, value in means(detector, data.test).items()},
        "false_positive_rate": float(flagged[~sick].mean()),
        "sensitivity": float(flagged[sick].mean()),
        "fit_s": detector.info_["fit_s"],
    }


def means(detector: AnomalyDetector, pixels: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return the mean of each map of the test images."""
    model, found = detector.model_, {name: [] for name in READINGS}
    assert isinstance(model, DDAD)
    with torch.no_grad():
        for part in torch.from_numpy(pixels)[:, None].split(64):
            x = to_model_input(part)
            for name, maps in {**model.discrepancies(x), "asr": model.anomaly_map(x)}.items():
                found[name].append(maps.mean((1, 2)).double().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}


def report(csv: Path | None) -> None:
    """Print the table of all files, means over seeds; write it where that is asked for."""
    files = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]
    rows = []
    for share in sorted({f["share"] for f in files}, key=lambda s: -1.0 if s is None else s):
        chosen = [f for f in files if f["share"] == share]
        found = {k: np.mean([f[k] for f in chosen]) for k in COLUMNS[2:] if k in chosen[0]}
        cells = [round(float(found[k]), 4) if k in found else "" for k in COLUMNS[2:]]
        rows.append([_name(share), len(chosen), *cells])
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    if csv is not None:
        write_csv(csv, COLUMNS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of kermany_cxr")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--shares", nargs="+", default=[_name(share) for share in SHARES])
    parser.add_argument("--network", default="ae")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--count", type=int, default=320, help="unlabelled images")
    parser.add_argument("--only-report", action="store_true", help="of the fits that are there")
    parser.add_argument("--csv", type=Path, help="table to write")
    parser.add_argument("--one", action="store_true", help="stop after one fit")
    args = parser.parse_args()
    for seed in [] if args.only_report else args.seeds:
        for name in args.shares:  # in the order that was asked for
            share = None if name == "none" else float(name)
            out = RESULTS / f"{_name(share)}-{seed}.json"
            if out.exists():
                continue
            write_json(out, run(args, share, seed, out))
            print(out.name, flush=True)
            if args.one:
                return
    report(args.csv)


if __name__ == "__main__":
    main()
