"""Rotation and scaling of a crop and its label as one resampling, linear for both."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CORNERS = tuple(itertools.product((0, 1), repeat=3))
"""Corners of the cell of eight voxels about a position, counted from its first voxel."""

SLAB = (2**16, 2**19)
"""Voxels that are resampled at a time: on a CPU, whose caches they fit into, and on a GPU."""
TIE = 1e-4
"""Share of a corner's own weight that counts twice, so that of equal classes the nearest voxel's is taken."""


def resample(
    image: Tensor, label: Tensor, matrix: np.ndarray, first: Sequence[int], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Turn and scale a crop and its label.

    The label of a voxel is the class that has the largest sum of weights in the linear interpolation, and the nearest
    voxel's where several have: what nnU-Net takes, too, from one interpolation per class.

    Args:
        image: (C, d, h, w) float32, the `source_box`.
        label: (d, h, w) uint8, of the same box.
        matrix: (3, 3) as for `source_box`.
        first: first voxel of the box, counted from the crop's.
        size: voxels of the crop.

    Returns:
        image (C, *size) and label (*size).
    """
    moved, moved_label = image.new_empty(len(image), *size), label.new_empty(*size)
    bounds = None if label.is_cuda else _lowest_and_highest(label)
    planes = max(1, SLAB[image.device.type == "cuda"] // (size[1] * size[2]))
    for start in range(0, size[0], planes):
        slab = slice(start, start + planes)
        cells, fractions = _cells(label.shape, matrix, first, size, slab, image.device)
        for channel, target in zip(image, moved[:, slab], strict=True):
            target.copy_(_interpolate(channel, cells, fractions).view_as(target))
        moved_label[slab] = _elect(label, bounds, cells, fractions).view_as(moved_label[slab])
    return moved, moved_label


def _cells(
    shape: Sequence[int],
    matrix: np.ndarray,
    first: Sequence[int],
    size: Sequence[int],
    slab: slice,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Locate the voxels of a slab of the sample's planes in a box of `shape`.

    Returns:
        The number of each voxel's cell, its first voxel in raster order, (N,) int32, and the distance from that voxel
        along each axis, (3, N) in [0, 1].
    """
    lines = [torch.arange(edge, dtype=torch.float32, device=device) - (edge - 1) / 2 for edge in size]
    lines[0] = lines[0][slab]
    cells = torch.zeros((), dtype=torch.int32, device=device)
    fractions = []
    for axis, extent in enumerate(shape):
        d, h, w = (float(factor) * line for factor, line in zip(matrix[axis], lines, strict=True))
        position = d[:, None, None] + h[:, None] + (w + ((size[axis] - 1) / 2 - int(first[axis])))
        lower = position.floor().clamp_(0, extent - 2)
        fractions.append((position - lower).flatten())
        cells = cells * extent + lower.int()
    return cells.flatten(), torch.stack(fractions)


def _at(volume: Tensor, cells: Tensor, corner: Sequence[int]) -> Tensor:
    """Return the voxels of (d, h, w) at one corner of each cell, (N,)."""
    _, h, w = volume.shape
    offset = (corner[0] * h + corner[1]) * w + corner[2]
    return volume.flatten()[offset:].index_select(0, cells)


def _interpolate(volume: Tensor, cells: Tensor, fractions: Tensor) -> Tensor:
    """Interpolate (d, h, w) linearly within cells (N,), in half the time that `grid_sample` takes on a CPU."""
    return _blend([_at(volume, cells, corner) for corner in CORNERS], fractions)


def _blend(corners: list[Tensor], fractions: Tensor) -> Tensor:
    """Interpolate between the values of eight CORNERS, (N,) each."""
    for fraction in fractions.flip(0):  # the last axis first
        corners = [torch.lerp(low, high, fraction) for low, high in zip(corners[::2], corners[1::2], strict=True)]
    return corners[0]


def _lowest_and_highest(label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest class within the cell of each voxel of (d, h, w), but for the last planes."""
    lowest = highest = label
    for axis, extent in enumerate(label.shape):
        lowest, highest = (
            choose(part.narrow(axis, 0, extent - 1), part.narrow(axis, 1, extent - 1))
            for choose, part in ((torch.minimum, lowest), (torch.maximum, highest))
        )
    return functional.pad(lowest, (0, 1) * 3), functional.pad(highest, (0, 1) * 3)


def _elect(label: Tensor, bounds: tuple[Tensor, Tensor] | None, cells: Tensor, fractions: Tensor) -> Tensor:
    """Return the class of the largest weight within each cell.

    The `_lowest_and_highest` classes save most of the work, for few cells have more than one class, and fewer more than
    two. Without them no cells are chosen, for which the host would wait for the device.
    """
    if bounds is None:
        return _of_largest_weight(label, cells, fractions)
    lowest, highest = (_at(bound, cells, (0, 0, 0)) for bound in bounds)
    mixed = (lowest != highest).nonzero()[:, 0]
    low, high, cells, fractions = lowest[mixed], highest[mixed], cells[mixed], fractions[:, mixed]
    classes = [_at(label, cells, corner) for corner in CORNERS]
    winner = torch.where(_blend([(each == high).float() for each in classes], fractions) > 0.5, high, low)
    several = torch.stack([(each != low) & (each != high) for each in classes]).any(0).nonzero()[:, 0]
    if len(several):
        winner[several] = _of_largest_weight(label, cells[several], fractions[:, several])
    return lowest.index_put_((mixed,), winner)


def _of_largest_weight(label: Tensor, cells: Tensor, fractions: Tensor) -> Tensor:
    """Return the class of the largest weight within each cell, (N,), by comparing its corners with each other."""
    classes = torch.stack([_at(label, cells, corner) for corner in CORNERS])
    weights = torch.ones_like(fractions[:1])
    for fraction in fractions:
        weights = torch.stack([weights * (1 - fraction), weights * fraction], 1).flatten(0, 1)
    sums = torch.where(classes[:, None] == classes, weights, 0).sum(1)
    return classes.gather(0, sums.add_(weights, alpha=TIE).argmax(0, keepdim=True))[0]
