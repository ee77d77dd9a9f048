"""nnU-Net's residual encoder U-Net (Isensee et al., arXiv 2404.09556), the network of ResEnc presets and of OpenMind.

Tensors have the names of `ResidualEncoderUNet` in dynamic-network-architectures, without the second names that it gives
to many: its blocks list their layers again as `all_modules`, its decoder holds the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from anatomask.nn.backbones.base import BackboneConfig, ConvolutionalEncoder, Segmenter, classes_of, first_size
from anatomask.nn.backbones.names import Form
from anatomask.nn.backbones.operations import DENSE, NEGATIVE_SLOPE, Operations
from anatomask.nn.recompute import Recomputable

NNUNET = Form(
    "nnU-Net's residual encoder U-Net",
    "encoder.stages.0.blocks.",
    (("", ""),),
    aliases=(
        (r"^decoder\.encoder\.", "encoder."),
        (r"\.all_modules\.0\.", ".conv."),
        (r"\.all_modules\.1\.", ".norm."),
    ),
    axes="zyx",
)


@dataclass(frozen=True)
class ResEncConfig(BackboneConfig):
    """Size of a residual encoder U-Net. Each stage but the first halves the resolution."""

    name = "resenc"
    stem = ("encoder.stem.convs.0.conv.weight",)
    heads = ("decoder.seg_layers",)
    convolutional = True
    forms = (NNUNET,)

    widths: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    """Widths of the stages, from the input on."""
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    """Number of residual blocks of each stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1000, "in_channels", "blocks")
        self.require_range(1, 65_536, "widths")
        if not 2 <= len(self.widths) <= 8 or len(self.blocks) != len(self.widths):
            raise ValueError(
                f"widths and blocks must have one entry for each of 2 to 8 stages, not {self.widths} and {self.blocks}"
            )

    @property
    def exported_note(self) -> str:
        """Warning that the file, whose names are nnU-Net's, does not say how its kernels lie."""
        return (
            "the kernels of these weights lie along (x, y, z), which the file does not say: give --axes xyz when you "
            "import it again"
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the stages relative to the input."""
        return tuple(2**stage for stage in range(len(self.widths)))

    def label(self) -> str:
        """Return the published name of the size, or its widths and blocks."""
        if self.size() == ResEncConfig().size():
            return "ResEnc-L"
        return f"ResEnc (widths {', '.join(map(str, self.widths))}, blocks {', '.join(map(str, self.blocks))})"

    def encoder(self, stages: int | None = None) -> ResEncEncoder:
        """Build the stem and the first `stages` stages, or all."""
        return ResEncEncoder(self, len(self.widths) if stages is None else stages)

    def segmenter(self, classes: int) -> ResEncUNet:
        """Build the segmentation network."""
        return ResEncUNet(self, classes)

    def with_strides(self, strides: Sequence[Sequence[int]]) -> ResEncConfig:
        """Check that nnU-Net plans have the strides of this network: each stage but the first halves all axes.

        Raises:
            ValueError: they have others.
        """
        own = [(1, 1, 1), *[(2, 2, 2)] * (len(self.widths) - 1)]
        if [tuple(axes) for axes in strides] != own:
            words = ", ".join("x".join(map(str, axes)) for axes in strides)
            raise ValueError(
                f"its nnU-Net plans have the strides {words}, with which it would compute something else here: the "
                f"network {self.name} halves all axes in each of its {len(self.widths)} stages but the first"
            )
        return self

    @classmethod
    def of_tensors(cls, form: Form, tensors: Mapping[str, Tensor]) -> tuple[ResEncConfig, int | None, int | None]:
        """Infer channels, widths and blocks; without a decoder, it is a pretrained encoder of all its stages."""
        places = [re.match(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.", name) for name in tensors]
        found = {(int(place[1]), int(place[2])) for place in places if place}
        stages = 1 + max(stage for stage, _ in found)
        widths = tuple(
            first_size(tensors, f"encoder.stages.{stage}.blocks.0.", "conv1.conv.weight") for stage in range(stages)
        )
        blocks = tuple(1 + max(block for at, block in found if at == stage) for stage in range(stages))
        network = cls(tensors[cls.stem[0]].shape[1], widths, blocks)
        if not any(name.startswith("decoder.") for name in tensors):
            return network, stages, None
        return network, None, classes_of(tensors.get(f"decoder.seg_layers.{stages - 2}.weight"))

    def fresh(self, stages: int) -> tuple[str, ...]:
        """List the stages that are not pretrained, and the decoder."""
        return (*(f"encoder.stages.{stage}" for stage in range(stages, len(self.widths))), "decoder")


class ConvNorm(nn.Module):
    """Layers conv – InstanceNorm, which a residual block computes."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.norm = nn.InstanceNorm3d(channels, affine=True)


class ConvBlock(Recomputable, ConvNorm):
    """conv3 – InstanceNorm – leaky ReLU."""

    def forward(self, x: Tensor, operations: Operations = DENSE) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, channels, D, H, W), in the form of `operations`."""
        return self.recomputed(self._compute, x, operations)

    def _compute(self, x: Tensor, operations: Operations) -> Tensor:
        return operations.convolve(x, self.conv, self.norm)


class ConvBlocks(nn.Module):
    """One `ConvBlock`, under the name that it has among several."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvBlock(in_channels, channels)])

    def forward(self, x: Tensor, operations: Operations = DENSE) -> Tensor:
        """Compute the `ConvBlock`."""
        return self.convs[0](x, operations)


class ResidualBlock(Recomputable, nn.Module):
    """conv3 – norm – leaky ReLU – conv3 – norm, plus the skip, then leaky ReLU (BasicBlockD).

    The skip averages 2x2x2 voxels where the block halves the resolution, then is conv1 – norm where it changes width
    (ResNet-D, He et al., arXiv 1812.01187).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = ConvNorm(in_channels, channels, stride=stride)
        self.conv2 = ConvNorm(channels, channels)
        projection = ConvNorm(in_channels, channels, kernel=1, bias=False) if in_channels != channels else None
        self.skip = nn.ModuleDict() if projection is None else nn.ModuleDict({str(stride - 1): projection})

    def forward(self, x: Tensor, operations: Operations = DENSE) -> Tensor:
        """Map (B, in_channels, D, H, W) to (B, channels, D/stride, ...), in the form of `operations`."""
        return self.recomputed(self._compute, x, operations)

    def _compute(self, x: Tensor, operations: Operations) -> Tensor:
        hidden = operations.convolve(x, self.conv1.conv, self.conv1.norm)
        skip = x if self.stride == 1 else operations.pool(x)
        for projection in self.skip.values():
            assert isinstance(projection, ConvNorm)
            skip = operations.normalise(operations.project(skip, projection.conv), projection.norm)
        return operations.convolve(hidden, self.conv2.conv, self.conv2.norm, skip)


class Stage(nn.Module):
    """Residual blocks, the first of which changes width and resolution."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = ResidualBlock(in_channels, channels, stride)
        self.blocks = nn.ModuleList([first, *(ResidualBlock(channels, channels) for _ in range(blocks - 1))])

    def forward(self, x: Tensor, operations: Operations = DENSE) -> Tensor:
        """Compute the blocks one after another."""
        for block in self.blocks:
            x = block(x, operations)
        return x


class ResEncEncoder(ConvolutionalEncoder):
    """Stem and first stages."""

    def __init__(self, config: ResEncConfig, stages: int) -> None:
        super().__init__()
        if not 1 <= stages <= len(config.widths):
            raise ValueError(f"stages must be 1 to {len(config.widths)}, not {stages}")
        self.widths = config.widths[:stages]
        self.strides = config.strides[:stages]
        self.stem = ConvBlocks(config.in_channels, config.widths[0])
        inputs = (config.widths[0], *self.widths)
        self.stages = nn.ModuleList(
            Stage(in_channels, channels, blocks, 1 if stage == 0 else 2)
            for stage, (in_channels, channels, blocks) in enumerate(
                zip(inputs, self.widths, config.blocks, strict=False)
            )
        )
        self.apply(initialise)

    def forward(self, volume: Tensor, operations: Operations = DENSE) -> list[Tensor]:
        """Encode (B, C, D, H, W) into one map per stage, highest resolution first."""
        maps: list[Tensor] = []
        x = self.stem(volume, operations)
        for stage in self.stages:
            x = stage(x, operations)
            maps.append(x)
        return maps

    def parts(self) -> Sequence[nn.Module]:
        """Return stem and first stage as one part, then each other stage."""
        first, *others = self.stages
        return [nn.ModuleList([self.stem, first]), *others]


class Decoder(nn.Module):
    """Decoder levels, coarsest first: transposed convolution, concatenated skip, one convolution, and a head."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        levels = list(pairwise(reversed(widths)))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(below, width, 2, stride=2) for below, width in levels)
        self.stages = nn.ModuleList(ConvBlocks(2 * width, width) for _, width in levels)
        self.seg_layers = nn.ModuleList(nn.Conv3d(width, classes + 1, 1) for _, width in levels)
        self.apply(initialise)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map the encoder's maps to the logits of every level, highest resolution first."""
        logits = [head(x) for head, x in zip(self.seg_layers, self.decode(maps), strict=True)]
        return logits[::-1]

    def decode(self, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield what the heads read, coarsest level first."""
        *skips, x = maps
        for upsample, stage in zip(self.transpconvs, self.stages, strict=True):
            x = stage(torch.cat((upsample(x), skips.pop()), 1))
            yield x


class ResEncUNet(Segmenter):
    """Residual encoder U-Net for segmentation."""

    def __init__(self, config: ResEncConfig, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        self.config = config
        self.classes = classes
        self.encoder = config.encoder()
        self.decoder = Decoder(config.widths, classes)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Predict logits at the strides of all stages but the last; sides are multiples of the largest stride."""
        return self.decoder(self.encoder(volume))

    @property
    def last_head(self) -> nn.Conv3d:
        """Return the head of full resolution."""
        head = self.decoder.seg_layers[-1]
        assert isinstance(head, nn.Conv3d)
        return head

    def before_head(self, volume: Tensor) -> Tensor:
        """Compute the decoder's finest map."""
        for x in self.decoder.decode(self.encoder(volume)):
            finest = x
        return finest

    def without_loss(self) -> Sequence[nn.Module]:
        """Return the head of the coarsest level, unless it is the only one."""
        return [self.decoder.seg_layers[0]] if len(self.decoder.seg_layers) > 1 else []


def initialise(module: nn.Module) -> None:
    """Draw weights as nnU-Net does: Kaiming normal, biases 0, and blocks that begin as their skip alone."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv2.norm.weight)
