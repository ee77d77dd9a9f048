"""Interpolation whose gradients are the same in every run: torch's on GPUs are atomic additions in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Doubling(nn.Module):
    """Linear interpolation to twice the resolution along every axis of a volume."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to (B, C, 2·D, 2·H, 2·W)."""
        return doubled(x, (2, 3, 4))


def doubled(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Interpolate a volume (B, C, D, H, W) linearly to twice as many voxels along each of `axes`.

    Forward is `torch.nn.functional.interpolate`, mode trilinear, without aligned corners; backward is a sum of four
    terms along each axis.
    """
    result: Tensor = _Doubled.apply(x, tuple(axes))
    return result


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        ctx.axes = axes
        factors = tuple(2.0 if axis in axes else 1.0 for axis in (2, 3, 4))
        return functional.interpolate(x, scale_factor=factors, mode="trilinear")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        for axis in ctx.axes:
            grad = _into_half(grad, axis)
        return grad, None


def _into_half(grad: Tensor, axis: int) -> Tensor:
    """Compute the gradient of a map along `axis` from that of the doubled one.

    Of a pair that comes from voxel i, the first is 3/4 of it and 1/4 of voxel i - 1, the second 1/4 of voxel i + 1; at
    the borders, of voxel i itself.
    """
    first, second = grad.unflatten(axis, (-1, 2)).unbind(axis + 1)
    last = first.shape[axis] - 1
    into = 0.75 * (first + second)
    into.narrow(axis, 0, last).add_(first.narrow(axis, 1, last), alpha=0.25)
    into.narrow(axis, 1, last).add_(second.narrow(axis, 0, last), alpha=0.25)
    into.narrow(axis, 0, 1).add_(first.narrow(axis, 0, 1), alpha=0.25)
    into.narrow(axis, last, 1).add_(second.narrow(axis, last, 1), alpha=0.25)
    return into


def bicubic(table: Tensor, factors: tuple[float, float]) -> Tensor:
    """Interpolate a table (B, C, H, W) as `torch.nn.functional.interpolate` does by scale factors, mode bicubic.

    It is a product with a matrix along each axis, which suits small tables.
    """
    with torch.autocast(table.device.type, enabled=False):
        rows, columns = (_weights(side, factor, table) for side, factor in zip(table.shape[2:], factors, strict=True))
        return rows.mT @ table @ columns


def _weights(length: int, factor: float, like: Tensor) -> Tensor:
    """Compute the share (length, floor(length · factor)) of each given number in each new one along one axis."""
    units = torch.eye(length, dtype=like.dtype, device=like.device)[None, :, :, None]
    return functional.interpolate(units, scale_factor=(factor, 1.0), mode="bicubic")[0, :, :, 0]
