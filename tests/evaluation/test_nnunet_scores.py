"""Our scores of our predictions, and nnU-Net's own of the same files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anatomask.data.shards import PreparedDataset
from anatomask.evaluation.absent import by_rule
from anatomask.evaluation.case import evaluate_case
from anatomask.evaluation.predictor import Predictor
from anatomask.evaluation.results import CaseScore, summarise
from anatomask.evaluation.settings import InferenceConfig


class IntensityNetwork(nn.Module):
    """Answers with the class whose intensity is nearest. Where class 2 fades out, it finds class 1."""

    def forward(self, windows: Tensor) -> list[Tensor]:
        levels = torch.tensor([0.0, 100.0, 200.0]).view(1, 3, 1, 1, 1)
        return [-((windows - levels) ** 2) / 1000]


@pytest.mark.slow
def test_nnunets_evaluation_of_our_predictions_finds_the_same_dice(
    make_dataset: Callable[..., PreparedDataset],
    blobs: Callable[..., np.ndarray],
    nnunet: Callable[..., dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    """Of each case, by nnU-Net's rule for absent classes, and of each class over the cases."""
    labels = {"a": blobs((34, 40, 21)), "b": blobs((20, 30, 31)), "c": blobs((33, 20, 24))}
    labels["a"][labels["a"] == 2] = 0
    labels["c"][labels["c"] == 1] = 0
    dataset = make_dataset(labels, (2.0, 2.0, 3.0), "LPS", target=(3.0, 3.0, 3.0))
    predictor = Predictor(IntensityNetwork(), (16, 16, 16), 2, (), InferenceConfig(mirror=False))
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    scores: list[CaseScore] = []
    for folder in (references, predictions):
        folder.mkdir()
    for case in labels:
        result = evaluate_case(predictor, dataset, case, "run")
        scores += by_rule(result.rows, "nnunet")
        nib.save(result.prediction, predictions / f"{case}.nii.gz")
        nib.save(dataset.original_label(case), references / f"{case}.nii.gz")

    theirs = nnunet(
        Path(__file__).with_name("nnunet_scores.py"),
        references=str(references),
        predictions=str(predictions),
        labels=[1, 2],
    )
    assert [score.dsc for score in scores] == pytest.approx(theirs["dice"].ravel().tolist(), abs=1e-6, nan_ok=True)
    assert [score.voxels for score in scores] == theirs["voxels"].ravel().tolist()
    means = [figures["dsc"]["mean"] for figures in summarise(scores)["classes"].values()]
    assert means == pytest.approx(theirs["mean"].tolist(), abs=1e-6)
    found = {(score.case, score.class_id): score.dsc for score in scores}
    assert 0 < found["b", 1] < 1 and found["c", 1] == 0 and math.isnan(found["a", 2])
