"""What a rule may see: scores and errors of normal images and of synthetic anomalies, no label."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normalis.errors import DataError, SettingsError

if TYPE_CHECKING:
    from normalis.entropy.spectrum import Spectrum

__all__ = ["CONTRAST", "Evidence", "family_auroc", "gather_evidence", "normal_geometry"]

CONTRAST = 0.2  # the default of `synthetic.synthesise`, where its reason is
_MAX_DIRECTIONS = 512  # of the closed form; more than any latent dimension that is asked about


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """What a rule may see, C candidates and N held-out normal images.

    Attributes:
        candidates: C names, in order of rising capacity where there is one.
        latent_dims: (C,) capacity of each; None where candidates are not capacities.
        validation_scores: (C, N) anomaly scores of held-out normal images.
        synthetic_scores: family -> (C, N) scores of the same images with an anomaly added.
        validation_errors: (C,) mean squared reconstruction error on held-out normals.
        training_errors: (C,) the same on training normals.
        normal: spectrum of normal images, directions from training, variances held out.
        normal_energies: (N, K) squared projections of held-out normals on those directions.
        normal_outside: (N,) their energy outside the K directions.
        lesion_prior: lesion size -> (C,) AUROC of the closed form, from `lesion_prior`, where it
            is kept instead of the three above.
        intrinsic_dimension: of the distinct training normals.
        groups: (N,) patient or duplicate group of each held-out image, for the stability.
    """

    candidates: tuple[str, ...]
    latent_dims: tuple[float, ...] | None = None
    validation_scores: NDArray[np.float64] | None = None
    synthetic_scores: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    validation_errors: NDArray[np.float64] | None = None
    training_errors: NDArray[np.float64] | None = None
    normal: Spectrum | None = None
    normal_energies: NDArray[np.float64] | None = None
    normal_outside: NDArray[np.float64] | None = None
    lesion_prior: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    intrinsic_dimension: float | None = None
    groups: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Check shapes once, so that no rule has to."""
        count = len(self.candidates)
        if not count or len(set(self.candidates)) < count:
            raise DataError(f"candidates must be distinct names, got {self.candidates}")
        for name in ("latent_dims", "validation_errors", "training_errors"):
            value = getattr(self, name)
            if value is not None and np.shape(value) != (count,):
                raise DataError(f"{name} must be ({count},), got {np.shape(value)}")
        for name, row in self.lesion_prior.items():
            if np.shape(row) != (count,):
                raise DataError(f"lesion_prior of {name} must be ({count},), got {np.shape(row)}")
        shapes = {f: np.shape(s) for f, s in self.synthetic_scores.items()}
        if self.validation_scores is not None:
            shapes["validation"] = np.shape(self.validation_scores)
        if len({*shapes.values()}) > 1 or any(
            s[0] != count or len(s) != 2 for s in shapes.values()
        ):
            raise DataError(f"all scores must be ({count}, N) with the same N, got {shapes}")
        arrays = [*self.synthetic_scores.values(), self.validation_scores, self.validation_errors]
        if not all(np.isfinite(a).all() for a in arrays if a is not None):
            raise DataError("scores and errors must be finite; leave out candidates that diverged")

    def images(self, rows: NDArray[np.intp]) -> Evidence:
        """Return the evidence that some of the held-out images give (with repetition)."""
        scores = None if self.validation_scores is None else self.validation_scores[:, rows]
        synthetic = {f: s[:, rows] for f, s in self.synthetic_scores.items()}
        groups = None if self.groups is None else np.asarray(self.groups)[rows]
        return replace(self, validation_scores=scores, synthetic_scores=synthetic, groups=groups)

    def only(self, names: Sequence[str]) -> Evidence:
        """Return the evidence on some of the candidates, for instance on another grid.

        Raises:
            DataError: if one of them is no candidate.
        """
        if unknown := sorted(set(names) - set(self.candidates)):
            raise DataError(f"{', '.join(unknown)}: not among {', '.join(self.candidates)}")
        at = [self.candidates.index(name) for name in names]

        def rows(value: Any) -> Any:
            return None if value is None else np.asarray(value)[at]

        return replace(
            self,
            candidates=tuple(names),
            latent_dims=None if self.latent_dims is None else tuple(rows(self.latent_dims)),
            validation_scores=rows(self.validation_scores),
            synthetic_scores={f: rows(s) for f, s in self.synthetic_scores.items()},
            validation_errors=rows(self.validation_errors),
            training_errors=rows(self.training_errors),
            lesion_prior={s: rows(a) for s, a in self.lesion_prior.items()},
        )


def gather_evidence(
    score: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    *,
    candidates: Sequence[str],
    validation: NDArray[np.floating],
    train: NDArray[np.floating] | None = None,
    latent_dims: Sequence[float] | None = None,
    groups: NDArray[Any] | None = None,
    validation_errors: NDArray[np.floating] | None = None,
    training_errors: NDArray[np.floating] | None = None,
    families: Sequence[str] | None = None,
    seed: int = 0,
) -> Evidence:
    """Score held-out normal images, plain and with every synthetic anomaly, by all candidates.

    Args:
        score: (N, S, S) images in [0, 1] -> (C, N) anomaly scores.
        candidates: C names.
        validation: (N, S, S) held-out normal images in [0, 1].
        train: (M, S, S) training normals, for the rules that look at spectra and dimensions.
        latent_dims: (C,) capacities.
        groups: (N,) patients of the held-out images.
        validation_errors: (C,) reconstruction errors, where the score is not one.
        training_errors: (C,).
        families: names of `normalis.research.synthetic`; None takes all.
        seed: of the synthetic anomalies.
    """
    from normalis.research.synthetic import SYNTHETIC, synthesise

    held = np.asarray(validation, dtype=np.float32)
    names = list(SYNTHETIC) if families is None else list(families)
    synthetic = {
        name: np.asarray(
            score(synthesise(name, held, contrast=CONTRAST, seed=seed + i)[0]),
            dtype=np.float64,
        )
        for i, name in enumerate(names)
    }
    plain = np.asarray(score(held), dtype=np.float64)
    return Evidence(
        candidates=tuple(candidates),
        latent_dims=None if latent_dims is None else tuple(float(d) for d in latent_dims),
        validation_scores=plain,
        synthetic_scores=synthetic,
        validation_errors=_vector(validation_errors),
        training_errors=_vector(training_errors),
        groups=None if groups is None else np.asarray(groups),
        **({} if train is None else normal_geometry(np.asarray(train, np.float64), held)),
    )


def family_auroc(evidence: Evidence) -> NDArray[np.float64]:
    """Compute (K, C) AUROC of each family and candidate against held-out normals.

    Raises:
        SettingsError: if there are no synthetic scores.
    """
    from scipy.stats import rankdata

    if evidence.validation_scores is None or not evidence.synthetic_scores:
        raise SettingsError("this rule needs validation_scores and synthetic_scores; see Evidence")
    n = evidence.validation_scores.shape[1]
    rows = []
    for scores in evidence.synthetic_scores.values():
        ranks = rankdata(np.hstack([evidence.validation_scores, scores]), axis=1)
        rows.append((ranks[:, n:].sum(axis=1) - n * (n + 1) / 2) / n**2)
    return np.array(rows)


def normal_geometry(train: NDArray[np.float64], held: NDArray[np.float32]) -> dict[str, Any]:
    """Return the fields of `Evidence` that (N, S, S) images give without any model.

    Args:
        train: for the principal directions and the intrinsic dimension.
        held: for the variances and energies along those directions.
    """
    from normalis.entropy.intrinsic_dimension import distinct_images, two_nn
    from normalis.entropy.spectrum import heldout_spectrum, spectrum
    from normalis.entropy.validity import ValidityWarning

    flat, other = train.reshape(len(train), -1), held.reshape(len(held), -1).astype(np.float64)
    fitted = spectrum(flat)
    leading = replace(fitted, directions=fitted.directions[:_MAX_DIRECTIONS])
    seen = heldout_spectrum(leading, other)
    centred = other - seen.mean
    energies = (centred @ seen.directions.T) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ValidityWarning)
        dimension = two_nn(flat[distinct_images(flat, similarity=0.999)])
    return {
        "normal": seen,
        "normal_energies": energies,
        "normal_outside": ((centred**2).sum(axis=1) - energies.sum(axis=1)).clip(min=0),
        "intrinsic_dimension": dimension,
    }


def _vector(values: NDArray[np.floating] | None) -> NDArray[np.float64] | None:
    return None if values is None else np.asarray(values, dtype=np.float64)
