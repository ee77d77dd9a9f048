"""Transposed convolutions with fast gradients: cuDNN's are very slow where there are many channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from anatomask.nn.precision import autocast_tensors

_MOST_CHANNELS_FOR_CUDNN = 128
"""Number of channels above which cuDNN 9 has no tensor-core kernel for the gradients: see docs/results/speed.md."""


class Upsampling3d(nn.ConvTranspose3d):
    """Transposed convolution to `stride` times the resolution, whose kernel is twice the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 2 * stride, stride=stride, padding=stride // 2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, out_channels, D·stride, H·stride, W·stride)."""
        if not x.is_cuda or self.in_channels <= _MOST_CHANNELS_FOR_CUDNN:
            return super().forward(x, output_size)
        assert self.bias is not None
        x, weight, bias = autocast_tensors(x, self.weight, self.bias)
        return upsample(x, weight, bias, self.stride[0])


def upsample(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Compute `Upsampling3d` by a function whose gradients are ordinary convolutions of edge 2.

    Every output voxel reads two input voxels along each axis. So, with the output's gradient cut into blocks of stride³
    voxels that become channels, the gradients are those of a convolution of edge 2 and stride 1.
    """
    return _Upsample.apply(x, weight, bias, stride)


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv_transpose3d(x, weight, bias, stride=stride, padding=stride // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        inputs, channels = weight.shape[:2]
        s = ctx.stride
        last = functional.pad(grad.permute(0, 2, 3, 4, 1), (0, 0, *[s // 2] * 6))
        batch, d, h, w = last.shape[0], *(side // s for side in last.shape[1:4])
        blocks = last.view(batch, d, s, h, s, w, s, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
        blocks = blocks.reshape(batch, d, h, w, -1).permute(0, 4, 1, 2, 3)
        # A tap of the transposed kernel is q·s + r: q in {0, 1} is a tap here, r a place in the block.
        kernel = weight.view(inputs, channels, 2, s, 2, s, 2, s).permute(0, 3, 5, 7, 1, 2, 4, 6)
        kernel = kernel.reshape(inputs, -1, 2, 2, 2).contiguous(memory_format=torch.channels_last_3d)
        _, into_kernel, _ = torch.ops.aten.convolution_backward(
            x, blocks, kernel, None, [1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1, [False, True, False]
        )
        into_weight = into_kernel.view(inputs, s, s, s, channels, 2, 2, 2).permute(0, 4, 5, 1, 6, 2, 7, 3)
        return functional.conv3d(blocks, kernel), into_weight.reshape(weight.shape), grad.sum((0, 2, 3, 4)), None
