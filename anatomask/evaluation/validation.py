"""Scores that are computed during a training: fast, on the prepared grid."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from anatomask.data.fingerprint import Scheme
from anatomask.data.scans import PreparedScan, prepared_scan
from anatomask.data.shards import PreparedDataset
from anatomask.data.slices import best_slice
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.settings import InferenceConfig

if TYPE_CHECKING:
    from anatomask.evaluation.predictor import Predictor


LOG = logging.getLogger(__name__)

PICTURED = 3
"""Number of validation cases of which a slice is shown."""
SILENT_SECONDS = 60
"""Seconds after which a validation that goes on says so in the run's journal."""


@dataclass(frozen=True)
class SegmentedSlice:
    """Axial slice of a validation case that shows most classes, on the prepared grid."""

    case: str
    image: np.ndarray
    """First channel (R, A), as stored."""
    truth: np.ndarray
    """Label map (R, A), uint8."""
    prediction: np.ndarray
    """Label map (R, A), uint8."""
    dsc: float
    """Mean DSC of the case over the classes that it holds; NaN where it holds none."""
    spacing: tuple[float, float]
    """Voxel size in mm along R and A."""
    scheme: Scheme
    """Normalisation scheme of the channel: what its values are."""


@dataclass(frozen=True)
class Validated:
    """Result of a validation."""

    dsc: Mapping[str, float]
    """Mean DSC of each class that the cases hold, by its name."""
    slices: Sequence[SegmentedSlice] = ()
    """Slices of the first `PICTURED` cases."""


@dataclass(frozen=True)
class Validation:
    """Scores of the validation cases. A job sends it to the workers, so it holds the data's address.

    The windows are not mirrored.
    """

    storage: Storage
    """Folder of the prepared data."""
    cases: tuple[str, ...]
    patch_size: tuple[int, int, int]
    """Voxels of a window."""
    inference: InferenceConfig

    @cached_property
    def dataset(self) -> PreparedDataset:
        """Data set, opened on first use."""
        return PreparedDataset.open(self.storage)

    def __call__(self, network: nn.Module, device: torch.device) -> Validated:
        """Segment the cases, and score the result.

        Raises:
            UserError: as `segmented`.
        """
        from anatomask.evaluation.predictor import Predictor  # a training's driver need not import it

        names = self.dataset.class_names
        predictor = Predictor(network, self.patch_size, len(names), inference=self.inference, device=device)
        scores: dict[int, list[float]] = {number: [] for number in names}
        slices: list[SegmentedSlice] = []
        told = time.monotonic()
        for number, (case, scan, truth, prediction) in enumerate(
            segmented(predictor, self.dataset, self.cases), start=1
        ):
            if time.monotonic() - told > SILENT_SECONDS and number < len(self.cases):
                told = time.monotonic()
                LOG.info("validation: %d of %d cases", number, len(self.cases))
            found = case_dice(prediction, truth, names)
            for number, dsc in found.items():
                scores[number].append(dsc)
            if len(slices) < PICTURED:
                slices.append(slice_of(case, scan, truth, prediction, found))
        return Validated({names[number]: float(np.mean(dsc)) for number, dsc in scores.items() if dsc}, slices)


def segmented(
    predictor: Predictor, dataset: PreparedDataset, cases: Iterable[str]
) -> Iterator[tuple[str, PreparedScan, np.ndarray, np.ndarray]]:
    """Segment cases on the prepared grid: yield each with its scan, its label map (D, H, W) and the predicted one.

    Raises:
        UserError: a case has no label, or as `Predictor.logits`.
    """
    for case in cases:
        scan = prepared_scan(dataset, case)
        prediction = predictor.labels(predictor.normalised(scan), scan.stored.shape[1:], scan.name)
        _, truth = dataset.read_volume(case, label=True)
        if truth is None:
            raise UserError(f"case {case} of {dataset.shown} has no label to validate against")
        yield case, scan, truth, prediction


def case_dice(prediction: np.ndarray, truth: np.ndarray, classes: Iterable[int]) -> dict[int, float]:
    """Compute the DSC of each class that a case holds."""
    from anatomask.evaluation.metrics import dice_scores  # MONAI takes a second to import

    return {number: dsc for number, dsc in dice_scores(prediction, truth, classes).items() if not math.isnan(dsc)}


def slice_of(
    case: str, scan: PreparedScan, truth: np.ndarray, prediction: np.ndarray, dice: Mapping[int, float]
) -> SegmentedSlice:
    """Cut out the axial slice that shows most classes; label maps are (D, H, W)."""
    k = best_slice(truth)
    return SegmentedSlice(
        case,
        scan.stored[0, :, :, k].copy(),  # not the whole scan
        truth[:, :, k].copy(),
        prediction[:, :, k].copy(),
        float(np.mean(list(dice.values()))) if dice else math.nan,
        (scan.spacing[0], scan.spacing[1]),
        scan.schemes[0],
    )
