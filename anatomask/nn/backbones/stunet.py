"""STU-Net: the residual U-Net whose encoder AnatoMask pretrains (Huang et al., arXiv 2304.06716)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.backbones.base import BackboneConfig, ConvolutionalEncoder, Segmenter, classes_of, first_size
from anatomask.nn.backbones.names import Form
from anatomask.nn.backbones.operations import DENSE, Operations
from anatomask.nn.recompute import Recomputable

STAGES = 6
"""Number of stages."""
POOLING = (*((2, 2, 2),) * 4, (1, 1, 1))
"""Published strides of stages 2 to 6, along each axis, relative to the stage before."""


AUTOENCODER = Form(
    "AnatoMask or SparK-3D checkpoint",
    "sparse_encoder.sp_cnn.conv_blocks_context.",
    (
        ("sparse_encoder.sp_cnn.conv_blocks_context.{}.{}.conv3.", "encoder.stages.{}.{}.shortcut."),
        ("sparse_encoder.sp_cnn.conv_blocks_context.", "encoder.stages."),
        ("dense_decoder.dec.{}.up_sample.", "decoder.levels.{}.upsample."),
        ("dense_decoder.dec.{}.conv.0.", "decoder.levels.{}.conv1."),
        ("dense_decoder.dec.{}.conv.1.", "decoder.levels.{}.norm1."),
        ("dense_decoder.dec.{}.conv.3.", "decoder.levels.{}.conv2."),
        ("dense_decoder.dec.{}.conv.4.", "decoder.levels.{}.norm2."),
        ("dense_decoder.proj.", "decoder.head."),
        ("densify_norms.{}.", "densify.{}.norm."),
        ("densify_projs.{}.", "densify.{}.projection."),
        ("mask_tokens.{}", "densify.{}.token"),
    ),
    unread=r"(densify_norms|densify_projs|mask_tokens)\.4(\.|$)",  # full resolution
    axes="zyx",
)
PUBLISHED_STUNET = Form(
    "STU-Net's weights",
    "conv_blocks_context.",
    (
        ("conv_blocks_context.{}.{}.conv3.", "encoder.stages.{}.{}.shortcut."),
        ("conv_blocks_context.", "encoder.stages."),
        ("upsample_layers.{}.conv.", "upsample.{}."),
        ("conv_blocks_localization.{}.{}.conv3.", "decoder.{}.{}.shortcut."),
        ("conv_blocks_localization.", "decoder."),
        ("seg_outputs.", "heads."),
    ),
    axes="zyx",
)
OWN_NAMES = Form("state dict of anatomask.nn.backbones.stunet.STUNet", "encoder.stages.0.0.", (("", ""),))


@dataclass(frozen=True)
class STUNetConfig(BackboneConfig):
    """Size of an STU-Net."""

    name = "stunet"
    stem = ("encoder.stages.0.0.conv1.weight", "encoder.stages.0.0.shortcut.weight")
    heads = ("heads",)
    convolutional = True
    forms = (AUTOENCODER, PUBLISHED_STUNET, OWN_NAMES)

    base: int = 32
    """Width of the first stage; stages are base x (1, 2, 4, 8, 16, 16) wide."""
    depth: int = 1
    """Number of residual blocks per stage."""
    widths: tuple[int, int, int, int, int, int] | None = None
    """Widths of the six stages. Default: those that follow from base."""
    pooling: tuple[tuple[int, int, int], ...] | None = None
    """Strides of stages 2 to 6 relative to the stage before: three numbers each, for axes 0, 1 and 2. Default: 2 2 2
    four times, then 1 1 1, as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1000, "in_channels", "depth")
        self.require_range(1, 4096, "base")
        self.require_range(1, 65_536, "widths")
        if self.widths is not None and len(self.widths) != STAGES:
            raise ValueError(f"widths must be six positive numbers, not {self.widths}")
        if self.pooling is not None and (
            len(self.pooling) != STAGES - 1
            or any(len(axes) != 3 or not all(1 <= stride <= 4 for stride in axes) for axes in self.pooling)
        ):
            raise ValueError(f"pooling must be three strides of 1 to 4 for each of stages 2 to 6, not {self.pooling}")

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Widths of the six stages."""
        return self.widths or tuple(self.base * factor for factor in (1, 2, 4, 8, 16, 16))

    def label(self) -> str:
        """Return the name in tables: STU-Net-B for a published size, else widths and depth; and other strides."""
        strides = "" if self.stage_strides[1:] == POOLING else f"strides {self.strides_in_words()}"
        for letter, size in SIZES.items():
            if (size.stage_widths, size.depth) == (self.stage_widths, self.depth):
                return f"STU-Net-{letter.upper()}" + (f" ({strides})" if strides else "")
        widths = f"base {self.base}" if self.widths is None else f"widths {', '.join(map(str, self.widths))}"
        return f"STU-Net ({widths}, depth {self.depth}{strides and ', '}{strides})"

    @property
    def stage_strides(self) -> tuple[tuple[int, int, int], ...]:
        """Strides of the six stages relative to the stage before, along each axis."""
        return ((1, 1, 1), *(self.pooling or POOLING))

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the six stages relative to the input, along the axis where they are largest."""
        return tuple(map(max, self.axis_strides))

    @property
    def axis_strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides of the six stages relative to the input, along each axis."""
        axes = [accumulate(strides, mul) for strides in zip(*self.stage_strides, strict=True)]
        return tuple(zip(*axes, strict=True))

    def with_strides(self, strides: Sequence[Sequence[int]]) -> STUNetConfig:
        """Take the strides of nnU-Net plans as STU-Net's trainers do: the first is 1, more than six are cut off.

        Stages for which the plans have none change no resolution.
        """
        padded = [*strides[1:], *[(1, 1, 1)] * STAGES][: STAGES - 1]
        pooling = tuple((a, b, c) for a, b, c in padded)
        return replace(self, pooling=None if pooling == POOLING else pooling)

    def encoder(self, stages: int | None = None) -> STUNetEncoder:
        """Build the contracting path, or its first `stages` stages."""
        return STUNetEncoder(self, STAGES if stages is None else stages)

    def segmenter(self, classes: int) -> STUNet:
        """Build the segmentation network."""
        return STUNet(self, classes)

    def fresh(self, stages: int) -> tuple[str, ...]:
        """List the stages that are not pretrained, and the decoder."""
        left = range(stages, STAGES)
        return (*(f"encoder.stages.{stage}" for stage in left), "upsample", "decoder", "heads")

    @classmethod
    def of_tensors(cls, form: Form, tensors: Mapping[str, Tensor]) -> tuple[STUNetConfig, int | None, int | None]:
        """Infer channels, widths and depth; a published pretraining has the five stages of patches of 16 voxels."""
        stages = cls().pretrained_stages(patch=16)
        whole = form is not AUTOENCODER and not all(
            re.match(rf"encoder\.stages\.[0-{stages - 1}]\.", n) for n in tensors
        )
        count = STAGES if whole else stages
        places = [re.match(r"encoder\.stages\.(\d+)\.(\d+)\.", name) for name in tensors]
        blocks = {(int(place[1]), int(place[2])) for place in places if place}
        depths = {max((b for s, b in blocks if s == stage), default=-1) + 1 for stage in range(count)}
        widths = [first_size(tensors, f"encoder.stages.{stage}.0.", "conv1.weight") for stage in range(count)]
        stem = next((tensors[name] for name in cls.stem if name in tensors), None)
        if stem is None:
            raise KeyError(cls.stem[0])
        if len(depths) != 1:
            raise ValueError(f"stages of different depth ({sorted(depths)}) are no STU-Net")
        network = STUNetConfig(in_channels=stem.shape[1], base=widths[0], depth=depths.pop())
        if list(network.stage_widths[:count]) != widths:
            a, b, c, d, e, f = [*widths, widths[-1]][:STAGES]
            network = replace(network, widths=(a, b, c, d, e, f))
        return network, None if whole else stages, classes_of(tensors.get(f"heads.{STAGES - 2}.weight"))

    def size(self) -> dict[str, Any]:
        """Return the widths, which follow from base or are given, the depth, and strides other than the published."""
        pooling = self.stage_strides[1:]
        return {"widths": self.stage_widths, "depth": self.depth} | ({} if pooling == POOLING else {"pooling": pooling})

    def pretrained_stages(self, patch: int) -> int:
        """Count the stages that pretraining trains when hidden patches are `patch` voxels wide.

        A stage is trained if a patch is at least one voxel wide at its resolution, and if it changes the resolution:
        four stages (strides 1 to 8) for patches of 8 voxels, five (1 to 16) for those of 16 and 32.

        Raises:
            ValueError: one of the first five stages has other strides than those published.
        """
        if self.stage_strides[:-1] != STUNetConfig().stage_strides[:-1]:
            raise ValueError(
                "network.pooling must begin with 2 2 2 four times in pretraining, whose patches are cubes, not "
                f"{self.pooling}; only the last stage may have other strides"
            )
        return sum(stride <= patch for stride in self.strides[:-1])


SIZES = {
    "s": STUNetConfig(base=16, depth=1),
    "b": STUNetConfig(base=32, depth=1),
    "l": STUNetConfig(base=64, depth=2),
    "h": STUNetConfig(base=96, depth=3),
}
"""Published sizes, by their letter."""


class ResidualBlock(Recomputable, nn.Module):
    """conv3 – InstanceNorm – leaky ReLU – conv3 – InstanceNorm, plus the shortcut, then leaky ReLU."""

    def __init__(
        self, in_channels: int, channels: int, stride: int | tuple[int, int, int] = 1, projection: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 3, stride=stride, padding=1)
        self.norm1 = nn.InstanceNorm3d(channels, affine=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(channels, affine=True)
        self.shortcut = nn.Conv3d(in_channels, channels, 1, stride=stride) if projection else None

    def forward(self, x: Tensor, operations: Operations = DENSE) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, channels, D/stride, ...), in the form of `operations`."""
        return self.recomputed(self._compute, x, operations)

    def _compute(self, x: Tensor, operations: Operations) -> Tensor:
        hidden = operations.convolve(x, self.conv1, self.norm1)
        skip = x if self.shortcut is None else operations.project(x, self.shortcut)
        return operations.convolve(hidden, self.conv2, self.norm2, skip)


def _stage(in_channels: int, channels: int, depth: int, stride: int | tuple[int, int, int] = 1) -> nn.Sequential:
    """Build `depth` residual blocks, the first of which changes width and resolution."""
    first = ResidualBlock(in_channels, channels, stride, projection=True)
    return nn.Sequential(first, *(ResidualBlock(channels, channels) for _ in range(depth - 1)))


class STUNetEncoder(ConvolutionalEncoder):
    """Contracting path: `stages` = 6 for segmentation, `pretrained_stages` for pretraining."""

    def __init__(self, config: STUNetConfig, stages: int = STAGES) -> None:
        super().__init__()
        if not 1 <= stages <= STAGES:
            raise ValueError(f"stages must be 1 to {STAGES}, not {stages}")
        self.widths = config.stage_widths[:stages]
        self.strides = config.strides[:stages]
        inputs = (config.in_channels, *self.widths)
        self.stages = nn.ModuleList(
            _stage(in_channels, channels, config.depth, stride)
            for in_channels, channels, stride in zip(inputs, self.widths, config.stage_strides, strict=False)
        )

    def forward(self, volume: Tensor, operations: Operations = DENSE) -> list[Tensor]:
        """Encode (B, C, D, H, W), sides multiples of the strides, into one map per stage, highest resolution first."""
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
    """Segmentation network. Its `encoder` has the names of the pretrained one, so stages 1 to 5 match by name."""

    def __init__(self, config: STUNetConfig, classes: int) -> None:
        """Build the network; `classes` counts the structures, and the background is one output more."""
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
        """Predict logits at the strides of stages 5 to 1 of (B, C, D, H, W), sides as `check_crop` accepts them."""
        logits = [head(x) for head, x in zip(self.heads, self._decode(volume), strict=True)]
        return logits[::-1]

    @property
    def last_head(self) -> nn.Conv3d:
        """Return the head of full resolution."""
        head = self.heads[-1]
        assert isinstance(head, nn.Conv3d)
        return head

    def before_head(self, volume: Tensor) -> Tensor:
        """Compute the decoder's finest map."""
        for x in self._decode(volume):
            finest = x
        return finest

    def _decode(self, volume: Tensor) -> Iterator[Tensor]:
        """Yield the decoder's maps, coarsest first."""
        *skips, x = self.encoder(volume)
        for convolution, stage in zip(self.upsample, self.decoder, strict=True):
            skip = skips.pop()
            # A 1x1 convolution and nearest-neighbour upsampling commute: convolving first is 8 times cheaper.
            x = functional.interpolate(convolution(x), size=skip.shape[2:], mode="nearest")
            x = stage(torch.cat((x, skip), dim=1))
            yield x

    def without_loss(self) -> Sequence[nn.Module]:
        """Return the head of stride 16."""
        return [self.heads[0]]
