"""One model in training: its phases, each with an optimiser of its own, and its own randomness.

What a phase asks for (how often it steps, when, at which rate) is said in the method's own file, by
the fields of `normalis.models.base.Phase`; here it is done.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from normalis.errors import SettingsError
from normalis.models.base import Autoencoder, Phase
from normalis.training.keeping import Best, pseudo_auroc
from normalis.training.settings import PRECISION_VARIABLE, Precision, TrainingSettings

__all__ = ["Member", "autocast", "load_slots", "one_cycle", "step_of"]


def _asked_precision() -> Precision:
    text = os.environ.get(PRECISION_VARIABLE, "auto") or "auto"
    for known in get_args(Precision):
        if text == known:
            found: Precision = known
            return found
    raise SettingsError(
        f"{PRECISION_VARIABLE} must be one of {', '.join(get_args(Precision))}, got {text!r}"
    )


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        found: bool = torch.cuda.is_bf16_supported()
        return found
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capabilities and torch.cpu._is_avx512_bf16_supported()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which forward passes of training run.

    ``auto`` follows the environment variable `PRECISION_VARIABLE` where it is set.

    Raises:
        SettingsError: if that variable names no precision.
    """
    if precision == "auto":
        precision = _asked_precision()
    if precision == "auto":
        precision = "bfloat16" if _has_bfloat16(device) else "float32"
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def step_of(
    phase: Phase, x: Tensor, draws: dict[str, Tensor], precision: Precision
) -> dict[str, Tensor]:
    """Return a phase's losses, their gradients laid down in its parameters.

    Args:
        phase: of the model.
        x: (B, C, S, S) images.
        draws: the step's randomness.
        precision: of the forward pass.
    """
    with autocast(precision, x.device):
        losses = phase.losses(x, **draws)
    torch.stack(list(losses.values())).sum().backward()
    return losses


@dataclass
class Member:
    """One model of the stack, with its optimisers and its own source of randomness.

    ``rows`` are the images that it is trained on; None for all.
    """

    model: Autoencoder
    seed: int
    settings: TrainingSettings
    rows: Tensor | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    best: Best = field(default_factory=Best)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.phases = self.model.phases()
        self.optimisers = [
            torch.optim.Adam(
                phase.parameters,
                self.settings.learning_rate * phase.rate,
                betas=phase.betas,
                fused=True,
            )
            for phase in self.phases
        ]

    def draw(self, x: Tensor) -> dict[str, Tensor]:
        """Return fresh randomness for a batch, from the model's own generator."""
        return {k: v.to(x.device) for k, v in self.model.draw(x, self.generator).items()}

    def step(self, x: Tensor, done: float = 0.0) -> dict[str, Tensor]:
        """Take the optimiser steps of every phase whose turn it is; return the losses.

        Args:
            x: (B, C, S, S) images.
            done: share of all steps of the training that are done, in [0, 1).
        """
        self.set_rate(done)
        self.model.trained_share = done
        draws = self.draw(x)
        logged: dict[str, list[Tensor]] = {}
        for phase, optimiser in zip(self.phases, self.optimisers, strict=True):
            if not phase.has_turn(done):
                continue
            for again in range(phase.repeat):
                found = self._step(phase, optimiser, x, self.draw(x) if again else draws)
                for name, value in found.items():
                    logged.setdefault(name, []).append(value)
        return {name: torch.stack(values).mean(0) for name, values in logged.items()}

    def _step(
        self, phase: Phase, optimiser: torch.optim.Optimizer, x: Tensor, draws: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        optimiser.zero_grad(set_to_none=True)
        losses = step_of(phase, x, draws, self.settings.precision)
        if phase.clip is not None:
            torch.nn.utils.clip_grad_norm_(phase.parameters, phase.clip)
        optimiser.step()
        found = {f"{phase.name}{name}": loss.detach() for name, loss in losses.items()}
        if phase.after:
            phase.after({k: float(v) for k, v in found.items()})
        return found

    def look(self, normal: Tensor, odd: Tensor, epoch: int) -> None:
        """Keep the model if it tells images best from the same with a change; log how well.

        Args:
            normal: (N, C, S, S) in [-1, 1], not trained on.
            odd: (N, C, S, S) with the changes.
            epoch: that is over, counted from 1.
        """
        self.model.eval()
        value = pseudo_auroc(self.model, normal, odd, batch_size=self.settings.batch_size)
        self.model.train()
        self.history[-1]["pseudo auroc"] = value
        self.best.offer(value, epoch, self.model.state_dict())

    @property
    def begins(self) -> float:
        """Share of the training at which the last of the phases begins."""
        return max(phase.span[0] for phase in self.phases)

    def set_rate(self, done: float) -> None:
        """Set each phase's learning rate: of the ``fast`` recipe its place in its own span."""
        if self.settings.recipe != "fast":
            return
        for phase, optimiser in zip(self.phases, self.optimisers, strict=True):
            start, end = phase.span
            factor = phase.rate * one_cycle(min(max((done - start) / (end - start), 0.0), 1.0))
            for group in optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * factor


def load_slots(optimiser: torch.optim.Optimizer, state: dict[str, Tensor], prefix: str) -> None:
    """Take over an optimiser's moments from the tensors of a state whose names begin so."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            slots.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for at, named in slots.items():
        slots[at] = {k: _laid_out_as(parameters[at], v) for k, v in named.items()}
    optimiser.load_state_dict({"state": slots, "param_groups": groups})


def _laid_out_as(parameter: Tensor, slot: Tensor) -> Tensor:
    """Copy a slot into the memory order of its parameter, which files do not keep.

    Fused Adam walks parameter, gradient and moments by memory, so a difference would pair the
    wrong elements without an error.
    """
    if slot.shape != parameter.shape:
        return slot.clone()
    return torch.empty_like(parameter, dtype=slot.dtype).copy_(slot)


def one_cycle(done: float, warm_up: float = 0.1) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine to zero."""
    if done < warm_up:
        return 0.04 + 0.96 * done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))
