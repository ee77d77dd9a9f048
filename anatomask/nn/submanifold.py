"""The backend `spconv`: spconv's submanifold convolutions, from the extra `anatomask[spconv]`.

It computes in float32 always: spconv knows no bfloat16, and half precision overflows without loss scaling.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from anatomask.nn.backbones.base import ConvolutionalEncoder
from anatomask.nn.norms import Pool
from anatomask.nn.rows import TAPS, ActiveBlocks, RowMap, encode_rows
from anatomask.nn.sparse import Visible


def encode_spconv(
    encoder: ConvolutionalEncoder, volume: Tensor, active: Tensor, pool: Pool, visible: Visible | None
) -> list[RowMap]:
    """Encode the active voxels alone by spconv's convolutions."""
    return encode_rows(encoder, volume, ActiveBlocks.of(active, visible), pool, convolve)


def convolve(x: Tensor, convolution: nn.Conv3d, blocks: ActiveBlocks, edge: int) -> Tensor:
    """Compute a 3x3x3 convolution of stride 1 or 2 on rows of blocks of `edge` voxels, without its bias."""
    spconv, stride = require_spconv(), convolution.stride[0]
    features = _unused_zeroed(x.float(), blocks)
    weight = convolution.weight.float().permute(0, 2, 3, 4, 1).contiguous()
    with torch.autocast(x.device.type, enabled=False):
        if stride == 1:
            coordinates = blocks.coordinates(edge)
            shape = [side * edge for side in blocks.grid]
            _, pairs, counts = spconv.ops.get_indice_pairs(
                coordinates, blocks.batch, shape, spconv.native, [3] * 3, [1] * 3, [1] * 3, [1] * 3, [0] * 3, subm=True
            )
            run = spconv.functional.indice_subm_conv
        else:
            pairs, counts = _strided_pairs(blocks, edge)
            run = spconv.functional.indice_conv
        rows = blocks.batch * blocks.slots * (edge // stride) ** 3
        out = run(features.flatten(0, 1).contiguous(), weight, pairs, counts, rows, spconv.native)
    return out.view(blocks.batch, -1, out.shape[1])


def require_spconv() -> SimpleNamespace:
    """Import the parts of spconv that are used.

    Without CUDA, spconv's backward pass still asks for a CUDA stream, and is given none.

    Raises:
        ModuleNotFoundError: spconv is not installed; the message names the remedy.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch, about how spconv calls it
            import spconv.pytorch.functional as functional
            from spconv.core import ConvAlgo
            from spconv.pytorch import ops
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the backend spconv needs spconv: pip install 'anatomask[spconv]'") from error
    if not torch.cuda.is_available():
        ops.get_current_stream = lambda: 0
    return SimpleNamespace(ops=ops, functional=functional, native=ConvAlgo.Native)


def _unused_zeroed(x: Tensor, blocks: ActiveBlocks) -> Tensor:
    """Set rows in unused slots to zero: they hold arbitrary values, which spconv would pass to their neighbours."""
    if blocks.used is None:
        return x
    return torch.where(blocks.used, x.view(blocks.batch, blocks.slots, -1, x.shape[2]), 0).view_as(x)


def _strided_pairs(blocks: ActiveBlocks, edge: int) -> tuple[Tensor, Tensor]:
    """List, for each tap of a convolution of stride 2, which row it reads for which output row: (2, 27, rows).

    The second result counts them, (27,). spconv's own pairs reach every voxel that a tap touches, where submanifold
    outputs are those of active patches alone.
    """
    table = blocks.table(edge, (0, edge, 2), TAPS).view(-1, 27).t()
    present = table < blocks.batch * blocks.slots * edge**3
    outputs = present.int().argsort(dim=1, descending=True, stable=True)
    pairs = torch.stack((table.gather(1, outputs), outputs.int()))
    return pairs.contiguous(), present.sum(1).int()
