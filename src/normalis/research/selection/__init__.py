"""Choose the capacity, or the method, from normal images only; no label can reach this module.

A rule reads `Evidence`: scores and errors of *normal* images and of synthetic anomalies made from
them, one row for each candidate (a latent dimension, a rate, a method). There is no parameter
through which a test image or its label could come.

Let a[k, c] be the AUROC of candidate c on synthetic family k against held-out normals. The default,
**minimax regret** (Savage 1951; selection by synthetic anomalies: Goswami et al. 2023, Fung et al.
2023), takes

    argmin_c max_k (max_c' a[k, c'] - a[k, c])

It states what it assumes (the families, `normalis.research.synthetic`) and how much it could cost
(the
largest regret). The mean over families instead is decided by whichever kind has most families.
What normal images cannot decide, and why every rule that ignores lesions has a lesion that defeats
it, is in `docs/explanation/theory.md`; how each rule fared is in `docs/explanation/selection.md`.
"""

from normalis.research.selection.capacity import select_capacity
from normalis.research.selection.closed_form import choose_latent_dim
from normalis.research.selection.evidence import Evidence, family_auroc, gather_evidence
from normalis.research.selection.outcome import Combiner, Selection
from normalis.research.selection.rules import RULES

__all__ = [
    "RULES",
    "Combiner",
    "Evidence",
    "Selection",
    "choose_latent_dim",
    "family_auroc",
    "gather_evidence",
    "select_capacity",
]
