"""Labels that are one binary file per class in a folder: merged into a label map as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from anatomask.data.datasets.base import RawLabel
from anatomask.data.grids import same_grid
from anatomask.data.nifti import nifti_grid, read_nifti
from anatomask.errors import UserError


def organ_label(folder: Path, masks: Mapping[int, Path]) -> RawLabel:
    """Make the label of a case from its masks, by class id; `folder` is what messages name."""
    return RawLabel(folder, partial(_read, masks=masks), partial(_grid, masks=masks))


def merge_organs(masks: Mapping[int, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Merge binary masks into a label map, (D, H, W) uint8, and return it with its affine (4, 4); the later mask wins.

    Raises:
        UserError: a mask is damaged, not binary, or of another shape or place than the first.
    """
    first = next(iter(masks.values()))
    shape, affine = nifti_grid(first)
    merged = np.zeros(shape, np.uint8)
    for c, path in masks.items():
        same_grid(path, *nifti_grid(path), first, shape, affine)
        mask, _ = read_nifti(path)
        inside = mask != 0
        if not np.array_equal(mask[inside], np.ones(int(inside.sum()))):
            raise UserError(f"{path} is not a binary mask: it holds values other than 0 and 1")
        merged[inside] = c
    return merged, affine


def _read(path: Path, *, masks: Mapping[int, Path]) -> tuple[np.ndarray, np.ndarray]:
    return merge_organs(masks)


def _grid(path: Path, *, masks: Mapping[int, Path]) -> tuple[tuple[int, int, int], np.ndarray]:
    return nifti_grid(next(iter(masks.values())))
