"""Monitoring of a pretraining on fixed scans: masks and reconstructions, or the loss and the views."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import Draw, stacked
from anatomask.data.shards import PreparedDataset
from anatomask.masking import share_among
from anatomask.methods.base import Method
from anatomask.methods.masked import Examination, MaskedMethod
from anatomask.training.fixed_scans import FixedCases, read_fixed_scans
from anatomask.training.loop import to_device
from anatomask.training.pictures import reconstruction_figure, views_figure
from anatomask.training.recorder import Recorder


class Monitor(Protocol):
    """Monitor of a training by scans that stay the same."""

    charts: Mapping[str, Sequence[str]]
    """Scalars that belong in one chart, by its title."""

    def record(self, recorder: Recorder, step: int) -> None:
        """Record scalars and pictures after update `step`."""


class MaskMonitor:
    """Monitor of a masked method: loss, masks against organs, and Fig. 1 of each scan."""

    charts: Mapping[str, Sequence[str]] = MappingProxyType(
        {
            "masked patches that touch an organ": ("mask/organs_hard", "mask/organs_self", "mask/organs_random"),
            "loss": ("train/loss", "val/loss", "val/teacher_loss"),
        }
    )

    def __init__(
        self,
        method: MaskedMethod,
        dataset: PreparedDataset,
        fixed: FixedCases,
        draw: MaskedDraw,
        seed: int,
        device: torch.device,
    ) -> None:
        self.method = method
        self.device = device
        self.spacing = dataset.spacing
        self.scans = read_fixed_scans(dataset, fixed, draw, seed)

    def record(self, recorder: Recorder, step: int) -> None:
        """Record what the networks make of the scans, one at a time, so that the device never holds more."""
        values: dict[str, list[Tensor]] = defaultdict(list)
        for number, scan in enumerate(self.scans):
            examination = self.method.examine(
                scan.volume.to(self.device, memory_format=self.method.memory_format),
                scan.noise.to(self.device),
                None if scan.among is None else scan.among.to(self.device),
            )
            for name, value in measures(examination, scan.organs).items():
                values[name].append(value.cpu())
            name = f"reconstruction/{scan.case}" if number else "reconstruction"
            recorder.figure(step, name, reconstruction_figure(examination.picture, self.spacing, scan.case))
        means = {name: float(torch.cat(parts).nanmean()) for name, parts in values.items()}
        recorder.scalars(step, {name: mean for name, mean in means.items() if not math.isnan(mean)})
        for name, network in (("val/loss", "student"), ("val/teacher_loss", "teacher")):
            if name in values:
                recorder.histogram(step, f"patch_loss/{network}", torch.cat(values[name]))


class ViewMonitor:
    """Monitor of any method: its loss in eval mode on one fixed sample of each scan, and its views."""

    charts: Mapping[str, Sequence[str]] = MappingProxyType({"loss": ("train/loss", "val/loss")})

    def __init__(
        self,
        method: Method,
        dataset: PreparedDataset,
        fixed: FixedCases,
        draw: Draw,
        seed: int,
        device: torch.device,
    ) -> None:
        self.method = method
        self.spacing = dataset.spacing
        self.cases = fixed.cases
        drawn = [draw(dataset, case, np.random.default_rng([seed, 3, k])) for k, case in enumerate(fixed.cases)]
        self.sample = to_device(stacked(drawn), device) if drawn else {}

    @torch.no_grad()
    def record(self, recorder: Recorder, step: int) -> None:
        """Record the loss at the end of the schedules, and a picture of the first scan's views."""
        if not self.sample:
            return
        modes = {module: module.training for module in self.method.modules()}
        self.method.eval()
        batch = self.method.batch(self.sample)
        loss = self.method.training_step(batch, 1.0).loss
        for module, mode in modes.items():
            module.training = mode
        recorder.scalars(step, {"val/loss": float(loss)})
        views = self.method.views(batch)
        if views:
            recorder.figure(step, "views", views_figure(views, self.spacing, self.cases[0]))


def measures(examination: Examination, organs: Tensor | None) -> dict[str, Tensor]:
    """Compute the values recorded for one scan, by name, to be averaged over masks and scans.

    They are patch losses (M, n), NaN where visible. Where `organs` (n,) marks patches that touch an organ, the share
    of those among the masked ones (M,) is added: the claim of the paper's Fig. 3 as a number. The more anatomy the
    teacher finds hard, the further the self-masks' share lies above the random masks', and that of the hard patches
    above both.
    """
    found = {"val/loss": examination.student_loss}
    if examination.teacher_loss is not None:
        found["val/teacher_loss"] = examination.teacher_loss
    if organs is not None:
        masks = {"random": examination.random_masks, "self": examination.self_masks, "hard": examination.hard}
        found |= {f"mask/organs_{name}": share_among(mask, organs.to(mask.device)) for name, mask in masks.items()}
    return found
