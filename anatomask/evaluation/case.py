"""One case, predicted and scored on the grid of its source file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from torch import nn

from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.inference import predict_case
from anatomask.evaluation.metrics import score_classes
from anatomask.evaluation.results import CaseScore
from anatomask.evaluation.settings import InferenceConfig


@dataclass(frozen=True)
class CaseResult:
    """What evaluating one case gives."""

    prediction: nib.Nifti1Image
    """uint8 label map on the source's grid and affine."""
    rows: list[CaseScore]
    """One per class of the data set, by class id."""


def evaluate_case(
    network: nn.Module,
    dataset: PreparedDataset,
    case: str,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    config: InferenceConfig,
    device: torch.device,
    run: str,
) -> CaseResult:
    """Predict a case and score it with the data set's NSD tolerances; `run` is the name in the rows.

    Raises UserError when the case has no usable ground truth, or the network's output is not finite.
    """
    truth = _ground_truth(dataset, case)  # first: inference takes minutes, a broken label shows at once
    prediction = predict_case(network, dataset, case, patch_size, mirror_axes, config, device)
    spacing = nib.affines.voxel_sizes(prediction.affine)
    scores = score_classes(np.asarray(prediction.dataobj), truth, spacing, dataset.nsd_tolerance)
    rows = [
        CaseScore(run, dataset.name, case, class_id, name, score.dsc, score.nsd, score.voxels)
        for class_id, name in sorted(dataset.class_names.items())
        for score in [scores[class_id]]
    ]
    return CaseResult(prediction, rows)


def _ground_truth(dataset: PreparedDataset, case: str) -> np.ndarray:
    truth = np.asarray(dataset.original_label(case).dataobj)
    expected = dataset.records[case].original_shape
    if truth.shape != expected:
        raise UserError(
            f"the ground truth of case {case} in {dataset.shown} has shape {truth.shape}, its scan {expected}; "
            "run `anatomask prepare` again"
        )
    return truth
