"""Training that survives being killed: its state is kept in a run folder and found there again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normalis.errors import RunError
from normalis.models.base import Autoencoder
from normalis.storage import RunFolder
from normalis.training.loop import Progress, Training
from normalis.training.settings import TrainingSettings

__all__ = ["train_resumably"]

#: Seconds between checkpoints.
EVERY_S = 30.0


def train_resumably(
    models: Sequence[Autoencoder],
    pixels: Tensor,
    *,
    settings: TrainingSettings,
    seeds: Sequence[int],
    device: torch.device,
    folder: RunFolder,
    identity: str,
    rows: Sequence[Tensor] | None = None,
    stacked: bool | None = None,
    held: Tensor | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> Training:
    """Train as `normalis.training.loop.train` does, from the folder's checkpoint if there is one.

    Args:
        models: changed in place.
        pixels: (N, C, S, S) normal images.
        settings: shared by the stack.
        seeds: one per model.
        device: where to train.
        folder: where checkpoints go; the caller holds its lock.
        identity: what an interrupted training must have in common with this one.
        rows: for each model the indices of the images that it is trained on; None for all.
        stacked: as of `Training`.
        held: as of `Training`.
        callback: called after each epoch.

    Raises:
        RunError: if the folder holds the checkpoint of another training.
    """
    training = Training(
        models,
        pixels,
        settings=settings,
        seeds=seeds,
        device=device,
        rows=rows,
        stacked=stacked,
        held=held,
    )
    found = folder.read_checkpoint()
    if found is not None:
        arrays, progress = found
        if progress.get("identity") != identity:
            raise RunError(
                f"{folder.path}: holds an unfinished run with other settings or other data; "
                f"choose another --out, or remove {folder.CHECKPOINT} there to start again"
            )
        training.resume({k: torch.from_numpy(v) for k, v in arrays.items()}, progress)
    written = time.monotonic()

    def after_epoch(step: Progress) -> None:
        nonlocal written
        if time.monotonic() - written > EVERY_S and step.epoch < step.epochs:
            state = {k: v.detach().cpu().numpy() for k, v in training.state().items()}
            folder.write_checkpoint(state, {"identity": identity, **training.progress()})
            written = time.monotonic()
        if callback:
            callback(step)

    training.run(after_epoch)
    return training
