"""Augmentation of a batch that was drawn: crops are turned and scaled, and their intensities are changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anatomask.data.augmentation.draws import draw_intensity, moves
from anatomask.data.augmentation.intensity import change_intensity
from anatomask.data.augmentation.spatial import resample
from anatomask.data.crops import pad_outside
from anatomask.data.normalisation import normalise


class IntensityAugmentation:
    """Random changes of intensity of normalised crops, in float32 on the device that they are on."""

    def __init__(self, often: float = 1.0, coarse: int | None = None) -> None:
        """Set how many times as likely each change is as in finetuning, and the `coarse_axis` of the scans."""
        self.often = often
        self.coarse = coarse

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Change each crop of (B, C, D, H, W); its seed (B,) in [0, 2³²), on the host, alone decides how."""
        draws = draw_intensity(seeds.tolist(), images.shape[1], often=self.often, coarse=self.coarse)
        with torch.autocast(images.device.type, enabled=False):
            return change_intensity(images, draws)


def placed_crops(sample: Mapping[str, Any], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pad, normalise, turn and scale a batch that `FinetuningDraw` drew, whose crops may differ in shape.

    Returns:
        Images (B, C, *size) float32 and labels (B, 1, *size) uint8.
    """
    images, labels = [], []
    names = ("image", "label", "inside", "minimum", "normalisation", "matrix", "box_start")
    for image, label, inside, minimum, normalisation, matrix, start in zip(*map(sample.get, names), strict=True):
        image = normalise(pad_outside(image, inside, minimum), normalisation)
        if moves(matrix.numpy()):
            with torch.autocast(image.device.type, enabled=False):
                image, label = resample(image, label, matrix.numpy(), start.tolist(), size)
        images.append(image)
        labels.append(label)
    return torch.stack(images), torch.stack(labels)[:, None]
