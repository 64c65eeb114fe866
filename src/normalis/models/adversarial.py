"""What methods with an adversary share: the critic's penalty, and networks that hold still.

::

    critic (Wasserstein)   mean D(fake) - mean D(real) + w mean (|grad D(x')| - 1)²
                           x' = t real + (1 - t) fake,    t ~ U(0, 1) of each image,    w = 10

The gradient is that of one image's output by its own values, over all of them. A critic must not
have batch normalisation, which would make it depend on the other images: `Critic` normalises within
each image.

Reference: Gulrajani et al., "Improved training of Wasserstein GANs", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from normalis.models.base import ModelSettings

__all__ = ["Critic", "frozen", "gradient_penalty", "unrecorded"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WIDTHS = (1, 2, 4, 4)  # of the critic's convolutions, times its width


class Critic(nn.Module):
    """Four halving convolutions and one number: (B, C, S, S) -> (B,).

    ::

        (C, S, S) -w-2w-4w-4w-> (4w, S / 16, S / 16) = f(x) -> 1      k4 s2, LeakyReLU 0.2

    All convolutions but the first are normalised over channels and places of each image.

    Args:
        settings: of the method; image size and channels count.
        width: w.
    """

    def __init__(self, settings: ModelSettings, width: int) -> None:
        super().__init__()
        widths = (settings.channels, *(width * share for share in _WIDTHS))
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            layers.append(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1))
            layers += [nn.GroupNorm(1, c_out)] if len(layers) > 1 else []
            layers.append(nn.LeakyReLU(0.2))
        self.convolutions = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1] * (settings.image_size // 16) ** 2, 1)

    def features(self, x: Tensor) -> Tensor:
        """Return the last convolution's activations: (B, C, S, S) -> (B, 4 w (S / 16)²)."""
        f: Tensor = self.convolutions(x)
        return f.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Judge each image by itself: (B, C, S, S) -> (B,), float32."""
        judged: Tensor = self.output(self.features(x))
        return judged.float().squeeze(1)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """Return how far the critic's gradients are from norm 1: mean (|grad D(x')| - 1)², a scalar.

    It is computed in float32 whatever autocast says, since it is differentiated twice.

    Args:
        critic: (B, ...) -> (B,) or (B, 1), each row judged by itself.
        real: (B, ...).
        fake: (B, ...); no gradient flows into either.
        mix: (B,) share t of the real one, in [0, 1].
    """
    with torch.autocast(real.device.type, enabled=False):
        share = mix.float().reshape(-1, *[1] * (real.ndim - 1))
        between = share * real.detach().float() + (1 - share) * fake.detach().float()
        between.requires_grad_()
        judged = critic(between).sum()
        (gradient,) = torch.autograd.grad(judged, between, create_graph=True)
        norms: Tensor = gradient.flatten(1).norm(dim=1)
        return (norms - 1).square().mean()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Hold networks in evaluation mode and without gradients of their own; restore them after.

    Gradients still flow through them, to what they are given.
    """
    training = [(m, m.training) for module in modules for m in module.modules()]
    wanted = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        for module in modules:
            module.eval().requires_grad_(False)
        yield
    finally:
        for m, was in training:
            m.training = was
        for p, was in wanted:
            p.requires_grad_(was)


@contextmanager
def unrecorded(*modules: nn.Module) -> Iterator[None]:
    """Let batch normalisation in training normalise by the batch, and remember nothing of it.

    For passes of images that are not those which the network will be read with, or that it sees
    again and again: the running statistics would be theirs.
    """
    layers = [m for module in modules for m in module.modules() if isinstance(m, _NORMS)]
    before = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.track_running_stats = was
