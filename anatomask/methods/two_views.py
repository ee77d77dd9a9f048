"""Common parts of the methods that compare two views of a scan, one through a network that is trained and one through
a copy that follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anatomask.data.augmentation.pipeline import IntensityAugmentation
from anatomask.data.samples import LoaderConfig
from anatomask.data.views import TwoViewsDraw, two_views
from anatomask.methods.base import Method, MethodConfig
from anatomask.nn.backbones.base import BackboneConfig

Views = tuple[Tensor, Tensor]
"""Pairs of views of the samples, (B, C, D, H, W) each."""


@dataclass(frozen=True)
class TwoViewsConfig(MethodConfig):
    """Settings of such a method, whose encoder has the stages that masked methods train with patches of 16 voxels."""

    def stages(self, network: BackboneConfig) -> int:
        """Count the encoder stages that are trained."""
        return network.pretrained_stages(patch=16)

    def draw(self, loader: LoaderConfig) -> TwoViewsDraw:
        """Return what draws two overlapping crops."""
        return TwoViewsDraw(loader)


class Branch(nn.Module):
    """Encoder, mean over the voxels of its deepest map, and projector."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, volume: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to projections (B, width)."""
        return self.projector(self.encoder(volume)[-1].mean((2, 3, 4)))


class TwoViewsMethod(Method):
    """Method whose batch is two views of each sample."""

    def __init__(self, change: float, in_channels: int) -> None:
        """Set how many times as likely as in finetuning a view's intensities are changed."""
        super().__init__()
        self.augmentation = IntensityAugmentation(change)
        self.in_channels = in_channels

    def batch(self, sample: Mapping[str, Tensor]) -> Views:
        """Make two views of each sample."""
        return two_views(sample, self.augmentation, self.memory_format)

    def dummy_batch(self, samples: int, size: Sequence[int]) -> Views:
        """Return views with arbitrary values."""
        first, second = torch.empty(2, samples, self.in_channels, *size)
        return first, second

    def views(self, batch: Views) -> Mapping[str, Tensor]:
        """Return both views of the first sample."""
        return {"view 1": batch[0][0], "view 2": batch[1][0]}


@torch.no_grad()
def follow(copy: nn.Module, trained: nn.Module, decay: float) -> None:
    """Move the parameters of `copy` towards those of `trained` (EMA); its running statistics are its own."""
    torch._foreach_lerp_(list(copy.parameters()), list(trained.parameters()), 1 - decay)
