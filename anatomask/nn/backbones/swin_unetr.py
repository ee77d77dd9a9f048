"""Swin UNETR (Hatamizadeh et al., arXiv 2201.01266): MONAI's network, divided into encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anatomask.nn.backbones.base import BackboneConfig, Encoder, Segmenter, classes_of
from anatomask.nn.backbones.names import Form
from anatomask.nn.recompute import Recomputable

MONAI = Form(
    "MONAI's SwinUNETR",
    "swinViT.",
    (
        ("swinViT.", "encoder.swinViT."),
        ("encoder{}.", "encoder.encoder{}."),
        ("decoder{}.", "decoder{}."),
        ("out.", "out."),
    ),
    note="MONAI before 1.5 merged patches otherwise (its issue 8285): weights of that time compute something else here",
)
OWN_NAMES = Form("state dict of anatomask.nn.backbones.swin_unetr.SwinUNETR", "encoder.swinViT.", (("", ""),))


@dataclass(frozen=True)
class SwinUNETRConfig(BackboneConfig):
    """Size of a Swin UNETR: window 7, depths 2, 2, 2, 2, heads 3, 6, 12, 24, no dropout."""

    name = "swin_unetr"
    stem = (
        "encoder.swinViT.patch_embed.proj.weight",
        "encoder.encoder1.layer.conv1.conv.weight",
        "encoder.encoder1.layer.conv3.conv.weight",
    )
    heads = ("out",)
    forms = (MONAI, OWN_NAMES)

    feature_size: int = 48
    """Width of the embedding and of the finest map, a multiple of 12; the published network has 48."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 1000, "in_channels")
        self.require_range(12, 4096, "feature_size")
        if self.feature_size % 12:
            raise ValueError(f"feature_size must be a multiple of 12, not {self.feature_size}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the six maps that the decoder reads."""
        return (1, 2, 4, 8, 16, 32)

    def label(self) -> str:
        """Return the name, with the width where it is not the published one."""
        return "Swin UNETR" if self.feature_size == 48 else f"Swin UNETR (feature size {self.feature_size})"

    def encoder(self, stages: int | None = None) -> Encoder:
        """Build the encoder, which cannot be cut short."""
        if stages not in (None, len(self.strides)):
            raise ValueError(f"a Swin UNETR has all its {len(self.strides)} stages, not {stages}")
        return self.segmenter(1).encoder

    def segmenter(self, classes: int) -> SwinUNETR:
        """Build the segmentation network."""
        return SwinUNETR(self, classes)

    @classmethod
    def of_tensors(cls, form: Form, tensors: Mapping[str, Tensor]) -> tuple[SwinUNETRConfig, int | None, int | None]:
        """Infer channels and feature size of a whole network."""
        embedding = tensors[cls.stem[0]]
        network = cls(in_channels=embedding.shape[1], feature_size=embedding.shape[0])
        return network, None, classes_of(tensors.get("out.conv.conv.weight"))

    def fresh(self, stages: int) -> tuple[str, ...]:
        """List the decoder."""
        return ("decoder1", "decoder2", "decoder3", "decoder4", "decoder5", "out")


class SwinEncoder(Recomputable, Encoder):
    """Swin transformer, and the convolutions between its maps and the decoder."""

    def __init__(self, network: Any, width: int) -> None:
        """Take over the parts of MONAI's `SwinUNETR` of feature size `width`, under MONAI's names."""
        super().__init__()
        self.widths = (width, width, 2 * width, 4 * width, 8 * width, 16 * width)
        self.strides = (1, 2, 4, 8, 16, 32)
        self.swinViT: nn.Module = network.swinViT
        self.encoder1: nn.Module = network.encoder1
        self.encoder2: nn.Module = network.encoder2
        self.encoder3: nn.Module = network.encoder3
        self.encoder4: nn.Module = network.encoder4
        self.encoder10: nn.Module = network.encoder10

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode (B, C, D, H, W), sides multiples of 32, into maps at strides 1, 2, 4, 8, 16, 32."""
        first, second, third, fourth, fifth = self.recomputed(self.swinViT, volume)
        return [
            self.encoder1(volume),
            self.encoder2(first),
            self.encoder3(second),
            self.encoder4(third),
            fourth,
            self.encoder10(fifth),
        ]

    def parts(self) -> Sequence[nn.Module]:
        """Return the encoder as one part: its layers are not a chain from the image on."""
        return [self]


class _NumbersOnCPU(TorchFunctionMode):
    """Mode that computes MONAI's drop-path rates on the CPU, for MONAI reads them, which the meta device refuses."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`."""
        return func(*args, **(kwargs or {}), **({"device": "cpu"} if func is torch.linspace else {}))


class SwinUNETR(Segmenter):
    """Segmentation network, which predicts at full resolution alone."""

    def __init__(self, config: SwinUNETRConfig, classes: int) -> None:
        super().__init__()
        # Importing MONAI takes seconds, which every command would pay for the settings above.
        from monai.networks.nets import SwinUNETR as Network

        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        self.config = config
        self.classes = classes
        with _NumbersOnCPU():
            network = Network(config.in_channels, classes + 1, feature_size=config.feature_size)
        self.encoder = SwinEncoder(network, config.feature_size)
        self.decoder5 = network.decoder5
        self.decoder4 = network.decoder4
        self.decoder3 = network.decoder3
        self.decoder2 = network.decoder2
        self.decoder1 = network.decoder1
        self.out = network.out

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Predict logits at full resolution of (B, C, D, H, W), whose sides are multiples of 32."""
        full, first, second, third, fourth, deepest = self.encoder(volume)
        x = self.decoder5(deepest, fourth)
        x = self.decoder4(x, third)
        x = self.decoder3(x, second)
        x = self.decoder2(x, first)
        return [self.out(self.decoder1(x, full))]
