from __future__ import annotations

import math

import numpy as np
import pytest

from anatomask.evaluation.lesions import score_lesions


def masks(*boxes: tuple[slice, ...]) -> np.ndarray:
    mask = np.zeros((20, 10, 10), bool)
    for box in boxes:
        mask[box] = True
    return mask


def at(start: int, edge: int = 2) -> tuple[slice, ...]:
    return (slice(start, start + edge), slice(2, 2 + edge), slice(2, 2 + edge))


def test_lesions_are_found_by_any_shared_voxel() -> None:
    score = score_lesions(masks(at(1), at(9), at(17, 3)), masks(at(2), at(5), at(9, 3)), 0.5)
    assert (score.lesions, score.predicted_lesions) == (3, 3)
    assert (score.recall, score.precision) == pytest.approx((2 / 3, 2 / 3))
    assert score.f1 == pytest.approx(2 / 3)
    assert (score.false_negative_ml, score.false_positive_ml) == (4.0, 13.5)


def test_one_prediction_over_two_lesions_finds_both() -> None:
    score = score_lesions(masks((slice(1, 12), slice(2, 4), slice(2, 4))), masks(at(1), at(9)), 1.0)
    assert (score.lesions, score.predicted_lesions, score.recall, score.precision, score.f1) == (2, 1, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(("offset", "count"), [((1, 0, 0), 1), ((1, 1, 0), 1), ((1, 1, 1), 2), ((2, 0, 0), 2)])
def test_voxels_that_share_a_face_or_an_edge_are_one_lesion(offset: tuple[int, ...], count: int) -> None:
    mask = np.zeros((8, 8, 8), bool)
    mask[2, 2, 2] = mask[tuple(2 + step for step in offset)] = True
    assert score_lesions(mask, mask, 1.0).lesions == count


def test_a_case_without_lesions() -> None:
    nothing, something = masks(), masks(at(1))
    both, false, missed = (
        score_lesions(*pair, 1.0) for pair in ((nothing, nothing), (something, nothing), (nothing, something))
    )
    assert math.isnan(both.f1) and math.isnan(both.recall) and math.isnan(both.precision)
    assert (both.false_positive_ml, both.false_negative_ml) == (0, 0)
    assert (false.f1, false.precision, false.false_positive_ml) == (0.0, 0.0, 8.0) and math.isnan(false.recall)
    assert (missed.f1, missed.recall, missed.false_negative_ml) == (0.0, 0.0, 8.0) and math.isnan(missed.precision)
