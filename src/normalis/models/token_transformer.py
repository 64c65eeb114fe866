"""A transformer that reads the tokens of an image one by one, in several orders.

    log p(tokens) = sum_i log p(token_o(i) | token_o(1), ..., token_o(i-1)),    o an order of places

One network serves all orders: with each token it is told where that token lies and which place is
to be predicted next. Keys and values of what has been read are kept, so that a sequence which is
changed on the way (`TokenTransformer.heal`) costs one pass.

Reference: Radford et al., "Language models are unsupervised multitask learners", 2019, for the
blocks; Pinaya et al., Medical Image Analysis 79, 2022, for orders of places and healing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ORDERS", "TokenTransformer", "orders_of"]

#: Most orders of a grid: rows and columns, from each corner.
ORDERS = 8


def orders_of(side: int, count: int) -> Tensor:
    """Return orders in which the places of a grid are read, (count, side²), each a permutation.

    The first reads row by row, the second is its reverse; then column by column, and from the other
    corners.

    Args:
        side: of the grid.
        count: 1 to `ORDERS`.
    """
    grid = torch.arange(side * side).view(side, side)
    pairs = [(g, g.flip(0, 1)) for g in (grid, grid.T, grid.flip(1), grid.flip(1).T)]
    return torch.stack([order.flatten() for pair in pairs for order in pair])[:count]


#: Keys and values (B, heads, t, width / heads) of what a block has read.
Past = tuple[Tensor, Tensor]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, y: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Return y (B, t, width) after the block, and what it has read by then."""
        parts = self.qkv(self.before_attention(y)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        # Of several tokens each sees itself and those before; a single one sees all there are.
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        y = y + self.join(seen.transpose(1, 2).flatten(2))
        return y + self.layers(self.before_layers(y)), (k, v)


class TokenTransformer(nn.Module):
    """Probabilities of each token given those that were read before it.

    Args:
        tokens: M, of different ones.
        places: T, of a sequence.
        width: of the network, a multiple of ``heads``.
        depth: blocks.
        heads: of each attention.
    """

    def __init__(self, tokens: int, places: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.begin = nn.Parameter(0.02 * torch.randn(width))
        self.token, self.place = nn.Embedding(tokens, width), nn.Embedding(places, width)
        self.target = nn.Embedding(places, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, tokens)
        for table in (self.token, self.place, self.target):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Return log p of each token given those before it, (B, T) in the grid's order, float32.

        Args:
            tokens: (B, T) in the grid's order.
            order: (T,) or (B, T) places in the order in which they are read.
        """
        order = order.expand_as(tokens)
        read = tokens.gather(1, order)
        embedded = self.token(read[:, :-1]) + self.place(order[:, :-1])
        begin = self.begin.expand(len(tokens), 1, -1).to(embedded.dtype)
        y = torch.cat([begin, embedded], 1) + self.target(order)
        for block in self.blocks:
            y, _ = block(y, None)
        log_p = self.output(self.norm(y)).float().log_softmax(-1)
        found = log_p.gather(2, read[:, :, None])[:, :, 0]
        return torch.zeros_like(found).scatter(1, order, found)

    def heal(self, tokens: Tensor, wrong: Tensor, order: Tensor) -> Tensor:
        """Return tokens (B, T) of which the wrong ones are the likeliest given the healed past.

        Args:
            tokens: (B, T) in the grid's order.
            wrong: (B, T) bool, which are to be replaced.
            order: (T,) places in the order in which they are read.
        """
        healed = tokens.clone()
        pasts: list[Past | None] = [None] * len(self.blocks)
        y = self.begin.expand(len(tokens), 1, -1)
        places: Sequence[int] = order.tolist()
        for place in places:
            y = y + self.target.weight[place]
            for i, block in enumerate(self.blocks):
                y, pasts[i] = block(y, pasts[i])
            likeliest = self.output(self.norm(y[:, 0])).argmax(-1)
            healed[:, place] = torch.where(wrong[:, place], likeliest, healed[:, place])
            y = (self.token(healed[:, place]) + self.place.weight[place])[:, None]
        return healed
