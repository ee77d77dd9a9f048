"""Checks of whether files lie on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from anatomask.errors import UserError


def places_voxels(affine: np.ndarray) -> bool:
    """Return whether a (4, 4) matrix places voxels: real, finite, invertible, and an axis for each of R, A and S."""
    if affine.dtype.kind not in "iuf" or not np.isfinite(affine).all():
        return False
    matrix = affine.astype(np.float64)
    with np.errstate(all="ignore"):
        determinant = abs(np.linalg.det(matrix[:3, :3]))
        sizes = nib.affines.voxel_sizes(matrix)
        if not (1e-9 <= determinant < np.inf and np.isfinite(sizes).all()):
            return False
        return not np.isnan(nib.io_orientation(matrix)).any()


def same_grid(
    path: Path,
    shape: Sequence[int],
    affine: np.ndarray,
    reference: Path,
    reference_shape: Sequence[int],
    reference_affine: np.ndarray,
) -> None:
    """Check that files of one case lie on one grid, with half a voxel of tolerance for rounding.

    Raises:
        UserError: the grids differ.
    """
    if tuple(shape) != tuple(reference_shape):
        where, other = (path, reference) if path != reference else (f"the label in {path}", "its image")
        raise UserError(f"{where} has shape {tuple(shape)}, but {other} has {tuple(reference_shape)}")
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*shape, 1]
    apart = np.linalg.norm(corners @ (affine - reference_affine).T, axis=1).max()
    if apart > 0.5 * nib.affines.voxel_sizes(reference_affine).min():
        raise UserError(f"{path} and {reference} lie {apart:.1f} mm apart by their headers; copy the right affine")
