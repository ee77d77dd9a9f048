"""Swin UNETR (Hatamizadeh et al., arXiv 2201.01266): MONAI's blocks, divided into encoder and decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from anatomask.nn.backbones.base import BackboneConfig, Encoder, Segmenter, classes_of
from anatomask.nn.backbones.names import Form
from anatomask.nn.recompute import Recomputable

PatchMerging = Literal["all", "repeated"]
"""Neighbours that a patch merging concatenates: all eight, or six of which two are repeated."""

_HEADS = r"(rotation|contrastive)_(pre|head)\.|conv\."
"""Pattern of the names of the pretraining's heads in the code of Tang et al."""
_METHOD = "Swin UNETR SSL"
_EMBEDDING = "encoder.swinViT.patch_embed.proj.weight"

MONAI = Form(
    "MONAI's SwinUNETR",
    "swinViT.",
    (
        ("swinViT.", "encoder.swinViT."),
        ("encoder{}.", "encoder{}."),
        ("decoder{}.", "decoder{}."),
        ("out.", "out."),
    ),
    unread=_HEADS,
    method=_METHOD,
    note=(
        "MONAI before 1.5 merged patches otherwise (its issue 8285), which the file does not say: for weights of that "
        "time set --patch-merging repeated, else they compute something else"
    ),
)
PRETRAINING = Form(
    "checkpoint of the Swin UNETR pretraining of Tang et al. before August 2022",
    "swin_vit.",
    (("swin_vit.", "encoder.swinViT."),),
    unread=_HEADS,
    method=_METHOD,
    note="its patches were merged as in MONAI before 1.5 (its issue 8285): patch_merging is repeated",
)
PUBLISHED = Form(
    "model_swinvit.pt of Tang et al.",
    "layers1.",
    (("", "encoder.swinViT."),),
    unread=rf"norm\.|{_HEADS}",
    method=_METHOD,
    aliases=((r"\.mlp\.fc([12])\.", r".mlp.linear\1."),),
    note=PRETRAINING.note,
)
OWN_NAMES = Form("state dict of anatomask.nn.backbones.swin_unetr.SwinUNETR", "encoder.swinViT.", (("", ""),))


@dataclass(frozen=True)
class SwinUNETRConfig(BackboneConfig):
    """Size of a Swin UNETR: patches of 2 voxels, MLPs four times as wide, no dropout."""

    name = "swin_unetr"
    stem = (_EMBEDDING, "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight")
    heads = ("out",)
    forms = (MONAI, PRETRAINING, PUBLISHED, OWN_NAMES)
    exported = MONAI
    unseen = ("patch_merging",)
    computed = r"encoder\.swinViT\..*\.relative_position_index$"

    feature_size: int = 48
    """Width of the embedding and of the finest map; the published network has 48."""
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Number of transformer blocks of each of the four stages."""
    attention_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    """Number of attention heads of each stage, among which its width (feature_size times 1, 2, 4, 8) divides."""
    window: int = 7
    """Edge of an attention window in tokens."""
    patch_merging: PatchMerging = "all"
    """Neighbours that are concatenated where the resolution is halved. all: each of the eight once (MONAI from 1.5 on);
    repeated: two of them twice and two never (MONAI before 1.5, so the published weights)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1000, "in_channels")
        self.require_range(3, 4096, "feature_size")
        self.require_range(1, 100, "depths", "attention_heads", "window")
        for stage, count in enumerate(self.attention_heads):
            if self.feature_size * 2**stage % count:
                raise ValueError(
                    f"feature_size must be such that {2**stage} times it divides among the {count} attention_heads of "
                    f"stage {stage + 1}, not {self.feature_size}"
                )

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the transformer's five maps."""
        return (2, 4, 8, 16, 32)

    @property
    def exported_note(self) -> str:
        """Warning where MONAI from 1.5 on loads the weights without complaint and computes something else."""
        if self.patch_merging == "all":
            return ""
        return (
            "the patch merging of these weights is repeated, as in MONAI before 1.5 (its issue 8285), which the file "
            "does not say: MONAI from 1.5 on loads them without complaint and computes something else: load them with "
            "MONAI 1.4"
        )

    def label(self) -> str:
        """Return the name, with the width where it is not the published one."""
        return "Swin UNETR" if self.feature_size == 48 else f"Swin UNETR (feature size {self.feature_size})"

    def encoder(self, stages: int | None = None) -> SwinEncoder:
        """Build the encoder, which cannot be cut short."""
        if stages not in (None, len(self.strides)):
            raise ValueError(f"a Swin UNETR has all its {len(self.strides)} stages, not {stages}")
        return SwinEncoder(self)

    def segmenter(self, classes: int) -> SwinUNETR:
        """Build the segmentation network."""
        return SwinUNETR(self, classes)

    @classmethod
    def of_tensors(
        cls, form: Form, tensors: Mapping[str, Tensor], patch_merging: PatchMerging | None = None
    ) -> tuple[SwinUNETRConfig, int | None, int | None]:
        """Infer the size of a whole network, or of a transformer alone; `patch_merging` shows in no tensor."""
        stage = "encoder.swinViT.layers{}.0.blocks."
        embedding = tensors[_EMBEDDING]
        tables = [tensors[f"{stage.format(number)}0.attn.relative_position_bias_table"] for number in range(1, 5)]
        blocks = [
            {name.removeprefix(start).split(".")[0] for name in tensors if name.startswith(start)}
            for start in (stage.format(number) for number in range(1, 5))
        ]
        a, b, c, d = map(len, blocks)
        e, f, g, h = (table.shape[1] for table in tables)
        network = cls(
            in_channels=embedding.shape[1],
            feature_size=embedding.shape[0],
            depths=(a, b, c, d),
            attention_heads=(e, f, g, h),
            window=(round(tables[0].shape[0] ** (1 / 3)) + 1) // 2,
            patch_merging=patch_merging or ("repeated" if form in (PRETRAINING, PUBLISHED) else "all"),
        )
        whole = any(re.match(r"(en|de)coder\d|out\.", name) for name in tensors)
        classes = classes_of(tensors.get("out.conv.conv.weight"))
        return network, None if whole else len(network.strides), classes

    def fresh(self, stages: int) -> tuple[str, ...]:
        """List everything but the transformer."""
        return (*(f"encoder{number}" for number in (1, 2, 3, 4, 10)), *(f"decoder{n}" for n in range(1, 6)), "out")


class SwinEncoder(Recomputable, Encoder):
    """Swin transformer, whose maps are normalised over their channels."""

    def __init__(self, config: SwinUNETRConfig) -> None:
        super().__init__()
        # Importing MONAI takes seconds, which every command would pay for the settings above.
        from monai.networks.nets.swin_unetr import SwinTransformer, SwinTransformerBlock

        self.widths = tuple(config.feature_size * factor for factor in (1, 2, 4, 8, 16))
        self.strides = config.strides
        with _NumbersOnCPU():
            self.swinViT = SwinTransformer(
                config.in_channels,
                config.feature_size,
                (config.window,) * 3,
                (2, 2, 2),
                config.depths,
                config.attention_heads,
                downsample="merging" if config.patch_merging == "all" else RepeatedMerging,
            )
        self.blocks = [block for block in self.swinViT.modules() if isinstance(block, SwinTransformerBlock)]

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode (B, C, D, H, W), sides multiples of 32, into maps at strides 2, 4, 8, 16, 32."""
        for block in self.blocks:  # MONAI computes the two halves of each again, on its own
            block.use_checkpoint = self.recompute
        maps: list[Tensor] = self.swinViT(volume)
        return maps

    def parts(self) -> Sequence[nn.Module]:
        """Return the embedding and the four stages."""
        vit = self.swinViT
        return [vit.patch_embed, vit.layers1, vit.layers2, vit.layers3, vit.layers4]


class RepeatedMerging(nn.Module):
    """Patch merging of MONAI before 1.5: neighbours 010 and 001 occur twice, 110 and 011 never (its issue 8285)."""

    NEIGHBOURS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        """Set up the merging of maps of `dim` channels, as MONAI calls it for 3D networks."""
        super().__init__()
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Merge (B, D, H, W, dim) into (B, D/2, H/2, W/2, 2·dim); odd sides are padded with zeros."""
        x = functional.pad(x, (0, 0, *(side % 2 for axis in (3, 2, 1) for side in (0, x.shape[axis]))))
        merged = [x[:, d::2, h::2, w::2] for d, h, w in self.NEIGHBOURS]
        return self.reduction(self.norm(torch.cat(merged, -1)))


class _NumbersOnCPU(TorchFunctionMode):
    """Mode that computes MONAI's drop-path rates on the CPU, for MONAI reads them, which the meta device refuses."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`."""
        return func(*args, **(kwargs or {}), **({"device": "cpu"} if func is torch.linspace else {}))


class SwinUNETR(Segmenter):
    """Segmentation network, which predicts at full resolution alone, with the names of MONAI's but for `encoder.`."""

    def __init__(self, config: SwinUNETRConfig, classes: int) -> None:
        super().__init__()
        from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock

        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        self.config = config
        self.classes = classes
        width = config.feature_size

        def block(in_channels: int, channels: int) -> nn.Module:
            return UnetrBasicBlock(3, in_channels, channels, 3, 1, "instance", res_block=True)

        def up(channels: int) -> nn.Module:
            return UnetrUpBlock(3, 2 * channels, channels, 3, 2, "instance", res_block=True)

        self.encoder = config.encoder()
        self.encoder1 = block(config.in_channels, width)
        self.encoder2 = block(width, width)
        self.encoder3 = block(2 * width, 2 * width)
        self.encoder4 = block(4 * width, 4 * width)
        self.encoder10 = block(16 * width, 16 * width)
        self.decoder5 = up(8 * width)
        self.decoder4 = up(4 * width)
        self.decoder3 = up(2 * width)
        self.decoder2 = up(width)
        self.decoder1 = UnetrUpBlock(3, width, width, 3, 2, "instance", res_block=True)
        self.out = UnetOutBlock(3, width, classes + 1)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Predict logits at full resolution of (B, C, D, H, W), whose sides are multiples of 32."""
        return [self.out(self.before_head(volume))]

    @property
    def last_head(self) -> nn.Conv3d:
        """Return the only head."""
        head = self.out.conv.conv
        assert isinstance(head, nn.Conv3d)
        return head

    def before_head(self, volume: Tensor) -> Tensor:
        """Compute the decoder's finest map."""
        first, second, third, fourth, fifth = self.encoder(volume)
        x = self.decoder5(self.encoder10(fifth), fourth)
        x = self.decoder4(x, self.encoder4(third))
        x = self.decoder3(x, self.encoder3(second))
        x = self.decoder2(x, self.encoder2(first))
        finest: Tensor = self.decoder1(x, self.encoder1(volume))
        return finest
