"""How models are trained: numbers alone, without PyTorch, so that records are read without it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any, Literal

from normalis.errors import SettingsError

__all__ = [
    "PRECISION_VARIABLE",
    "RECIPES",
    "KeepEpoch",
    "Precision",
    "Recipe",
    "TrainingSettings",
    "settings_for",
]

Precision = Literal["auto", "float32", "bfloat16"]
#: Environment variable that says what the precision ``auto`` means, whatever the processor.
PRECISION_VARIABLE = "NORMALIS_PRECISION"
Recipe = Literal["paper", "fast"]
KeepEpoch = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How models are trained; the defaults are the paper's (supplement B).

    Args:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: of Adam; the peak of the schedule for the ``fast`` recipe.
        precision: ``bfloat16`` runs matrix products and convolutions in bfloat16 (weights, losses
            and optimiser stay float32); ``auto`` takes it where the processor has it.
        recipe: ``paper`` keeps the learning rate constant; ``fast`` warms it up and lets it fall
            along a cosine, for fewer epochs at a higher rate; `settings_for` knows how many.
        standardize: whether each image's own mean and contrast are removed first.
        keep_epoch: ``best`` keeps the model of the epoch that tells held-out normal images best
            from the same with a change (`normalis.training.keeping`).
    """

    epochs: int = 250
    batch_size: int = 64
    learning_rate: float = 1e-3
    precision: Precision = "auto"
    recipe: Recipe = "paper"
    standardize: bool = False
    keep_epoch: KeepEpoch = "last"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2)):
            value = getattr(self, name)
            if not isinstance(value, Integral):
                raise SettingsError(f"{name} must be a whole number, got {value!r}")
            if value < least:
                raise SettingsError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.learning_rate < 1:
            raise SettingsError(f"learning_rate must be in (0, 1), got {self.learning_rate}")
        for name, known in (
            ("precision", ("auto", "float32", "bfloat16")),
            ("recipe", ("paper", "fast")),
            ("keep_epoch", ("last", "best")),
        ):
            if getattr(self, name) not in known:
                raise SettingsError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )

    @property
    def looks(self) -> bool:
        """Whether training looks at normal images that it does not learn from."""
        return self.keep_epoch != "last"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)


#: recipe -> (epochs, learning rate). The paper's are of its supplement B; a third of its epochs at
#: four times its rate as a peak reach its error on held-out normals
#: (docs/reference/performance.md).
RECIPES: dict[str, tuple[int, float]] = {"paper": (250, 1e-3), "fast": (83, 4e-3)}
_LEAST_STEPS = 1000  # of ``fast``: fewer images take more epochs, never more than the paper's


def settings_for(
    recipe: Recipe,
    *,
    n_images: int,
    epochs: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = 64,
    **others: Any,
) -> TrainingSettings:
    """Return the settings of a recipe for a number of images; what is given overrides it.

    Args:
        recipe: a key of `RECIPES`.
        n_images: to be trained on.
        epochs: None for the recipe's own; ``fast`` takes at least a thousand steps with them,
            within the paper's epochs.
        learning_rate: None for the recipe's own.
        batch_size: images per step.
        others: further fields of `TrainingSettings`.
    """
    rest = {"recipe": recipe, "batch_size": batch_size, **others}
    usual, rate = RECIPES.get(recipe, RECIPES["paper"])
    settings = TrainingSettings(
        epochs=usual if epochs is None else epochs,
        learning_rate=rate if learning_rate is None else learning_rate,
        **rest,
    )
    if recipe != "fast" or epochs is not None:
        return settings
    needed = math.ceil(_LEAST_STEPS / math.ceil(max(n_images, 1) / batch_size))
    return replace(settings, epochs=min(max(usual, needed), RECIPES["paper"][0]))
