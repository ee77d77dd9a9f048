"""Training crops on the device: padded, normalised and mirrored in batches, without synchronising with the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from anatomask.data.normalisation import normalise


def normalised_crops(sample: Mapping[str, Tensor]) -> Tensor:
    """Pad and normalise a batch that was drawn, into what a network reads: (B, C, D, H, W) float32.

    `sample` holds what `anatomask.data.samples.stored_crop` gives: `image`, `inside`, `minimum` and `normalisation`.
    """
    return normalise(pad_outside(sample["image"], sample["inside"], sample["minimum"]), sample["normalisation"])


def pad_outside(image: Tensor, inside: Tensor, minimum: Tensor) -> Tensor:
    """Put each channel's minimum where a crop reaches beyond its scan.

    Args:
        image: (…, C, D, H, W).
        inside: (…, 3, 2) for each axis the first voxel of the crop that lies in the scan, and the first after those.
        minimum: (…, C), values that the image's type holds.
    """

    def within(axis: int) -> Tensor:
        index = torch.arange(image.shape[axis - 3], device=image.device)
        return (inside[..., axis, 0, None] <= index) & (index < inside[..., axis, 1, None])

    d, h, w = (within(axis) for axis in range(3))
    scanned = d[..., None, :, None, None] & h[..., None, None, :, None] & w[..., None, None, None, :]
    return torch.where(scanned, image, minimum.to(image.dtype)[..., None, None, None])


def flip(volume: Tensor, axes: Tensor) -> Tensor:
    """Mirror sample b of (B, C, D, H, W) along the axes that are true in row b of (B, 3), which the host reads."""
    chosen = [[axis + 1 for axis in range(3) if row[axis]] for row in axes.tolist()]
    return torch.stack([one.flip(along) if along else one for one, along in zip(volume, chosen, strict=True)])


def pad_to(volume: Tensor, shape: Sequence[int], before: Sequence[int] = (0, 0, 0)) -> Tensor:
    """Pad a volume (C, D, H, W) to `shape` voxels with each channel's minimum, `before` of them in front."""
    if tuple(volume.shape[1:]) == tuple(shape):
        return volume
    padded = volume.amin((1, 2, 3))[:, None, None, None].expand(-1, *shape).clone()
    inside = tuple(slice(margin, margin + extent) for margin, extent in zip(before, volume.shape[1:], strict=True))
    padded[:, *inside] = volume
    return padded
