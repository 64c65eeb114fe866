"""Does the epoch that tells normal images best from changed ones also find anomalies best?

    python studies/stopping_rule.py DATA/kermany_cxr memae --out stopping.csv [--epochs 83]

Trains one model with ``keep_epoch=best`` (`normalis.training.keeping`), a fifth of the normals
held out by patient, and scores the test images after every look. The test's labels are used for
this table alone: the rule sees none. Rows are added to the file: data, method, epoch, the rule's
value, the test's AUROC; the last line says what last, kept and best epoch reach.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from normalis import models
from normalis.models.inputs import as_tensor, to_model_input
from normalis.research.data import _prepared, read_arrays, select
from normalis.research.experiments import Subset
from normalis.training.loop import Progress, Training
from normalis.training.settings import settings_for

COLUMNS = ("data", "method", "epoch", "pseudo_auroc", "auroc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("method")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    arrays = select(read_arrays(_prepared(given.data, {}), {}), Subset(validation_share=0.2))
    train, held = (as_tensor(arrays.of(split)) for split in ("train", "validation"))
    test = arrays.split == "test"
    x, labels = to_model_input(as_tensor(arrays.pixels[test])), arrays.is_anomalous[test]
    settings = settings_for(
        "fast", n_images=len(train), epochs=given.epochs, learning_rate=given.learning_rate,
        keep_epoch="best",
    )  # fmt: skip
    model = models.build(given.method, seed=given.seed)
    rows = []

    def look(step: Progress) -> None:
        value = training.members[0].history[-1].get("pseudo auroc")
        if value is None:
            return
        model.eval()
        with torch.no_grad():
            scores = torch.cat([model.anomaly_score(part) for part in x.split(64)]).cpu()
        model.train()
        auroc = roc_auc_score(labels, np.nan_to_num(scores.numpy()))
        rows.append([given.data.name, given.method, step.epoch, round(value, 4), round(auroc, 4)])
        print(*rows[-1], flush=True)

    training = Training([model], train, settings=settings, seeds=[given.seed], held=held)
    training.run(look)
    is_new = not given.out.exists()
    with given.out.open("a", newline="") as opened:
        csv.writer(opened).writerows(([COLUMNS] if is_new else []) + rows)
    kept = next(row for row in rows if row[2] == training.members[0].best.epoch)
    best = max(rows, key=lambda row: row[4])
    print(f"last {rows[-1][4]} (epoch {rows[-1][2]}), kept {kept[4]} ({kept[2]}), "
          f"best in hindsight {best[4]} ({best[2]})")  # fmt: skip


if __name__ == "__main__":
    main()
