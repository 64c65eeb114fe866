"""The contract of a scorer: how a fitted model is read.

A scorer turns a fitted model and a batch of images into anomaly maps (B, H, W) and one score per
image (B,), higher = more anomalous. The score is the map reduced to one number::

    mean            the paper's
    max             the worst pixel
    top:0.01        mean of the highest 1 % of the pixels
    quantile:0.95   the pixel that 95 % of the pixels do not exceed

The score of an image never depends on the images beside it: models are read in evaluation mode,
and what a scorer takes from normal images, it takes in `Scorer.fit`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from normalis.errors import NotFittedError, SettingsError, did_you_mean
from normalis.models.base import AnomalyModel

__all__ = [
    "Scorer",
    "ScorerSettings",
    "by_batch",
    "evaluating",
    "reconstruction",
    "reduce_map",
    "why_no_elbo",
    "why_no_reconstruction",
]

_BATCH = 128  # images per pass of `fit`: bounds memory, changes no result


def _parse_reduction(reduction: str) -> tuple[str, float]:
    """Split ``"top:0.01"`` into its name and its share, with the reason if it is neither."""
    name, colon, share = reduction.partition(":")
    if name in ("mean", "max") and not colon:
        return name, 1.0
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if name in ("top", "quantile") and 0 < value < 1:
        return name, value
    raise SettingsError(
        "reduction must be mean, max, top:SHARE or quantile:SHARE with SHARE in (0, 1), "
        f"got {reduction!r}"
    )


def reduce_map(anomaly_map: Tensor, reduction: str = "mean") -> Tensor:
    """Reduce anomaly maps to one number each: (B, H, W) -> (B,).

    Args:
        anomaly_map: (B, H, W).
        reduction: ``mean``, ``max``, ``top:SHARE`` or ``quantile:SHARE``.
    """
    name, share = _parse_reduction(reduction)
    flat = anomaly_map.flatten(1)
    pixels = flat.shape[1]
    if name == "mean":
        return flat.mean(1)
    if name == "max":
        return flat.amax(1)
    if name == "top":
        return flat.topk(max(1, round(share * pixels)), dim=1).values.mean(1)
    return flat.kthvalue(max(1, math.ceil(share * pixels)), dim=1).values


@contextmanager
def evaluating(model: AnomalyModel) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and back as it was."""
    was_training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(model, nn.Module):
            model.train(was_training)


def why_no_reconstruction(model: AnomalyModel) -> str | None:
    """Return why a model has no reconstruction to compare with, None if it has one."""
    if type(model).reconstruct is AnomalyModel.reconstruct:
        return f"it needs a method that reconstructs images, got {type(model).__name__}"
    return None


def why_no_elbo(model: AnomalyModel) -> str | None:
    """Return why a model has no bound of its likelihood, None if it has one."""
    if callable(getattr(model, "negative_elbo", None)):
        return None
    return f"it needs a method with a likelihood (vae, ae-u), got {type(model).__name__}"


def reconstruction(model: AnomalyModel, x: Tensor) -> Tensor:
    """Return what the model thinks x should look like, (B, C, H, W) float32.

    Raises:
        SettingsError: if the model does not reconstruct.
    """
    with evaluating(model):
        x_hat = model.reconstruct(x)
    if x_hat is None:
        raise SettingsError(f"{type(model).__name__} does not reconstruct images")
    return x_hat.float()


def by_batch(function: Callable[[Tensor], Tensor], model: AnomalyModel, x: Tensor) -> Iterator[Any]:
    """Yield a function's results over batches of x, each moved to where the model is."""
    held = model.parameters() if isinstance(model, nn.Module) else model.state().values()
    device = next(iter(held), x).device
    for part in x.split(_BATCH):
        yield function(part.to(device))


@dataclass(frozen=True, kw_only=True)
class ScorerSettings:
    """What every scorer has; a scorer adds fields of its own in a subclass.

    Args:
        reduction: how a map becomes one number; see the module. The paper's is the mean.
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        _parse_reduction(self.reduction)

    @classmethod
    def from_mapping(cls, options: dict[str, Any]) -> Self:
        """Build the settings, naming the nearest known key for an unknown one."""
        known = [f.name for f in fields(cls)]
        for key in options:
            if key not in known:
                hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
                raise SettingsError(f"unknown setting {key!r} of this scorer{hint}")
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)


class Scorer(ABC):
    """One way to read a fitted model.

    What `fit` learns is kept in ``arrays``, which is all that `state` needs.
    """

    Settings: ClassVar[type[ScorerSettings]] = ScorerSettings
    #: Whether `fit` must see normal images (held out from training) before the first score.
    needs_fit: bool = False
    #: Whether reading takes gradients of the model, which no other engine computes.
    needs_gradients: bool = False
    #: Whether slices of one volume are read together, by `read_volumes`, where they are known.
    joins_slices: bool = False

    def __init__(self, settings: ScorerSettings | None = None) -> None:
        self.settings: Any = settings or self.Settings()
        self.arrays: dict[str, Tensor] = {}

    def supports(self, model: AnomalyModel) -> str | None:
        """Return why this scorer cannot read a model, None if it can."""
        return None

    def fit(self, model: AnomalyModel, x: Tensor) -> Self:
        """Learn what the model's failure on normal images looks like; many scorers need nothing.

        Args:
            model: fitted.
            x: (N, C, H, W) normal images in the model's range, best held out from its training.
        """
        return self

    @abstractmethod
    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return where x differs from normal: (B, C, H, W) -> (B, H, W), higher is worse."""

    def anomaly_score(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return how much x differs from normal: (B,), the reduced map."""
        return reduce_map(self.anomaly_map(model, x), self.settings.reduction)

    def reduces(self, model: AnomalyModel) -> bool:
        """Return whether the score is the reduced map, so that one pass gives both."""
        return type(self).anomaly_score is Scorer.anomaly_score

    def read(
        self, model: AnomalyModel, x: Tensor, *, maps: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return scores (B,) and, if asked for, maps (B, H, W), in as few passes as it takes."""
        if not maps:
            return self.anomaly_score(model, x), None
        anomaly_map = self.anomaly_map(model, x)
        if self.reduces(model):
            return reduce_map(anomaly_map, self.settings.reduction), anomaly_map
        return self.anomaly_score(model, x), anomaly_map

    def reference(self, model: AnomalyModel, x: Tensor) -> Tensor | None:
        """Return what images are compared with (B, C, H, W), None if there is no such image."""
        with evaluating(model):
            return model.reconstruct(x)

    def read_volumes(
        self, model: AnomalyModel, x: Tensor, volumes: Sequence[int], *, maps: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `read` does, where ``joins_slices`` of volumes whose slices are together.

        Args:
            model: fitted.
            x: (B, C, H, W).
            volumes: how many images in a row are of one volume; 1 stands for an image.
            maps: whether maps are asked for.
        """
        return self.read(model, x, maps=maps)

    def state(self) -> dict[str, Tensor]:
        """Return the fitted arrays by name."""
        return self.arrays

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over the arrays of `state`."""
        self.arrays = dict(state)

    def check_supports(self, model: AnomalyModel) -> None:
        """Raise if this scorer cannot read a model.

        Raises:
            SettingsError: with the reason of `supports`.
        """
        reason = self.supports(model)
        if reason:
            raise SettingsError(f"scorer {type(self).__name__}: {reason}")

    def check(self, model: AnomalyModel) -> None:
        """Raise if this scorer cannot read a model, or has not been fitted.

        Raises:
            SettingsError: with the reason of `supports`.
            NotFittedError: if `fit` must come first.
        """
        self.check_supports(model)
        if self.needs_fit and not self.state():
            raise NotFittedError(
                f"scorer {type(self).__name__} needs normal images before the first score: "
                "call fit(model, x), best with images held out from training"
            )
