"""MiT of UniMiSS (Xie et al., ECCV 2022): encoder, decoder, and the segmentation network that they are part of.

Source: YtongXie/UniMiSS-code, `UniMiSS/models` and `UniMiSS/Downstream/BCV`, commit 68be0a4. The authors' first axis,
along which slices lie, is S here, the last one: the stem does not halve it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from anatomask.nn.backbones.base import BackboneConfig, Segmenter, classes_of
from anatomask.nn.backbones.names import Form
from anatomask.nn.interpolation import doubled
from anatomask.nn.mit import ConvNorm, MiT, MiTDecoder, MiTEncoder, draw_weights, resized_rows

_STEM = "encoder.stem.3D.conv.weight"
_IN_PRETRAINING = re.compile(r"\.2D(\.|$)|\.cls(\.|$)")
"""Pattern of the names of the tensors that segmentation has no use for."""


def _renames(backbone: str, volumes: str) -> tuple[tuple[str, str], ...]:
    """Pair the prefixes of the authors' names with ours; `volumes` stands in theirs for a part of the 3D path."""
    transformer = f"{backbone}transformer."
    slices = (("2D", "2D"),) if volumes else ()
    return (
        *(
            pair
            for theirs, ours in ((volumes, "3D"), *slices)
            for pair in (
                (f"{transformer}patch_embed{theirs}0.", f"encoder.stem.{ours}."),
                (f"{transformer}patch_embed{theirs}{{}}.proj.", f"encoder.stages.{{}}.embedding.{ours}."),
                (f"{transformer}pos_embed{theirs}{{}}", f"encoder.stages.{{}}.positions.{ours}"),
                (
                    f"{transformer}block{{}}.{{}}.attn.sr{theirs}.",
                    f"encoder.stages.{{}}.blocks.{{}}.attn.reduction.{ours}.",
                ),
                (f"{backbone}DecEmbed{theirs}{{}}.proj.", f"decoder.stages.{{}}.embedding.{ours}."),
                (f"{backbone}DecPosEmbed{theirs}{{}}", f"decoder.stages.{{}}.positions.{ours}"),
                (
                    f"{backbone}Decblock{{}}.{{}}.attn.sr{theirs}.",
                    f"decoder.stages.{{}}.blocks.{{}}.attn.reduction.{ours}.",
                ),
            )
        ),
        (f"{transformer}block{{}}.", "encoder.stages.{}.blocks."),
        (f"{transformer}cls_tokens1", "encoder.cls"),
        (f"{transformer}cls_tokens{{}}.", "encoder.stages.{}.cls."),
        (f"{backbone}Decblock{{}}.", "decoder.stages.{}.blocks."),
        (f"{backbone}cls_tokens{{}}.", "decoder.stages.{}.cls."),
        (f"{backbone}norm.", "decoder.norm."),
        (f"{backbone}transposeconv_stage3.", "upsample."),
        (f"{backbone}stage3_de.", "last."),
        (f"{backbone}cls_conv.", "heads.4."),
        (f"{backbone}ds{{}}_cls_conv.", "heads.{}."),
    )


PRETRAINING = Form(
    "checkpoint of UniMiSS",
    "backbone.transformer.",
    _renames("backbone.", "3D"),
    unread=r"head\.",
    method="UniMiSS",
    whole=True,
)
SEGMENTATION = Form(
    "UniMiSS's segmentation network",
    "model.transformer.",
    _renames("model.", ""),
    note="the file does not say the patch of its positions: --network.patch-size sets it",
)
OWN_NAMES = Form("state dict of anatomask.nn.backbones.unimiss.UniMiSSNet", "encoder.stem.3D.", (("", ""),))


@dataclass(frozen=True)
class UniMiSSConfig(BackboneConfig):
    """Size of a MiT: MLPs four times as wide, no dropout. Its positions are those of crops of one size."""

    name = "unimiss"
    stem = (_STEM,)
    heads = ("heads",)
    untrained = ("upsample", "last")
    forms = (PRETRAINING, SEGMENTATION, OWN_NAMES)
    exported = SEGMENTATION
    unseen = ("attention_heads", "decoder_heads")

    widths: tuple[int, int, int, int] = (48, 128, 256, 512)
    """Width of each of the encoder's four stages; the decoder's three are as wide as its last but one to its first."""
    depths: tuple[int, int, int, int] = (2, 3, 4, 3)
    """Number of transformer blocks of each of the encoder's stages."""
    attention_heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Number of attention heads of each stage, among which its width divides."""
    reduction: tuple[int, int, int, int] = (6, 4, 2, 1)
    """Factor of each stage by which the map that gives keys and values is smaller along each axis."""
    decoder_depths: tuple[int, int, int] = (3, 4, 3)
    """Number of blocks of each of the decoder's stages, the coarsest first."""
    decoder_heads: tuple[int, int, int] = (8, 4, 2)
    """Number of attention heads of each of the decoder's stages."""
    decoder_reduction: tuple[int, int, int] = (2, 4, 6)
    """Factor of each of the decoder's stages."""
    stem_width: int = 32
    """Width of the stem, and of the map that the finest heads read."""
    patch_size: tuple[int, int, int] = (128, 128, 128)
    """Crop in voxels for which there are positions, equal to loader.patch_size; multiples of 32, 32 and 16. In
    finetuning it may differ from that of the pretraining: positions are then interpolated along their tokens."""
    slice_size: int = 224
    """Edge in pixels of the square slices for which a pretraining has positions; others are interpolated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1000, "in_channels")
        self.require_range(1, 65_536, "widths", "stem_width")
        self.require_range(1, 100, "depths", "decoder_depths", "attention_heads", "decoder_heads")
        self.require_range(1, 64, "reduction", "decoder_reduction")
        self.require_range(32, 4096, "slice_size")
        if any(edge % step or not edge for edge, step in zip(self.patch_size, self.crop_steps(), strict=True)):
            raise ValueError(f"patch_size must be multiples of 32, 32 and 16, not {self.patch_size}")
        if self.slice_size % 32:
            raise ValueError(f"slice_size must be a multiple of 32, not {self.slice_size}")
        for field, widths in (("attention_heads", self.widths), ("decoder_heads", self.decoder_widths)):
            for width, count in zip(widths, getattr(self, field), strict=True):
                if width % count:
                    raise ValueError(f"{field} must divide the widths {widths}, not {getattr(self, field)}")
        for field, first in (("reduction", (1, 2, 3, 4)), ("decoder_reduction", (3, 2, 1))):
            smallest = [min(self.grid(stage)) for stage in first]
            if any(factor > side for factor, side in zip(getattr(self, field), smallest, strict=True)):
                raise ValueError(
                    f"{field} must be at most {smallest}, the shortest sides of the maps at patch_size "
                    f"{self.patch_size}, not {getattr(self, field)}"
                )

    @property
    def decoder_widths(self) -> tuple[int, int, int]:
        """Widths of the decoder's stages, the coarsest first."""
        first, second, third, _ = self.widths
        return third, second, first

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of stem and stages, along R and A."""
        return (2, 4, 8, 16, 32)

    @property
    def axis_strides(self) -> tuple[tuple[int, ...], ...]:
        """Strides of stem and stages along each axis: the stem does not halve S."""
        return tuple((stride, stride, stride // 2) for stride in self.strides)

    def grid(self, stage: int) -> tuple[int, int, int]:
        """Return the size of the map of a stage, 1 to 4, in the authors' order of axes: S, R, A."""
        r, a, s = (edge // step for edge, step in zip(self.patch_size, self.axis_strides[stage], strict=True))
        return s, r, a

    def size(self) -> dict[str, Any]:
        """Return the fields but those that positions follow from, which are interpolated."""
        return {name: value for name, value in super().size().items() if name not in ("patch_size", "slice_size")}

    def label(self) -> str:
        """Return the name, with the widths where they are not the published ones."""
        published = self.widths == UniMiSSConfig.widths
        return "MiT" if published else f"MiT (widths {', '.join(map(str, self.widths))})"

    def check_crop(self, size: Sequence[int], stages: int | None = None) -> None:
        """Check that crops are of the size for which there are positions.

        Raises:
            ValueError: they are not.
        """
        super().check_crop(self.patch_size)
        self.require_crop(size, self.patch_size, "three multiples of 32, 32 and 16")

    def fitting_crop(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Return the only crop that the network takes."""
        return self.patch_size

    def for_crop(self, size: tuple[int, int, int]) -> Self:
        """Return the network for crops of `size` voxels."""
        return replace(self, patch_size=size)

    def encoder(self, stages: int | None = None) -> MiTEncoder:
        """Build the encoder, which cannot be cut short."""
        if stages not in (None, len(self.strides)):
            raise ValueError(f"a MiT has all its {len(self.strides)} stages, not {stages}")
        return MiTEncoder(self)

    def segmenter(self, classes: int) -> UniMiSSNet:
        """Build the segmentation network."""
        return UniMiSSNet(self, classes)

    def trunk(self) -> MiT:
        """Build encoder and decoder of a pretraining."""
        return MiT(self)

    def fresh(self, stages: int) -> tuple[str, ...]:
        """List all that is not the encoder."""
        return ("decoder", *self.untrained, *self.heads)

    def fitted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out what is for slices and the cls token, and interpolate positions as the authors' loader does.

        It interpolates them along the token axis, not in space. Where there is a cls token, its position is cut off in
        the decoder and in the encoder's last stage; in the encoder's first three it is stretched with the others.
        """
        kept = {name: tensor for name, tensor in tensors.items() if not _IN_PRETRAINING.search(name)}
        for name in [name for name in kept if name.endswith(".positions.3D") and kept[name].dim() == 3]:
            part, _, stage = name.split(".")[:3]
            number = int(stage) if part == "encoder" else 3 - int(stage)
            cut = "encoder.cls" in tensors and (part, number) not in (("encoder", 1), ("encoder", 2), ("encoder", 3))
            kept[name] = resized_rows(kept[name][:, int(cut) :], math.prod(self.grid(number)))
        return kept

    @classmethod
    def of_tensors(
        cls,
        form: Form,
        tensors: Mapping[str, Tensor],
        attention_heads: Sequence[int] | None = None,
        decoder_heads: Sequence[int] | None = None,
    ) -> tuple[UniMiSSConfig, int | None, int | None]:
        """Infer the size. No tensor shows the heads of the attention, by default as published, or the patch's shape."""

        def stages(part: str, numbers: Sequence[int]) -> list[tuple[int, int, int]]:
            found = []
            for number in numbers:
                start = f"{part}.stages.{number}."
                width = tensors[f"{start}positions.3D"].shape[2]
                blocks = {
                    name.removeprefix(start).split(".")[1] for name in tensors if name.startswith(f"{start}blocks.")
                }
                kernel = tensors.get(f"{start}blocks.0.attn.reduction.3D.weight")
                found.append((width, len(blocks), 1 if kernel is None else kernel.shape[2]))
            return found

        stem = tensors[_STEM]
        (a, b, c, d), decoder = stages("encoder", (1, 2, 3, 4)), stages("decoder", (0, 1, 2))
        slices = tensors.get("encoder.stages.1.positions.2D")
        extra = int("encoder.cls" in tensors)
        widths = (a[0], b[0], c[0], d[0])
        network = cls(
            in_channels=stem.shape[1],
            widths=widths,
            depths=(a[1], b[1], c[1], d[1]),
            attention_heads=_heads("attention_heads", attention_heads, widths),
            reduction=(a[2], b[2], c[2], d[2]),
            decoder_depths=(decoder[0][1], decoder[1][1], decoder[2][1]),
            decoder_heads=_heads("decoder_heads", decoder_heads, [width for width, _, _ in decoder]),
            decoder_reduction=(decoder[0][2], decoder[1][2], decoder[2][2]),
            stem_width=stem.shape[0],
            patch_size=_patch_of(tensors["encoder.stages.4.positions.3D"].shape[1] - extra),
            slice_size=UniMiSSConfig.slice_size if slices is None else 4 * math.isqrt(slices.shape[1] - 1),
        )
        return network, len(network.strides) if form.whole else None, classes_of(tensors.get("heads.4.weight"))


def _heads(field: str, given: Sequence[int] | None, widths: Sequence[int]) -> Any:
    """Return the tuple of heads that the user gives, else the published one, of stages of these `widths`.

    Raises:
        ValueError: there are too few or too many, or they do not divide the widths.
    """
    heads = tuple(getattr(UniMiSSConfig, field) if given is None else given)
    if len(heads) != len(widths) or any(width % count for width, count in zip(widths, heads, strict=True)):
        published = ", those published," if given is None else ""
        raise ValueError(
            f"no tensor shows its {field}, and {heads}{published} do not divide the widths {tuple(widths)}: give "
            f"--{field.replace('_', '-')} as it was trained"
        )
    return heads


def _patch_of(tokens: int) -> tuple[int, int, int]:
    """Find the patch with the fewest slices whose last map has that many tokens, and which is square in the plane."""
    slices = next(
        slices
        for slices in range(1, tokens + 1)
        if tokens % slices == 0 and math.isqrt(tokens // slices) ** 2 == tokens // slices
    )
    edge = 32 * math.isqrt(tokens // slices)
    return edge, edge, 16 * slices


class UniMiSSNet(Segmenter):
    """Segmentation network with five levels."""

    encoder: MiTEncoder

    def __init__(self, config: UniMiSSConfig, classes: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        self.config = config
        self.classes = classes
        self.encoder = MiTEncoder(config)
        self.decoder = MiTDecoder(config)
        width = config.stem_width
        self.upsample = nn.ConvTranspose3d(config.widths[0], width, 2, 2)
        self.last = ConvNorm("3D", width, width, kernel=3, stride=1)
        widths = (*config.decoder_widths, width, width)
        self.heads = nn.ModuleList(nn.Conv3d(width, classes + 1, 1) for width in widths)
        for part in (self.last, self.heads):
            part.apply(draw_weights)

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Predict logits of (B, C, R, A, S), of the network's patch size, at strides 1, 2, 4, 8, 16 along R and A."""
        levels = [head(decoded) for head, decoded in zip(self.heads, self._maps(volume), strict=True)]
        return [level.movedim(2, -1) for level in levels[::-1]]

    @property
    def last_head(self) -> nn.Conv3d:
        """Return the finest head."""
        head = self.heads[-1]
        assert isinstance(head, nn.Conv3d)
        return head

    def before_head(self, volume: Tensor) -> Tensor:
        """Compute the finest map."""
        return self._maps(volume)[-1].movedim(2, -1)

    def without_loss(self) -> Sequence[nn.Module]:
        """Return the coarsest head."""
        return [self.heads[0]]

    def _maps(self, volume: Tensor) -> list[Tensor]:
        """Compute what the heads read, the coarsest first, in the authors' order of axes."""
        maps, cls = self.encoder.features(volume.movedim(-1, 2))
        (first, second, third), _ = self.decoder(maps, cls)
        third = self.decoder.norm(third.movedim(1, -1)).movedim(-1, 1)
        fourth = self.last(self.upsample(third) + maps[0])
        return [first, second, third, fourth, doubled(fourth, (3, 4))]
