"""Label maps of the cases that a report shows: the ground truth and what each run predicted, on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from anatomask.data.nifti import read_nifti
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.results import PREDICTIONS
from anatomask.reports.evaluated_runs import EvaluatedRun


@dataclass(frozen=True)
class CaseLabels:
    """Label maps of a case in RAS axes, on the grid on which it was scored."""

    case: str
    truth: np.ndarray
    """Ground truth (R, A, S)."""
    predictions: Sequence[np.ndarray]
    """Prediction of each run (R, A, S)."""
    affine: np.ndarray
    """Matrix from voxels to mm (4, 4)."""

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm (3,)."""
        return np.asarray(nib.affines.voxel_sizes(self.affine))


def read_labels(dataset: PreparedDataset, case: str, runs: Sequence[EvaluatedRun]) -> CaseLabels:
    """Read the label maps of a case.

    Raises:
        UserError: the ground truth or a prediction is missing, damaged, or of another shape.
    """
    truth = nib.as_closest_canonical(dataset.original_label(case))
    predictions = []
    for run in runs:
        path = run.folder_of(case) / PREDICTIONS / f"{case}.nii.gz"
        voxels, affine = read_nifti(path)
        if sorted(voxels.shape) != sorted(truth.shape):
            raise UserError(f"{path} has shape {voxels.shape}, the scan {truth.shape}; evaluate the run again")
        predictions.append(np.asarray(nib.as_closest_canonical(nib.Nifti1Image(voxels, affine)).dataobj))
    return CaseLabels(case, np.asarray(truth.dataobj), predictions, truth.affine)


def choose_cases(runs: Sequence[EvaluatedRun], count: int) -> list[str]:
    """Choose cases that all runs evaluated, spread evenly from the first run's best to its worst.

    Raises:
        UserError: there is none.
    """
    shared = set.intersection(*(set(run.scores) for run in runs))
    if not shared:
        raise UserError("its runs have no evaluated case in common")
    ranked = sorted(shared, key=lambda case: (-runs[0].scores[case], case))
    ranks = [(len(ranked) - 1) / 2] if count == 1 else np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return [ranked[round(float(rank))] for rank in ranks]


def median_and_worst(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Choose the median and the worst of the cases that all runs evaluated, by the mean of the runs' DSC.

    Raises:
        UserError: there is none.
    """
    shared = set.intersection(*(set(run.scores) for run in runs))
    if not shared:
        raise UserError("its runs have no evaluated case in common")
    means = {case: sum(run.scores[case] for run in runs) for case in shared}
    ranked = sorted(shared, key=lambda case: (-means[case], case))
    return list(dict.fromkeys((ranked[(len(ranked) - 1) // 2], ranked[-1])))


def run_titles(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the method of each run, or the run's name where two runs share a method."""
    methods = [run.summary["method"] for run in runs]
    return [
        run.summary["run"] if methods.count(method) > 1 else method for run, method in zip(runs, methods, strict=True)
    ]


def score_text(run: EvaluatedRun, case: str) -> str:
    """Format the DSC of a whole case."""
    return f"DSC {100 * run.scores[case]:.1f} %"
