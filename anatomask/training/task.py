"""What the training loop trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from anatomask.training.recorder import Recorder


class Task(Protocol):
    """What the loop trains: a network, its loss, and what is worth knowing about it."""

    def trainable(self) -> nn.Module:
        """The module whose parameters are updated."""

    def step(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of one batch, and scalars to record (on the device, detached). `progress` is t/T."""

    def after_step(self, progress: float) -> None:
        """Whatever follows an update (EMA)."""

    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Record scalars and pictures; the score by which the best checkpoint is chosen, if there is one."""

    def save(self, folder: Path) -> None:
        """Write the weights into a checkpoint folder."""

    def load(self, folder: Path) -> None:
        """Read the weights of a checkpoint folder that `save` wrote."""
