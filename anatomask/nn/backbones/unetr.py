"""UNETR (Hatamizadeh et al., arXiv 2103.10504) as SelfMedMAE finetunes it: a ViT that keeps its class token.

The transformer is that of timm 0.4.12, pre-norm with exact GELU and every LayerNorm at 1e-6; the decoder is made of
MONAI's blocks. Tensors have the names of `UNETR3D` in cvlab-stonybrook/SelfMedMAE (commit 21f38b1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.backbones.base import BackboneConfig, Encoder, Segmenter, classes_of
from anatomask.nn.backbones.names import Form
from anatomask.nn.transformer import LAYER_NORM_EPS, Block, grid_of, initialise

PATCH = 16
"""Edge of a patch in voxels, which the decoder's four transposed convolutions undo."""
HEAD_WIDTH = 64
"""Channels of an attention head in the published sizes of ViTs."""
POSITIONS = "encoder.pos_embed"
"""Name of the table of positions, (1, 1 + patches, width), the class token's first."""

Size = tuple[int, int, int]


def _with_class_position(name: str, tensor: Tensor) -> Tensor:
    """Put the zeros of the class token in front of a table of positions; other tensors stay."""
    return functional.pad(tensor, (0, 0, 1, 0)) if name == POSITIONS and tensor.ndim == 3 else tensor


SELFMEDMAE = Form(
    "checkpoint of SelfMedMAE's pretraining",
    "encoder_to_decoder.",
    (("encoder_pos_embed", POSITIONS), ("encoder.", "encoder.")),
    unread=r"decoder\.|decoder_pos_embed$|mask_token$|encoder_to_decoder\.",
    method="SelfMedMAE",
    converted=_with_class_position,
)
UNETR3D = Form("SelfMedMAE's UNETR3D", "encoder.cls_token", (("", ""),), method="SelfMedMAE")


@dataclass(frozen=True)
class UNETRConfig(BackboneConfig):
    """Size of a UNETR with patches of 16 voxels and MLPs four times as wide."""

    name = "unetr"
    stem: ClassVar[tuple[str, ...]] = (
        "encoder.patch_embed.proj.weight",
        "decoder.encoder1.layer.conv1.conv.weight",
        "decoder.encoder1.layer.conv3.conv.weight",
    )
    heads = ("decoder.out",)
    forms = (SELFMEDMAE, UNETR3D)
    unseen = ("attention_heads",)
    elsewhere = "import-weights --patch-size D H W interpolates the positions of such weights"

    patch_size: Size = (128, 128, 128)
    """Crop in voxels for whose patches of 16 voxels there are positions, equal to loader.patch_size."""
    width: int = 768
    """Width of the transformer, a multiple of 6 and of attention_heads."""
    depth: int = 12
    """Number of transformer blocks."""
    attention_heads: int = 12
    """Number of attention heads."""
    feature_size: int = 16
    """Width of the finest map of the decoder."""
    drop_path: float = 0.1
    """Probability that the last block is skipped for a sample in finetuning; it rises linearly from 0 at the first
    block. Pretraining skips none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1000, "in_channels", "attention_heads")
        self.require_range(6, 65_536, "width")
        self.require_range(4, 100, "depth")
        self.require_range(PATCH, 4096, "patch_size")
        self.require_range(2, 4096, "feature_size")
        if any(edge % PATCH for edge in self.patch_size) or prod(self.grid) == 1:
            raise ValueError(f"patch_size must be three multiples of {PATCH}, not all {PATCH}, not {self.patch_size}")
        if self.width % 6 or self.width % self.attention_heads:
            raise ValueError(
                f"width must be a multiple of 6 (sine and cosine of three axes) and of the {self.attention_heads} "
                f"attention_heads, not {self.width}"
            )
        if self.feature_size == self.in_channels:  # MONAI's block has no third convolution where the width stays
            object.__setattr__(self, "stem", self.stem[:2])
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), not {self.drop_path}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the four maps that the decoder reads."""
        return (PATCH,) * 4

    @property
    def grid(self) -> Size:
        """Number of patches along each axis."""
        d, h, w = (edge // PATCH for edge in self.patch_size)
        return d, h, w

    @property
    def read_blocks(self) -> Size:
        """Blocks, counted from 0, whose outputs the decoder reads beside the last: 3, 6, 9, as published.

        A network of fewer than ten blocks has no block 9: then those after each quarter of its depth.
        """
        return (3, 6, 9) if self.depth > 9 else (self.depth // 4, self.depth // 2, self.depth * 3 // 4)

    def label(self) -> str:
        """Return the name, with the sizes where they are not those of ViT-B."""
        usual = UNETRConfig(self.in_channels, self.patch_size, drop_path=self.drop_path)
        return "UNETR" if self == usual else f"UNETR (width {self.width}, depth {self.depth})"

    def size(self) -> dict[str, Any]:
        """Return the fields that two networks must share; how often blocks are skipped is none of them."""
        return {name: value for name, value in super().size().items() if name != "drop_path"}

    def encoder(self, stages: int | None = None) -> ViT:
        """Build the transformer, which cannot be cut short."""
        if stages not in (None, len(self.strides)):
            raise ValueError(f"a UNETR has all its {len(self.strides)} maps, not {stages}")
        return ViT(self)

    def segmenter(self, classes: int) -> UNETR:
        """Build the segmentation network."""
        return UNETR(self, classes)

    def fresh(self, stages: int) -> tuple[str, ...]:
        """List everything but the transformer."""
        return ("decoder",)

    def check_crop(self, size: Sequence[int], stages: int | None = None) -> None:
        """Check that crops are of the size for which there are positions.

        Raises:
            ValueError: they are not.
        """
        self.require_crop(size, self.patch_size, f"three multiples of {PATCH}")

    def fitting_crop(self, size: Sequence[int]) -> Size:
        """Return the only crop that the network takes."""
        return self.patch_size

    def for_crop(self, size: Size) -> Self:
        """Return the network for crops of `size` voxels."""
        return replace(self, patch_size=size)

    @classmethod
    def of_tensors(
        cls, form: Form, tensors: Mapping[str, Tensor], attention_heads: Sequence[int] | None = None
    ) -> tuple[UNETRConfig, int | None, int | None]:
        """Infer the size of a whole network, or of a transformer alone.

        `attention_heads` show in no tensor. Default: one per 64 channels.
        """
        embedding, table = tensors[cls.stem[0]], tensors[POSITIONS]
        if embedding.shape[2:] != (PATCH,) * 3 or table.ndim != 3:
            raise ValueError(f"its patches have {tuple(embedding.shape[2:])} voxels, not {(PATCH,) * 3} as those here")
        width, in_channels = embedding.shape[:2]
        if attention_heads is None:
            if width % HEAD_WIDTH:
                raise ValueError(
                    f"no tensor shows its number of attention heads, which is one per {HEAD_WIDTH} channels in "
                    f"published weights, and its width is {width}: give --attention-heads"
                )
            attention_heads = (width // HEAD_WIDTH,)
        if len(attention_heads) != 1:
            raise ValueError(
                f"--attention-heads: all its blocks have as many, so give one number, not {attention_heads}"
            )
        finest = tensors.get(cls.stem[1])
        d, h, w = grid_of(table[0, 1:])
        network = cls(
            in_channels=in_channels,
            patch_size=(PATCH * d, PATCH * h, PATCH * w),
            width=width,
            depth=len({name.split(".")[2] for name in tensors if name.startswith("encoder.blocks.")}),
            attention_heads=attention_heads[0],
            **({} if finest is None else {"feature_size": finest.shape[0]}),
        )
        whole = any(name.startswith("decoder.") for name in tensors)
        classes = classes_of(tensors.get("decoder.out.conv.conv.weight"))
        return network, None if whole else len(network.strides), classes

    def resized(self, table: Tensor, patch_size: Size) -> Tensor:
        """Interpolate a table of positions (1, 1 + patches, width) trilinearly from this crop to another."""
        grid = replace(self, patch_size=patch_size).grid
        maps = table[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        resized = functional.interpolate(maps, grid, mode="trilinear", align_corners=False)
        return torch.cat((table[:, :1], resized.flatten(2).transpose(1, 2)), 1)


class ViT(Encoder):
    """Vision transformer on a class token and the patches of a crop."""

    def __init__(self, config: UNETRConfig) -> None:
        super().__init__()
        self.grid, self.read_blocks = config.grid, config.read_blocks
        self.widths, self.strides = (config.width,) * len(config.strides), config.strides
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module("proj", nn.Conv3d(config.in_channels, config.width, PATCH, PATCH))
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + prod(config.grid), config.width))
        rates = [config.drop_path * number / (config.depth - 1) for number in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config.width, config.attention_heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, LAYER_NORM_EPS)
        for tokens in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tokens, std=0.02, a=-0.02, b=0.02)
        self.apply(initialise)

    def embed(self, volume: Tensor) -> Tensor:
        """Turn (B, C, D, H, W) into tokens with their positions (B, patches, width), in raster order.

        Raises:
            ValueError: the volume is not as large as the crop whose patches have positions.
        """
        patches = self.patch_embed(volume)
        if patches.shape[2:] != self.grid:
            own = tuple(PATCH * side for side in self.grid)
            raise ValueError(f"the transformer has positions for {own} voxels, not for {tuple(volume.shape[2:])}")
        return patches.flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]

    def transform(self, tokens: Tensor) -> list[Tensor]:
        """Put the class token in front of tokens (B, n, width); return each block's output, the last one normed."""
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x, outputs = torch.cat((first, tokens), 1), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return [*outputs[:-1], self.norm(x)]

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode (B, C, D, H, W) into maps of the blocks that are read and of the end, all of stride 16."""
        outputs = self.transform(self.embed(volume))
        read = [*(outputs[number] for number in self.read_blocks), outputs[-1]]
        return [x[:, 1:].transpose(1, 2).unflatten(2, self.grid) for x in read]

    def parts(self) -> Sequence[nn.Module]:
        """Return what is before the blocks, each block, and the norm."""
        first = nn.ModuleList([self.patch_embed, nn.ParameterList(self.tokens())])
        return [first, *self.blocks, self.norm]

    def depths(self) -> Mapping[nn.Module, int]:
        """Return 0 for the norm, 1 for the last block, and so on, as published."""
        return {part: depth for depth, part in enumerate(self.parts()[::-1])}

    def tokens(self) -> Sequence[nn.Parameter]:
        """Return the class token and the positions."""
        return [self.cls_token, self.pos_embed]


class Decoder(nn.Module):
    """Decoder of MONAI's blocks on four maps of stride 16 and the image."""

    def __init__(self, config: UNETRConfig, classes: int) -> None:
        super().__init__()
        # Importing MONAI takes seconds, which every command would pay for the settings above.
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock

        width, feature = config.width, config.feature_size

        def skip(channels: int, layers: int) -> nn.Module:
            return UnetrPrUpBlock(3, width, channels, layers, 3, 1, 2, "instance", conv_block=True, res_block=True)

        def up(in_channels: int, channels: int) -> nn.Module:
            return UnetrUpBlock(3, in_channels, channels, 3, 2, "instance", res_block=True)

        self.encoder1 = UnetrBasicBlock(3, config.in_channels, feature, 3, 1, "instance", res_block=True)
        self.encoder2, self.encoder3, self.encoder4 = skip(2 * feature, 2), skip(4 * feature, 1), skip(8 * feature, 0)
        self.decoder5, self.decoder4 = up(width, 8 * feature), up(8 * feature, 4 * feature)
        self.decoder3, self.decoder2 = up(4 * feature, 2 * feature), up(2 * feature, feature)
        self.out = UnetOutBlock(3, feature, classes + 1)

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Compute the finest map, which `out` reads."""
        first, second, third, last = maps
        x = self.decoder5(last, self.encoder4(third))
        x = self.decoder4(x, self.encoder3(second))
        x = self.decoder3(x, self.encoder2(first))
        return self.decoder2(x, self.encoder1(volume))


class UNETR(Segmenter):
    """Segmentation network, which predicts at full resolution alone."""

    def __init__(self, config: UNETRConfig, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        self.config = config
        self.classes = classes
        self.encoder = config.encoder()
        self.decoder = Decoder(config, classes)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Predict logits at full resolution of (B, C, D, H, W), a crop of the network's size."""
        return [self.decoder.out(self.before_head(volume))]

    @property
    def last_head(self) -> nn.Conv3d:
        """Return the only head."""
        head = self.decoder.out.conv.conv
        assert isinstance(head, nn.Conv3d)
        return head

    def before_head(self, volume: Tensor) -> Tensor:
        """Compute the decoder's finest map."""
        return self.decoder(volume, self.encoder(volume))
