"""Methods: one file each, listed in `MODELS` by name and imported on use.

Add one of your own with one line here, or from another package with an entry point in the group
``normalis.models``, or by passing the class itself wherever a method's name is expected.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from normalis.errors import SettingsError

if TYPE_CHECKING:
    from normalis.models.base import AnomalyModel

__all__ = ["MODELS", "build", "method_name", "model_class", "model_names"]

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
    "ganomaly": "normalis.models.ganomaly:GANomaly",
    "mean-image": "normalis.models.mean_image:MeanImage",
    "intensity": "normalis.models.intensity:Intensity",
    "pca": "normalis.models.pca:PCA",
    "knn": "normalis.models.knn:KNN",
}


@cache
def _plugins() -> dict[str, str]:
    return {e.name: e.value for e in entry_points(group="normalis.models")}


def model_names() -> list[str]:
    """Return the names of all methods, those of other packages last."""
    return [*MODELS, *(name for name in _plugins() if name not in MODELS)]


def model_class(method: str | type[AnomalyModel]) -> type[AnomalyModel]:
    """Return the class of a method.

    Args:
        method: a name of `model_names`, ``"module:Class"``, or the class itself.

    Raises:
        SettingsError: if there is no such method; names the nearest one.
    """
    if not isinstance(method, str):
        return method
    target = MODELS.get(method) or _plugins().get(method) or method
    module, _, name = target.partition(":")
    if not name:
        near = difflib.get_close_matches(method, model_names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingsError(
            f"method must be one of {', '.join(model_names())}, got {method!r}{hint}"
        )
    try:
        found: type[AnomalyModel] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"method {method!r} cannot be imported: {error}") from error
    return found


def method_name(method: str | type[AnomalyModel]) -> str:
    """Return the name under which a method is stored, so that `model_class` finds it again."""
    if isinstance(method, str):
        return method
    listed = f"{method.__module__}:{method.__qualname__}"
    return next((name for name, target in MODELS.items() if target == listed), listed)


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
