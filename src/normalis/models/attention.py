"""Attention of cells to cells, as methods on grids of features use it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Attention", "FeedForward", "Positions", "neighbour_mask"]


def neighbour_mask(side: int, window: int) -> Tensor:
    """Return which cells a cell may attend to: those outside of the window around it.

    Args:
        side: cells along a side of the grid.
        window: cells along a side of the square that is hidden, odd; 0 hides nothing. At the border
            of the grid the square is cut.

    Returns:
        (side², side²) bool, row by row of the grid; True where it may.
    """
    if not window:
        return torch.ones(side**2, side**2, dtype=torch.bool)
    line = torch.arange(side)
    far = (line[:, None] - line).abs() > window // 2  # (side, side)
    return (far[:, None, :, None] | far[None, :, None, :]).reshape(side**2, side**2)


class Positions(nn.Module):
    """Learned positions of the cells of a grid: a row's and a column's numbers, side by side.

    Args:
        side: cells along a side.
        width: numbers of a position, even.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(side, width // 2))
        self.columns = nn.Parameter(torch.rand(side, width // 2))

    def forward(self) -> Tensor:
        """Return the positions (side², width)."""
        side = len(self.rows)
        rows = self.rows[:, None].expand(-1, side, -1)
        columns = self.columns[None].expand(side, -1, -1)
        return torch.cat([rows, columns], 2).flatten(0, 1)


class Attention(nn.Module):
    """Attention with several heads, then a sum with what asked, and layer normalisation.

    Args:
        width: numbers of a cell.
        heads: that divide it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, asking: Tensor, asked: Tensor, positions: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return what asked, with what it has learned from the asked.

        Args:
            asking: (B, N, width).
            asked: (B, M, width).
            positions: (N, width), which are added to queries and keys alone.
            mask: (N, M) bool, True where a cell may look; None for everywhere.
        """
        q = self._split(self.query(asking + positions))
        k, v = self._split(self.key(asked + positions)), self._split(self.value(asked))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        found = found.transpose(1, 2).flatten(2)
        said: Tensor = self.norm(asking + self.out(found))
        return said

    def _split(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        return x.view(b, n, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers on each cell, a sum with what came in, and layer normalisation.

    Args:
        width: numbers of a cell.
        hidden: numbers between the layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, width) of the same."""
        found: Tensor = self.norm(x + self.narrow(F.relu(self.wide(x))))
        return found
