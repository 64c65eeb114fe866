"""Methods: one file each, listed in `MODELS` by name and imported on use.

Add one of your own with one line here, or from another package with an entry point in the group
``normalis.models``, or by passing the class itself wherever a method's name is expected.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import Distribution, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalis.errors import SettingsError
from normalis.trust import import_named

if TYPE_CHECKING:
    from normalis.models.base import AnomalyModel

__all__ = ["MODELS", "PANELS", "build", "check_size", "method_name", "model_class", "model_names"]

#: method -> "module:Class"
MODELS: dict[str, str] = {
    "ae": "normalis.models.ae:AE",
    "ae-spatial": "normalis.models.ae_spatial:SpatialAE",
    "ae-perceptual": "normalis.models.ae_perceptual:PerceptualAE",
    "vae": "normalis.models.vae:VAE",
    "memae": "normalis.models.memae:MemAE",
    "ceae": "normalis.models.ceae:CeAE",
    "constrained-ae": "normalis.models.constrained_ae:ConstrainedAE",
    "rate-ae": "normalis.models.rate_ae:RateAE",
    "nested-ae": "normalis.models.nested_ae:NestedAE",
    "ae-u": "normalis.models.ae_u:AEU",
    "dae": "normalis.models.dae:DAE",
    "restore": "normalis.models.restore:Restore",
    "ganomaly": "normalis.models.ganomaly:GANomaly",
    "mean-image": "normalis.models.mean_image:MeanImage",
    "intensity": "normalis.models.intensity:Intensity",
    "feature-knn": "normalis.models.feature_knn:FeatureKNN",
    "spade": "normalis.models.spade:SPADE",
    "padim": "normalis.models.padim:PaDiM",
    "feature-ae": "normalis.models.feature_ae:FeatureAE",
    "feature-gaussian": "normalis.models.feature_gaussian:FeatureGaussian",
    "pca": "normalis.models.pca:PCA",
    "knn": "normalis.models.knn:KNN",
}

#: What joins several methods; chosen by name as they are.
PANELS: dict[str, str] = {"panel": "normalis.panel:Panel"}


@cache
def _plugins() -> dict[str, str]:
    return {e.name: e.value for e in entry_points(group="normalis.models")}


def _is_known(target: str) -> bool:
    """Return whether a class is of this package or offered by an installed one.

    What lies in the working folder came with the files there: it is not installed.
    """
    if target in MODELS.values() or target in PANELS.values():
        return True
    offered = [e for e in entry_points(group="normalis.models") if e.value == target]
    return any(e.dist is not None and not _lies_here(e.dist) for e in offered)


def _lies_here(package: Distribution) -> bool:
    return Path(str(package.locate_file(""))).resolve() == Path.cwd()


def model_names() -> list[str]:
    """Return the names of all methods, the panel first, those of other packages last."""
    return [*PANELS, *MODELS, *(name for name in _plugins() if name not in MODELS)]


def model_class(method: str | type[AnomalyModel]) -> type[AnomalyModel]:
    """Return the class of a method.

    Args:
        method: a name of `model_names`, ``"module:Class"``, or the class itself.

    Raises:
        SettingsError: if there is no such method; names the nearest one.
        UntrustedError: if a file that is being loaded names a class which no package offers.
    """
    if not isinstance(method, str):
        return method
    listed = PANELS.get(method) or MODELS.get(method) or _plugins().get(method)
    target = listed or method
    if not target.partition(":")[2]:
        near = difflib.get_close_matches(method, model_names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingsError(
            f"method must be one of {', '.join(model_names())}, got {method!r}{hint}"
        )
    found: type[AnomalyModel] = import_named(target, what="method", known=_is_known(target))
    return found


def method_name(method: str | type[AnomalyModel]) -> str:
    """Return the name under which a method is stored, so that `model_class` finds it again."""
    if isinstance(method, str):
        return method
    listed = f"{method.__module__}:{method.__qualname__}"
    known = {**PANELS, **MODELS}
    return next((name for name, target in known.items() if target == listed), listed)


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
