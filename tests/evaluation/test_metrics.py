from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anatomask.evaluation.metrics import dice_scores, score_classes
from anatomask.evaluation.settings import NSD_AT, Metric

SPACINGS = st.tuples(*[st.sampled_from([0.8, 1.5, 2.0, 3.0, 5.0])] * 3)
TOLERANCES = st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0])


@st.composite
def label_maps(draw: st.DrawFn) -> np.ndarray:
    """Smooth random shapes of up to three classes, on a grid of any small shape."""
    shape = draw(st.tuples(*[st.integers(3, 11)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random_labels(rng, shape)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[slice, ...]:
    """A box of voxels inside a 12-voxel cube, free of its border."""
    edges = [sorted(draw(st.lists(st.integers(1, 11), min_size=2, max_size=2, unique=True))) for _ in range(3)]
    return tuple(slice(low, high) for low, high in edges)


def random_labels(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=(4, *shape)), (0, 1, 1, 1))
    return noise.argmax(0).astype(np.uint8)


def reference_dice(prediction: np.ndarray, truth: np.ndarray, class_id: int) -> float:
    a, b = {tuple(i) for i in np.argwhere(prediction == class_id)}, {tuple(i) for i in np.argwhere(truth == class_id)}
    return 2 * len(a & b) / (len(a) + len(b)) if b else math.nan


def surface_area(corners: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Area in mm² of the surface between 8 voxels (2, 2, 2, …), for convex boxes: corner, edge and face elements."""
    a, b, c = spacing
    faces = np.array([b * c, a * c, a * b])
    count = corners.sum(axis=(0, 1, 2))
    inside = np.where(count > 4, ~corners, corners)
    count = inside.sum(axis=(0, 1, 2))
    # An axis along which the 8 voxels do not change is one that the surface runs parallel to.
    parallel = np.stack([(inside.take(0, axis) == inside.take(1, axis)).all(axis=(0, 1)) for axis in range(3)])
    area = np.zeros(count.shape)
    area[count == 1] = np.linalg.norm(faces) / 8
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        edge = (count == 2) & parallel[axis]
        area[edge] = np.linalg.norm(faces[others]) / 2
        face = (count == 4) & ~parallel[axis] & parallel[others].all(axis=0)
        area[face] = faces[axis]
    return area


def reference_surface_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """NSD and HD95: surface elements on the grid between voxels, weighted by area; distances by distance transforms."""
    areas = []
    for mask in (prediction, truth):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2))
        corners = np.moveaxis(windows, (3, 4, 5), (0, 1, 2))
        areas.append(surface_area(corners, spacing))
    distances = [ndimage.distance_transform_edt(area == 0, sampling=spacing) for area in areas]
    near = sum(areas[i][distances[1 - i] <= tolerance].sum() for i in (0, 1))
    reached = []
    for own, other in ((0, 1), (1, 0)):
        steps = np.unique(distances[other])
        within = [areas[own][distances[other] <= step].sum() for step in steps]
        reached.append(steps[np.array(within) >= 0.9499999 * areas[own].sum()][0])
    return float(near / sum(area.sum() for area in areas)), float(max(reached))


@given(st.data(), label_maps(), SPACINGS)
@settings(max_examples=40, deadline=None)
def test_dice_is_twice_the_overlap_over_the_sum(
    data: st.DataObject, truth: np.ndarray, spacing: Sequence[float]
) -> None:
    prediction = random_labels(np.random.default_rng(data.draw(st.integers(0, 999))), truth.shape)
    scores = score_classes(prediction, truth, spacing, dict.fromkeys((1, 2, 3), 2.0))
    for class_id in (1, 2, 3):
        expected = reference_dice(prediction, truth, class_id)
        assert scores[class_id].dsc == pytest.approx(expected, abs=1e-6, nan_ok=True)
        assert scores[class_id].voxels == (truth == class_id).sum()
    fast = dice_scores(prediction, truth, (1, 2, 3))
    assert fast == pytest.approx({c: score.dsc for c, score in scores.items()}, nan_ok=True)


@given(boxes(), boxes(), SPACINGS, TOLERANCES)
@settings(max_examples=40, deadline=None)
def test_surfaces_of_boxes_agree_with_distance_transforms(
    predicted: tuple[slice, ...], true: tuple[slice, ...], spacing: Sequence[float], tolerance: float
) -> None:
    prediction, truth = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.uint8)
    prediction[predicted], truth[true] = 1, 1
    expected = reference_surface_scores(prediction == 1, truth == 1, spacing, tolerance)
    score = score_classes(prediction, truth, spacing, {1: tolerance})[1]
    assert (score.nsd, score.hd95_mm) == pytest.approx(expected, abs=1e-5)
    voxel_ml = math.prod(spacing) / 1000
    assert score.volume_ml == pytest.approx((truth == 1).sum() * voxel_ml)
    assert score.predicted_volume_ml == pytest.approx((prediction == 1).sum() * voxel_ml)


@given(label_maps(), SPACINGS, st.permutations(range(3)), st.tuples(*[st.integers(0, 6)] * 6))
@settings(max_examples=25, deadline=None)
def test_surface_dice_does_not_depend_on_axes_and_margins(
    truth: np.ndarray, spacing: Sequence[float], axes: Sequence[int], margins: Sequence[int]
) -> None:
    prediction = np.roll(truth, 1, 0)
    tolerance = {1: 2.0, 2: 1.0, 3: 3.0}
    expected = score_classes(np.pad(prediction, 1), np.pad(truth, 1), spacing, tolerance)
    padding = [(1 + margins[2 * axis], 1 + margins[2 * axis + 1]) for axis in range(3)]
    there, moved = (np.pad(label, padding).transpose(axes) for label in (prediction, truth))
    found = score_classes(there, moved, [spacing[axis] for axis in axes], tolerance)
    for class_id in tolerance:
        assert found[class_id].nsd == pytest.approx(expected[class_id].nsd, abs=1e-5, nan_ok=True)
        assert found[class_id].hd95_mm == pytest.approx(expected[class_id].hd95_mm, abs=1e-5, nan_ok=True)


@given(label_maps(), SPACINGS)
@settings(max_examples=15, deadline=None)
def test_a_perfect_prediction_scores_one(truth: np.ndarray, spacing: Sequence[float]) -> None:
    for class_id, score in score_classes(truth, truth, spacing, dict.fromkeys((1, 2, 3), 1.0)).items():
        expected = 1.0 if (truth == class_id).any() else math.nan
        assert (score.dsc, score.nsd) == pytest.approx((expected, expected), nan_ok=True)
        assert score.hd95_mm == pytest.approx(expected - 1, nan_ok=True)
        assert score.predicted_volume_ml == score.volume_ml


@pytest.mark.parametrize(("shift", "near"), [(1, True), (2, False)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_tolerance_is_in_mm_along_each_axis(axis: int, shift: int, near: bool) -> None:
    """A plate that moves by 3 mm stays within a tolerance of 3 mm, whatever the voxel's other edges."""
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 3.00001  # as affines are rounded
    truth = np.zeros((16, 16, 16), np.uint8)
    truth[4:9, 4:9, 4:9] = 1
    nsd = score_classes(np.roll(truth, shift, axis), truth, spacing, {1: 3.0})[1].nsd
    assert (nsd == 1.0) is near


def test_absent_is_left_out_and_missed_is_zero() -> None:
    truth, prediction = np.zeros((2, 8, 8, 8), np.uint8)
    truth[2:5, 2:5, 2:5] = 1
    prediction[2:5, 2:5, 2:5] = 2
    scores = score_classes(prediction, truth, (1, 1, 1), {1: 3.0, 2: 3.0, 7: 3.0})
    assert (scores[1].dsc, scores[1].nsd, scores[1].voxels) == (0.0, 0.0, 27)
    for absent in (2, 7):
        assert math.isnan(scores[absent].dsc) and math.isnan(scores[absent].nsd)
        assert scores[absent].voxels == scores[absent].volume_ml == 0
    assert all(math.isnan(score.hd95_mm) for score in scores.values())
    assert {c: score.predicted_volume_ml for c, score in scores.items()} == pytest.approx({1: 0, 2: 0.027, 7: 0})


def test_metrics_that_are_not_named_are_not_computed() -> None:
    truth = random_labels(np.random.default_rng(0), (9, 8, 7))
    prediction = np.roll(truth, 1, 0)
    every = score_classes(prediction, truth, (1, 1, 1), {1: 2.0}, ("nsd", "hd95", "lesions"))[1]
    assert every.lesions is not None and not math.isnan(every.nsd + every.hd95_mm)
    asked: list[tuple[Metric, ...]] = [(), ("nsd",), ("hd95",), ("lesions",)]
    for metrics in asked:
        score = score_classes(prediction, truth, (1, 1, 1), {1: 2.0}, metrics)[1]
        assert (score.dsc, score.volume_ml) == (every.dsc, every.volume_ml)
        assert score.nsd == pytest.approx(every.nsd if "nsd" in metrics else math.nan, nan_ok=True)
        assert score.hd95_mm == pytest.approx(every.hd95_mm if "hd95" in metrics else math.nan, nan_ok=True)
        assert score.lesions == (every.lesions if "lesions" in metrics else None)


def test_one_measurement_gives_the_nsd_at_several_tolerances() -> None:
    """Each is that of a measurement with this tolerance for all classes; the shift is 1.6 mm."""
    truth, spacing = np.zeros((16, 12, 12), np.uint8), (0.8, 1.0, 1.7)
    truth[2:8, 2:8, 2:6], truth[9:13, 5:11, 5:11] = 1, 2
    prediction = np.roll(truth, 2, 0)
    found = score_classes(prediction, truth, spacing, {1: 3.0, 2: 5.0}, ("nsd", *NSD_AT))
    for name, tolerance in NSD_AT.items():
        expected = score_classes(prediction, truth, spacing, dict.fromkeys(found, tolerance))
        assert {c: getattr(score, name) for c, score in found.items()} == {c: s.nsd for c, s in expected.items()}
    assert all(0 < score.nsd_1mm < score.nsd_2mm <= score.nsd <= 1 for score in found.values())
    asked: tuple[Metric, ...] = ("nsd_1mm",)
    missed = score_classes(np.zeros_like(truth), truth, spacing, {1: 3.0}, asked)[1]
    assert missed.nsd_1mm == 0 and math.isnan(missed.nsd) and math.isnan(missed.nsd_2mm)


def test_a_class_far_from_its_prediction_scores_zero() -> None:
    truth, prediction = np.zeros((2, 20, 8, 8), np.uint8)
    truth[2:4, 2:5, 2:5] = 1
    prediction[15:18, 2:5, 2:5] = 1
    score = score_classes(prediction, truth, (1, 1, 1), {1: 2.0})[1]
    assert (score.dsc, score.nsd) == (0.0, 0.0)


def test_grids_must_agree() -> None:
    with pytest.raises(ValueError, match="different grids"):
        score_classes(np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 5), np.uint8), (1, 1, 1), {1: 1.0})


def test_scoring_warns_the_user_of_nothing() -> None:
    """Not of what MONAI calls within itself either."""
    truth = random_labels(np.random.default_rng(0), (9, 8, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_classes(np.roll(truth, 1, 0), truth, (1.0, 1.0, 1.0), {1: 2.0, 2: 2.0})
