"""Surfaces and lesions against other libraries."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from monai.metrics import compute_surface_dice

from anatomask.evaluation.metrics import score_classes
from tests.evaluation.mask_pairs import Pair, random_pairs, real_pairs

NUMBERS = json.loads((Path(__file__).parents[1] / "golden/surface-distance/numbers.json").read_text())


def differing(pairs: Iterable[Pair]) -> list[str]:
    """Compare with DeepMind's surface-distance to 1e-6, and with cc3d; return the names of pairs that differ."""
    wrong = []
    for pair in pairs:
        maps = [mask.astype("uint8") for mask in (pair.prediction, pair.reference)]
        score = score_classes(maps[0], maps[1], pair.spacing, {1: pair.tolerance}, ("nsd", "hd95", "lesions"))[1]
        expected, lesions = NUMBERS[pair.name], score.lesions
        assert lesions is not None
        surfaces = (score.dsc, score.nsd, score.hd95_mm)
        voxel = score.volume_ml / score.voxels
        (count, missed, missed_voxels), (predicted, false, false_voxels) = (
            expected[name] for name in ("lesions", "predicted_lesions")
        )
        if surfaces != pytest.approx([expected[name] for name in ("dsc", "nsd", "hd95_mm")], rel=1e-6, abs=1e-6) or (
            lesions.lesions, lesions.predicted_lesions, lesions.recall, lesions.precision,
            lesions.false_negative_ml, lesions.false_positive_ml,
        ) != pytest.approx(
            (count, predicted, 1 - missed / count, 1 - false / predicted, missed_voxels * voxel, false_voxels * voxel)
        ):  # fmt: skip
            wrong.append(pair.name)
    return wrong


def test_random_masks_score_as_by_deepmind_and_cc3d() -> None:
    pairs = list(random_pairs(200))
    assert len(pairs) == sum(name.startswith("random") for name in NUMBERS)
    assert differing(pairs) == []


def test_real_masks_score_as_by_deepmind_and_cc3d(real_data: Path) -> None:
    pairs = list(real_pairs(real_data))
    assert len(pairs) == sum(not name.startswith("random") for name in NUMBERS)
    assert differing(pairs) == []


def test_nsd_is_monais_to_the_last_bit() -> None:
    for pair in random_pairs(40):
        predicted, true = (torch.from_numpy(mask)[None, None] for mask in (pair.prediction, pair.reference))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*always_return_as_numpy", FutureWarning)
            expected = compute_surface_dice(
                predicted, true, [pair.tolerance], include_background=True, spacing=pair.spacing, use_subvoxels=True
            )
        maps = [mask.astype("uint8") for mask in (pair.prediction, pair.reference)]
        assert score_classes(maps[0], maps[1], pair.spacing, {1: pair.tolerance})[1].nsd == float(expected)
