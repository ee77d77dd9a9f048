"""State of a training: everything that changes from update to update, and that a checkpoint therefore holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anatomask.training.optimiser import build_optimiser
from anatomask.training.settings import OptimiserConfig
from anatomask.training.task import Task


@dataclass(frozen=True)
class TrainingState:
    """Weights, the optimiser's moments, and the scale of half-precision losses."""

    task: Task
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    @classmethod
    def of(cls, task: Task, config: OptimiserConfig, device: torch.device, *, scaled: bool = False) -> TrainingState:
        """Make a fresh state; `scaled` says whether losses are scaled, as half precision needs."""
        optimiser = build_optimiser(task.trainable(), config, task.encoder_depths(), task.undecayed())
        return cls(task, optimiser, torch.amp.GradScaler(device.type, enabled=scaled))
