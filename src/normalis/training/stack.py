"""Several models of one method as one computation: every layer carries a leading axis of models.

::

    member m:  params_m  (...)      ->   stack:  params (M, ...)      losses (M,) = vmap(losses)
               x_m  (B, C, S, S)                 x (M, B, C, S, S)    step = Adam(sum of losses)

The gradient of a sum by one member's parameters is that of its own loss, and Adam works element by
element, so that every member takes the steps that it would take alone.

Members may differ in ``latent_dim`` where the method allows it: layers that touch the latent are
padded with zeros to the widest. A padded unit puts out 0, and the weights that read it are 0 too,
hence both gradients are exactly 0 and stay so: the padding is the mask. Each member is built before
it is stacked, so that its layers start from the fan-in of its own latent, not of the widest.

On a GPU a stack turns many small kernels into few larger ones. On a CPU the arithmetic is the limit
and nothing is gained (docs/reference/performance.md).

Batch normalisation is always computed in float32: under autocast its input is bfloat16 and its
statistics are not, and on a GPU that has no gradient below `torch.vmap`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from normalis.models.base import Autoencoder

__all__ = ["Stack", "groups"]


def groups(models: Sequence[Autoencoder]) -> list[list[int]]:
    """Return which models can be computed together, as lists of positions.

    A model that nothing can join is a list of its own.
    """
    found: list[list[int]] = []
    for i, model in enumerate(models):
        group = next((g for g in found if _alike(models[g[0]], model)), None)
        if group is None:
            found.append([i])
        else:
            group.append(i)
    return found


def _alike(a: Autoencoder, b: Autoencoder) -> bool:
    if type(a) is not type(b):
        return False
    if a.stackable == "no":
        return False
    (phase, *more) = a.phases()
    if more or not phase.plain:
        return False
    other = replace(b.settings, latent_dim=a.settings.latent_dim)
    return bool((other if a.stackable == "any width" else b.settings) == a.settings)


class _Losses(nn.Module):
    """A model whose call is its losses, as `functional_call` wants it."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model.losses(x, **draws)


class _NormaliseInFloat32(TorchFunctionMode):
    """Hands float32 to batch normalisation, whatever autocast made of its input."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


class Stack:
    """Models of one group with one optimiser; the models themselves change in `hand_back` only.

    Args:
        models: of one of `groups`, on one device.
        optimisers: one Adam per model over all its parameters; what they hold is taken over.
        learning_rate: of the common Adam.
        clip: largest norm of the gradient of each model; None for any.
    """

    def __init__(
        self,
        models: Sequence[Autoencoder],
        optimisers: Sequence[torch.optim.Optimizer],
        *,
        learning_rate: float,
        clip: float | None = None,
    ) -> None:
        self.clip = clip
        self.models, self.optimisers = list(models), list(optimisers)
        widest = max(self.models, key=lambda m: m.settings.latent_dim)
        self._losses = _Losses(copy.deepcopy(widest)).train()
        names = [name for name, _ in widest.named_parameters()]
        parameters = [dict(m.named_parameters()) for m in self.models]
        buffers = [dict(m.named_buffers()) for m in self.models]
        self.parameters = {
            n: _stacked([p[n].detach() for p in parameters]).requires_grad_() for n in names
        }
        self.buffers = {n: _stacked([b[n] for b in buffers]) for n in buffers[0]}
        self.optimiser = torch.optim.Adam(self.parameters.values(), learning_rate, fused=True)
        self._take_over_slots(parameters)

    def _take_over_slots(self, parameters: Sequence[dict[str, nn.Parameter]]) -> None:
        for name, whole in self.parameters.items():
            slots = [o.state.get(p[name]) for o, p in self._pairs(parameters)]
            held = [s for s in slots if s]
            if len(held) == len(slots):
                self.optimiser.state[whole] = {
                    k: held[0][k].clone() if k == "step" else _stacked([s[k] for s in held])
                    for k in held[0]
                }

    def _pairs(self, per_model: Sequence[Any]) -> Iterator[tuple[torch.optim.Optimizer, Any]]:
        return zip(self.optimisers, per_model, strict=True)

    def step(self, x: Tensor, draws: dict[str, Tensor], context: Any) -> dict[str, Tensor]:
        """Take one step of every model.

        Args:
            x: (M, B, C, S, S), the batch of each model.
            draws: the randomness of each model, (M, ...).
            context: in which the forward pass runs.

        Returns:
            Each loss, (M,).
        """
        self.optimiser.zero_grad(set_to_none=True)
        with context, _NormaliseInFloat32():
            losses = torch.vmap(self._call)(self.parameters, self.buffers, x, draws)
        torch.stack(list(losses.values())).sum().backward()
        if self.clip is not None:
            self._clip_gradients(self.clip)
        self.optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _clip_gradients(self, largest: float) -> None:
        """Scale each model's gradient to a norm, as `torch.nn.utils.clip_grad_norm_` does for one.

        Padding adds zeros, which no norm sees.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # (M,)
        factor = (largest / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.ndim - 1)))

    def _call(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        draws: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        named = {f"model.{k}": v for k, v in (parameters | buffers).items()}
        found: dict[str, Tensor] = functional_call(self._losses, named, (x, draws))
        return found

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def hand_back(self) -> None:
        """Write weights, running statistics and the optimiser's moments into the models' own."""
        for i, (optimiser, model) in enumerate(self._pairs(self.models)):
            for name, buffer in model.named_buffers():
                buffer.copy_(_part(self.buffers[name][i], buffer.shape))
            for name, parameter in model.named_parameters():
                whole = self.parameters[name]
                parameter.copy_(_part(whole[i], parameter.shape))
                for key, slot in self.optimiser.state.get(whole, {}).items():
                    optimiser.state[parameter][key] = (
                        slot.clone() if key == "step" else _like(parameter, slot[i])
                    )


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors whose sizes differ, with zeros after the shorter ones."""
    shape = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    whole = tensors[0].new_zeros((len(tensors), *shape))
    for i, tensor in enumerate(tensors):
        _part(whole[i], tensor.shape).copy_(tensor)
    return whole


def _part(whole: Tensor, shape: Sequence[int]) -> Tensor:
    return whole[tuple(slice(n) for n in shape)]


def _like(parameter: Tensor, slot: Tensor) -> Tensor:
    """Copy a slot into its parameter's memory order, by which fused Adam pairs elements."""
    return torch.empty_like(parameter, dtype=slot.dtype).copy_(_part(slot, parameter.shape))
