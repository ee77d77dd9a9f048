"""Pretraining as a task of the training loop, whatever the method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anatomask.data.joined import open_joined
from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig
from anatomask.data.storage import Roots
from anatomask.methods.base import MethodConfig
from anatomask.methods.masked import MaskedMethod
from anatomask.nn.backbones.base import BackboneConfig
from anatomask.training.fixed_scans import FixedCases
from anatomask.training.monitors import MaskMonitor, Monitor, ViewMonitor
from anatomask.training.recorder import Recorder
from anatomask.training.task import Task, seed_forward


class PretrainingTask(Task):
    """Training of a method on crops as they are stored: padding, normalisation and flips run on the device."""

    def __init__(
        self,
        method: MethodConfig,
        network: BackboneConfig,
        loader: LoaderConfig,
        header: Mapping[str, Any],
        data: Roots,
        fixed: FixedCases,
        seed: int,
        device: torch.device,
    ) -> None:
        """Build the task; `header` describes the weights, and the scans `fixed` of `data` monitor it."""
        super().__init__()
        torch.manual_seed(seed)
        self.method = method.build(network).to(device)
        self.header = header
        self.seed = seed
        draw, dataset = method.draw(loader), open_joined(data)
        self.monitor: Monitor
        if isinstance(self.method, MaskedMethod) and isinstance(draw, MaskedDraw):
            self.monitor = MaskMonitor(self.method, dataset, fixed, draw, seed, device)
        else:
            self.monitor = ViewMonitor(self.method, dataset, fixed, draw, seed, device)
        self.charts = self.monitor.charts

    def trainable(self) -> nn.Module:
        """Return what the method trains."""
        return self.method.trainable()

    def networks(self) -> Sequence[nn.Module]:
        """Return all networks of the method."""
        return self.method.networks()

    def frozen(self) -> Iterable[nn.Parameter]:
        """Return what the method freezes in this epoch."""
        return self.method.frozen()

    def kept(self) -> nn.Module:
        """Return the whole method."""
        return self.method

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute the loss of one drawn batch at `progress` = t/T, and the method's scalars."""
        self.method.memory_format, self.method.epoch = self.memory_format, self.epoch
        seed_forward(self.seed, sample)
        result = self.method.training_step(self.method.batch(sample), progress)
        return result.loss, result.scalars

    def after_step(self, progress: float) -> None:
        """Let the method follow an update."""
        self.method.after_step(progress)

    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Record what the networks make of the fixed scans."""
        self.method.memory_format = self.memory_format
        self.monitor.record(recorder, step)
        return None
