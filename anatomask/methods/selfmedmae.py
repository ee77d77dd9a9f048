"""SelfMedMAE (Zhou et al., ISBI 2023): a transformer that sees a quarter of the patches reconstructs the others.

Source: cvlab-stonybrook/SelfMedMAE, commit 21f38b1. These are this project's choices: crops are those of the other
methods (128³ voxels) and drawn uniformly, for the authors choose theirs by the labels; the network reads them as
finetuning does, mirrored along each axis with probability 0.5; gradients are clipped at the norm of the other methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from anatomask.data.crops import flip, normalised_crops
from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig
from anatomask.methods.base import Method, MethodConfig, StepResult
from anatomask.methods.masked import MaskedBatch
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.backbones.unetr import PATCH, UNETRConfig
from anatomask.nn.masked_transformer import MaskedTransformer, in_intensities, patch_errors, patches_of, volume_of


@dataclass(frozen=True)
class SelfMedMAEConfig(MethodConfig):
    """Settings of the masked autoencoder. Its encoder is the transformer of the network `unetr`."""

    name = "selfmedmae"
    encoder = "network.encoder."
    optimiser: ClassVar = {
        "lr": 1e-4,  # 6.4e-3 for 256 samples, so for batches of 4
        "betas": (0.9, 0.95),
        "weight_decay": 0.05,
        "decayed": "matrices",
        "warmup_lr": 0.0,
        "warmup_epochs": 100,
        "rate_every": "update",
    }

    mask_ratio: float = 0.75
    """Share of the patches that is hidden. The authors' scripts have 0.125."""
    decoder_width: int = 384
    """Width of the decoder, a multiple of 6 and of decoder_heads."""
    decoder_depth: int = 8
    """Number of transformer blocks of the decoder."""
    decoder_heads: int = 12
    """Number of attention heads of the decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1 (exclusive), not {self.mask_ratio}")
        self.require_range(1, 65_536, "decoder_width", "decoder_depth", "decoder_heads")
        if self.decoder_width % 6 or self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width must be a multiple of 6 and of the {self.decoder_heads} decoder_heads, not "
                f"{self.decoder_width}"
            )

    def label(self) -> str:
        """Return the name in tables."""
        return "SelfMedMAE"

    def stages(self, network: BackboneConfig) -> int:
        """Count the encoder's maps: all are trained."""
        return len(network.strides)

    def check_network(self, network: BackboneConfig) -> None:
        """Check that the network is a UNETR.

        Raises:
            ValueError: it is another.
        """
        if not isinstance(network, UNETRConfig):
            raise ValueError(f"network {network.name} cannot be pretrained by {self.label()}: choose --network unetr")

    def check_crop(self, size: Sequence[int]) -> None:
        """Check that some patches of a crop are visible and some hidden.

        Raises:
            ValueError: they are not.
        """
        patches = prod(edge // PATCH for edge in size)
        if not 0 < self.visible(patches) < patches:
            raise ValueError(
                f"method.mask_ratio {self.mask_ratio} leaves {self.visible(patches)} of the {patches} patches in a "
                f"crop of {tuple(size)} visible: choose a larger loader.patch_size or another ratio"
            )

    def visible(self, patches: int) -> int:
        """Return the number of visible patches among `patches`: n (1 - ratio), rounded down."""
        return int(patches * (1 - self.mask_ratio))

    def draw(self, loader: LoaderConfig) -> MaskedDraw:
        """Return what draws a crop and the random numbers of its mask."""
        return MaskedDraw(loader, PATCH)

    def build(self, network: BackboneConfig) -> SelfMedMAE:
        """Build the autoencoder."""
        assert isinstance(network, UNETRConfig)
        sizes = (self.decoder_width, self.decoder_depth, self.decoder_heads)
        transformer = MaskedTransformer(network, self.visible(prod(network.grid)), *sizes)
        return SelfMedMAE(transformer, network.in_channels)

    def plan(self, loader: LoaderConfig, spacing: Sequence[float]) -> list[tuple[str, str]]:
        """Return a row on the size and number of patches."""
        size = " x ".join(f"{PATCH * side:g}" for side in spacing)
        patches = prod(edge // PATCH for edge in loader.patch_size)
        return [("patch", f"{PATCH} voxels = {size} mm, {self.visible(patches)} of {patches} in a crop are visible")]


class SelfMedMAE(Method):
    """Autoencoder, all of which is trained but the positions."""

    def __init__(self, network: MaskedTransformer, in_channels: int = 1) -> None:
        super().__init__()
        self.network = network
        self.in_channels = in_channels

    def trainable(self) -> MaskedTransformer:
        """Return the autoencoder."""
        return self.network

    def batch(self, sample: Mapping[str, Tensor]) -> MaskedBatch:
        """Pad, normalise and mirror the crops that `MaskedDraw` drew."""
        volume = flip(normalised_crops(sample), sample["flip"]).contiguous(memory_format=self.memory_format)
        return MaskedBatch(volume, sample["noise"])

    def dummy_batch(self, samples: int, size: Sequence[int]) -> MaskedBatch:
        """Return samples that hold nothing."""
        volume = torch.empty(samples, self.in_channels, *size).contiguous(memory_format=self.memory_format)
        return MaskedBatch(volume, torch.empty(samples, 2, prod(edge // PATCH for edge in size)))

    def training_step(self, batch: MaskedBatch, progress: float) -> StepResult:
        """Compute the mean squared error of the hidden patches, each of which is normalised by its own voxels."""
        prediction, hidden = self.network(batch.volume, batch.noise[:, 1])
        errors = patch_errors(prediction, patches_of(batch.volume))
        return StepResult((errors * hidden).sum() / hidden.sum())

    @torch.no_grad()
    def views(self, batch: MaskedBatch) -> Mapping[str, Tensor]:
        """Return the first sample, what is visible of it, and that with its hidden patches filled in."""
        volume = batch.volume[:1]
        prediction, hidden = self.network(volume, batch.noise[:1, 1])
        patches, masked = patches_of(volume), hidden[..., None]
        shown = {
            "visible": patches.masked_fill(masked, 0),
            "reconstruction": torch.where(masked, in_intensities(prediction, patches), patches),
        }
        pictures = {name: volume_of(given, volume.shape)[0] for name, given in shown.items()}
        return {"scan": volume[0], **pictures}
