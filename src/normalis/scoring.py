"""A fitted model and a stream of images to anomaly maps and scores, in constant memory.

Images arrive in batches from `normalis.loading.stream`, whose workers decode the next ones while
the model works on this one. Nothing is kept: memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normalis.loading import Loaded, Row, to_unit
from normalis.models.base import AnomalyModel
from normalis.models.inputs import as_tensor, to_model_input
from normalis.scorers.base import Scorer

__all__ = ["BATCH_SIZE", "Scored", "image_statistics", "score", "score_pixels"]

#: Images scored at once: large enough for full speed, small enough for any machine.
BATCH_SIZE = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """What a batch of images scored.

    Attributes:
        rows: where each image came from.
        anomaly_score: (B,), higher is more anomalous.
        anomaly_map: (B, S, S) float32, None if not asked for.
        reconstruction: (B, C, S, S) float32 in the model's range, None if not asked for or if the
            method has none.
        statistics: name -> (B,) of the images themselves, to notice that new data have drifted.
    """

    rows: list[Row]
    anomaly_score: NDArray[np.float64]
    anomaly_map: NDArray[np.float32] | None = None
    reconstruction: NDArray[np.float32] | None = None
    statistics: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def image_statistics(pixels: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return the mean and the standard deviation of each image (B, C, S, S), by name."""
    unit = to_unit(pixels).reshape(len(pixels), -1).astype(np.float64)
    return {"mean intensity": unit.mean(1), "contrast": unit.std(1)}


@torch.inference_mode()
def score_pixels(
    model: AnomalyModel,
    scorer: Scorer,
    pixels: NDArray[Any],
    *,
    device: torch.device,
    standardize: bool = False,
    maps: bool = True,
    reconstructions: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Score one batch of pixels.

    Args:
        model: fitted; in evaluation mode.
        scorer: how its residual is read.
        pixels: (B, C, S, S) ``uint8`` or float with nominal range [0, 1].
        device: where the model is.
        standardize: as the model was trained.
        maps: whether to return anomaly maps.
        reconstructions: whether to return reconstructions.

    Returns:
        scores (B,), maps (B, S, S) or None, reconstructions (B, C, S, S) or None.
    """
    x = to_model_input(as_tensor(pixels).to(device), standardize=standardize)
    x = x.contiguous(memory_format=torch.channels_last)
    scores = scorer.anomaly_score(model, x).double().cpu().numpy()
    shown = scorer.anomaly_map(model, x).float().cpu().numpy() if maps else None
    rebuilt = model.reconstruct(x) if reconstructions else None
    return scores, shown, None if rebuilt is None else rebuilt.float().cpu().numpy()


def score(
    model: AnomalyModel,
    scorer: Scorer,
    batches: Iterable[Loaded],
    *,
    device: torch.device,
    standardize: bool = False,
    maps: bool = True,
    reconstructions: bool = False,
) -> Iterator[Scored]:
    """Score batch after batch; see `score_pixels` for the arguments."""
    for batch in batches:
        if not batch.rows:
            continue
        scores, shown, rebuilt = score_pixels(
            model,
            scorer,
            batch.pixels,
            device=device,
            standardize=standardize,
            maps=maps,
            reconstructions=reconstructions,
        )
        yield Scored(
            rows=list(batch.rows),
            anomaly_score=scores,
            anomaly_map=shown,
            reconstruction=rebuilt,
            statistics=image_statistics(batch.pixels),
        )
