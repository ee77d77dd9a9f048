"""Normalisation of stored voxels on the device; shards hold voxels as they were scanned."""

from __future__ import annotations

from torch import Tensor


def normalise(voxels: Tensor, normalisation: Tensor) -> Tensor:
    """Compute (clamp(x, low, high) - mean) / std, channel by channel, in float32.

    Args:
        voxels: (…, C, D, H, W) as stored (HU for CT).
        normalisation: (…, C, 4) low, high, mean and std, from `PreparedDataset.normalisation`.
    """
    low, high, mean, std = normalisation[..., None, None, None].unbind(-4)
    return voxels.float().clamp(low, high).sub_(mean).div_(std)
