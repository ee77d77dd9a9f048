from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomask.data.augmentation import draws
from anatomask.data.augmentation.draws import (
    IntensityDraws,
    coarse_axis,
    draw_intensity,
    draw_matrix,
    moves,
    rotation,
    source_box,
)

SAMPLES = 10_000
SEEDS = np.random.default_rng(0).integers(2**32, size=SAMPLES).tolist()
ANGLE = math.radians(30)


@pytest.fixture(scope="module")
def intensity() -> IntensityDraws:
    return draw_intensity(SEEDS, channels=2)


@pytest.fixture(scope="module")
def matrices() -> np.ndarray:
    return np.stack([draw_matrix(seed) for seed in SEEDS])


def near(share: float, probability: float, samples: int = SAMPLES) -> bool:
    """Whether a share of samples is within 4.5 standard deviations of its probability."""
    return abs(share - probability) < 4.5 * math.sqrt(probability * (1 - probability) / samples)


def uniform(values: np.ndarray, low: float, high: float) -> bool:
    """Whether values fill a range evenly: both ends, and the mean of each half."""
    inside = low <= values.min() and values.max() <= high
    scaled = np.sort((values - low) / (high - low)).ravel()
    gap = np.abs(scaled - (np.arange(scaled.size) + 0.5) / scaled.size).max()  # Kolmogorov and Smirnov's distance
    return bool(inside and gap < 2 / math.sqrt(scaled.size))


def test_rotation_and_scaling_of_ten_thousand_samples(matrices: np.ndarray) -> None:
    lengths = np.linalg.norm(matrices, axis=1)  # of the columns
    turns, scales = matrices / lengths[:, None], lengths[:, 0]
    np.testing.assert_allclose(lengths, scales[:, None].repeat(3, 1))
    turned, scaled = np.abs(turns - np.eye(3)).max((1, 2)) > 1e-9, np.abs(scales - 1) > 1e-9
    for chosen, probability in ((turned, 0.2), (scaled, 0.2), (turned & scaled, 0.04)):
        assert near(chosen.mean(), probability)
    assert uniform(scales[scaled], 0.7, 1.4)
    assert [moves(matrix) for matrix in matrices[:500]] == (turned | scaled)[:500].tolist()
    turns = turns[turned]  # Rz @ Ry @ Rx, whose angles can be read off
    assert np.allclose(turns @ turns.swapaxes(1, 2), np.eye(3)) and np.allclose(np.linalg.det(turns), 1)
    assert uniform(np.arcsin(-turns[:, 2, 0]), -ANGLE, ANGLE)
    assert uniform(np.arctan2(turns[:, 2, 1], turns[:, 2, 2]), -ANGLE, ANGLE)
    assert uniform(np.arctan2(turns[:, 1, 0], turns[:, 0, 0]), -ANGLE, ANGLE)


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_rotation_and_scaling_leave_a_coarse_axis_alone(coarse: int) -> None:
    matrices = np.stack([draw_matrix(seed, coarse) for seed in SEEDS[:2000]])
    one, other = (axis for axis in range(3) if axis != coarse)
    for side in (matrices[:, coarse], matrices[:, :, coarse]):
        assert np.array_equal(side, np.eye(3)[[coarse] * len(side)])
    scales = np.linalg.norm(matrices[:, one], axis=1)
    angles = np.arctan2(matrices[:, other, one], matrices[:, one, one])
    turned, scaled = angles != 0, np.abs(scales - 1) > 1e-9
    assert near(turned.mean(), 0.2, 2000) and uniform(angles[turned], -math.pi, math.pi)
    assert near(scaled.mean(), 0.2, 2000) and uniform(scales[scaled], 0.7, 1.4)


def test_probabilities_and_ranges_of_ten_thousand_samples(intensity: IntensityDraws) -> None:
    noisy = intensity.noise > 0
    assert near(noisy.mean(), 0.1) and uniform(intensity.noise[noisy], 0, 0.1)
    for values, neutral, (probability, low, high) in (
        (intensity.blur, 0, draws.BLUR),
        (intensity.zoom, 1, draws.LOW_RESOLUTION),
    ):
        chosen = (values != neutral).any(-1)  # (samples, channels)
        assert near(chosen[:, 0].mean(), probability / 2) and near(chosen[:, 1].mean(), probability / 2)
        assert near(chosen.all(1).mean(), probability / 4)
        assert uniform(values[chosen][:, 0], low, high) and uniform(values[chosen][:, 2], low, high)
    assert (np.ptp(intensity.zoom, -1) == 0).all()
    assert len(np.unique(intensity.blur[intensity.blur > 0])) == (intensity.blur > 0).sum()
    for values, (probability, low, high) in (
        (intensity.brightness, draws.BRIGHTNESS),
        (intensity.contrast, draws.CONTRAST),
        (intensity.inverted_gamma, draws.INVERTED_GAMMA),
        (intensity.gamma, draws.GAMMA),
    ):
        chosen = (values != 1).any(1)
        assert near(chosen.mean(), probability)
        drawn = values[chosen].ravel()
        assert near((drawn < 1).mean(), 0.5, drawn.size)
        assert uniform(drawn[drawn < 1], low, 1) and uniform(drawn[drawn > 1], 1, high)
        assert abs(np.corrcoef(values[chosen].T)[0, 1]) < 0.12  # each channel has its own


def test_all_choices_are_independent(intensity: IntensityDraws, matrices: np.ndarray) -> None:
    columns = [getattr(intensity, each.name) for each in dataclasses.fields(intensity)]
    neutral = (0, 0, 1, 1, 1, 1, 1)
    made = [(column != none).reshape(SAMPLES, -1).any(1) for column, none in zip(columns[1:], neutral, strict=True)]
    correlations = np.corrcoef(np.stack([*made, (matrices != np.eye(3)).any((1, 2))]))
    assert np.abs(correlations - np.eye(8)).max() < 4.5 / math.sqrt(SAMPLES)


def test_a_sample_depends_on_its_seed_alone(intensity: IntensityDraws) -> None:
    for k in (0, 17, 9_999):
        alone = draw_intensity([SEEDS[k]], 2)
        for field in dataclasses.fields(intensity):
            np.testing.assert_array_equal(getattr(alone, field.name)[0], getattr(intensity, field.name)[k])
    assert np.array_equal(draw_matrix(5), draw_matrix(5))


def test_more_often_and_a_coarse_axis() -> None:
    often = draw_intensity(SEEDS[:3000], 1, often=3, coarse=1)
    assert near((often.gamma != 1).mean(), 0.9, 3000) and near((often.noise > 0).mean(), 0.3, 3000)
    assert (often.zoom[..., 1] == 1).all() and (often.zoom[..., 0] < 1).any()


def test_voxels_are_anisotropic_beyond_a_ratio_of_three() -> None:
    assert coarse_axis((1, 1, 3)) is None and coarse_axis((1.5, 1.5, 1.5)) is None
    assert coarse_axis((1, 1, 3.1)) == 2 and coarse_axis((5, 0.8, 0.8)) == 0


@settings(deadline=None)
@given(
    angles=st.tuples(*[st.floats(-4, 4)] * 3),
    scale=st.floats(0.5, 2),
    size=st.tuples(*[st.integers(1, 40)] * 3),
)
def test_the_box_holds_every_corner_and_no_plane_more(
    angles: tuple[float, float, float], scale: float, size: tuple[int, int, int]
) -> None:
    matrix = rotation(angles) * scale
    first, box = source_box(matrix, size)
    centre = (np.array(size) - 1) / 2
    signs = np.stack(np.meshgrid(*[(-1, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    corners = (signs * centre) @ matrix.T + centre - first
    assert (corners > -1e-9).all() and (corners <= np.array(box) - 1 + 1e-9).all()
    assert (corners.min(0) < 1 + 1e-9).all() and (corners.max(0) >= np.array(box) - 2 - 1e-9).all()
