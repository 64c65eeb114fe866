"""The latent dimension of ``auto``: what hedged best in the study, and what it stakes on lesions.

    d = 16,    at stake for lesions of size s: max_d' AUROC(s, d') - AUROC(s, 16)

No rule that looks at normal images alone chose better than a constant in the study
(`docs/selection.md`), and none can: normal images do not say what a lesion looks like
(`docs/theory.md`). So the choice is the constant, and the normal images are asked for something
that they *can* say, by the closed form of `normalis.research.selection.closed_form`: how much 16
would lose
on them if lesions were blobs of this size or that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError
from normalis.research.selection.closed_form import ASSUMPTION, choose_latent_dim
from normalis.research.selection.outcome import Selection

__all__ = ["USUAL_LATENT_DIM", "usual_latent_dim"]

#: The paper's default, and what lost least over the study's data sets read by ``median``.
USUAL_LATENT_DIM = 16

_WHY = (
    "16 is what hedged best, not what these images asked for: in a study of three data sets and "
    "twelve rules that look at normal images alone, none chose better beyond its interval. Read by "
    "median, as fit does unless told, 16 lost nothing to the best latent dimension in hindsight; "
    "read by their own error, autoencoders lost 1 AUROC point with it on average and 7 at worst, "
    "and 1 and 2 with 8 (docs/selection.md)"
)
_CHANGE = (
    "what would change it: knowing the lesions. The table says what the closed form expects each "
    "latent dimension to lose on these images by the lesion's size; where yours are of one size, "
    "take the column of least loss in its row, or closed-form for the least worst row. Networks "
    "follow the formula, which is of linear encoders, in direction only: beyond d = 64 they gain "
    "nothing (docs/theory.md)"
)


def usual_latent_dim(train: NDArray[np.floating], held: NDArray[np.floating]) -> Selection:
    """Choose 16, and say what that stakes on the size of lesions.

    Args:
        train: (N, S, S) normal images.
        held: (M, S, S) others, of other patients.

    Returns:
        A `Selection` of rule ``always-16``; its table is empty where the images are too few.
    """
    name = str(USUAL_LATENT_DIM)
    try:
        formula = choose_latent_dim(train, held)
    except DataError:
        formula = None
    if formula is None or name not in formula.candidates:
        few = "too few normal images for a table of what is at stake by the lesion's size"
        return Selection(
            rule=f"always-{name}",
            candidates=(name,),
            choice=name,
            latent_dim=float(USUAL_LATENT_DIM),
            reasons=(_WHY, few),
        )
    return replace(
        formula,
        rule=f"always-{name}",
        choice=name,
        latent_dim=float(USUAL_LATENT_DIM),
        reasons=(_WHY, _CHANGE, f"the table {ASSUMPTION}"),
    )
