"""Windows that slide over a volume: where they lie, how they are weighted, and how their logits are put together.

The logits of a whole volume are never in memory. Windows go through the network in the order of their starts along one
axis, and planes across that axis leave as soon as no later window reaches them. So no more is kept than a window is
thick.

Windows lie where nnU-Net 2.8.1 puts them (`compute_steps_for_sliding_window`), with the weights that it gives them
(`compute_gaussian`). These are so small at a window's corners that half precision cannot hold them, and nnU-Net, which
keeps weights and sums in it, raises those that round to 0. Here means are kept instead of sums, and need no such floor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anatomask.data.crops import pad_to

SIGMA = 0.125
"""Standard deviation of the Gaussian weights, as a share of the window's edge."""
VERSION = 2
"""Number of the way in which windows are laid and weighted, raised when equal settings begin to give other logits."""
EXACT_BYTES = 2**31
"""Number of bytes of means in float32 above which they are kept in float16, as nnU-Net keeps all its sums."""


@dataclass(frozen=True)
class WindowGrid:
    """Grid of the windows over a volume."""

    shape: tuple[int, ...]
    """Voxels of the volume (D, H, W)."""
    window: tuple[int, ...]
    """Voxels of a window."""
    overlap: float
    """Share by which neighbouring windows overlap."""

    @property
    def padded(self) -> tuple[int, ...]:
        """Voxels of the volume once it is padded to a window at least."""
        return tuple(map(max, self.shape, self.window))

    @property
    def before(self) -> tuple[int, ...]:
        """Voxels of padding in front of the volume."""
        return tuple((outer - extent) // 2 for outer, extent in zip(self.padded, self.shape, strict=True))

    @property
    def starts(self) -> tuple[list[int], ...]:
        """First voxels of the windows, for each axis: evenly spaced from one end of the volume to the other."""
        return tuple(_starts(*pair, self.overlap) for pair in zip(self.padded, self.window, strict=True))

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(map(len, self.starts))

    @property
    def axis(self) -> int:
        """Axis along which planes leave one after the other: that of most windows' lengths."""
        lengths = [extent / window for extent, window in zip(self.padded, self.window, strict=True)]
        return lengths.index(max(lengths))

    @property
    def kept(self) -> tuple[int, ...]:
        """Voxels whose means are kept at once: a window's along `axis`, all along the others."""
        return (*self.padded[: self.axis], self.window[self.axis], *self.padded[self.axis + 1 :])

    def kept_type(self, channels: int) -> torch.dtype:
        """Choose the type of the means of `channels` numbers per voxel: float32 as long as that takes few bytes."""
        return torch.float32 if 4 * channels * math.prod(self.kept) <= EXACT_BYTES else torch.float16

    def kept_bytes(self, channels: int) -> int:
        """Compute the bytes of the means of `channels` numbers per voxel."""
        return self.kept_type(channels).itemsize * channels * math.prod(self.kept)


def _starts(extent: int, window: int, overlap: float) -> list[int]:
    """List the first voxels of the fewest windows along an axis that overlap by `overlap` at least."""
    last = math.ceil((extent - window) / max(1.0, window * (1 - overlap)))
    return [round((extent - window) / last * number) for number in range(last + 1)] if last else [0]


def gaussian(window: Sequence[int], device: torch.device) -> Tensor:
    """Compute the weights of a window's voxels, (d, h, w): a Gaussian about voxel `extent // 2` of each axis."""
    weights = torch.ones((), device=device)
    for extent in window:
        offset = torch.arange(extent, dtype=torch.float32, device=device) - extent // 2
        weights = weights[..., None] * torch.exp(offset**2 / (-2 * (SIGMA * extent) ** 2))
    return weights


def slide(
    volume: Tensor, grid: WindowGrid, predict: Callable[[Tensor], Tensor], batch: int, store: torch.device
) -> Iterator[Tensor]:
    """Predict a volume window by window, and average overlapping windows by their weights.

    Args:
        volume: (C, D, H, W) as the network reads it, of `grid.shape` voxels; padded by each channel's minimum.
        grid: grid of the windows.
        predict: function from windows (B, C, d, h, w) to numbers (B, K, d, h, w), such as logits.
        batch: number of windows in one call of `predict` at most.
        store: device that keeps the means.

    Yields:
        Means (K, D, H, W) of consecutive planes: less than all voxels along `grid.axis`, all along the others. They
        are on `store`, and valid until the next planes are taken.
    """
    axis, starts = grid.axis, grid.starts
    volume = pad_to(volume, grid.padded, grid.before)
    weights = gaussian(grid.window, store)
    total = torch.zeros(grid.kept, device=store)
    means: Tensor | None = None
    for row, following in itertools.pairwise([*starts[axis], grid.padded[axis]]):
        others = [starts[other] if other != axis else [row] for other in range(3)]
        for corners in _batches(list(itertools.product(*others)), batch):
            windows = torch.stack([volume[:, *_box(corner, grid.window)] for corner in corners])
            for corner, values in zip(corners, predict(windows), strict=True):
                if means is None:
                    shape = (len(values), *grid.kept)
                    means = torch.zeros(shape, dtype=grid.kept_type(len(values)), device=store)
                there = _box([0 if other == axis else corner[other] for other in range(3)], grid.window)
                total[there] += weights
                share = (weights / total[there]).to(means.dtype)
                means[:, *there].lerp_(values.to(store, means.dtype), share)
        assert means is not None
        done = following - row
        finished = means.narrow(axis + 1, 0, done)
        inside = [slice(margin, margin + extent) for margin, extent in zip(grid.before, grid.shape, strict=True)]
        if len(starts[axis]) > 1:
            inside[axis] = slice(None)  # planes that leave before the last are not padded
        yield finished[:, *inside]
        for kept in (total, *means):
            _advance(kept, axis, done)


def _advance(kept: Tensor, axis: int, planes: int) -> None:
    """Move (D, H, W) down along an axis by some planes, and fill up with zeros."""
    left = kept.shape[axis] - planes
    kept.narrow(axis, 0, left).copy_(kept.narrow(axis, planes, left).clone())
    kept.narrow(axis, left, planes).zero_()


def _box(corner: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + extent) for start, extent in zip(corner, window, strict=True))


def _batches(corners: Sequence[tuple[int, ...]], size: int) -> Iterator[Sequence[tuple[int, ...]]]:
    return (corners[start : start + size] for start in range(0, len(corners), size))
