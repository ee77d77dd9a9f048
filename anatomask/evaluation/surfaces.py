"""Surfaces of masks, and how far two of them are apart: NSD and HD95, as DeepMind's `surface-distance` measures them.

A surface is made of elements between 2×2×2 voxels, weighted by their area in mm² (Nikolov et al., arXiv 1809.04430).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree

NEAREST_SHARE = 0.95
"""Share of a surface's area that lies within the HD95 of the other surface."""
ROUNDING = 1e-6
"""Share by which sums of areas in float32 may be off."""


class Surface(NamedTuple):
    """Surface elements of one mask."""

    points: np.ndarray
    """Places of the elements in mm, (N, 3) float64."""
    areas: np.ndarray
    """Areas in mm², (N,) float32."""


class Distances(NamedTuple):
    """Surface elements of a prediction and of its reference, with their distances to each other's surface in mm."""

    predicted: np.ndarray
    """Distance of each element of the prediction, (N,) float32."""
    predicted_areas: np.ndarray
    true: np.ndarray
    """Distance of each element of the reference, (M,) float32."""
    true_areas: np.ndarray

    def within(self, tolerance: float) -> float:
        """Compute the NSD: the share of both surfaces' areas that is at most `tolerance` mm away from the other."""
        near = [
            torch.from_numpy(areas[distances <= np.float32(tolerance)]).sum()
            for distances, areas in ((self.true, self.true_areas), (self.predicted, self.predicted_areas))
        ]
        every = torch.from_numpy(self.true_areas).sum() + torch.from_numpy(self.predicted_areas).sum()
        return float((near[0] + near[1]) / every)

    def hd95(self) -> float:
        """Compute the HD95: the larger of the distances within which 95 % of each surface's area lie, in mm."""
        return max(_percentile(self.predicted, self.predicted_areas), _percentile(self.true, self.true_areas))


def measure(predicted: Surface, true: Surface) -> Distances:
    """Find how far each element of two surfaces, neither of them empty, is from the other surface."""
    there, back = (
        KDTree(other.points, leafsize=32).query(own.points)[0].astype(np.float32)
        for own, other in ((predicted, true), (true, predicted))
    )
    return Distances(there, predicted.areas, back, true.areas)


def surface(mask: np.ndarray, start: Sequence[int], spacing: Sequence[float]) -> Surface:
    """Find the surface elements of a mask (D, H, W) bool whose first voxel is at `start`, in three bytes per voxel."""
    from monai.metrics.utils import get_code_to_measure_table  # takes seconds

    areas, kernel = (tensor.numpy() for tensor in get_code_to_measure_table(tuple(spacing)))
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([edge - 1 for edge in padded.shape], np.uint8)
    for corner in np.ndindex(2, 2, 2):
        there = tuple(slice(first, first + edge) for first, edge in zip(corner, code.shape, strict=True))
        code += padded[there] * np.uint8(kernel[0, 0][corner])
    places = np.nonzero((code != 0) & (code != len(areas) - 1))
    points = (np.stack(places, axis=1) + np.asarray(start)) * np.asarray(spacing, float)
    return Surface(points, areas[code[places]].astype(np.float32))


def _percentile(distances: np.ndarray, areas: np.ndarray) -> float:
    """Find the smallest distance within which `NEAREST_SHARE` of the areas lies."""
    order = np.argsort(distances, kind="stable")
    reached = np.cumsum(areas[order], dtype=np.float64)
    index = np.searchsorted(reached, (NEAREST_SHARE - ROUNDING) * reached[-1])
    return float(distances[order[index]])
