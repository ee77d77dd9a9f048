"""Dense masked autoencoder (He et al., CVPR 2022) of a U-Net: patches are zeroed, and the whole network fills them in.

The recipe is that of nnssl's `BaseMAETrainer` (Wald et al., arXiv 2412.17041), the strongest of a CNN in OpenMind: 75 %
of the blocks of 16³ voxels are hidden, the loss is the mean squared error of the hidden voxels of the normalised image,
and encoder and decoder are transferred. Nothing is sparse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from anatomask.data.crops import flip, normalised_crops
from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig
from anatomask.masking import random_mask
from anatomask.methods.base import Method, MethodConfig, StepResult
from anatomask.methods.masked import MaskedBatch, check_patches
from anatomask.nn.backbones.base import BackboneConfig, Segmenter
from anatomask.nn.backbones.operations import NEGATIVE_SLOPE
from anatomask.nn.sparse import expand_active
from anatomask.weights.matching import is_named


@dataclass(frozen=True)
class MAEConfig(MethodConfig):
    """Settings of the dense masked autoencoder. Every stage and the decoder are trained."""

    name = "mae"
    encoder = "network.encoder."
    whole = "network."
    optimiser: ClassVar = {
        "name": "sgd",
        "lr": 1e-2,
        "weight_decay": 3e-5,
        "momentum": 0.99,
        "warmup_epochs": 0,
        "decay": "poly",
    }

    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    patch: Literal[8, 16, 32] = 16
    """Edge in voxels of a patch, which is hidden as a whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1 (exclusive), not {self.mask_ratio}")

    def label(self) -> str:
        """Return the name in tables."""
        return "MAE"

    def stages(self, network: BackboneConfig) -> int:
        """Count the encoder stages that are trained: all."""
        return len(network.strides)

    def draw(self, loader: LoaderConfig) -> MaskedDraw:
        """Return what draws a crop and the random numbers of its mask."""
        return MaskedDraw(loader, self.patch)

    def build(self, network: BackboneConfig) -> MAE:
        """Build the network with an output per image channel, at full resolution alone."""
        return MAE(reconstructor(network), self, network.in_channels)

    def check_crop(self, size: Sequence[int]) -> None:
        """Check that the crop divides into patches some of which are hidden, some visible.

        Raises:
            ValueError: it does not.
        """
        check_patches(size, self.patch, self.mask_ratio)

    def plan(self, loader: LoaderConfig, spacing: Sequence[float]) -> list[tuple[str, str]]:
        """Return a row on the size and number of patches."""
        size = " x ".join(f"{self.patch * side:g}" for side in spacing)
        patches = math.prod(edge // self.patch for edge in loader.patch_size)
        row = f"{self.patch} voxels = {size} mm, {patches} in a crop, a share of {self.mask_ratio:g} is hidden"
        return [("patch", row)]


def reconstructor(network: BackboneConfig) -> Segmenter:
    """Build a segmentation network whose last head has an output per image channel, and which has no other head.

    Raises:
        ValueError: the last of its heads is no convolution of the map of full resolution.
    """
    built = network.segmenter(classes=1)
    parts = {name: part for name, part in built.named_modules() if isinstance(part, nn.Conv3d)}
    heads = [name for name in parts if is_named(name, network.heads)]
    if not heads or parts[heads[-1]].in_channels != built.encoder.widths[0]:
        raise ValueError(f"network {network.name} cannot be pretrained by MAE: the last of its heads is not the finest")
    for name in heads:
        built.set_submodule(name, nn.Identity())
    head = nn.Conv3d(built.encoder.widths[0], network.in_channels, 1)
    nn.init.kaiming_normal_(head.weight, a=NEGATIVE_SLOPE)
    built.set_submodule(heads[-1], head)
    return built


class MAE(Method):
    """U-Net that reconstructs hidden patches."""

    def __init__(self, network: Segmenter, config: MAEConfig, in_channels: int = 1) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.in_channels = in_channels

    def trainable(self) -> Segmenter:
        """Return the network."""
        return self.network

    def batch(self, sample: Mapping[str, Tensor]) -> MaskedBatch:
        """Pad, normalise and mirror the crops that `MaskedDraw` drew."""
        volume = flip(normalised_crops(sample), sample["flip"]).contiguous(memory_format=self.memory_format)
        return MaskedBatch(volume, sample["noise"])

    def dummy_batch(self, samples: int, size: Sequence[int]) -> MaskedBatch:
        """Return samples that hold nothing."""
        patches = math.prod(edge // self.config.patch for edge in size)
        volume = torch.empty(samples, self.in_channels, *size).contiguous(memory_format=self.memory_format)
        return MaskedBatch(volume, torch.empty(samples, 2, patches))

    def reconstruct(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Reconstruct all voxels (B, C, D, H, W) from the visible ones; return also the hidden ones (B, 1, D, H, W)."""
        grid = [edge // self.config.patch for edge in batch.volume.shape[2:]]
        mask = random_mask(batch.noise[:, 1], self.config.mask_ratio)
        hidden = expand_active(mask.view(-1, *grid), self.config.patch)
        return self.network(batch.volume.masked_fill(hidden, 0))[0], hidden

    def training_step(self, batch: MaskedBatch, progress: float) -> StepResult:
        """Compute the mean squared error of the hidden voxels."""
        reconstruction, hidden = self.reconstruct(batch)
        error = (reconstruction - batch.volume).square() * hidden
        return StepResult(error.sum() / (hidden.sum() * self.in_channels))

    @torch.no_grad()
    def views(self, batch: MaskedBatch) -> Mapping[str, Tensor]:
        """Return the first sample, what is visible of it, and that with its hidden voxels filled in."""
        reconstruction, hidden = self.reconstruct(batch)
        shown, filled = batch.volume.masked_fill(hidden, 0), torch.where(hidden, reconstruction, batch.volume)
        return {"scan": batch.volume[0], "visible": shown[0], "reconstruction": filled[0]}
