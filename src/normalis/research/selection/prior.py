"""The lesion-scale prior: what a linear model of each rank would make of blobs of stated sizes.

AUROC(s, d) by the closed form (3) of `normalis.entropy.water_filling`, for Gaussian blobs of 1/16,
1/8, 1/4 and 1/2 of the image's side, all of one energy, and rank = latent dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from normalis.research.selection.evidence import CONTRAST

if TYPE_CHECKING:
    from normalis.entropy.spectrum import Spectrum

__all__ = ["lesion_prior"]

_PRIOR_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # lesion sizes of the prior, of the image's side


def lesion_prior(
    normal: Spectrum,
    energies: NDArray[np.float64],
    outside: NDArray[np.float64],
    *,
    latent_dims: Sequence[float] | NDArray[np.floating],
) -> dict[str, NDArray[np.float64]]:
    """Compute the AUROC that the closed form expects for each lesion size and latent dimension.

    Args:
        normal: spectrum of (N, S, S) normal images, variances held out.
        energies: (N, K) squared projections of held-out normals on its directions.
        outside: (N,) their energy outside the K directions.
        latent_dims: (C,) ranks; those above K count as K.

    Returns:
        "lesion of n px" -> (C,) AUROC.
    """
    from normalis.entropy.water_filling import blob_spectrum, predicted_auroc_from

    size, known = round(len(normal.mean) ** 0.5), len(normal.directions)
    ranks = np.minimum(np.rint(latent_dims).astype(int), known)
    found = {}
    for share in _PRIOR_SHARES:
        unit = blob_spectrum(normal, scale_px=share * size, contrast=1.0)
        lesion = unit.scaled(CONTRAST * (normal.total / unit.total) ** 0.5)
        found[f"lesion of {share * size:.0f} px"] = predicted_auroc_from(
            energies, lesion, outside=outside, pixels=len(normal.mean), ranks=ranks
        )
    return found
