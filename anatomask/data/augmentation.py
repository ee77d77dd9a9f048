"""Augmentation for finetuning, after nnU-Net: rotation, scale, noise, blur, brightness, contrast, gamma."""

from __future__ import annotations

import math

import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
)
from torch import Tensor

ROTATION = math.radians(30)


def intensity_transforms(often: float = 1.0) -> list[RandomizableTransform]:
    """Build noise, blur, brightness, contrast and gamma of "image", `often` times as likely as in finetuning."""
    return [
        RandGaussianNoised("image", prob=0.1 * often, std=0.1, sample_std=True),
        RandGaussianSmoothd("image", prob=0.1 * often, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
        RandScaleIntensityd("image", prob=0.15 * often, factors=(-0.25, 0.25)),
        RandScaleIntensityFixedMeand("image", prob=0.15 * often, factors=(-0.25, 0.25), preserve_range=True),
        RandAdjustContrastd("image", prob=0.3 * often, gamma=(0.7, 1.5), retain_stats=True),
    ]


class IntensityAugmentation:
    """Random changes of intensity of normalised crops, in float32 on the device that they are on."""

    def __init__(self, often: float) -> None:
        """Set how many times as likely each change is as in finetuning (`often`)."""
        self.pipeline = Compose(intensity_transforms(often))

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Change each crop of (B, C, D, H, W); its seed (B,) in [0, 2³²) alone decides how."""
        with torch.autocast(images.device.type, enabled=False):
            return torch.stack([self._one(image, seed) for image, seed in zip(images, seeds.tolist(), strict=True)])

    def _one(self, image: Tensor, seed: int) -> Tensor:
        self.pipeline.set_random_state(seed)
        return self.pipeline({"image": image})["image"].as_tensor()


class Augmentation:
    """Random transforms of normalised crops and their labels, in float32 on the device that they are on.

    Rotation up to 30 degrees about each axis and scaling by 0.7 to 1.4 have probability 0.2, as in nnU-Net and the
    published finetuning. The image is interpolated linearly, the label by nearest neighbour.

    MONAI waits for the device where it rotates, blurs or applies a gamma, because it reads back the matrix, the kernel
    width or the range of the values; it draws noise on the host. Every second crop, on average, needs such a transform.
    """

    def __init__(self, device: torch.device) -> None:
        self.pipeline = Compose(
            [
                RandAffined(
                    ["image", "label"],
                    prob=0.2,
                    rotate_range=[(-ROTATION, ROTATION)] * 3,
                    scale_range=[(-0.3, 0.4)] * 3,
                    mode=["bilinear", "nearest"],
                    padding_mode="border",
                    device=device,  # the grid is made there; MONAI would make it on the host
                ),
                *intensity_transforms(),
            ]
        )

    def __call__(self, images: Tensor, labels: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Transform each crop and its label together; its seed alone decides how.

        Args:
            images: (B, C, D, H, W) float32, normalised.
            labels: (B, 1, D, H, W) uint8.
            seeds: (B,) in [0, 2³²), best on the host, which reads them.
        """
        with torch.autocast(images.device.type, enabled=False):  # half precision would move the sampling grid
            moved = [self._one(*crop) for crop in zip(images, labels, seeds.tolist(), strict=True)]
        return torch.stack([image for image, _ in moved]), torch.stack([label for _, label in moved])

    def _one(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        self.pipeline.set_random_state(seed)
        moved = self.pipeline({"image": image, "label": label.float()})
        return moved["image"].as_tensor(), moved["label"].as_tensor().to(torch.uint8)
