"""Changes of intensity, each of N volumes (N, D, H, W) in float32, on their device, with parameters of their own.

None waits for the device: the host knows which volumes change, and the parameters go to the device beside its work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from anatomask.data.augmentation.draws import IntensityDraws

SMALLEST = 1e-7
"""Range or standard deviation of intensities that `gamma` divides by at least."""
WIDEST = 3
"""Voxels that the kernel of a blur reaches to either side at most, at a standard deviation of 1 voxel."""


def change_intensity(images: Tensor, draws: IntensityDraws) -> Tensor:
    """Make the changes that were drawn for (B, C, D, H, W), in nnU-Net's order, and return new tensors."""
    images = images.clone()
    for sample in np.flatnonzero(draws.noise).tolist():
        images[sample] += gaussian_noise(images[sample], float(draws.noise[sample]), int(draws.seeds[sample]))
    volumes = images.flatten(0, 1)
    change_some(volumes, blur, draws.blur, neutral=0)
    change_some(volumes, brighten, draws.brightness)
    change_some(volumes, change_contrast, draws.contrast)
    change_some(volumes, lower_resolution, draws.zoom)
    change_some(volumes, partial(gamma, inverted=True), draws.inverted_gamma)
    change_some(volumes, gamma, draws.gamma)
    return images


def change_some(
    volumes: Tensor, change: Callable[[Tensor, Tensor], Tensor], values: np.ndarray, neutral: float = 1
) -> None:
    """Change in place those of `volumes` (B·C, D, H, W) whose parameter (B, C, …) is not `neutral`, as one batch."""
    values = values.reshape(len(volumes), -1)
    chosen = np.flatnonzero((values != neutral).any(1)).tolist()
    if not chosen:
        return
    parameter = torch.from_numpy(values[chosen].astype(np.float32)).squeeze(1)
    if volumes.is_cuda:
        parameter = parameter.pin_memory().to(volumes.device, non_blocking=True)
    changed = change(torch.stack([volumes[each] for each in chosen]), parameter)  # an index would be copied, waiting
    for each, volume in zip(chosen, changed, strict=True):
        volumes[each] = volume


def gaussian_noise(like: Tensor, std: float, seed: int) -> Tensor:
    """Draw Gaussian noise of one sample, of the shape and on the device of `like`, from its own seed."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.empty_like(like).normal_(0, std, generator=generator)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur (N, D, H, W) by Gaussians of standard deviations (N, 3) in voxels, at most 1, mirrored at the borders.

    The kernel has the odd number of voxels next to 6 standard deviations and a half, as in nnU-Net.
    """
    return _along_axes(images, lambda axis, edge: _blurring(sigma[:, axis], edge))


def brighten(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply (N, D, H, W) by factors (N,)."""
    return images * _per_volume(factor)


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance of (N, D, H, W) from each volume's mean by factors (N,), within the range it had."""
    factor, mean = _per_volume(factor), images.mean((1, 2, 3), keepdim=True)
    lowest, highest = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return torch.addcmul(mean * (1 - factor), images, factor).clamp_(lowest, highest)


def lower_resolution(images: Tensor, zoom: Tensor) -> Tensor:
    """Keep a share (N, 3) of the voxels of (N, D, H, W) along each axis, the nearest ones, and interpolate linearly."""
    return _along_axes(images, lambda axis, edge: _lowering(zoom[:, axis], edge))


def gamma(images: Tensor, exponent: Tensor, *, inverted: bool = False) -> Tensor:
    """Raise (N, D, H, W), scaled to [0, 1], to exponents (N,); mean and standard deviation of each volume remain.

    If `inverted`, the darkest voxel becomes 1 for the power, and the brightest 0.
    """
    flat = images.flatten(1)
    count = flat.shape[1]
    lowest, highest = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    mean = flat.mean(1, keepdim=True)
    spread = torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True)
    scale = (highest - lowest).clamp(min=SMALLEST)
    powered = ((highest - flat) if inverted else (flat - lowest)).div_(scale).pow_(exponent[:, None])
    powered -= powered.mean(1, keepdim=True)
    now = torch.linalg.vector_norm(powered, dim=1, keepdim=True) * (highest - lowest)
    factor = (highest - lowest) * spread / now.clamp(min=SMALLEST * (count - 1) ** 0.5)
    return torch.addcmul(mean, powered, -factor if inverted else factor).view_as(images)


def _per_volume(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _along_axes(images: Tensor, matrices: Callable[[int, int], Tensor]) -> Tensor:
    """Multiply (N, D, H, W) along each axis of an edge by `matrices(axis, edge)`, (N, edge, edge)."""
    n, d, h, w = images.shape
    images = matrices(0, d) @ images.view(n, d, h * w)
    images = matrices(1, h)[:, None] @ images.view(n, d, h, w)
    return (images.view(n, d * h, w) @ matrices(2, w).mT).view(n, d, h, w)


def _blurring(sigma: Tensor, edge: int) -> Tensor:
    """Build matrices (N, edge, edge) that blur a line by sigma (N,)."""
    voxels = 6 * sigma + 0.5
    size = voxels.round()
    size = torch.where(size % 2 == 1, size, torch.where(voxels < size, size - 1, size + 1))
    offset = torch.arange(-WIDEST, WIDEST + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2) * (offset.abs() <= (size[:, None] - 1) / 2)
    index = torch.arange(edge, device=sigma.device)
    source = (index + offset[:, None]).abs()
    source = (edge - 1) - ((edge - 1) - source).abs()  # mirrored without the border voxel itself
    shifts = (source[:, :, None] == index).float()
    return torch.einsum("no,oij->nij", weight / weight.sum(1, keepdim=True), shifts)


def _lowering(zoom: Tensor, edge: int) -> Tensor:
    """Build matrices (N, edge, edge) that keep a share (N,) of a line's voxels and interpolate between them."""
    kept = (edge * zoom).round()[:, None]
    index = torch.arange(edge, device=zoom.device)
    position = ((index + 0.5) * (kept / edge) - 0.5).clamp(min=0)
    lower = torch.minimum(position.floor(), kept - 1)
    upper = torch.minimum(lower + 1, kept - 1)
    fraction = (position - lower)[..., None]
    step = torch.full_like(kept, edge) / kept  # `edge / kept` is a product with the reciprocal, and rounded otherwise
    low, high = (
        functional.one_hot(((which + 0.5) * step).long().clamp(max=edge - 1), edge) for which in (lower, upper)
    )
    return (1 - fraction) * low + fraction * high
