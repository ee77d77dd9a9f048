"""Pairs of masks, random and real, that are the same in every version of NumPy and SciPy; needs no anatomask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

SPACINGS = (0.8, 1.5, 2.0, 3.0, 5.0)
TOLERANCES = (0.5, 1.0, 2.0, 3.0, 5.0)
REAL = (
    "openkbp/labelsTr/kbp_001.nii.gz",
    "amos22/amos22/labelsTr/amos_0507.nii.gz",
    "autopet2/FDG-PET-CT-Lesions/PETCT_sts_002/study_1/SEG.nii.gz",
)
"""Label maps among the real scans."""


class Pair(NamedTuple):
    """A prediction and its reference, (D, H, W) bool, on a grid of `spacing` mm."""

    name: str
    prediction: np.ndarray
    reference: np.ndarray
    spacing: tuple[float, ...]
    tolerance: float
    """Tolerance of the NSD in mm."""


def random_pairs(count: int) -> Iterator[Pair]:
    """Draw masks of any small shape on grids of any spacing, free of their border or not, neither of them empty."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        shape = rng.integers(3, 14, 3)
        coarse = rng.integers(0, 2, (2, *shape), np.uint8)
        first = _majority(coarse[0])
        kept = rng.integers(0, 4, shape) > 0
        second = np.where(kept, first, _majority(coarse[1]))
        for mask in (first, second):
            mask[tuple(rng.integers(0, shape))] = True
        spacing = tuple(float(SPACINGS[index]) for index in rng.integers(0, len(SPACINGS), 3))
        yield Pair(f"random {seed}", second, first, spacing, TOLERANCES[rng.integers(0, len(TOLERANCES))])


def real_pairs(folder: Path) -> Iterator[Pair]:
    """Take every class of real label maps, and predict it a voxel off along two axes, or two classes as one."""
    for path in REAL:
        image = nib.Nifti1Image.from_filename(folder / path)
        label = np.asarray(image.dataobj)
        spacing = tuple(round(float(size), 4) for size in image.header.get_zooms()[:3])
        classes = [int(number) for number in np.unique(label) if number]
        for index, number in enumerate(classes):
            moved = np.roll(label, (1, 1), (0, 2)) == number
            yield Pair(f"{path} {number} moved", moved, label == number, spacing, 3.0)
            if len(classes) > 1:
                both = np.isin(label, (number, classes[index - 1]))
                yield Pair(f"{path} {number} with another", both, label == number, spacing, 3.0)


def _majority(bits: np.ndarray) -> np.ndarray:
    """Smooth a random mask: a voxel is in where most of its 27 neighbours are, in whole numbers."""
    padded = np.pad(bits, 1, mode="edge")
    total = np.zeros(bits.shape, np.uint8)
    for corner in np.ndindex(3, 3, 3):
        total += padded[tuple(slice(c, c + n) for c, n in zip(corner, bits.shape, strict=True))]
    return np.asarray(total > 13)
