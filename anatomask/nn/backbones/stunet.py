"""STU-Net: the residual U-Net whose encoder AnatoMask pretrains (Huang et al., arXiv 2304.06716)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.backbones.base import BackboneConfig, ConvolutionalEncoder, Segmenter
from anatomask.nn.backbones.operations import DENSE, Operations
from anatomask.nn.recompute import Recomputable

STAGE_STRIDES = (1, 2, 2, 2, 2, 1)
"""Stride of each stage relative to the one before."""
STRIDES = tuple(accumulate(STAGE_STRIDES, mul))
"""Stride of each stage relative to the input: 1, 2, 4, 8, 16, 16."""


@dataclass(frozen=True)
class STUNetConfig(BackboneConfig):
    """Size of an STU-Net."""

    name = "stunet"
    stem = ("encoder.stages.0.0.conv1.weight", "encoder.stages.0.0.shortcut.weight")
    heads = ("heads",)
    convolutional = True

    base: int = 32
    """Width of the first stage; stages are base x (1, 2, 4, 8, 16, 16) wide."""
    depth: int = 1
    """Residual blocks per stage."""
    widths: tuple[int, int, int, int, int, int] | None = None
    """Widths of the six stages, where they are not those that follow from base."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1000, "in_channels", "depth")
        self.require_range(1, 4096, "base")
        self.require_range(1, 65_536, "widths")
        if self.widths is not None and len(self.widths) != len(STAGE_STRIDES):
            raise ValueError(f"widths must be six positive numbers, not {self.widths}")

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Widths of the six stages."""
        return self.widths or tuple(self.base * factor for factor in (1, 2, 4, 8, 16, 16))

    def label(self) -> str:
        """What tables call a network of this size: a published size by its letter, STU-Net-B."""
        for letter, size in SIZES.items():
            if (size.stage_widths, size.depth) == (self.stage_widths, self.depth):
                return f"STU-Net-{letter.upper()}"
        widths = f"base {self.base}" if self.widths is None else f"widths {', '.join(map(str, self.widths))}"
        return f"STU-Net ({widths}, depth {self.depth})"

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the six stages relative to the input."""
        return STRIDES

    def encoder(self, stages: int | None = None) -> STUNetEncoder:
        """Build the contracting path, or its first `stages` stages."""
        return STUNetEncoder(self, len(STAGE_STRIDES) if stages is None else stages)

    def segmenter(self, classes: int) -> STUNet:
        """Build the segmentation network."""
        return STUNet(self, classes)

    def fresh(self, stages: int) -> tuple[str, ...]:
        """List the stages that are left, and the decoder."""
        left = range(stages, len(STAGE_STRIDES))
        return (*(f"encoder.stages.{stage}" for stage in left), "upsample", "decoder", "heads")

    def size(self) -> dict[str, Any]:
        """Return widths, which base and widths both may give, and depth."""
        return {"widths": self.stage_widths, "depth": self.depth}

    def pretrained_stages(self, patch: int) -> int:
        """Count the stages that pretraining trains when hidden patches are `patch` voxels wide.

        A stage is trained if a patch is at least one voxel wide at its resolution, and if it changes the resolution:
        four stages (strides 1 to 8) for patches of 8 voxels, five (1 to 16) for those of 16 and 32.
        """
        return sum(stride <= patch for stride in STRIDES[:-1])


SIZES = {
    "s": STUNetConfig(base=16, depth=1),
    "b": STUNetConfig(base=32, depth=1),
    "l": STUNetConfig(base=64, depth=2),
    "h": STUNetConfig(base=96, depth=3),
}
"""The published sizes."""


class ResidualBlock(Recomputable, nn.Module):
    """conv3 – InstanceNorm – leaky ReLU – conv3 – InstanceNorm, plus the shortcut, then leaky ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, projection: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 3, stride=stride, padding=1)
        self.norm1 = nn.InstanceNorm3d(channels, affine=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(channels, affine=True)
        self.shortcut = nn.Conv3d(in_channels, channels, 1, stride=stride) if projection else None

    def forward(self, x: Tensor, operations: Operations = DENSE) -> Tensor:
        """(B, in_channels, D, H, W) to (B, channels, D/stride, ...), or the same in another form of `operations`."""
        return self.recomputed(self._compute, x, operations)

    def _compute(self, x: Tensor, operations: Operations) -> Tensor:
        hidden = operations.convolve(x, self.conv1, self.norm1)
        skip = x if self.shortcut is None else operations.project(x, self.shortcut)
        return operations.convolve(hidden, self.conv2, self.norm2, skip)


def _stage(in_channels: int, channels: int, depth: int, stride: int = 1) -> nn.Sequential:
    """`depth` residual blocks, the first of which changes width and resolution."""
    first = ResidualBlock(in_channels, channels, stride, projection=True)
    return nn.Sequential(first, *(ResidualBlock(channels, channels) for _ in range(depth - 1)))


class STUNetEncoder(ConvolutionalEncoder):
    """The contracting path: `stages` = 6 for segmentation, `pretrained_stages` for pretraining."""

    def __init__(self, config: STUNetConfig, stages: int = len(STAGE_STRIDES)) -> None:
        super().__init__()
        if not 1 <= stages <= len(STAGE_STRIDES):
            raise ValueError(f"stages must be 1 to {len(STAGE_STRIDES)}, not {stages}")
        self.widths = config.stage_widths[:stages]
        self.strides = STRIDES[:stages]
        inputs = (config.in_channels, *self.widths)
        self.stages = nn.ModuleList(
            _stage(in_channels, channels, config.depth, stride)
            for in_channels, channels, stride in zip(inputs, self.widths, STAGE_STRIDES, strict=False)
        )

    def forward(self, volume: Tensor, operations: Operations = DENSE) -> list[Tensor]:
        """(B, C, D, H, W) to one map per stage, highest resolution first. Sides are multiples of 16."""
        maps: list[Tensor] = []
        x = volume
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, operations)
            maps.append(x)
        return maps

    def parts(self) -> Sequence[nn.Module]:
        """Return the stages."""
        return list(self.stages)


class STUNet(Segmenter):
    """The segmentation network. Its `encoder` has the names of the pretrained one, so stages 1 to 5 match by name."""

    def __init__(self, config: STUNetConfig, classes: int) -> None:
        """`classes` counts the structures; the background is one output more."""
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        self.config = config
        self.classes = classes
        self.encoder = STUNetEncoder(config)
        widths = self.encoder.widths
        levels = list(reversed(range(len(widths) - 1)))
        self.upsample = nn.ModuleList(nn.Conv3d(widths[level + 1], widths[level], 1) for level in levels)
        self.decoder = nn.ModuleList(_stage(2 * widths[level], widths[level], config.depth) for level in levels)
        self.heads = nn.ModuleList(nn.Conv3d(widths[level], classes + 1, 1) for level in levels)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Logits at strides 1, 2, 4, 8 and 16 of (B, C, D, H, W), whose sides are multiples of 16 from 32 on."""
        *skips, x = self.encoder(volume)
        logits: list[Tensor] = []
        for index, (convolution, stage, head) in enumerate(zip(self.upsample, self.decoder, self.heads, strict=True)):
            skip = skips[-1 - index]
            # A 1x1 convolution and nearest-neighbour upsampling commute: convolving first is 8 times cheaper.
            x = functional.interpolate(convolution(x), size=skip.shape[2:], mode="nearest")
            x = stage(torch.cat((x, skip), dim=1))
            logits.insert(0, head(x))
        return logits

    def without_loss(self) -> Sequence[nn.Module]:
        """Return the head of stride 16."""
        return [self.heads[0]]
