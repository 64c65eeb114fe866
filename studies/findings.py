"""What remains of the brain tumour tables once leaks are out.

Rewrites the tables of docs/explanation/findings.md.

    python studies/findings.py DATA_FOLDER/brain_tumor

Reads the experiment records in results/records and, to find the test's own repetitions, the images
(`normalis.audit`). Trains nothing. Two ways to leave the leak out are compared:

* **of the test**: models trained on all 1000 normals; test images with a training twin left out;
* **of training**: training images with a test twin left out, everything trained anew, and the test
  freed of its own repetitions.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from normalis.audit import audit
from normalis.datasets import open_dataset
from normalis.metrics import auroc, average_precision, bootstrap
from normalis.research.paired import row_of
from normalis.research.records import Records
from pages import fill

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "explanation" / "findings.md"


def scored(record: dict) -> dict:
    """Return the test part of a record as arrays."""
    test = np.array(record["split"]) == "test"
    return {
        "name": np.array([Path(p).name for p in record["path"]])[test],
        "anomalous": np.array(record["is_anomalous"])[test],
        "score": np.array(record["anomaly_score"], float)[test],
        "ncc": np.array(record["nearest_ncc"], float)[test],
    }


def cell(part: dict, keep: np.ndarray) -> str:
    """Return AUROC with its interval and AP of some test images, in percent."""
    score, labels = part["score"][keep], part["anomalous"][keep]
    one = bootstrap(auroc, score, labels)
    ap = average_precision(score, labels)
    value, low, high = (100 * v for v in (one.value, one.low, one.high))
    return f"{value:.1f} ({low:.1f} to {high:.1f}), {100 * ap:.1f}"


def title(record: dict) -> str:
    everything = settings_of(record) | {"subset": {}}  # the table says which images took part
    return f"{row_of({**record, 'settings': everything})}, seed {record['seed']}"


def settings_of(record: dict) -> dict:
    settings = record["settings"]
    return settings if isinstance(settings, dict) else json.loads(settings)


def order(record: dict) -> tuple:
    return record["method"], record["latent_dim"] or 0, title(record)


def tables(records: list[dict], repeated: set[str]) -> str:
    """Return both tables as Markdown."""
    official, retrained = [], []
    for record in sorted(records, key=order):
        settings = settings_of(record)
        if settings["subset"]["validation_share"]:  # trained on fewer, for a study of its own
            continue
        part = scored(record)
        everything = np.ones(len(part["score"]), bool)
        if settings["subset"]["drop_train_twins"] is None:
            cells = [cell(part, part["ncc"] < t) for t in (np.inf, 0.999, 0.95)]
            official.append(f"| {title(record)} | {' | '.join(cells)} |")
        elif settings["subset"]["drop_train_twins"] == 0.95:
            distinct = np.array([name not in repeated for name in part["name"]])
            cells = [cell(part, everything), cell(part, distinct)]
            retrained.append(f"| {title(record)} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "**Trained on all 1000 normals**; AUROC (95 % interval), AP, in percent",
            "",
            "| method | official test | without twins above 0.999 | without twins above 0.95 |",
            "| --- | ---: | ---: | ---: |",
            *official,
            "",
            "**Trained on the 278 normals without a test twin**",
            "",
            "| method | official test | test without its own repetitions |",
            "| --- | ---: | ---: |",
            *retrained,
        ]
    )


def main() -> None:
    """Print the tables and write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the brain tumour set")
    arguments = parser.parse_args()
    found = audit(open_dataset(arguments.data))
    repeated = {Path(key).name for key in found.repeated()}
    records = [r for r in Records(REPOSITORY / "results").all() if r["dataset"] == "brain_tumor"]
    text = tables(records, repeated)
    fill(PAGE, {"brain_tumor": text}, longest=12)


if __name__ == "__main__":
    main()
