"""Prediction and scores of one case, on the grid of its source file, and both files."""

from __future__ import annotations

import gzip
from collections.abc import Collection
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch

from anatomask.data.scans import prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.metrics import SURFACE_METRICS, score_classes
from anatomask.evaluation.predictor import Predictor
from anatomask.evaluation.results import PREDICTIONS, CaseScore, to_csv
from anatomask.evaluation.settings import InferenceConfig, Metric
from anatomask.weights.tensor_files import Weights


@dataclass(frozen=True)
class Evaluation:
    """Common parts of the evaluations of all cases of a run, apart from the weights."""

    run: str
    """Name of the run."""
    folder: Storage
    """Folder that receives predictions and scores."""
    dataset: PreparedDataset
    inference: InferenceConfig
    metrics: tuple[Metric, ...] = SURFACE_METRICS
    """Metrics beside DSC and volumes."""

    def finish(self, weights: Weights, case: str, device: torch.device) -> None:
        """Predict and score one case and write both; the scores are written last and mark the case as finished.

        Raises:
            UserError: as `evaluate_case`, or the weights do not fit their header.
            OSError: the folder cannot be written.
        """
        predictor = Predictor.of(weights, self.inference, device)
        result = evaluate_case(predictor, self.dataset, case, self.run, self.metrics)
        compressed = gzip.compress(result.prediction.to_bytes(), compresslevel=3, mtime=0)
        self.folder.write(f"{PREDICTIONS}/{case}.nii.gz", compressed)
        self.folder.write(f"{PREDICTIONS}/{case}.csv", to_csv(result.rows).encode())


@dataclass(frozen=True)
class CaseResult:
    """Result of evaluating one case."""

    prediction: nib.Nifti1Image
    """Label map (uint8) on the source's grid and affine."""
    rows: list[CaseScore]
    """Scores, one per class of the data set, by class id."""


def evaluate_case(
    predictor: Predictor,
    dataset: PreparedDataset,
    case: str,
    run: str,
    metrics: Collection[Metric] = SURFACE_METRICS,
) -> CaseResult:
    """Predict a case and score it with the data set's NSD tolerances; `run` is the name in the rows.

    Raises:
        UserError: the case has no usable ground truth, or the network's output is not finite.
    """
    truth = _ground_truth(dataset, case)  # first: inference takes minutes, a broken label shows at once
    prediction = predictor.label_map(prepared_scan(dataset, case))
    spacing = nib.affines.voxel_sizes(prediction.affine)
    scores = score_classes(np.asarray(prediction.dataobj), truth, spacing, dataset.nsd_tolerance, metrics)
    rows = [
        CaseScore.of(run, dataset.name, case, class_id, name, scores[class_id])
        for class_id, name in sorted(dataset.class_names.items())
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
