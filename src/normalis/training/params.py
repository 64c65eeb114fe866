"""The parameters of a detector: what each must be, when given and when read from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from normalis.errors import SettingsError
from normalis.errors.arguments import check_kind, rate_of, shown
from normalis.training.settings import settings_for

__all__ = ["PARAMS", "check_params"]

#: Parameter -> kind of `normalis.errors.arguments`; of the empty ones what holds is said elsewhere.
PARAMS: dict[str, str] = {
    "method": "",
    "latent_dim": "",
    "image_size": "whole?",
    "channels": "whole",
    "epochs": "whole?",
    "batch_size": "whole",
    "learning_rate": "number?",
    "recipe": "text",
    "precision": "text",
    "standardize": "flag",
    "scorer": "text",
    "reduction": "text?",
    "calibration": "text",
    "calibration_share": "number",
    "folds": "whole",
    "fpr": "number",
    "plane": "text",
    "slice_range": "",
    "window": "",
    "percentiles": "",
    "margin": "number",
    "where": "texts",
    "random_state": "whole",
    "device": "",
    "method_options": "options?",
    "scorer_options": "options?",
    "members": "texts?",
    "keep_similar": "flag",
    "keep_epoch": "text",
}


def check_params(params: Mapping[str, Any]) -> None:
    """Refuse parameters of the wrong kind or out of their range.

    Args:
        params: those that there are; a run of an earlier version has fewer.

    Raises:
        SettingsError: naming the first that is wrong, or that no detector has.
    """
    for name, value in params.items():
        if name not in PARAMS:
            raise SettingsError(f"no detector has the parameter {shown(name)}")
        if PARAMS[name]:
            check_kind(name, value, PARAMS[name])
    latent = params.get("latent_dim", "auto")
    if isinstance(latent, bool) or not isinstance(latent, Integral | str):
        raise SettingsError(f"latent_dim must be a whole number or auto, got {shown(latent)}")
    if isinstance(latent, str) and latent != "auto":
        raise SettingsError(f"latent_dim must be a whole number or auto, got {latent!r}")
    calibration = params.get("calibration", "auto")
    if calibration not in ("auto", "split", "cv+", "none"):
        raise SettingsError(f"calibration must be auto, split, cv+ or none, got {calibration!r}")
    if not isinstance(device := params.get("device", "auto"), str):
        raise SettingsError(f"device must be auto, cpu or cuda[:N], got {shown(device)}")
    folds = params.get("folds", 2)
    if folds < 2:
        raise SettingsError(f"folds must be a whole number of at least 2, got {folds}")
    for name in ("calibration_share", "fpr"):
        if name in params:
            rate_of(name, params[name])
    seed = params.get("random_state", 0)
    if not 0 <= seed < 2**32:
        raise SettingsError(
            f"random_state must be a whole number from 0 to 4294967295, got {seed!r}"
        )
    _check_training(params)


def _check_training(params: Mapping[str, Any]) -> None:
    given = {
        name: params[name]
        for name in (
            "epochs",
            "learning_rate",
            "batch_size",
            "precision",
            "standardize",
            "keep_epoch",
        )
        if name in params
    }
    recipe = params.get("recipe", "auto")
    settings_for("paper" if recipe == "auto" else recipe, n_images=0, **given)
