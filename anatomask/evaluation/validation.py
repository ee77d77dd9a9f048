"""Scores that are computed during a training: fast, on the prepared grid."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from anatomask.data.scans import prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.metrics import dice_scores
from anatomask.evaluation.predictor import Predictor


def validation_dice(predictor: Predictor, dataset: PreparedDataset, cases: Iterable[str]) -> dict[int, float]:
    """Compute the mean DSC of each class over `cases`, on the prepared grid.

    It is NaN for a class that no case holds.

    Raises:
        UserError: a case has no label, or as `Predictor.logits`.
    """
    scores: dict[int, list[float]] = {class_id: [] for class_id in dataset.class_names}
    for case in cases:
        scan = prepared_scan(dataset, case)
        logits = predictor.logits(scan.normalised(predictor.device), scan.name)
        prediction = logits.argmax(0).to(torch.uint8).cpu().numpy()
        _, truth = dataset.read_volume(case, label=True)
        if truth is None:
            raise UserError(f"case {case} of {dataset.shown} has no label to validate against")
        for class_id, dsc in dice_scores(prediction, truth, scores).items():
            if not math.isnan(dsc):
                scores[class_id].append(dsc)
    return {class_id: float(np.mean(values)) if values else math.nan for class_id, values in scores.items()}
