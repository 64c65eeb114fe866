"""Methods: one file each, listed in `MODELS` by name and imported on use.

Add one of your own with one line here, or from another package with an entry point in the group
``normalis.models``, or by passing the class itself wherever a method's name is expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normalis.errors import SettingsError
from normalis.errors.arguments import shown
from normalis.shelf import Shelf

if TYPE_CHECKING:
    from normalis.models.base import AnomalyModel

__all__ = ["METHODS", "MODELS", "build", "check_size", "method_name", "model_class", "model_names"]

#: method -> "module:Class"
MODELS = Shelf(
    "method",
    {
        "ae": "normalis.models.ae:AE",
        "ae-spatial": "normalis.models.ae_spatial:SpatialAE",
        "ae-baur": "normalis.models.ae_baur:BaurAE",
        "ae-perceptual": "normalis.models.ae_perceptual:PerceptualAE",
        "vae": "normalis.models.vae:VAE",
        "cevae": "normalis.models.cevae:CeVAE",
        "gmvae": "normalis.models.gmvae:GMVAE",
        "memae": "normalis.models.memae:MemAE",
        "ceae": "normalis.models.ceae:CeAE",
        "constrained-ae": "normalis.models.constrained_ae:ConstrainedAE",
        "constrained-aae": "normalis.models.constrained_aae:ConstrainedAAE",
        "rate-ae": "normalis.models.rate_ae:RateAE",
        "nested-ae": "normalis.models.nested_ae:NestedAE",
        "ae-u": "normalis.models.ae_u:AEU",
        "ddad": "normalis.models.ddad:DDAD",
        "dae": "normalis.models.dae:DAE",
        "restore": "normalis.models.restore:Restore",
        "ganomaly": "normalis.models.ganomaly:GANomaly",
        "morphaeus": "normalis.models.morphaeus:MorphAEus",
        "anogan": "normalis.models.anogan:AnoGAN",
        "f-anogan": "normalis.models.f_anogan:FAnoGAN",
        "anovaegan": "normalis.models.anovaegan:AnoVAEGAN",
        "vq-transformer": "normalis.models.vq_transformer:VQTransformer",
        "mean-image": "normalis.models.mean_image:MeanImage",
        "intensity": "normalis.models.intensity:Intensity",
        "feature-knn": "normalis.models.feature_knn:FeatureKNN",
        "spade": "normalis.models.spade:SPADE",
        "padim": "normalis.models.padim:PaDiM",
        "feature-ae": "normalis.models.feature_ae:FeatureAE",
        "uniad": "normalis.models.uniad:UniAD",
        "hvq-trans": "normalis.models.hvq_trans:HVQTrans",
        "feature-gaussian": "normalis.models.feature_gaussian:FeatureGaussian",
        "pca": "normalis.models.pca:PCA",
        "knn": "normalis.models.knn:KNN",
    },
)

#: What may be chosen: the panel, which joins several methods, ours, and those of other packages.
METHODS = Shelf("method", {"panel": "normalis.panel:Panel", **MODELS}, group="normalis.models")


def model_names() -> list[str]:
    """Return the names of all methods, the panel first, those of other packages last."""
    return METHODS.names()


def model_class(method: str | type[AnomalyModel]) -> type[AnomalyModel]:
    """Return the class of a method.

    Args:
        method: a name of `model_names`, ``"module:Class"``, or the class itself.

    Raises:
        SettingsError: if there is no such method; names the nearest one.
        UntrustedError: if a file that is being loaded names a class which no package offers.
    """
    if isinstance(method, type) and hasattr(method, "anomaly_map"):
        return method
    if not isinstance(method, str):
        raise SettingsError(
            f"method must be the name of one or a class of your own, got {shown(method)}"
        )
    found: type[AnomalyModel] = METHODS.load(method)
    return found


def method_name(method: str | type[AnomalyModel]) -> str:
    """Return the name under which a method is stored, so that `model_class` finds it again."""
    if isinstance(method, str):
        return method
    listed = f"{method.__module__}:{method.__qualname__}"
    return next((name for name, target in METHODS.items() if target == listed), listed)


def build(method: str | type[AnomalyModel], *, seed: int = 0, **options: Any) -> AnomalyModel:
    """Return a new model of a method; its weights follow from the seed alone.

    Args:
        method: as in `model_class`.
        seed: seed of the initial weights. The global random state is left as it was.
        **options: fields of the method's ``Settings``.
    """
    import torch

    cls = model_class(method)
    settings = cls.Settings.from_mapping(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(settings)  # type: ignore[call-arg]


#: Values that a network may have beyond twice those that its file holds: a part that is fixed may
#: lie elsewhere.
_UNSAVED = 100_000_000


def check_size(method: str | type[AnomalyModel], stored: int, **options: Any) -> None:
    """Refuse settings that describe a network far larger than the file that holds its weights.

    Args:
        method: as in `model_class`.
        stored: number of values in the file.
        **options: fields of the method's ``Settings``.

    Raises:
        SettingsError: before any memory is taken.
    """
    import torch
    from torch import nn

    cls = model_class(method)
    if not issubclass(cls, nn.Module):
        return
    settings = cls.Settings.from_mapping(options)
    try:
        with torch.device("meta"):
            described = sum(v.numel() for v in cls(settings).state_dict().values())
    except (NotImplementedError, RuntimeError):  # one that computes while it is built
        return
    if described > 2 * stored + _UNSAVED:
        raise SettingsError(
            f"settings describe a network of {described:,} values, the file holds {stored:,}"
        )
