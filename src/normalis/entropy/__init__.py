"""Entropy, mutual information, intrinsic dimension and rate-distortion: pure functions, in nats.

============================  =====================================================================
`gaussian`                    ½ log det 2πeΣ, unbiased; an upper bound for every density
`knn`                         Kozachenko-Leonenko entropy and KSG mutual information
`coding_rate`                 ½ log det(I + Cov z): what a latent says through unit noise; a loss
`decoder_referred`            entropy of a latent in the decoder's own scale
`quantised`                   entropy of a latent in steps that the decoder can tell apart
`rate_distortion`             R(D) of normal images: reverse water-filling, slope, lower bound
`spectrum`                    principal spectra, effective rank, power against frequency
`intrinsic_dimension`         TwoNN, Levina-Bickel, PCA, and the near copies that wreck them
`water_filling`               which directions to encode, given what a lesion is
`pass_through`                the share of a lesion that a reconstruction contains
`resampling`                  error bars over images or patients, safe for nearest neighbours
`fingerprint`                 all of it for one set of normal images
============================  =====================================================================

Every estimator states the limits inside which it means something. Outside it returns NaN and warns
with `ValidityWarning`.

Example:
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4000, 2))
    >>> bool(abs(kozachenko_leonenko(x) - gaussian_entropy(x)) < 0.05)
    True
"""

from normalis.entropy.coding_rate import (
    coding_rate,
    coding_rate_bias,
    coding_rate_from_covariance,
    coding_rate_of_groups,
)
from normalis.entropy.decoder_referred import (
    DecoderGeometry,
    decoder_coding_rate,
    decoder_geometry,
    decoder_referred_rate,
)
from normalis.entropy.fingerprint import Fingerprint, fingerprint
from normalis.entropy.gaussian import (
    gaussian_entropy,
    gaussian_entropy_of,
    gaussian_entropy_standard_error,
    gaussian_mutual_information,
)
from normalis.entropy.intrinsic_dimension import (
    distinct_images,
    levina_bickel,
    near_copies,
    pca_dimension,
    two_nn,
)
from normalis.entropy.knn import kozachenko_leonenko, ksg_mutual_information, neighbours_suffice
from normalis.entropy.pass_through import PassThrough, pass_through
from normalis.entropy.quantised import decoder_steps, heldout_code_length, quantised_entropy
from normalis.entropy.rate_distortion import (
    RateDistortion,
    gaussian_rate_distortion,
    rate_distortion_curve,
    shannon_lower_bound,
)
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
from normalis.entropy.water_filling import (
    Allocation,
    LesionSpectrum,
    blob,
    blob_spectrum,
    encode_components,
    predicted_auroc,
    predicted_auroc_from,
)

__all__ = [
    "Allocation",
    "DecoderGeometry",
    "Estimate",
    "Fingerprint",
    "LesionSpectrum",
    "PassThrough",
    "RateDistortion",
    "Spectrum",
    "ValidityWarning",
    "blob",
    "blob_spectrum",
    "coding_rate",
    "coding_rate_bias",
    "coding_rate_from_covariance",
    "coding_rate_of_groups",
    "components_for_share",
    "decoder_coding_rate",
    "decoder_geometry",
    "decoder_referred_rate",
    "decoder_steps",
    "distinct_images",
    "effective_rank",
    "encode_components",
    "fingerprint",
    "gaussian_entropy",
    "gaussian_entropy_of",
    "gaussian_entropy_standard_error",
    "gaussian_mutual_information",
    "gaussian_rate_distortion",
    "half_sampling",
    "heldout_code_length",
    "heldout_spectrum",
    "kozachenko_leonenko",
    "ksg_mutual_information",
    "levina_bickel",
    "near_copies",
    "neighbours_suffice",
    "participation_ratio",
    "pass_through",
    "pca_dimension",
    "predicted_auroc",
    "predicted_auroc_from",
    "quantised_entropy",
    "radial_power",
    "rate_distortion_curve",
    "shannon_lower_bound",
    "spectrum",
    "two_nn",
]
