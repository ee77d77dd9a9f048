from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from anatomask.data.augmentation import spatial
from anatomask.data.augmentation.draws import draw_matrix, moves, rotation, source_box

SIZE = (9, 12, 7)


def positions(matrix: np.ndarray, start: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Where each voxel of the sample lies in its box, (3, *size)."""
    centre = (np.array(size) - 1) / 2
    offsets = np.stack(np.meshgrid(*[np.arange(edge) for edge in size], indexing="ij"), -1) - centre
    return np.moveaxis(offsets @ matrix.T + centre - start, -1, 0)


@settings(max_examples=15, deadline=None)
@given(angles=st.tuples(*[st.floats(-3, 3)] * 3), scale=st.floats(0.6, 1.5), seed=st.integers(0, 99))
def test_linear_interpolation_of_image_and_of_each_class(
    angles: tuple[float, float, float], scale: float, seed: int
) -> None:
    matrix = rotation(angles) * scale
    start, box = source_box(matrix, SIZE)
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, (2, *box)).astype(np.float32)
    label = rng.integers(0, 4, box).astype(np.uint8)
    moved, elected = spatial.resample(torch.from_numpy(image), torch.from_numpy(label), matrix, start.tolist(), SIZE)
    where = positions(matrix, start, SIZE)
    for channel, found in zip(image, moved, strict=True):
        np.testing.assert_allclose(found, map_coordinates(channel, where, order=1, mode="nearest"), atol=1e-4)
    scores = np.stack([map_coordinates((label == each) * 1.0, where, order=1, mode="nearest") for each in range(4)])
    first, second = np.sort(scores, 0)[:-3:-1]
    clear = first - second > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(elected.numpy()[clear], scores.argmax(0)[clear])


def test_of_equal_classes_the_nearest_voxels_is_taken() -> None:
    label = torch.zeros(4, 4, 4, dtype=torch.uint8)
    label[0, 0, 0], label[1, 1, 1] = 7, 9
    cell, corner = torch.zeros(1, dtype=torch.int32), torch.full((3, 1), 0.7)  # 9 has 0.343, background 0.63
    assert spatial._of_largest_weight(label, cell, corner).tolist() == [0]
    assert spatial._of_largest_weight(label, cell, torch.full((3, 1), 0.9)).tolist() == [9]
    label[:, :, 0], label[:, :, 1] = 3, 5
    halfway = torch.tensor([[0.2], [0.3], [0.5]])
    assert spatial._of_largest_weight(label, cell, halfway).item() in (3, 5)
    assert spatial._of_largest_weight(label, cell, halfway + 1e-3).tolist() == [5]


def test_a_gpu_that_never_waits_elects_what_a_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    matrix = rotation((0.3, -0.2, 0.5)) * 1.2
    start, box = source_box(matrix, SIZE)
    label = torch.from_numpy(np.kron(rng.integers(0, 9, (8, 8, 8)), np.ones((3, 3, 3)))[: box[0], : box[1], : box[2]])
    label = label.to(torch.uint8)
    cells, fractions = spatial._cells(label.shape, matrix, start.tolist(), SIZE, slice(None), torch.device("cpu"))
    lowest, highest = spatial._lowest_and_highest(label)
    assert 0.1 < (lowest != highest).float().mean() < 0.9
    torch.testing.assert_close(
        spatial._elect(label, (lowest, highest), cells, fractions), spatial._elect(label, None, cells, fractions)
    )
    image = torch.from_numpy(rng.normal(0, 1, (1, *box)).astype(np.float32))
    whole = spatial.resample(image, label, matrix, start.tolist(), SIZE)
    monkeypatch.setattr(spatial, "SLAB", (1, 1))  # one plane at a time
    for one, other in zip(spatial.resample(image, label, matrix, start.tolist(), SIZE), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_coarse_axis_keeps_its_planes() -> None:
    matrix = next(matrix for seed in range(99) if moves(matrix := draw_matrix(seed, coarse=1)))
    start, box = source_box(matrix, SIZE)
    image = torch.arange(box[1]).float()[None, None, :, None].expand(1, *box).contiguous()
    label = image[0].to(torch.uint8)
    moved, elected = spatial.resample(image, label, matrix, start.tolist(), SIZE)
    planes = torch.arange(SIZE[1]) - int(start[1])
    assert (moved[0] == planes[None, :, None]).all() and (elected == planes[None, :, None]).all()
