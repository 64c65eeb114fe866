"""What ``score.json`` keeps so that results can be made of a scoring without the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalis.calibration.maps import MapScale
from normalis.errors import SettingsError

if TYPE_CHECKING:
    from normalis.fitted import FittedDetector

__all__ = ["kept_details", "restored_scale"]


def kept_details(detector: FittedDetector, root: Path | None) -> dict[str, Any]:
    """Return what names the model and calibrates its maps.

    Args:
        detector: that scored.
        root: folder that names of maps are relative to; None where tables should not say it.
    """
    scale = detector.map_scale
    calibrated = None
    if scale is not None:
        rows = [" ".join(f"{value:.7g}" for value in row) for row in scale.scale]
        calibrated = {"settings": scale.to_dict(), "scale": rows}
    # As tables have it, and from wherever one stands; links stay as they are.
    where = None if root is None else [str(root), os.path.abspath(root)]  # noqa: PTH100
    return {"model": detector.identity, "root": where, "map_scale": calibrated}


def restored_scale(details: Mapping[str, Any]) -> MapScale | None:
    """Return what calibrates maps, from ``score.json``; None if nothing did.

    Raises:
        SettingsError: if it is damaged.
    """
    kept = details.get("map_scale")
    if kept is None:
        return None
    try:
        rows = [list(map(float, row.split())) for row in kept["scale"]]
        return MapScale.restore(kept["settings"], {"scale": rows})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"score.json: map_scale is damaged ({error}); score again") from error
