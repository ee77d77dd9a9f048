"""Augmentation for finetuning, after nnU-Net: rotation, scale, noise, blur, brightness, contrast, gamma, mirroring."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
)

ROTATION = math.radians(30)


def augment(
    image: torch.Tensor, label: np.ndarray, mirror_axes: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Randomly transform a normalised image (C, D, H, W) and its label (D, H, W) together, driven by `rng` alone.

    Rotation up to 30 degrees about each axis and scaling by 0.7 to 1.4 have probability 0.2, as in nnU-Net and the
    published finetuning; mirroring has 0.5 along each of `mirror_axes`. The image is interpolated linearly, the label
    by nearest neighbour.
    """
    pipeline = Compose(
        [
            RandAffined(
                ["image", "label"],
                prob=0.2,
                rotate_range=[(-ROTATION, ROTATION)] * 3,
                scale_range=[(-0.3, 0.4)] * 3,
                mode=["bilinear", "nearest"],
                padding_mode="border",
            ),
            RandGaussianNoised("image", prob=0.1, std=0.1, sample_std=True),
            RandGaussianSmoothd("image", prob=0.1, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
            RandScaleIntensityd("image", prob=0.15, factors=(-0.25, 0.25)),
            RandScaleIntensityFixedMeand("image", prob=0.15, factors=(-0.25, 0.25), preserve_range=True),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *(RandFlipd(["image", "label"], prob=0.5, spatial_axis=axis) for axis in mirror_axes),
        ]
    ).set_random_state(seed=int(rng.integers(2**32)))
    moved = pipeline({"image": image, "label": torch.from_numpy(label)[None].float()})
    return np.asarray(moved["image"], dtype=np.float32), np.asarray(moved["label"][0]).round().astype(np.uint8)
