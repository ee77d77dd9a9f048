"""The backend `blocks`: active blocks, gathered with a halo, as batches of ordinary dense convolutions.

Each block is convolved on its own, with what its active neighbours hold along its faces, edges and corners, and zeros
where they are hidden. This gives the same numbers as masking a dense convolution, at the cost of the active share.
Gradients go the same way backwards (gather with a halo, convolve), so nothing is ever added up by scattering.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from anatomask.nn.backbones.base import ConvolutionalEncoder
from anatomask.nn.norms import Pool
from anatomask.nn.precision import autocast_tensors
from anatomask.nn.rows import TAPS, ActiveBlocks, RowMap, encode_rows
from anatomask.nn.sparse import Visible

_LARGEST_GATHERED = 2
"""Edge up to which a block's 27 taps are gathered for one matrix product: windows would be mostly halo there."""


def encode_blocks(
    encoder: ConvolutionalEncoder, volume: Tensor, active: Tensor, pool: Pool, visible: Visible | None
) -> list[RowMap]:
    """Encode the active blocks alone by dense convolutions."""
    return encode_rows(encoder, volume, ActiveBlocks.of(active, visible), pool, convolve)


def convolve(x: Tensor, convolution: nn.Conv3d, blocks: ActiveBlocks, edge: int) -> Tensor:
    """Compute a 3x3x3 convolution of stride 1 or 2 on rows of blocks of `edge` voxels, without its bias."""
    weight, stride = convolution.weight, convolution.stride[0]
    x, weight = autocast_tensors(x, weight)
    out = edge // stride
    if out <= _LARGEST_GATHERED:
        read = blocks.table(edge, (0, edge, stride), TAPS)
    else:
        read = blocks.table(edge, (-1, edge + 2 - stride, 1))
    spread = None if stride == 1 else blocks.table(out, (0, out + 1, 1))
    return _Convolution.apply(x, weight, read, spread, out, stride)


class _Convolution(torch.autograd.Function):
    """Convolution of blocks: `read` gathers its input, `spread` its output's gradient (None: `read` gathers both)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, read: Tensor, spread: Tensor | None, edge: int, stride: int
    ) -> Tensor:
        """Map rows (B, K·(edge·stride)³, C) to rows (B, K·edge³, C')."""
        ctx.save_for_backward(x, weight, read, spread)
        ctx.edge, ctx.stride = edge, stride
        return _correlate(x, weight, read, edge, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, read, spread = ctx.saved_tensors
        (grad,) = grads
        edge, stride = ctx.edge, ctx.stride
        into_x = None
        if ctx.needs_input_grad[0]:
            if spread is None:
                into_x = _correlate(grad, weight.flip(2, 3, 4).transpose(0, 1), read, edge, 1)
            else:
                into_x = _transpose(grad, weight, spread, edge)
        into_weight = _weight_gradient(x, grad, weight, read, edge, stride)
        return into_x, into_weight, None, None, None, None


def _gather(x: Tensor, table: Tensor) -> Tensor:
    """Gather the rows of (B, R, C) that `table` names, (len(table), C); the number B·R means a row of zeros."""
    return functional.pad(x.flatten(0, 1), (0, 0, 0, 1)).index_select(0, table)


def _windows(x: Tensor, table: Tensor, size: int) -> Tensor:
    """Gather blocks with their halo as a batch for dense convolutions, (B·K, C, size, size, size), channels last."""
    return _gather(x, table).view(-1, size, size, size, x.shape[2]).permute(0, 4, 1, 2, 3)


def _window_size(edge: int, stride: int) -> int:
    return edge * stride + 3 - stride


def _correlate(x: Tensor, weight: Tensor, read: Tensor, edge: int, stride: int) -> Tensor:
    channels = weight.shape[0]
    if edge <= _LARGEST_GATHERED:
        taps = _gather(x, read).view(-1, 27 * x.shape[2])
        return (taps @ weight.permute(2, 3, 4, 1, 0).reshape(-1, channels)).view(x.shape[0], -1, channels)
    out = functional.conv3d(_windows(x, read, _window_size(edge, stride)), weight, stride=stride)
    return out.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, channels)


def _transpose(grad: Tensor, weight: Tensor, spread: Tensor, edge: int) -> Tensor:
    """Compute the gradient of a convolution of stride 2 with respect to its input."""
    windows = _windows(grad, spread, edge + 1)
    into = functional.conv_transpose3d(windows, weight, stride=2, padding=1)
    into = into[:, :, : 2 * edge, : 2 * edge, : 2 * edge]
    return into.permute(0, 2, 3, 4, 1).reshape(grad.shape[0], -1, weight.shape[1])


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, read: Tensor, edge: int, stride: int) -> Tensor:
    channels, inputs = weight.shape[:2]
    if edge <= _LARGEST_GATHERED:
        taps = _gather(x, read).view(-1, 27 * inputs)
        return (grad.flatten(0, 1).t() @ taps).view(channels, 3, 3, 3, inputs).permute(0, 4, 1, 2, 3)
    blocks = grad.reshape(-1, edge, edge, edge, channels).permute(0, 4, 1, 2, 3)
    windows = _windows(x, read, _window_size(edge, stride))
    _, into, _ = torch.ops.aten.convolution_backward(
        blocks, windows, weight, None, [stride] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1, [False, True, False]
    )
    return into
