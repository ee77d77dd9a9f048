"""Sparse backends by name, and the choice of the faster one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from anatomask.nn.backbones.base import ConvolutionalEncoder
from anatomask.nn.blocks import encode_blocks
from anatomask.nn.norms import Pool
from anatomask.nn.sparse import SparseMap, Visible, encode_dense
from anatomask.nn.submanifold import encode_spconv

SparseEncode = Callable[[ConvolutionalEncoder, Tensor, Tensor, Pool, Visible | None], Sequence[SparseMap]]
"""Type of a backend: (encoder, volume (B, C, D, H, W), active (B, d, h, w), pool, visible) to one map per stage.

All give the same maps from the same weights; they differ in what they compute. `visible` bounds the number of active
patches of a sample, where it is known.
"""

BACKENDS: dict[str, SparseEncode] = {"dense": encode_dense, "blocks": encode_blocks, "spconv": encode_spconv}
"""Backends by name. A new one is a function in a file of its own and a line here."""

BackendName = Literal["auto", "dense", "blocks", "spconv"]
"""Names that a configuration may give."""

LARGEST_SHARE_FOR_BLOCKS = 0.9
"""Share of visible patches up to which `blocks` is faster than `dense`: see docs/results/speed.md."""


def choose_backend(mask_ratio: float) -> Literal["dense", "blocks"]:
    """Choose the faster backend for a share `mask_ratio` of hidden patches.

    The choice depends on nothing else, so that the same run computes the same on every start.
    """
    return "blocks" if 1 - mask_ratio <= LARGEST_SHARE_FOR_BLOCKS else "dense"
