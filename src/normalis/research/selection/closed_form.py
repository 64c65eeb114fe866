"""Choose a latent dimension from normal images alone, in seconds and without a training.

    argmin_d max_s (max_d' AUROC(s, d') - AUROC(s, d))

AUROC(s, d) is the closed form of `normalis.entropy.water_filling` for a linear encoder of rank d
and a Gaussian blob of diameter s; it is the rule ``lesion-scale-prior`` of
`normalis.research.selection`.
The rule is an assumption about lesions more than a finding about images. The study found it no
better for networks and real lesions than always 16 (`docs/explanation/selection.md`), which is why
it is no default.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError
from normalis.research.selection.capacity import select_capacity
from normalis.research.selection.evidence import Evidence, normal_geometry
from normalis.research.selection.outcome import Selection

__all__ = ["ASSUMPTION", "CAVEAT", "choose_latent_dim"]

_CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)  # the grid of the paper's Table 1

ASSUMPTION = (
    "assumes lesions that are single smooth blobs, brighter as often as darker than what they "
    "cover, 1/16 to 1/2 of the image's side across, all of the same energy; smaller lesions want a "
    "larger capacity, larger ones a smaller"
)
CAVEAT = (
    "no better than 16: in a study of three data sets the best latent dimension beat this rule's "
    "choice by 4 AUROC points on average and 12 at worst for autoencoders read by their error, and "
    "beat 16 by 1 and 7; read by median, as fit does unless told, 16 lost nothing and this rule up "
    "to 6 (docs/explanation/selection.md)"
)


def choose_latent_dim(train: NDArray[np.floating], held: NDArray[np.floating]) -> Selection:
    """Choose among 1, 2, 4, ..., 128 by the closed form; of these, those below the images' number.

    Args:
        train: (N, S, S) normal images, for the principal directions.
        held: (M, S, S) others, of other patients, for the variances along them.

    Returns:
        A `Selection` whose reasons state what it assumes.

    Raises:
        DataError: if there are fewer than 10 images on either side.
    """
    if min(len(train), len(held)) < 10:
        raise DataError(
            "choosing a latent dimension needs at least 10 normal images for the directions and "
            f"10 of other patients for the variances, got {len(train)} and {len(held)}: give more "
            "images, or a number as latent_dim"
        )
    dims = tuple(d for d in _CANDIDATES if d < len(train))
    evidence = Evidence(
        candidates=tuple(map(str, dims)),
        latent_dims=dims,
        **normal_geometry(np.asarray(train, np.float64), np.asarray(held, np.float32)),
    )
    chosen = select_capacity(evidence, "lesion-scale-prior")
    return replace(chosen, reasons=(*chosen.reasons, ASSUMPTION, CAVEAT))
