"""A codebook: vectors are replaced by the nearest of a few codes, which follow what they stand for.

::

    VQ(z) = the code nearest to z;    the gradient passes unchanged
    code = running sum of its vectors / running count of them

Codes start where k-means puts them. One that nearly nothing is near to any more is drawn anew from
the batch; otherwise few codes would do all the work.

Reference: van den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", NeurIPS
2017, appendix A.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Codebook"]

_EPS = 1e-5  # added to a count
_ROUNDS = 10  # of k-means


class Codebook(nn.Module):
    """Codes that follow the mean of what is nearest to them.

    Args:
        count: M, of codes.
        width: numbers of a code.
        decay: share of the running sums and counts that a step keeps.
        dead: share of its even part of the vectors below which a code is drawn anew. One that
            nothing is near to falls there in log(dead) / log(decay) steps.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, count: int, width: int, *, decay: float = 0.99, dead: float = 0.01) -> None:
        super().__init__()
        self.decay, self.dead = decay, dead
        self.register_buffer("codes", torch.randn(count, width))
        self.register_buffer("counts", torch.ones(count))
        self.register_buffer("sums", self.codes.clone())

    def nearest(self, z: Tensor) -> Tensor:
        """Return the number of the nearest code of vectors (..., width)."""
        return (self.codes.square().sum(1) - 2 * z @ self.codes.T).argmin(-1)

    def forward(self, z: Tensor, source: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the nearest code of each vector, with the vector's gradient, and the commitment.

        Args:
            z: (..., width).
            source: of draws; the codes learn at once where it is given.

        Returns:
            Vectors (..., width), and their mean squared distance to them, a scalar.
        """
        found = self.codes[self.nearest(z)]
        if source is not None:
            self.learn(z.detach().reshape(-1, z.shape[-1]), source)
        return z + (found - z).detach(), (z - found).square().mean()

    @torch.no_grad()
    def place(self, z: Tensor, source: torch.Generator) -> None:
        """Start from k-means of vectors (N, width)."""
        count = len(self.codes)
        chosen = torch.randperm(len(z), generator=source).repeat(-(-count // len(z)))[:count]
        self.codes.copy_(z[chosen.to(z.device)])
        for _ in range(_ROUNDS):
            counts, sums = self._members(z)
            held = counts > 0
            self.codes[held] = sums[held] / counts[held, None]
        even = len(z) / count
        self.counts.fill_(even)
        self.sums.copy_(even * self.codes)

    @torch.no_grad()
    def learn(self, z: Tensor, source: torch.Generator) -> None:
        """Move the running counts and means towards vectors (N, width); draw dead codes anew."""
        counts, sums = self._members(z)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        even = len(z) / len(self.codes)
        dead = (self.counts < self.dead * even).nonzero()[:, 0]
        if len(dead):
            drawn = torch.randint(len(z), (len(dead),), generator=source).to(z.device)
            self.counts[dead] = even
            self.sums[dead] = even * z[drawn]
        self.codes.copy_(self.sums / (self.counts[:, None] + _EPS))

    def _members(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many vectors are nearest to each code (M,), and their sums (M, width)."""
        mine = self.nearest(z)
        counts = torch.bincount(mine, minlength=len(self.codes)).to(z.dtype)
        return counts, torch.zeros_like(self.sums).index_add_(0, mine, z)

    @property
    def perplexity(self) -> float:
        """How many codes do the work, 1 to M: exp of the entropy of their use."""
        share = self.counts / self.counts.sum()
        return float(torch.special.entr(share).sum().exp())
