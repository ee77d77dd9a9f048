"""Lesion-wise measures: connected components of two masks, matched by overlap, as in the autoPET challenges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

NEIGHBOURS = ndimage.generate_binary_structure(3, 2)
"""Neighbours of a voxel in one lesion: the 18 that share a face or an edge with it."""


@dataclass(frozen=True)
class LesionScore:
    """Lesion-wise measures of one class in one case. A lesion is found if any of its voxels is predicted."""

    lesions: int
    """Number of lesions of the reference."""
    predicted_lesions: int
    recall: float
    """Share of the reference's lesions that are found; NaN where it has none."""
    precision: float
    """Share of the predicted lesions that touch one of the reference; NaN where none is predicted."""
    false_positive_ml: float
    """Volume of the predicted lesions that touch none."""
    false_negative_ml: float
    """Volume of the lesions that are not found."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: 0 where only one of both masks is empty, NaN where both are."""
        if not self.lesions and not self.predicted_lesions:
            return math.nan
        if not self.lesions or not self.predicted_lesions or not self.recall:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def score_lesions(predicted: np.ndarray, true: np.ndarray, voxel_ml: float) -> LesionScore:
    """Compare the lesions of two masks (D, H, W) bool; `voxel_ml` is a voxel's volume in mL.

    The volumes are those of the autoPET challenges (Gatidis et al., 2024).
    """
    lesions, found, missed = _touched(true, predicted)
    blobs, right, false = _touched(predicted, true)
    return LesionScore(
        lesions,
        blobs,
        found / lesions if lesions else math.nan,
        right / blobs if blobs else math.nan,
        false * voxel_ml,
        missed * voxel_ml,
    )


def _touched(mask: np.ndarray, other: np.ndarray) -> tuple[int, int, int]:
    """Count the components of a mask, those that touch the other mask, and the voxels of those that do not."""
    labels, count = ndimage.label(mask, NEIGHBOURS)
    touched = np.unique(labels[other & mask])
    sizes = np.bincount(labels[mask], minlength=count + 1)
    return count, len(touched), int(sizes.sum() - sizes[touched].sum())
