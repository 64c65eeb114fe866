"""What a run folder holds of a fitted detector, and the detector that is made of it again.

Arrays lie in ``model.safetensors``, everything else in ``model.json`` (`normalis.storage`). What a
file says is compared with the rest of the run before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normalis import models, scorers
from normalis.calibration.colours import ColourScale
from normalis.calibration.conformal import Calibration
from normalis.calibration.grouped import Grouped
from normalis.calibration.maps import MapScale
from normalis.errors import RunError
from normalis.images import IntensityRule
from normalis.loading.arrays import ImageSettings
from normalis.loading.similar import SimilarImages
from normalis.models.base import AnomalyModel, Autoencoder, CompositeModel
from normalis.scorers.base import Scorer
from normalis.storage import RunFolder
from normalis.training.params import check_params

if TYPE_CHECKING:
    from normalis.fitted.detector import FittedDetector

    T = TypeVar("T", bound=FittedDetector)

__all__ = ["check_stored", "check_used", "model_arrays", "restore", "write"]

_MAP_SCALE = "map_scale."  # before the names of its arrays


def write(fitted: FittedDetector, folder: RunFolder) -> None:
    """Write into a run folder whose lock the caller holds."""
    folder.write(
        model_arrays(fitted)
        | _map_arrays(fitted)
        | (fitted.similar.state() if fitted.similar else {})
        | {"decision_scores": fitted.normal_scores, "trained_on": fitted.trained_on}
        | ({"unlabelled_on": fitted.unlabelled_on} if len(fitted.unlabelled_on) else {}),
        {
            "params": fitted.params,
            "image_settings": asdict(fitted.image_settings),
            "model_settings": fitted.models[0].settings.to_dict(),
            "rule": fitted.rule.to_dict() if fitted.rule else None,
            "colour_scale": fitted.colour_scale.to_dict(),
            "map_scale": fitted.map_scale.to_dict() if fitted.map_scale else None,
            "calibration": fitted.calibration.to_dict() if fitted.calibration else None,
            "grouped": fitted.grouped.to_dict() if fitted.grouped else None,
            "history": fitted.history,
            "info": fitted.info,
        },
        fitted.skipped,
    )


def model_arrays(fitted: FittedDetector) -> dict[str, NDArray[Any]]:
    """Return the arrays of the models and of their scorers by name."""
    found: dict[str, NDArray[Any]] = {}
    for i, (model, scorer) in enumerate(zip(fitted.models, fitted.scorers, strict=True)):
        found |= {f"{_prefix('model', i)}{k}": _to_numpy(v) for k, v in model.state().items()}
        found |= {f"{_prefix('scorer', i)}{k}": _to_numpy(v) for k, v in scorer.state().items()}
    return found


def check_used(fitted: FittedDetector, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a file that holds more than the settings use: they were cut down afterwards."""
    scores = fitted.calibration.scores if fitted.calibration else fitted.normal_scores
    if not np.array_equal(scores, fitted.normal_scores):
        raise RunError("calibration and decision_scores hold other scores")
    folds = fitted.calibration.n_models if fitted.calibration else 1
    if folds not in (1, len(fitted.models)):
        raise RunError("calibration and params disagree on the number of models")
    model = fitted.models[0]
    read_as = fitted.calibration.readings if fitted.calibration else None
    if isinstance(model, CompositeModel) and read_as not in (None, model.readings):
        raise RunError("calibration and model_settings disagree on the members of the panel")
    used = {*_map_arrays(fitted), *(fitted.similar.state() if fitted.similar else ())}
    for i, (model, scorer) in enumerate(zip(fitted.models, fitted.scorers, strict=True)):
        used |= {_prefix("model", i) + name for name in model.state()}
        used |= {_prefix("scorer", i) + name for name in scorer.state()}
    left = sorted(set(arrays) - used - {"decision_scores", "trained_on", "unlabelled_on"})
    if left:
        raise RunError(
            f"model.safetensors holds {len(left)} arrays that nothing in model.json uses, the "
            f"first is {left[0]}"
        )


def _map_arrays(fitted: FittedDetector) -> dict[str, NDArray[Any]]:
    state = fitted.map_scale.state() if fitted.map_scale else {}
    return {f"{_MAP_SCALE}{k}": value for k, value in state.items()}


def restore(
    cls: type[T],
    body: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    device: str,
    place: torch.device,
) -> T:
    """Return a detector of what a run folder held.

    Args:
        cls: its class.
        body: the settings.
        arrays: by name.
        device: that was asked for.
        place: what that is on this machine.
    """
    params = {**body["params"], "device": device}
    kept, calibration = body["image_settings"], body["calibration"]
    grouped = body.get("grouped")
    return cls(
        params=params,
        models=_models_of(body, arrays, place),
        scorers=_scorers_of(params, arrays, place),
        image_settings=ImageSettings(**{k: _tuple(v) for k, v in kept.items()}),
        device=place,
        rule=IntensityRule.from_dict(body["rule"]) if body["rule"] else None,
        calibration=Calibration.from_dict(calibration) if calibration else None,
        colour_scale=ColourScale(**body["colour_scale"]),
        map_scale=_map_scale_of(body, arrays),
        normal_scores=arrays["decision_scores"],
        history=body["history"],
        info=body["info"],
        trained_on=arrays.get("trained_on", np.empty(0, np.uint64)),
        unlabelled_on=arrays.get("unlabelled_on", np.empty(0, np.uint64)),
        grouped=Grouped.from_dict(grouped) if grouped else None,
        similar=SimilarImages.restore(arrays),
    )


def check_stored(body: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse what no fit writes, though every checksum is right."""
    params, built, read = body["params"], body["model_settings"], body["image_settings"]
    for name in ("standardize", "random_state", "calibration_share", "fpr"):
        params[name]  # those that nothing below asks for before images are scored
    check_params(params)
    for key, value in (params["method_options"] or {}).items():
        if isinstance(value, str) and built.get(key) != value and key != "members":
            raise RunError(f"method_options and model_settings disagree on {key}")
    stored = sum(value.size for value in arrays.values())
    models.check_size(params["method"], stored, **built)
    sizes = [(part["image_size"], part["channels"]) for part in (params, read, built)]
    if len(set(sizes)) > 1:
        raise RunError("params and model_settings disagree on the size of images")
    if odd := [key for key in read if key in params and params[key] != read[key]]:
        raise RunError(f"params and image_settings disagree on {odd[0]}")
    if not body["info"]["data"]["fingerprint"]:
        raise RunError("info has no fingerprint of the training images")
    for losses in body["history"]:
        sum(losses.values())


def _map_scale_of(body: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> MapScale | None:
    settings = body.get("map_scale")
    if settings is None:  # a run from before there was one
        return None
    state = {k.removeprefix(_MAP_SCALE): v for k, v in arrays.items() if k.startswith(_MAP_SCALE)}
    return MapScale.restore(settings, state)


def _n_models(params: Mapping[str, Any]) -> int:
    return int(params["folds"]) if params["calibration"] == "cv+" else 1


def _models_of(
    body: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], device: torch.device
) -> tuple[AnomalyModel, ...]:
    params = body["params"]
    built = body["model_settings"]  # not the parameters: defaults may have changed since
    found = [models.build(params["method"], **built) for _ in range(_n_models(params))]
    for i, model in enumerate(found):
        if not any(name.startswith(_prefix("model", i)) for name in arrays):
            raise RunError(f"model.safetensors holds nothing of model {i + 1}")
        model.load_state(_part(arrays, _prefix("model", i), device))
        if isinstance(model, Autoencoder):
            model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        if isinstance(model, CompositeModel):
            model.to(device)
    return tuple(found)


def _scorers_of(
    params: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], device: torch.device
) -> tuple[Scorer, ...]:
    given = params["scorer"], params["reduction"], params["scorer_options"]
    found = [scorers.build_with(*given) for _ in range(_n_models(params))]
    for i, scorer in enumerate(found):
        scorer.load_state(_part(arrays, _prefix("scorer", i), device))
    return tuple(found)


def _prefix(part: str, number: int) -> str:
    """Return the prefix of what is kept of a model or scorer; the first has no number."""
    return f"{part}_{number}." if number else f"{part}."


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _part(
    arrays: Mapping[str, NDArray[Any]], prefix: str, device: torch.device
) -> dict[str, Tensor]:
    return {
        k.removeprefix(prefix): torch.from_numpy(v).to(device)
        for k, v in arrays.items()
        if k.startswith(prefix)
    }


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
