"""Pretraining as a task of the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anatomask.data.crops import flip, normalised_crops
from anatomask.data.normalisation import normalise
from anatomask.data.samples import centred_origin
from anatomask.data.shards import PreparedDataset
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.methods.base import PretrainBatch
from anatomask.nn.sparse import PATCH
from anatomask.nn.stunet import STUNetConfig
from anatomask.training.pictures import reconstruction_figure
from anatomask.training.recorder import Recorder
from anatomask.training.task import Task


class PretrainingTask(Task):
    """AnatoMask on crops as they are stored: padding, normalisation and flips happen here, on the device."""

    compared_by = ("val/patch_loss",)

    def __init__(
        self,
        method: AnatoMaskConfig,
        network: STUNetConfig,
        header: Mapping[str, Any],
        dataset: PreparedDataset,
        fixed_case: str,
        seed: int,
        device: torch.device,
    ) -> None:
        """`header` describes the weights; `fixed_case` is the scan of which a picture is recorded."""
        super().__init__()
        torch.manual_seed(seed)
        self.method = AnatoMask(method, network).to(device)
        self.header = header
        self.fixed_volume = central_crop(dataset, fixed_case, header["patch_size"]).to(device)
        patches = int(np.prod([edge // PATCH for edge in header["patch_size"]]))
        noise = np.random.default_rng(seed).random((3, patches), dtype=np.float32)
        self.fixed_noise = torch.from_numpy(noise).to(device)

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
        result = self.method.training_step(PretrainBatch(volume, sample["noise"]), progress)
        return result.loss, result.scalars

    def after_step(self, progress: float) -> None:
        """The teacher follows."""
        self.method.after_step(progress)

    def validate(self, recorder: Recorder, step: int) -> float | None:
        """Record Fig. 1 for the fixed scan, and its patch loss (mean over two random masks)."""
        picture = self.method.picture(self.fixed_volume, self.fixed_noise)
        recorder.scalars(step, {"val/patch_loss": float(picture.patch_loss.nanmean())})
        recorder.figure(step, "reconstruction", reconstruction_figure(picture, self.header["spacing"]))
        return None


def central_crop(dataset: PreparedDataset, case: str, size: tuple[int, int, int]) -> Tensor:
    """The middle of a case, normalised: (1, C, *size)."""
    shape = dataset.records[case].shape
    origin = centred_origin([extent // 2 for extent in shape], shape, size)
    image, _ = dataset.read_crop(case, origin, size, label=False)
    return normalise(torch.from_numpy(image)[None], torch.from_numpy(dataset.normalisation(case))[None])
