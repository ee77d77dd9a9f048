"""Views of UniMiSS (Xie et al., ECCV 2022): two boxes of one region, resized, mirrored, and changed slice by slice.

Source: YtongXie/UniMiSS-code, `UniMiSS/data_loader3D.py`, commit 68be0a4, and the transforms of batchgenerators 0.21
that it calls. These take a view's slices for channels: blur, contrast and the like are drawn per slice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from anatomask.data.augmentation.draws import Change, about_one
from anatomask.data.augmentation.intensity import brighten, change_contrast, change_some, gamma, gaussian_noise
from anatomask.data.crops import pad_outside
from anatomask.data.normalisation import normalise
from anatomask.data.samples import LoaderConfig, Sample, random_origin, stored_crop
from anatomask.data.views import SECOND

if TYPE_CHECKING:
    from anatomask.data.shards import PreparedDataset

REGION = (1.4, 1.8)
"""Edge of the region along R and A, as a multiple of the crop's."""
REGION_SLICES = 1.5
"""Number of its slices, as a multiple of the crop's: the authors' sub-volumes have 24, their views 16."""
VIEW = (0.8, 1.2)
"""Edge of a view along R and A, as a multiple of the crop's, before it is resized to the crop's."""
MIRRORED = 0.8
"""Probability of mirroring along each axis."""
NOISE = (0.0, 0.1)
"""Standard deviation of the noise of a view."""
BLUR = (0.1, 2.0)
"""Standard deviation in pixels of a slice's blur."""
FACTOR = (0.75, 1.25)
"""Factor of a slice."""
SHIFT = 0.4
"""Standard deviation of what is added to a slice."""
CONTRAST = Change(1.0, 0.75, 1.25)
"""Factor of the distance from a slice's mean."""
GAMMA = Change(1.0, 0.7, 1.5)
"""Exponent of a slice."""


@dataclass(frozen=True)
class Probabilities:
    """Probabilities with which the slices of one of the views are changed."""

    blurred_slice: float
    """That of a slice's blur, where the view is blurred, which it is with 0.8."""
    factor: float
    shift: float
    """That of adding to a view; a slice takes part with 0.8."""
    gamma: float


PROBABILITIES = (Probabilities(0.8, 0.8, 0.8, 0.8), Probabilities(0.5, 1.0, 0.5, 1.0))
"""Those of the first and of the second view."""


@dataclass(frozen=True)
class SubVolumesDraw:
    """Draw of two `stored_crop`s of sizes of their own, each with a `flip` (3,), and `seeds` (2,) of their changes.

    The columns of the second are named `second_…`. `common` (2, n) are the places of n slices that both views show,
    half as many as a view has, in either.
    """

    loader: LoaderConfig

    def __call__(self, dataset: PreparedDataset, case: str, rng: np.random.Generator) -> Sample:
        """Draw two label-free boxes of `case`.

        Raises:
            UserError: as `PreparedDataset.read_crop`.
        """
        *plane, slices = self.loader.patch_size
        shape = dataset.records[case].shape
        region = [_scaled(edge, rng.uniform(*REGION), extent) for edge, extent in zip(plane, shape[:2], strict=True)]
        region.append(max(slices, min(int(REGION_SLICES * slices), shape[2])))
        first = random_origin(shape, region, rng)
        sample: Sample = {}
        starts, flips = [], rng.random((2, 3)) < MIRRORED
        for prefix, flip in zip(("", SECOND), flips, strict=True):
            size = [_scaled(edge, rng.uniform(*VIEW), whole) for edge, whole in zip(plane, region[:2], strict=True)]
            size.append(slices)
            inner = random_origin(region, size, rng)
            box = stored_crop(dataset, case, np.add(first, inner).tolist(), size, label=False)
            sample |= {f"{prefix}{name}": column for name, column in {**box, "flip": flip}.items()}
            starts.append(inner[2])
        common = max(starts) - np.array(starts)[:, None] + np.arange(slices // 2)
        sample["common"] = np.where(flips[:, 2:], slices - 1 - common, common)
        return {**sample, "seeds": rng.integers(2**32, size=2)}


def _scaled(edge: int, factor: float, most: int) -> int:
    """Return int(edge · factor), or the edge itself where that is not less than `most`."""
    scaled = int(edge * factor)
    return edge if scaled >= most else scaled


def sub_volumes(sample: Mapping[str, Any], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pad, normalise, mirror, resize and change what `SubVolumesDraw` drew for crops of `size`.

    Returns:
        Two views (B, C, S, R, A) float32: their slices lie along the first of the axes.
    """
    views = []
    for number, prefix in enumerate(("", SECOND)):
        names = [f"{prefix}{name}" for name in ("image", "inside", "minimum", "normalisation", "flip")]
        volumes: list[Tensor] = []
        for image, inside, minimum, normalisation, flip in zip(*map(sample.get, names), strict=True):
            volume = normalise(pad_outside(image, inside, minimum), normalisation)
            slices = volume.flip([axis + 1 for axis in range(3) if flip[axis]]).movedim(-1, 0)
            with torch.autocast(slices.device.type, enabled=False):
                resized = functional.interpolate(slices, tuple(size[:2]), mode="bilinear")
                seed = int(sample["seeds"][len(volumes)][number])
                volumes.append(change_slices(resized, seed, PROBABILITIES[number]).movedim(0, 1))
        views.append(torch.stack(volumes))
    return views[0], views[1]


def change_slices(slices: Tensor, seed: int, probabilities: Probabilities) -> Tensor:
    """Change the intensities of slices (S, C, H, W), each channel on its own; the seed alone decides how."""
    rng = np.random.default_rng([2, seed])
    count = slices.shape[0] * slices.shape[1]

    def chosen(probability: float, each: float = 1.0) -> np.ndarray:
        return (rng.random() < probability) & (rng.random(count) < each)

    noise = rng.uniform(*NOISE)
    blurred = np.where(chosen(0.8, probabilities.blurred_slice), rng.uniform(*BLUR, count), 0)
    factor = np.where(chosen(probabilities.factor), rng.uniform(*FACTOR, count), 1)
    shift = np.where(chosen(probabilities.shift, 0.8), rng.normal(0, SHIFT, count), 0)
    contrast = about_one(rng, CONTRAST, count)
    exponent = np.where(chosen(probabilities.gamma), about_one(rng, GAMMA, count), 1)

    changed = (slices + gaussian_noise(slices, noise, seed)).flatten(0, 1)[:, None]
    change_some(changed, blur_slices, blurred, neutral=0)
    change_some(changed, brighten, factor)
    change_some(changed, lambda images, added: images + added[:, None, None, None], shift, neutral=0)
    change_some(changed, change_contrast, contrast)
    change_some(changed, gamma, exponent)
    return changed.view_as(slices)


def blur_slices(slices: Tensor, sigma: Tensor) -> Tensor:
    """Blur (N, 1, H, W) by Gaussians of standard deviations (N,) in pixels, at most 2, as `scipy.ndimage` does.

    The kernel reaches 4 standard deviations, and borders are mirrored.
    """
    h, w = slices.shape[2:]
    return _blurring(sigma, h)[:, None] @ slices @ _blurring(sigma, w)[:, None].mT


def _blurring(sigma: Tensor, edge: int) -> Tensor:
    """Build matrices (N, edge, edge) that blur a line by sigma (N,)."""
    reach = math.ceil(4 * BLUR[1])
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2) * (offset.abs() <= (4 * sigma[:, None] + 0.5).floor())
    index = torch.arange(edge, device=sigma.device)
    source = (index + offset[:, None]) % (2 * edge)
    shifts = (torch.minimum(source, 2 * edge - 1 - source)[:, :, None] == index).float()
    return torch.einsum("no,oij->nij", weight / weight.sum(1, keepdim=True), shifts)
