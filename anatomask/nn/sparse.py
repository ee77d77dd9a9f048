"""Sparse (submanifold) encoding, and its reference backend: hidden patches are neither read nor counted.

The mask is passed as an argument everywhere, so models share no state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatomask.nn.backbones.base import ConvolutionalEncoder
from anatomask.nn.backbones.operations import NEGATIVE_SLOPE, Operations
from anatomask.nn.norms import Pool, pooled, widened


@dataclass(frozen=True)
class Visible:
    """Number of visible patches per sample, as far as it is known without asking the device."""

    most: int
    """Upper bound of the number of visible patches in a sample."""
    same: bool = True
    """True if every sample has exactly `most` visible patches."""


class SparseMap(Protocol):
    """One map of the encoder, in the form that its backend uses."""

    @property
    def values(self) -> Tensor:
        """Numbers that the map stores, in the backend's own shape."""

    def dense(self) -> Tensor:
        """Return (B, C, D, H, W), zero where hidden."""

    def densify(self, norm: nn.InstanceNorm3d, token: Tensor) -> Tensor:
        """Return (B, C, D, H, W), normalised over the active voxels; hidden voxels hold `token` (1, C, 1, 1, 1)."""


def check_active(volume: Tensor, active: Tensor, patch: int) -> None:
    """Check that `active` is the grid of patches of `patch` voxels of `volume`.

    Args:
        volume: (B, C, D, H, W).
        active: (B, D/patch, H/patch, W/patch) bool.
        patch: edge of a patch in voxels.

    Raises:
        ValueError: the sides of `volume` are not multiples of `patch`, or `active` has another shape or type.
    """
    grid = tuple(size // patch for size in volume.shape[2:])
    if volume.dim() != 5 or any(size % patch for size in volume.shape[2:]):
        raise ValueError(
            f"volume must be (B, C, D, H, W) with sides that are multiples of {patch}: {tuple(volume.shape)}"
        )
    if active.dtype != torch.bool or tuple(active.shape) != (volume.shape[0], *grid):
        raise ValueError(
            f"active must be bool of shape {(volume.shape[0], *grid)}, not {active.dtype} of {tuple(active.shape)}"
        )


def expand_active(active: Tensor, factor: int) -> Tensor:
    """Repeat each patch of the grid (B, d, h, w) `factor` times along each axis: bool (B, 1, d*factor, ...)."""
    batch, *grid = active.shape
    d, h, w = grid
    blocks = active[:, :, None, :, None, :, None].expand(batch, d, factor, h, factor, w, factor)
    return blocks.reshape(batch, 1, d * factor, h * factor, w * factor)


def masked_instance_norm(x: Tensor, mask: Tensor, norm: nn.InstanceNorm3d, pool: Pool) -> Tensor:
    """Compute InstanceNorm with the mean and (biased) variance of active voxels; hidden ones are undefined.

    Args:
        x: (B, C, D, H, W); its values at hidden positions are not used.
        mask: (B, 1, D, H, W), 1 where active, else 0.
        norm: affine parameters and eps.
        pool: samples over which statistics are pooled.
    """
    x = widened(x)
    mask = mask.to(x.dtype)
    dims = (2, 3, 4) if pool == "sample" else (0, 2, 3, 4)
    count = pooled(mask.sum(dims, keepdim=True), pool).clamp_min(1)
    mean = pooled((x * mask).sum(dims, keepdim=True), pool) / count
    centred = (x - mean) * mask
    variance = pooled(centred.square().sum(dims, keepdim=True), pool) / count
    scale = norm.weight.view(1, -1, 1, 1, 1) * torch.rsqrt(variance + norm.eps)
    return torch.addcmul(norm.bias.view(1, -1, 1, 1, 1), centred, scale)


@dataclass(frozen=True)
class MaskedOperations(Operations):
    """Operations on whole maps (B, C, D, H, W) whose hidden voxels are zero, so that convolutions ignore them."""

    active: Tensor
    """Visible patches (B, d, h, w) bool."""
    dtype: torch.dtype
    pool_of_norms: Pool
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, x: Tensor) -> Tensor:
        """Return (B, 1, D, H, W) at the resolution of `x`: 1 where active, else 0."""
        factor = x.shape[2] // self.active.shape[1]
        if factor not in self._masks:
            self._masks[factor] = expand_active(self.active, factor).to(self.dtype)
        return self._masks[factor]

    def convolve(
        self, x: Tensor, convolution: nn.Conv3d, norm: nn.InstanceNorm3d, skip: Tensor | None = None
    ) -> Tensor:
        """Convolve, normalise over the active voxels, add `skip` and activate; hidden voxels become zero again."""
        y = convolution(x)
        mask = self.mask(y)
        y = masked_instance_norm(y, mask, norm, self.pool_of_norms)
        return functional.leaky_relu(y if skip is None else y + skip, NEGATIVE_SLOPE) * mask

    def project(self, x: Tensor, convolution: nn.Conv3d) -> Tensor:
        """Call the convolution; hidden voxels are left undefined."""
        return convolution(x)

    def pool(self, x: Tensor) -> Tensor:
        """Average 2x2x2 voxels, which lie in the same patch."""
        return functional.avg_pool3d(x, 2)

    def normalise(self, x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
        """Normalise over the active voxels; hidden voxels are left undefined."""
        return masked_instance_norm(x, self.mask(x), norm, self.pool_of_norms)


@dataclass(frozen=True)
class MaskedMap:
    """Whole map whose hidden voxels are zero."""

    values: Tensor
    mask: Tensor
    pool: Pool

    def dense(self) -> Tensor:
        """Return `values`."""
        return self.values

    def densify(self, norm: nn.InstanceNorm3d, token: Tensor) -> Tensor:
        """Return `values`, normalised over the active voxels; hidden voxels hold `token`."""
        return torch.where(self.mask, masked_instance_norm(self.values, self.mask, norm, self.pool), token)


def encode_dense(
    encoder: ConvolutionalEncoder, volume: Tensor, active: Tensor, pool: Pool, visible: Visible | None
) -> list[MaskedMap]:
    """Encode by ordinary convolutions whose results are masked."""
    patch = volume.shape[2] // active.shape[1]
    x = volume.masked_fill(~expand_active(active, patch), 0)  # a product would let hidden NaNs through
    maps = encoder(x, MaskedOperations(active, volume.dtype, pool))
    return [
        MaskedMap(encoded, expand_active(active, patch // stride), pool)
        for encoded, stride in zip(maps, encoder.strides, strict=True)
    ]
