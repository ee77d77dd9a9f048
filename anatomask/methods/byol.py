"""BYOL (Grill et al., NeurIPS 2020) in 3D: the online network predicts the target's projection of another view.

No 3D code by the authors exists. Head, loss and moving average are those of lucidrains/byol-pytorch 0.9.1 without its
simplicial embeddings; crops, their changes and the optimiser are this project's choices.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.methods.base import StepResult
from anatomask.methods.two_views import Branch, TwoViewsConfig, TwoViewsMethod, Views, follow
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.nn.norms import BatchNorm1d, widened


@dataclass(frozen=True)
class BYOLConfig(TwoViewsConfig):
    """Settings of BYOL. The encoder has the five stages that masked methods train with patches of 16 voxels."""

    name = "byol"
    encoder = "online.encoder."
    splits_batches = False  # BatchNorm of the heads needs all samples

    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    projection: int = 256
    """Width of a projection."""
    ema_decay: float = 0.99
    """EMA decay of the target's parameters, which follow the online network's after each update."""
    change: float = 2.0
    """Factor by which noise, blur, brightness, contrast, low resolution and gamma are likelier than in finetuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, 65_536, "hidden", "projection")
        self.require_range(0, 3, "change")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")

    def label(self) -> str:
        """Return the name in tables."""
        return "BYOL"

    def build(self, network: BackboneConfig) -> BYOL:
        """Build the online network, its predictor, and the target as a copy."""
        encoder = network.encoder(self.stages(network))
        online = Branch(encoder, head(encoder.widths[-1], self.hidden, self.projection))
        return BYOL(online, head(self.projection, self.hidden, self.projection), self, network.in_channels)


def head(in_width: int, hidden: int, out_width: int) -> nn.Sequential:
    """Build Linear – BatchNorm – ReLU – Linear: the projector or the predictor."""
    return nn.Sequential(nn.Linear(in_width, hidden), BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out_width))


def regression_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Compute 2 - 2·cosine of each row of two (B, width): (B,), equation 2 of the paper."""
    return 2 - 2 * functional.cosine_similarity(widened(prediction), widened(projection), dim=-1)


class BYOL(TwoViewsMethod):
    """Online network and predictor, which are trained, and the target, which follows them."""

    def __init__(self, online: Branch, predictor: nn.Module, config: BYOLConfig, in_channels: int = 1) -> None:
        super().__init__(config.change, in_channels)
        self.online = online
        self.predictor = predictor
        self.target = copy.deepcopy(online).requires_grad_(False)
        self.config = config

    def trainable(self) -> nn.ModuleList:
        """Return the online network and its predictor."""
        return nn.ModuleList([self.online, self.predictor])

    def networks(self) -> Sequence[nn.Module]:
        """Return the online network, its predictor and the target."""
        return [self.online, self.predictor, self.target]

    def training_step(self, batch: Views, progress: float) -> StepResult:
        """Predict each view's target projection from the other view; both views are computed as one batch."""
        views = torch.cat(batch)
        first, second = self.predictor(self.online(views)).chunk(2)
        with torch.no_grad():
            target_first, target_second = self.target(views).chunk(2)
        loss = regression_loss(first, target_second) + regression_loss(second, target_first)
        return StepResult(loss.mean())

    def after_step(self, progress: float) -> None:
        """Let the target follow the online network."""
        follow(self.target, self.online, self.config.ema_decay)
