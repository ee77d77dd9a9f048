"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929): their blocks, and fixed positions in three dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.recompute import Recomputable

LAYER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention, in operations whose gradients are the same in every run."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, n, width) to as many."""
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (queries * queries.shape[-1] ** -0.5 @ keys.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ values).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with an exact GELU, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, n, width) to as many."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(Recomputable, nn.Module):
    """Pre-norm transformer block; in training each of its halves is skipped with probability `drop_path` per sample."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, n, width) to as many. Random numbers are drawn before what may be computed again."""
        kept = None
        if self.training and self.drop_path > 0:
            kept = (torch.rand(2, len(x), 1, 1, device=x.device) >= self.drop_path) / (1 - self.drop_path)
        return self.recomputed(self._compute, x, kept)

    def _compute(self, x: Tensor, kept: Tensor | None) -> Tensor:
        if kept is None:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + kept[0] * self.attn(self.norm1(x))
        return x + kept[1] * self.mlp(self.norm2(x))


def initialise(module: nn.Module) -> None:
    """Draw the weights of linear layers as published: Xavier uniform, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def fixed_positions(grid: Sequence[int], width: int) -> Tensor:
    """Compute the fixed positions (1, patches, width) of a grid, in raster order.

    Each axis in turn has the sines, then the cosines of its index at width/6 frequencies 10000^(-6 i/width).
    """
    parts = width // 6
    frequencies = 1.0 / 10000.0 ** (torch.arange(parts, dtype=torch.float32) / parts)
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)[None]


def grid_of(positions: Tensor) -> tuple[int, int, int]:
    """Find the grid of n patches whose fixed positions a table (n, width) is close to, learned from them or not.

    Raises:
        ValueError: there is none.
    """
    patches, width = positions.shape
    sides = [side for side in range(1, patches + 1) if patches % side == 0]
    grids = [(d, h, patches // (d * h)) for d, h in itertools.product(sides, sides) if patches % (d * h) == 0]
    scale = float(positions.float().norm())
    distances = {grid: float((fixed_positions(grid, width)[0] - positions).norm()) for grid in grids if not width % 6}
    nearest = min(distances, key=lambda grid: distances[grid], default=None)
    if nearest is None or not distances[nearest] < 0.25 * scale:
        raise ValueError(
            f"its {patches} positions are those of no grid of patches, which would tell its crop: they were not "
            "learned from the fixed sines and cosines of SelfMedMAE"
        )
    return nearest
