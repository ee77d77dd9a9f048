"""Reconstruction decoders: from densified encoder maps to a volume (Table 1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

DecoderName = Literal["hierarchical", "simple"]


class UpsamplingLevel(nn.Module):
    """ConvTranspose(k4, s2, p1) – conv3 – BatchNorm – ReLU6 – conv3 – BatchNorm: twice the resolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose3d(in_channels, in_channels, 4, stride=2, padding=1)
        self.conv1 = nn.Conv3d(in_channels, in_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(in_channels)
        self.conv2 = nn.Conv3d(in_channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) to (B, channels, 2D, 2H, 2W)."""
        x = functional.relu6(self.norm1(self.conv1(self.upsample(x))), inplace=True)
        return self.norm2(self.conv2(x))


class HierarchicalDecoder(nn.Module):
    """Four levels, widths halving, to each of which the encoder's map of that scale is added."""

    scales = 4
    """How many encoder maps it reads, deepest first (strides 16, 8, 4, 2)."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        if width < 16 or width % 16:
            raise ValueError(f"decoder_width must be a multiple of 16, not {width}")
        self.widths = tuple(width >> level for level in range(self.scales))
        self.levels = nn.ModuleList(UpsamplingLevel(channels, channels // 2) for channels in self.widths)
        self.head = nn.Conv3d(width >> self.scales, out_channels, 1)
        self.apply(_initialise)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, width >> i, D/(16 >> i), ...), deepest first, to (B, out_channels, D, H, W)."""
        deepest, *others = maps
        x = self.levels[0](deepest)
        for level, skip in zip(self.levels[1:], others, strict=True):
            x = level(x + skip)
        return self.head(x)


class SimpleDecoder(nn.Module):
    """Two ConvTranspose(k8, s4, p2) – BatchNorm – ReLU6 on the deepest map alone."""

    scales = 1
    """How many encoder maps it reads, deepest first."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        if width < 16 or width % 16:
            raise ValueError(f"decoder_width must be a multiple of 16, not {width}")
        self.widths = (width,)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose3d(channels, channels // 4, 8, stride=4, padding=2),
                nn.BatchNorm3d(channels // 4),
                nn.ReLU6(inplace=True),
            )
            for channels in (width, width // 4)
        )
        self.head = nn.Conv3d(width // 16, out_channels, 1)
        self.apply(_initialise)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map (B, width, D/16, H/16, W/16) to (B, out_channels, D, H, W)."""
        (x,) = maps
        for level in self.levels:
            x = level(x)
        return self.head(x)


def _initialise(module: nn.Module) -> None:
    """The published initialisation: convolutions normal with std 0.02, transposed ones Kaiming fan-out."""
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
