"""Scores of each class of a label map: DSC, NSD, HD95, volumes and lesions.

A class that the reference lacks has no DSC and NSD (NaN), TotalSegmentator's rule; one that is not predicted scores 0.
`anatomask.evaluation.absent` has other rules. A class that either map lacks has no HD95.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from anatomask.evaluation.lesions import LesionScore, score_lesions
from anatomask.evaluation.settings import NSD_AT, Metric
from anatomask.evaluation.surfaces import measure, surface

Box = tuple[slice, ...]
Boxes = tuple[Box | None, Box | None]
"""Bounding boxes of a class in the prediction and in the reference; None where it is absent."""
NOWHERE: Box = (slice(0, 1),) * 3
"""Box of a class that both maps lack."""

SURFACE_METRICS: tuple[Metric, ...] = ("nsd", "hd95")
"""Metrics of the surfaces, which are computed beside DSC and volumes unless others are named."""


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class in one case."""

    dsc: float
    """Fraction; NaN where the class is absent from the reference."""
    nsd: float
    """Fraction; NaN where the class is absent from the reference."""
    voxels: int
    """Number of voxels of the reference."""
    hd95_mm: float = math.nan
    """NaN where the class is absent from either map."""
    volume_ml: float = 0.0
    """Volume of the reference."""
    predicted_volume_ml: float = 0.0
    lesions: LesionScore | None = None
    """Lesion-wise measures, where they were asked for."""
    nsd_1mm: float = math.nan
    """NSD at a tolerance of 1 mm; NaN where `nsd` is, and where it was not asked for."""
    nsd_2mm: float = math.nan
    """NSD at a tolerance of 2 mm; NaN where `nsd` is, and where it was not asked for."""


def score_classes(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    tolerance: Mapping[int, float],
    metrics: Collection[Metric] = SURFACE_METRICS,
) -> dict[int, ClassScore]:
    """Score every class in `tolerance`.

    Args:
        prediction: label map (D, H, W).
        reference: label map on the same grid.
        spacing: voxel size in mm along D, H, W.
        tolerance: tolerance of each class's NSD in mm.
        metrics: what is computed beside DSC and volumes. NSD, at any tolerance, and HD95 take one measurement of the
            surfaces.

    Raises:
        ValueError: the shapes differ.
    """
    voxel_ml = math.prod(map(float, spacing)) / 1000
    scores = {}
    for class_id, boxes in _class_boxes(prediction, reference, tolerance).items():
        both = _union(*boxes) or NOWHERE
        predicted, true = prediction[both] == class_id, reference[both] == class_id
        voxels = int(true.sum())
        every: dict[Metric, float] = {"nsd": tolerance[class_id], **NSD_AT}
        tolerances = {name: mm for name, mm in every.items() if name in metrics}
        nsd: dict[Metric, float] = {}
        hd95 = math.nan
        if tolerances or "hd95" in metrics:
            nsd, hd95 = _surface_scores((prediction, reference), boxes, class_id, spacing, tolerances)
        scores[class_id] = ClassScore(
            dsc=_dice(predicted, true) if voxels else math.nan,
            nsd=nsd.get("nsd", math.nan),
            voxels=voxels,
            hd95_mm=hd95 if "hd95" in metrics else math.nan,
            volume_ml=voxels * voxel_ml,
            predicted_volume_ml=int(predicted.sum()) * voxel_ml,
            lesions=score_lesions(predicted, true, voxel_ml) if "lesions" in metrics else None,
            nsd_1mm=nsd.get("nsd_1mm", math.nan),
            nsd_2mm=nsd.get("nsd_2mm", math.nan),
        )
    return scores


def dice_scores(prediction: np.ndarray, reference: np.ndarray, classes: Iterable[int]) -> dict[int, float]:
    """Compute DSC alone of every class in `classes`; label maps (D, H, W). NaN where `reference` lacks a class."""
    scores = {}
    for class_id, (there, here) in _class_boxes(prediction, reference, classes).items():
        box = _union(there, here) or NOWHERE
        scores[class_id] = _dice(prediction[box] == class_id, reference[box] == class_id) if here else math.nan
    return scores


def _class_boxes(prediction: np.ndarray, reference: np.ndarray, classes: Iterable[int]) -> dict[int, Boxes]:
    """Find the bounding boxes of each class in both maps.

    Two passes over the grid serve all classes, and what follows works on a class's own boxes.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} lie on different grids")
    classes = tuple(classes)
    highest = max(classes)
    predicted = ndimage.find_objects(prediction, max_label=highest)
    true = ndimage.find_objects(reference, max_label=highest)
    return {class_id: (predicted[class_id - 1], true[class_id - 1]) for class_id in classes}


def _union(predicted: Box | None, true: Box | None) -> Box | None:
    if true is None or predicted is None:
        return true or predicted
    return tuple(slice(min(p.start, t.start), max(p.stop, t.stop)) for p, t in zip(predicted, true, strict=True))


def _surface_scores(
    maps: tuple[np.ndarray, np.ndarray],
    boxes: Boxes,
    class_id: int,
    spacing: Sequence[float],
    tolerances: Mapping[Metric, float],
) -> tuple[dict[Metric, float], float]:
    """Compute NSD at each tolerance and HD95 of a class in two label maps (D, H, W), each in its own box."""
    there, here = boxes
    if here is None or there is None:
        return dict.fromkeys(tolerances, math.nan if here is None else 0.0), math.nan
    # Rounding to 0.1 µm: a tolerance of two voxels must not fail by the last bit of an affine.
    voxel = [round(float(size), 4) for size in spacing]
    first, second = (
        surface(volume[box] == class_id, [edge.start for edge in box], voxel)
        for volume, box in zip(maps, (there, here), strict=True)
    )
    distances = measure(first, second)
    return {name: distances.within(mm) for name, mm in tolerances.items()}, distances.hd95()


def _dice(predicted: np.ndarray, true: np.ndarray) -> float:
    from monai.metrics import compute_dice  # takes seconds

    return float(compute_dice(_batch(predicted), _batch(true)))


def _batch(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None]
