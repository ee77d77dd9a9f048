"""Dice similarity coefficient (DSC) and normalised surface Dice (NSD) per class, with TotalSegmentator's rule.

A class that is absent from the ground truth is left out (NaN); one that is present but not predicted scores 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

Box = tuple[slice, ...]


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class in one case: fractions, NaN where the class is absent from the ground truth."""

    dsc: float
    nsd: float
    voxels: int
    """Number of voxels of the ground truth."""


def score_classes(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: Mapping[int, float]
) -> dict[int, ClassScore]:
    """Compute DSC and NSD of every class in `tolerance`.

    `prediction` and `truth` are label maps (D, H, W) on one grid of `spacing` mm; `tolerance` gives each class's NSD
    tolerance in mm. The surface is measured as in DeepMind's `surface-distance`, which TotalSegmentator and FLARE22
    use: elements between voxels, weighted by area (Nikolov et al., arXiv 1809.04430).

    Raises:
        ValueError: the shapes differ.
    """
    # Rounding to 0.1 µm: a tolerance of two voxels must not fail by the last bit of an affine.
    voxel = [round(float(size), 4) for size in spacing]
    scores = {}
    for class_id, box in _class_boxes(prediction, truth, tolerance).items():
        if box is None:
            scores[class_id] = ClassScore(math.nan, math.nan, 0)
            continue
        predicted, true = prediction[box] == class_id, truth[box] == class_id
        dsc = _dice(predicted, true)
        nsd = _surface_dice(predicted, true, voxel, tolerance[class_id]) if predicted.any() else 0.0
        scores[class_id] = ClassScore(dsc, nsd, int(true.sum()))
    return scores


def dice_scores(prediction: np.ndarray, truth: np.ndarray, classes: Iterable[int]) -> dict[int, float]:
    """Compute DSC alone of every class in `classes`; label maps (D, H, W). NaN where `truth` lacks a class."""
    boxes = _class_boxes(prediction, truth, classes)
    return {
        class_id: math.nan if box is None else _dice(prediction[box] == class_id, truth[box] == class_id)
        for class_id, box in boxes.items()
    }


def _class_boxes(prediction: np.ndarray, truth: np.ndarray, classes: Iterable[int]) -> dict[int, Box | None]:
    """Find the bounding box of each class in either map; None where the class is absent from the ground truth.

    Two passes over the grid serve all classes, and what follows works on a class's own box.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and ground truth {truth.shape} lie on different grids")
    classes = tuple(classes)
    highest = max(classes)
    predicted = ndimage.find_objects(prediction, max_label=highest)
    true = ndimage.find_objects(truth, max_label=highest)
    return {class_id: _union(predicted[class_id - 1], true[class_id - 1]) for class_id in classes}


def _union(predicted: Box | None, true: Box | None) -> Box | None:
    if true is None or predicted is None:
        return true
    return tuple(slice(min(p.start, t.start), max(p.stop, t.stop)) for p, t in zip(predicted, true, strict=True))


def _dice(predicted: np.ndarray, true: np.ndarray) -> float:
    from monai.metrics import compute_dice  # takes seconds

    return float(compute_dice(_batch(predicted), _batch(true)))


def _surface_dice(predicted: np.ndarray, true: np.ndarray, spacing: list[float], tolerance: float) -> float:
    from monai.metrics import compute_surface_dice  # takes seconds

    with warnings.catch_warnings():  # of MONAI 1.6, about an argument that it gives to a function of its own
        warnings.filterwarnings("ignore", "(?s).*always_return_as_numpy", FutureWarning)
        nsd = compute_surface_dice(
            _batch(predicted), _batch(true), [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
        )
    return float(nsd)


def _batch(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None]
