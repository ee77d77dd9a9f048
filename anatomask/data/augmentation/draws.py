"""Parameters of the augmentation: what is done to a sample, and how much, from its seed and nothing else.

Probabilities and ranges are nnU-Net 2.8.1's (`nnUNetTrainer.get_training_transforms`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ANISOTROPIC = 3.0
"""Ratio of the largest to the smallest voxel edge beyond which scans are only turned and scaled in the other plane."""


class Change(NamedTuple):
    """Probability of a change, and the range of its parameter."""

    probability: float
    low: float
    high: float


ROTATION = Change(0.2, -math.radians(30), math.radians(30))
"""Angle in rad about each axis."""
PLANAR_ROTATION = Change(0.2, -math.pi, math.pi)
"""Angle in rad where voxels are anisotropic."""
SCALING = Change(0.2, 0.7, 1.4)
"""Voxels of the scan per voxel of the sample: above 1, structures become smaller."""
NOISE = Change(0.1, 0.0, 0.1)
"""Standard deviation of Gaussian noise (nnU-Net calls it a variance)."""
BLUR = Change(0.2, 0.5, 1.0)
"""Standard deviation in voxels of a Gaussian, along each axis its own; each channel is chosen with CHANNEL."""
BRIGHTNESS = Change(0.15, 0.75, 1.25)
"""Factor of each channel."""
CONTRAST = Change(0.15, 0.75, 1.25)
"""Factor of each channel's distance from its mean."""
LOW_RESOLUTION = Change(0.25, 0.5, 1.0)
"""Share of the voxels along each axis that remain; each channel is chosen with CHANNEL."""
INVERTED_GAMMA = Change(0.1, 0.7, 1.5)
"""Exponent of each channel, inverted."""
GAMMA = Change(0.3, 0.7, 1.5)
"""Exponent of each channel."""
CHANNEL = 0.5
"""Probability of each channel where not all are changed."""


def coarse_axis(spacing: Sequence[float]) -> int | None:
    """Return the axis of the largest voxel edge where voxels (mm) are anisotropic, else None."""
    return int(np.argmax(spacing)) if max(spacing) > ANISOTROPIC * min(spacing) else None


def draw_matrix(seed: int, coarse: int | None = None) -> np.ndarray:
    """Draw the matrix (3, 3) that leads from a voxel of the sample to one of the scan, seen from the crop's centre.

    Rotation about each axis and scaling by one factor are independent; without both, it is the identity. Along a
    `coarse` axis nothing moves.
    """
    rng = np.random.default_rng([0, seed])
    chosen = rng.random(2)
    angles = rng.uniform(ROTATION.low, ROTATION.high, 3).tolist()
    planar = rng.uniform(PLANAR_ROTATION.low, PLANAR_ROTATION.high)
    scale = rng.uniform(SCALING.low, SCALING.high)
    matrix = np.eye(3)
    if chosen[0] < ROTATION.probability:
        matrix = rotation(angles) if coarse is None else _turn(coarse, planar)
    if chosen[1] < SCALING.probability:
        matrix = matrix @ np.diag([1.0 if axis == coarse else scale for axis in range(3)])
    return matrix


def rotation(angles: Sequence[float]) -> np.ndarray:
    """Build the matrix (3, 3) that turns about axis 0, then 1, then 2, by angles (3,) in rad."""
    first, second, third = (_turn(axis, angle) for axis, angle in enumerate(angles))
    return third @ second @ first


def _turn(axis: int, angle: float) -> np.ndarray:
    """Build the rotation (3, 3) about one axis, which is right-handed."""
    one, other = (1, 2) if axis == 0 else (2, 0) if axis == 1 else (0, 1)
    matrix = np.eye(3)
    matrix[[one, other], [one, other]] = math.cos(angle)
    matrix[one, other], matrix[other, one] = -math.sin(angle), math.sin(angle)
    return matrix


def moves(matrix: np.ndarray) -> bool:
    """Return whether a matrix (3, 3) turns or scales."""
    return not np.array_equal(matrix, np.eye(3))


def source_box(matrix: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return the box that a crop of `size` voxels is resampled from.

    Args:
        matrix: (3, 3) from a voxel of the sample to one of the scan, both seen from the crop's centre.
        size: voxels of the crop.

    Returns:
        The box's first voxel (3,), counted from the crop's, and its size.
    """
    centre = (np.array(size) - 1) / 2
    reach = np.abs(matrix) @ centre
    first = np.floor(centre - reach).astype(np.int64)
    d, h, w = (int(extent) for extent in np.floor(centre + reach).astype(np.int64) + 2 - first)
    return first, (d, h, w)


@dataclass(frozen=True)
class IntensityDraws:
    """Changes of the intensities of B samples with C channels, in the order in which they are made.

    A value that changes nothing stands where a change was not drawn.
    """

    seeds: np.ndarray
    """Seeds of the noise, (B,)."""
    noise: np.ndarray
    """Standard deviation of the noise, (B,), else 0."""
    blur: np.ndarray
    """Standard deviation in voxels along each axis, (B, C, 3), else 0."""
    brightness: np.ndarray
    """Factor, (B, C), else 1."""
    contrast: np.ndarray
    """Factor, (B, C), else 1."""
    zoom: np.ndarray
    """Share of the voxels that remain along each axis, (B, C, 3), else 1."""
    inverted_gamma: np.ndarray
    """Exponent, (B, C), else 1."""
    gamma: np.ndarray
    """Exponent, (B, C), else 1."""


def draw_intensity(
    seeds: Sequence[int], channels: int, *, often: float = 1.0, coarse: int | None = None
) -> IntensityDraws:
    """Draw the changes of each sample from its seed, each `often` times as likely as in nnU-Net.

    Along a `coarse` axis the resolution remains.
    """
    drawn = [_draw_one(np.random.default_rng([1, seed]), channels, often, coarse) for seed in seeds]
    columns = {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
    return IntensityDraws(np.asarray(seeds), **columns)


def _draw_one(rng: np.random.Generator, channels: int, often: float, coarse: int | None) -> dict[str, np.ndarray]:
    def chosen(change: Change) -> bool:
        return bool(rng.random() < change.probability * often)

    def or_neutral(chosen: bool | np.ndarray, values: float | np.ndarray, neutral: float) -> np.ndarray:
        return np.where(chosen, values, neutral)

    zooms = np.repeat(rng.uniform(LOW_RESOLUTION.low, LOW_RESOLUTION.high, (channels, 1)), 3, axis=1)
    if coarse is not None:
        zooms[:, coarse] = 1
    some = rng.random((2, channels, 1)) < CHANNEL
    return {
        "noise": or_neutral(chosen(NOISE), rng.uniform(NOISE.low, NOISE.high), 0),
        "blur": or_neutral(chosen(BLUR) & some[0], rng.uniform(BLUR.low, BLUR.high, (channels, 3)), 0),
        "brightness": or_neutral(chosen(BRIGHTNESS), about_one(rng, BRIGHTNESS, channels), 1),
        "contrast": or_neutral(chosen(CONTRAST), about_one(rng, CONTRAST, channels), 1),
        "zoom": or_neutral(chosen(LOW_RESOLUTION) & some[1], zooms, 1),
        "inverted_gamma": or_neutral(chosen(INVERTED_GAMMA), about_one(rng, INVERTED_GAMMA, channels), 1),
        "gamma": or_neutral(chosen(GAMMA), about_one(rng, GAMMA, channels), 1),
    }


def about_one(rng: np.random.Generator, change: Change, channels: int) -> np.ndarray:
    """Draw (C,) values of a range about 1: as often below 1 as above, and uniformly on either side."""
    below, above = rng.uniform(change.low, 1, channels), rng.uniform(1, change.high, channels)
    return np.where(rng.random(channels) < 0.5, below, above)
