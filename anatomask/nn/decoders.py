"""Reconstruction decoders: from densified encoder maps to a volume (Table 1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.norms import BatchNorm3d, RunningStatistics
from anatomask.nn.recompute import Recomputable
from anatomask.nn.upsampling import Upsampling3d

DecoderName = Literal["hierarchical", "simple"]


class UpsamplingLevel(Recomputable, nn.Module):
    """ConvTranspose(k4, s2, p1) – conv3 – BatchNorm – ReLU6 – conv3 – BatchNorm: twice the resolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.upsample = Upsampling3d(in_channels, in_channels, stride=2)
        self.conv1 = nn.Conv3d(in_channels, in_channels, 3, padding=1, bias=False)
        self.norm1 = BatchNorm3d(in_channels)
        self.conv2 = nn.Conv3d(in_channels, channels, 3, padding=1, bias=False)
        self.norm2 = BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, channels, 2D, 2H, 2W)."""
        x, first, second = self.recomputed(self._compute, x)
        self.norm1.track(first)
        self.norm2.track(second)
        return x

    def _compute(self, x: Tensor) -> tuple[Tensor, RunningStatistics, RunningStatistics]:
        x, first = self.norm1.normalise(self.conv1(self.upsample(x)))
        x, second = self.norm2.normalise(self.conv2(functional.relu6(x, inplace=True)))
        return x, first, second


class HierarchicalDecoder(nn.Module):
    """Levels of halving widths; the encoder's map of the same scale is added to each. Four levels from stride 16."""

    def __init__(self, width: int, out_channels: int, stride: int = 16) -> None:
        """Build the levels; the deepest, of `width` channels, reads the encoder's map of `stride`."""
        super().__init__()
        _check_width(width, stride)
        levels = stride.bit_length() - 1
        self.widths = tuple(width >> level for level in range(levels))
        self.levels = nn.ModuleList(UpsamplingLevel(channels, channels // 2) for channels in self.widths)
        self.head = nn.Conv3d(width >> levels, out_channels, 1)
        self.apply(_initialise)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map maps (B, width >> i, D/(stride >> i), ...), deepest first, to (B, out_channels, D, H, W)."""
        deepest, *others = maps
        x = self.levels[0](deepest)
        for level, skip in zip(self.levels[1:], others, strict=True):
            x = level(x + skip)
        return self.head(x)


class SimpleLevel(Recomputable, nn.Sequential):
    """ConvTranspose (kernel twice the stride) – BatchNorm – ReLU6: `stride` times the resolution."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(Upsampling3d(in_channels, channels, stride), BatchNorm3d(channels), nn.ReLU6(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, channels, stride·D, stride·H, stride·W)."""
        x, running = self.recomputed(self._compute, x)
        cast(BatchNorm3d, self[1]).track(running)
        return x

    def _compute(self, x: Tensor) -> tuple[Tensor, RunningStatistics]:
        x, running = cast(BatchNorm3d, self[1]).normalise(self[0](x))
        return self[2](x), running


class SimpleDecoder(nn.Module):
    """Two levels on the deepest map alone: the first upsamples four times, the second by the rest of the stride."""

    def __init__(self, width: int, out_channels: int, stride: int = 16) -> None:
        """Build the levels; the first reads the encoder's map of `stride`, of `width` channels."""
        super().__init__()
        _check_width(width, stride)
        self.widths = (width,)
        rest = stride // 4
        self.levels = nn.ModuleList(
            (SimpleLevel(width, width // 4, 4), SimpleLevel(width // 4, width // 4 // rest, rest))
        )
        self.head = nn.Conv3d(width // stride, out_channels, 1)
        self.apply(_initialise)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map one map (B, width, D/stride, H/stride, W/stride) to (B, out_channels, D, H, W)."""
        (x,) = maps
        for level in self.levels:
            x = level(x)
        return self.head(x)


def _check_width(width: int, stride: int) -> None:
    multiple = max(16, stride)
    if width < multiple or width % multiple:
        raise ValueError(f"decoder_width must be a multiple of {multiple}, not {width}")


def _initialise(module: nn.Module) -> None:
    """Draw weights as published: convolutions normal with std 0.02, transposed ones Kaiming fan-out."""
    if isinstance(module, nn.Conv3d):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


DECODERS: dict[str, type[HierarchicalDecoder] | type[SimpleDecoder]] = {
    "hierarchical": HierarchicalDecoder,
    "simple": SimpleDecoder,
}
