"""How many coordinates a set of images has near each of them: TwoNN, Levina-Bickel, PCA.

    TwoNN          d = slope of -log(1 - F(μ)) on log μ, μ = r_2 / r_1     (Facco et al. 2017)
    Levina-Bickel  1/d = mean_i (1/(k-1)) Σ_{j<k} log(r_ik / r_ij)         (Levina & Bickel 2004,
                                                       averaged as MacKay & Ghahramani 2005 do)
    PCA            directions that hold 95 % of the variance: linear, so an upper bound in the large

The first two read the smallest distances, which is where images have noise and copies, not anatomy.
They answer different questions and on medical images they disagree: report them side by side.

Limits: copies and near copies make r_1 tiny and the dimension meaninglessly small. With dimension
d, P(μ > 10) = 10^-d, at most a tenth for any d >= 1; more than that by three standard errors means
near copies, and TwoNN and Levina-Bickel answer NaN with a warning unless ``allow_copies``. Equal
rows are left out, with a warning. For a thousand samples on cubes and curved surfaces the estimates
are low by up to 20 % at d = 10 and 40 % at d = 20, so a large value is a lower bound.
**Noise cannot be told from structure**: where the nearest neighbours differ by sensor noise alone,
its dimension is what is read (TwoNN 220 for phantoms of one factor with 2 % noise), unannounced.

References: Facco et al., Sci. Rep. 7, 2017; Levina & Bickel, NeurIPS 17, 2004.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from normalis.entropy.spectrum import components_for_share, spectrum
from normalis.entropy.validity import ValidityWarning, as_matrix, undefined
from normalis.errors import SettingsError

__all__ = ["distinct_images", "levina_bickel", "near_copies", "pca_dimension", "two_nn"]

_RATIO, _MAX_SHARE = 10.0, 0.1
_MIN_SAMPLES = 50


def two_nn(x: ArrayLike, *, discard: float = 0.1, allow_copies: bool = False) -> float:
    """Estimate the intrinsic dimension from the two nearest neighbours of each sample.

    Args:
        x: (N, P) samples, N >= 50.
        discard: share of the largest ratios left out of the fit, as in the paper.
        allow_copies: answer although near copies spoil the answer; to show by how much.

    Returns:
        The dimension; NaN with a warning outside the limits of this module.
    """
    samples, problem = _checked(x, allow_copies)
    if problem:
        return undefined(problem)
    ratio = np.sort(_neighbours(samples, 2) @ np.array([[-1.0], [1.0]]), axis=0)[:, 0]
    keep = int(len(ratio) * (1 - discard))
    level = -np.log1p(-np.arange(1, keep + 1) / len(ratio))
    return float((ratio[:keep] @ level) / (ratio[:keep] @ ratio[:keep]))


def levina_bickel(x: ArrayLike, *, k: int = 10, allow_copies: bool = False) -> float:
    """Estimate the intrinsic dimension by maximum likelihood over k neighbours.

    Args:
        x: (N, P) samples, N >= 50.
        k: neighbours, at least 3; more smooth and look further.
        allow_copies: answer although near copies spoil the answer.

    Returns:
        The dimension; NaN with a warning outside the limits of this module.

    Raises:
        SettingsError: if k is below 3 or not below N.
    """
    samples, problem = _checked(x, allow_copies)
    if not 3 <= k < len(samples):
        raise SettingsError(f"k must be in 3..{len(samples) - 1}, got {k}")
    if problem:
        return undefined(problem)
    log_radius = _neighbours(samples, k)
    inverse = (log_radius[:, -1:] - log_radius[:, :-1]).sum(axis=1) / (k - 1)
    return float(1.0 / inverse.mean())


def pca_dimension(x: ArrayLike, *, share: float = 0.95) -> int:
    """Count the principal directions that hold a share of the variance."""
    return components_for_share(spectrum(x).eigenvalues, share)


def near_copies(x: ArrayLike) -> float:
    """Compute the share of samples whose nearest neighbour is ten times nearer than the second.

    At most a tenth on any manifold of dimension 1 or more; 0 for distinct medical images.
    """
    return _copy_share(np.unique(as_matrix(x), axis=0))


def distinct_images(x: ArrayLike, *, similarity: float = 0.95) -> NDArray[np.intp]:
    """Choose, in order, the samples that resemble none chosen before.

    Args:
        x: (N, P) samples.
        similarity: normalised cross-correlation from which two are the same image.

    Returns:
        Indices of the samples kept, rising. Constant samples count as equal to one another.
    """
    samples = as_matrix(x)
    centred = samples - samples.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    alike = unit @ unit.T >= similarity
    flat = norm[:, 0] == 0
    alike |= flat[:, None] & flat[None, :]
    kept: list[int] = []
    for i in range(len(samples)):
        if not alike[i, kept].any():
            kept.append(i)
    return np.array(kept, dtype=np.intp)


def _checked(x: ArrayLike, allow_copies: bool) -> tuple[NDArray[np.float64], str]:
    samples = as_matrix(x)
    unique = np.unique(samples, axis=0)
    if len(unique) < len(samples):
        reason = f"{len(samples) - len(unique)} of {len(samples)} samples equal another; left out"
        warnings.warn(reason, ValidityWarning, stacklevel=3)
    if len(unique) < _MIN_SAMPLES:
        return unique, f"an intrinsic dimension needs {_MIN_SAMPLES} samples, got {len(unique)}"
    share = _copy_share(unique)
    most = _MAX_SHARE + 3 * (_MAX_SHARE * (1 - _MAX_SHARE) / len(unique)) ** 0.5
    if share > most and not allow_copies:
        return unique, (
            f"near copies spoil the intrinsic dimension: {share:.0%} of the samples have a nearest "
            "neighbour ten times nearer than the second; keep distinct_images() only"
        )
    return unique, ""


def _copy_share(unique: NDArray[np.float64]) -> float:
    log_radius = _neighbours(unique, 2)
    return float((log_radius[:, 1] - log_radius[:, 0] > np.log(_RATIO)).mean())


def _neighbours(samples: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return (N, k) logarithms of the distances to the k nearest neighbours.

    A tree in P dimensions looks at every point: distances of images are computed by products.
    """
    if samples.shape[1] <= 20:
        found: NDArray[np.float64] = np.log(cKDTree(samples).query(samples, k + 1)[0][:, 1:])
        return found
    centred = samples - samples.mean(axis=0)
    energy = (centred**2).sum(axis=1)
    squared = energy[:, None] + energy[None, :] - 2 * centred @ centred.T
    np.maximum(squared, np.finfo(np.float64).eps * energy.max(), out=squared)  # cancellation
    np.fill_diagonal(squared, np.inf)
    found = 0.5 * np.log(np.sort(np.partition(squared, k - 1, axis=1)[:, :k], axis=1))
    return found
