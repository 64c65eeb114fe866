"""What methods with an adversary share: the critic's penalty, and networks that hold still.

::

    critic (Wasserstein)   mean D(fake) - mean D(real) + w mean (|grad D(x')| - 1)²
                           x' = t real + (1 - t) fake,    t ~ U(0, 1) of each image,    w = 10

The gradient is that of one image's output by its own values, over all of them. A critic must not
have batch normalisation, which would make it depend on the other images.

Reference: Gulrajani et al., "Improved training of Wasserstein GANs", NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["frozen", "gradient_penalty"]


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
