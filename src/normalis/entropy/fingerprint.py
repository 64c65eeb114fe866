"""Everything that normal images say about themselves, with error bars and without any label.

What it cannot say is the best capacity: that depends on the lesion as well. `lesion_ranks` shows
how, by the closed form of `water_filling`, for a range of lesion sizes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalis.entropy.intrinsic_dimension import (
    distinct_images,
    levina_bickel,
    near_copies,
    two_nn,
)
from normalis.entropy.rate_distortion import rate_distortion_curve
from normalis.entropy.resampling import Estimate, half_sampling
from normalis.entropy.spectrum import (
    Spectrum,
    components_for_share,
    effective_rank,
    heldout_spectrum,
    participation_ratio,
    radial_power,
    spectrum,
)
from normalis.entropy.validity import ValidityWarning
from normalis.entropy.water_filling import blob_spectrum, predicted_auroc_from
from normalis.errors import DataError

__all__ = ["Fingerprint", "fingerprint", "split_half"]

# Errors (root mean square) from 4 to 48 of 256 grey levels: below is noise, above all is lost.
_LEVELS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0, 40.0, 48.0)
_SCALES_PX = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_MAX_COMPONENTS = 256
# A lower threshold drops true neighbours, which are what an intrinsic dimension is read from.
_COPY = 0.999


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a set of normal images holds. All entropies in nats per image.

    Attributes:
        images: number of images.
        groups: number of patients or duplicate groups, equal to ``images`` where none were given.
        distinct: images left when those resembling an earlier one (correlation 0.999) are dropped.
        near_copies: share with a nearest neighbour ten times nearer than the second.
        pixels: pixels (times channels) per image.
        variance: mean variance per pixel, in squared intensity; images are in [0, 1].
        eigenvalues: the leading ones, at most 256.
        effective_rank: exponential of the spectrum's entropy.
        participation_ratio: (Σ λ)² / Σ λ².
        components: directions holding 50, 80, 90, 95 and 99 % of the variance.
        distortions: D of the curve, mean squared error per pixel.
        rate: Gaussian upper bound of R(D), from the images' own spectrum.
        rate_heldout: the same bound measured on one half with the directions of the other.
        effective_dimension: -2 dR/d log D at each D.
        two_nn: intrinsic dimension of the distinct images.
        levina_bickel: the same by maximum likelihood.
        two_nn_with_copies: TwoNN as the images lie, near copies included.
        power_slope: exponent of power against spatial frequency; NaN if the images are not square.
        lesion_ranks: closed form: for blobs of each size, the number of leading directions whose
            removal detects them best, of about 24 numbers up to the most tried (256 at most).
        notes: what was outside the limits of an estimator, in sentences.
    """

    images: int
    groups: int
    distinct: int
    near_copies: float
    pixels: int
    variance: Estimate
    eigenvalues: tuple[float, ...]
    effective_rank: Estimate
    participation_ratio: Estimate
    components: dict[str, int]
    distortions: tuple[float, ...]
    rate: tuple[Estimate, ...]
    rate_heldout: tuple[float, ...]
    effective_dimension: tuple[Estimate, ...]
    two_nn: Estimate
    levina_bickel: Estimate
    two_nn_with_copies: float
    power_slope: float
    lesion_ranks: tuple[dict[str, float], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers for JSON, with None for NaN (JSON has no NaN)."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def fingerprint(
    x: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    lesion_contrast: float = 0.2,
    repeats: int = 20,
    seed: int = 0,
) -> Fingerprint:
    """Describe a set of normal images; seconds for a thousand of 64 x 64.

    Args:
        x: (N, ...) normal images, N >= 20; ``uint8`` counts as [0, 255] and becomes [0, 1].
        groups: (N,) patient of each image; error bars then say how other patients would differ.
        lesion_contrast: height of the blobs of ``lesion_ranks``, as a share of the full range; 0.2
            is a plain lesion to the eye. The ranks change slowly with it.
        repeats: half samples for the error bars.
        seed: of the half samples.

    Raises:
        DataError: if there are fewer than 20 images.
    """
    raw = np.asarray(x)
    if len(raw) < 20:
        raise DataError(f"a fingerprint needs at least 20 images, got {len(raw)}")
    shape = raw.shape[1:]
    flat = raw.reshape(len(raw), -1).astype(np.float64) / (255.0 if raw.dtype == np.uint8 else 1.0)
    labels = np.arange(len(raw)) if groups is None else np.asarray(groups)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ValidityWarning)
        result = _measure(flat, labels, shape, lesion_contrast, repeats, seed)
    notes = dict.fromkeys(str(w.message) for w in caught if w.category is ValidityWarning)
    return Fingerprint(**result, notes=tuple(notes))


def split_half(
    x: NDArray[np.float64], groups: NDArray[Any], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split samples into two halves that share no group."""
    names = np.unique(groups)
    chosen = np.isin(groups, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
    return x[~chosen], x[chosen]


def _measure(
    flat: NDArray[np.float64],
    groups: NDArray[Any],
    shape: tuple[int, ...],
    contrast: float,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    whole = spectrum(flat)
    distortions = (np.array(_LEVELS) / 255.0) ** 2
    kept = distinct_images(flat, similarity=_COPY)
    # N points span N - 1 directions at most: in these coordinates every distance and every
    # eigenvalue is the same, and half samples cost little
    reduced = (flat - whole.mean) @ whole.directions.T
    pixels = flat.shape[1]

    def spectral(part: NDArray[np.float64]) -> NDArray[np.float64]:
        return _spectral_numbers(part, distortions, pixels)

    def local(part: NDArray[np.float64]) -> tuple[float, float]:
        return two_nn(part), levina_bickel(part)

    drawn: dict[str, Any] = {"repeats": repeats, "seed": seed, "least": 0.0}
    bars = half_sampling(spectral, reduced, groups=groups, **drawn)
    near = half_sampling(local, reduced[kept], groups=groups[kept], **drawn)
    m = len(distortions)
    # the limit on n is asked of all images: halves only lend their spread
    curve = rate_distortion_curve(whole.eigenvalues, distortions, pixels=pixels, samples=len(flat))
    known = [not math.isnan(p.rate) for p in curve]
    return {
        "images": len(flat),
        "groups": len(np.unique(groups)),
        "distinct": len(kept),
        "near_copies": near_copies(reduced),
        "pixels": pixels,
        "variance": bars[0],
        "eigenvalues": tuple(float(v) for v in whole.eigenvalues[:_MAX_COMPONENTS]),
        "effective_rank": bars[1],
        "participation_ratio": bars[2],
        "components": {
            f"{p}%": components_for_share(whole.eigenvalues, p / 100) for p in (50, 80, 90, 95, 99)
        },
        "distortions": tuple(float(d) for d in distortions),
        "rate": _where(known, bars[3 : 3 + m]),
        "rate_heldout": _heldout_rates(flat, groups, distortions, seed),
        "effective_dimension": _where(known, bars[3 + m :]),
        "two_nn": near[0],
        "levina_bickel": near[1],
        "two_nn_with_copies": two_nn(reduced, allow_copies=True),
        "power_slope": _power_slope(flat, shape),
        "lesion_ranks": _lesion_ranks(flat, groups, shape, contrast, seed),
    }


def _where(known: list[bool], bars: list[Estimate]) -> tuple[Estimate, ...]:
    nothing = Estimate(math.nan, math.nan, math.nan)
    return tuple(e if ok else nothing for ok, e in zip(known, bars, strict=True))


def _spectral_numbers(
    part: NDArray[np.float64], distortions: NDArray[np.float64], pixels: int
) -> NDArray[np.float64]:
    centred = part - part.mean(axis=0)
    product = centred.T @ centred if len(part) > part.shape[1] else centred @ centred.T
    values = np.linalg.eigvalsh(product)[::-1].clip(min=0) / (len(part) - 1)
    curve = rate_distortion_curve(values, distortions, pixels=pixels)
    head = [values.sum() / pixels, effective_rank(values), participation_ratio(values)]
    return np.array(head + [p.rate for p in curve] + [p.effective_dimension for p in curve])


def _heldout_rates(
    flat: NDArray[np.float64], groups: NDArray[Any], distortions: NDArray[np.float64], seed: int
) -> tuple[float, ...]:
    one, other = split_half(flat, groups, seed)
    if min(len(one), len(other)) < 2:
        return tuple(math.nan for _ in distortions)
    seen = heldout_spectrum(spectrum(one), other)
    curve = rate_distortion_curve(
        seen.eigenvalues, distortions, pixels=flat.shape[1], remainder=seen.remainder
    )
    return tuple(p.rate for p in curve)


def _power_slope(flat: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    size = _side(shape)
    if size is None or size < 8:
        return math.nan
    frequency, power = radial_power(flat.reshape(len(flat), size, size))
    return float(np.polyfit(np.log(frequency), np.log(power.clip(min=1e-30)), 1)[0])


def _lesion_ranks(
    flat: NDArray[np.float64],
    groups: NDArray[Any],
    shape: tuple[int, ...],
    contrast: float,
    seed: int,
) -> tuple[dict[str, float], ...]:
    """Apply the closed form: directions of one half, variances of the other."""
    size = _side(shape)
    one, other = split_half(flat, groups, seed)
    if size is None or min(len(one), len(other)) < 10:
        return ()
    fitted = spectrum(one)
    count = min(_MAX_COMPONENTS, len(fitted.eigenvalues))
    seen = heldout_spectrum(_truncated(fitted, count), other)
    centred = other - seen.mean
    energies = (centred @ seen.directions.T) ** 2
    outside = ((centred**2).sum(axis=1) - energies.sum(axis=1)).clip(min=0)
    ranks = np.unique(np.rint(np.geomspace(1, count, 24)).astype(int))
    ranks = np.concatenate([[0], ranks])
    body = (flat.mean(axis=0) > 0.1 * flat.mean(axis=0).max()).reshape(size, size)
    rows = []
    for scale in (s for s in _SCALES_PX if s <= size):
        lesion = blob_spectrum(seen, scale_px=scale, contrast=contrast, positions=body)
        auroc = predicted_auroc_from(
            energies, lesion, outside=outside, pixels=flat.shape[1], ranks=ranks
        )
        rows.append(
            {
                "scale_px": scale,
                "best_rank": int(ranks[np.argmax(auroc)]),
                "most_tried": count,
                "predicted_auroc": float(auroc.max()),
            }
        )
    return tuple(rows)


def _truncated(fitted: Spectrum, count: int) -> Spectrum:
    return Spectrum(
        eigenvalues=fitted.eigenvalues[:count],
        directions=fitted.directions[:count],
        mean=fitted.mean,
        remainder=float(fitted.eigenvalues[count:].sum()),
        samples=fitted.samples,
    )


def _side(shape: tuple[int, ...]) -> int | None:
    plane = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return plane[0] if len(plane) == 2 and plane[0] == plane[1] else None


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
