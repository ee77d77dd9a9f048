"""Pretraining as a task of the training loop."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from anatomask.data.crops import flip, normalised_crops
from anatomask.data.samples import PretrainingDraw
from anatomask.data.shards import PreparedDataset
from anatomask.masking import share_among
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.methods.base import Examination, PretrainBatch
from anatomask.nn.stunet import STUNetConfig
from anatomask.training.fixed_scans import FixedCases, read_fixed_scans
from anatomask.training.pictures import reconstruction_figure
from anatomask.training.recorder import Recorder
from anatomask.training.task import Task


class PretrainingTask(Task):
    """AnatoMask on crops as they are stored: padding, normalisation and flips happen here, on the device."""

    charts = MappingProxyType(
        {
            "masked patches that touch an organ": ("mask/organs_hard", "mask/organs_self", "mask/organs_random"),
            "loss": ("train/loss", "val/loss", "val/teacher_loss"),
        }
    )

    def __init__(
        self,
        method: AnatoMaskConfig,
        network: STUNetConfig,
        header: Mapping[str, Any],
        dataset: PreparedDataset,
        fixed: FixedCases,
        draw: PretrainingDraw,
        seed: int,
        device: torch.device,
    ) -> None:
        """`header` describes the weights; `fixed` are the scans by which the training is watched."""
        super().__init__()
        torch.manual_seed(seed)
        self.method = AnatoMask(method, network).to(device)
        self.header = header
        self.device = device
        self.fixed_scans = read_fixed_scans(dataset, fixed, draw, seed)

    def trainable(self) -> nn.Module:
        """The student."""
        return self.method.student

    def networks(self) -> Sequence[nn.Module]:
        """The student, and the teacher where there is one."""
        return [self.method.student] if self.method.teacher is None else [self.method.student, self.method.teacher]

    def kept(self) -> nn.Module:
        """Student and teacher."""
        return self.method

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of one batch at `progress` = t/T, and the method's scalars.

        `sample` is a batch that `PretrainingDraw` drew.
        """
        volume = flip(normalised_crops(sample), sample["flip"])
        volume = volume.contiguous(memory_format=self.memory_format)
        candidates = sample.get("candidates")  # on the host: the device is not asked
        fewest = 0 if candidates is None else int(candidates.min())
        batch = PretrainBatch(volume, sample["noise"], sample.get("among"), fewest)
        result = self.method.training_step(batch, progress)
        return result.loss, result.scalars

    def after_step(self, progress: float) -> None:
        """The teacher follows."""
        self.method.after_step(progress)

    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Record what the networks make of the fixed scans: loss, masks against organs, and Fig. 1 of each."""
        values: dict[str, list[Tensor]] = defaultdict(list)
        for number, scan in enumerate(self.fixed_scans):  # one at a time: the device need not hold more
            examination = self.method.examine(
                scan.volume.to(self.device, memory_format=self.memory_format),
                scan.noise.to(self.device),
                None if scan.among is None else scan.among.to(self.device),
            )
            for name, value in measures(examination, scan.organs).items():
                values[name].append(value.cpu())
            name = f"reconstruction/{scan.case}" if number else "reconstruction"
            recorder.figure(step, name, reconstruction_figure(examination.picture, self.header["spacing"], scan.case))
        means = {name: float(torch.cat(parts).nanmean()) for name, parts in values.items()}
        recorder.scalars(step, {name: mean for name, mean in means.items() if not math.isnan(mean)})
        for name, network in (("val/loss", "student"), ("val/teacher_loss", "teacher")):
            if name in values:
                recorder.histogram(step, f"patch_loss/{network}", torch.cat(values[name]))
        return None


def measures(examination: Examination, organs: Tensor | None) -> dict[str, Tensor]:
    """What is recorded of one scan, by name, to be averaged over masks and scans.

    Patch losses (M, n), NaN where visible; and where `organs` (n,) tells which patches touch an organ, the share of
    those among the masked ones (M,): the claim of the paper's Fig. 3 as a number. The more anatomy the teacher finds
    hard, the further the self-masks' share lies above the random masks', and that of the hard patches above both.
    """
    found = {"val/loss": examination.student_loss}
    if examination.teacher_loss is not None:
        found["val/teacher_loss"] = examination.teacher_loss
    if organs is not None:
        masks = {"random": examination.random_masks, "self": examination.self_masks, "hard": examination.hard}
        found |= {f"mask/organs_{name}": share_among(mask, organs.to(mask.device)) for name, mask in masks.items()}
    return found
