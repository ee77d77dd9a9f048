"""Order of the axes along which kernels lie: here (x, y, z), in nnU-Net's programs, whose arrays are so, (z, y, x)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from anatomask.nn.backbones.names import Axes

AXES = "axes"
"""Key of the order of axes in exported files that are not in ours."""
IN_WORDS: Mapping[Axes, str] = {"xyz": "x, y, z", "zyx": "z, y, x"}


def turned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reverse the spatial axes of all kernels (O, I, D, H, W); other tensors stay as they are."""
    return {
        name: tensor.transpose(2, 4).contiguous() if tensor.dim() == 5 else tensor for name, tensor in tensors.items()
    }


def turned_strides(strides: Iterable[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """Reverse the axes of the strides of each stage."""
    return tuple((c, b, a) for a, b, c in strides)
