"""Scores, labels and what the audit knows -> the evaluation.

Beside each figure stand the number of images and of independent units (patients, duplicate groups),
an interval that draws whole units, the same figure without leaked images, and what baseline scores
reach on the same images. Three kinds of figures are kept apart:

* ``ranking``: needs no threshold (AUROC, AP, and both of pixels);
* ``deployable``: at a threshold fixed beforehand on normal images (sensitivity, realised
  false-positive rate, lesions found);
* ``oracle``: something was chosen with the very labels it is scored on (best Dice, sensitivity at
  the test's own false-positive rate). Never to be quoted beside the others.

Pure functions of arrays: nothing here reads an image or fits a model.
"""

from __future__ import annotations

from normalis.evaluation.result import Baseline, Evaluation, Subset, TableRow
from normalis.evaluation.run import baseline_scores, evaluate
from normalis.evaluation.units import compare, independent_units

__all__ = [
    "Baseline",
    "Evaluation",
    "Subset",
    "TableRow",
    "baseline_scores",
    "compare",
    "evaluate",
    "independent_units",
]
