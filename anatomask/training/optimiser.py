"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from anatomask.settings import Settings


@dataclass(frozen=True)
class OptimiserConfig(Settings):
    """AdamW with linear warm-up and cosine decay to zero, set per epoch."""

    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 1e-5
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays."""
    eps: float = 1e-8
    """AdamW's epsilon (the published finetuning uses 1e-4)."""
    warmup_epochs: int = 20
    """Epochs of linear warm-up."""
    warmup_lr: float = 1e-6
    """Learning rate at which warm-up begins."""
    clip: float = 12.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(0, 1_000_000, "warmup_epochs")
        for name in ("lr", "eps", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {self.betas}")


def build_optimiser(parameters: Iterable[nn.Parameter], config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over `parameters`; its learning rate is set before every update by `learning_rate`.

    Fused: fast, and it leaves out an update on the device when told there that the gradient is not finite.
    """
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(epoch: int, epochs: int, config: OptimiserConfig) -> float:
    """Learning rate of `epoch` (from 0): linear from `warmup_lr` to `lr`, then cosine to 0 over the other epochs."""
    warmup = config.warmup_epochs
    if epoch < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * epoch / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
