"""InstanceNorm, a skip connection and leaky ReLU as one node of the autograd graph, on channels-last maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from anatomask.nn.norms import Pool, pooled, widened


def norm_activation(
    x: Tensor,
    norm: nn.InstanceNorm3d,
    cancelled: Tensor | None,
    skip: Tensor | None,
    slope: float,
    used: Tensor | None = None,
    pool: Pool = "sample",
) -> Tensor:
    """Compute InstanceNorm of `x` (B, K, V, C) over K parts of V voxels, add `skip`, then apply leaky ReLU.

    Args:
        x: output of a convolution, without its bias.
        norm: affine parameters and eps.
        cancelled: that bias, which the norm cancels, so that its gradient is exactly zero. None: the layer has no bias.
        skip: tensor of the shape of `x`. None: nothing is added.
        slope: slope of the leaky ReLU below zero; 1 means no activation.
        used: (B, K, 1, 1) bool, the parts that count; the others are left undefined. None: all count.
        pool: samples over which statistics are pooled.
    """
    return _NormActivation.apply(x, norm.weight, norm.bias, cancelled, skip, used, norm.eps, slope, pool)


class _NormActivation(torch.autograd.Function):
    """Autograd function that keeps only what its backward pass needs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        cancelled: Tensor | None,
        skip: Tensor | None,
        used: Tensor | None,
        eps: float,
        slope: float,
        pool: Pool,
    ) -> Tensor:
        dims = (1, 2) if pool == "sample" else (0, 1, 2)
        wide = widened(x)
        voxels = x.shape[1] * x.shape[2] * (1 if pool == "sample" else x.shape[0])
        count: Tensor | int = voxels
        if used is not None:
            count = pooled(used.sum(dims, keepdim=True).to(wide.dtype) * x.shape[2], pool).clamp_min(1)
            wide = torch.where(used, wide, 0)
        elif pool == "workers":
            count = pooled(wide.new_full((1, 1, 1, 1), voxels), pool)
        mean = pooled(wide.sum(dims, keepdim=True), pool) / count
        centred = wide - mean if wide.dtype == x.dtype else wide.sub_(mean)  # in the copy that widening made
        if used is not None:
            centred = torch.where(used, centred, 0)
        deviation = torch.rsqrt(pooled((centred * centred).sum(dims, keepdim=True), pool) / count + eps)
        y = centred.mul_(deviation * weight).add_(bias)
        if skip is not None:
            y.add_(skip)
        if slope != 1:
            functional.leaky_relu_(y, slope)
        y = y.to(x.dtype)
        ctx.save_for_backward(x, weight, cancelled, used, mean, deviation, y if slope != 1 else None)
        ctx.slope, ctx.dims, ctx.count, ctx.pool, ctx.skips = slope, dims, count, pool, skip is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cancelled, used, mean, deviation, y = ctx.saved_tensors
        (grad,) = grads
        if ctx.slope != 1:
            grad = torch.ops.aten.leaky_relu_backward(grad, y, ctx.slope, True)
        wide = widened(grad)
        standard = (widened(x) - mean).mul_(deviation)
        if used is not None:
            wide, standard = torch.where(used, wide, 0), torch.where(used, standard, 0)
        bias_sum = wide.sum(ctx.dims, keepdim=True)
        weight_sum = (wide * standard).sum(ctx.dims, keepdim=True)
        per_channel = (weight_sum.flatten(0, 2).sum(0), bias_sum.flatten(0, 2).sum(0))
        bias_sum, weight_sum = pooled(bias_sum, ctx.pool), pooled(weight_sum, ctx.pool)
        into = (wide - bias_sum / ctx.count).addcmul_(standard, weight_sum / -ctx.count).mul_(deviation * weight)
        if used is not None:
            into = torch.where(used, into, 0)
        no_bias = None if cancelled is None else torch.zeros_like(cancelled)
        return into.to(x.dtype), *per_channel, no_bias, grad if ctx.skips else None, None, None, None, None
