"""Scores that are computed during a training: fast, on the prepared grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from anatomask.data.scans import prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.settings import InferenceConfig

if TYPE_CHECKING:
    from anatomask.evaluation.predictor import Predictor


@dataclass(frozen=True)
class Validation:
    """Scores of the validation cases, by name of class. A job sends it to the workers, so it holds the data's address.

    The windows are not mirrored.
    """

    storage: Storage
    """Where the prepared data lie."""
    cases: tuple[str, ...]
    patch_size: tuple[int, int, int]
    """Voxels of a window."""
    inference: InferenceConfig

    @cached_property
    def dataset(self) -> PreparedDataset:
        """The data set, opened at its first use."""
        return PreparedDataset.open(self.storage)

    def __call__(self, network: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Compute the mean DSC of each class that the cases hold.

        Raises:
            UserError: as `validation_dice`.
        """
        from anatomask.evaluation.predictor import Predictor  # MONAI takes a second to import

        names = self.dataset.class_names
        predictor = Predictor(network, self.patch_size, len(names), inference=self.inference, device=device)
        dice = validation_dice(predictor, self.dataset, self.cases)
        return {names[number]: value for number, value in dice.items() if not math.isnan(value)}


def validation_dice(predictor: Predictor, dataset: PreparedDataset, cases: Iterable[str]) -> dict[int, float]:
    """Compute the mean DSC of each class over `cases`, on the prepared grid.

    It is NaN for a class that no case holds.

    Raises:
        UserError: a case has no label, or as `Predictor.logits`.
    """
    from anatomask.evaluation.metrics import dice_scores

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
