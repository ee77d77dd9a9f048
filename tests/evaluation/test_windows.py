"""Windows over a volume, against nnU-Net's placement and weights and a sum over all windows in double precision."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from anatomask.evaluation import windows
from anatomask.evaluation.windows import WindowGrid, gaussian, slide

CPU = torch.device("cpu")
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
patches = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12))
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.7])

Starts = tuple[list[int], list[int], list[int]]
NNUNET: list[tuple[tuple[int, ...], tuple[int, ...], float, Starts]] = [
    ((42, 28, 100), (14, 28, 28), 0.5, ([0, 7, 14, 21, 28], [0], [0, 12, 24, 36, 48, 60, 72])),
    ((56, 57, 58), (28, 28, 28), 0.5, ([0, 14, 28], [0, 10, 19, 29], [0, 10, 20, 30])),
    ((110, 64, 97), (64, 64, 64), 0.5, ([0, 23, 46], [0], [0, 16, 33])),
    (
        (400, 317, 600),
        (112, 112, 128),
        0.5,
        (
            [0, 48, 96, 144, 192, 240, 288],
            [0, 51, 102, 154, 205],
            [0, 59, 118, 177, 236, 295, 354, 413, 472],
        ),
    ),
    (
        (60, 61, 62),
        (16, 16, 16),
        0.75,
        (
            [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44],
            [0, 4, 8, 11, 15, 19, 22, 26, 30, 34, 38, 41, 45],
            [0, 4, 8, 12, 15, 19, 23, 27, 31, 34, 38, 42, 46],
        ),
    ),
    ((33, 34, 35), (16, 16, 16), 0.0, ([0, 8, 17], [0, 9, 18], [0, 10, 19])),
    (
        (41, 47, 53),
        (13, 15, 11),
        0.5,
        ([0, 6, 11, 17, 22, 28], [0, 6, 13, 19, 26, 32], [0, 5, 10, 16, 21, 26, 32, 37, 42]),
    ),
]
"""Shape, window and overlap, and what `compute_steps_for_sliding_window` of nnU-Net 2.8.1 returns for them."""


@pytest.mark.parametrize(("shape", "window", "overlap", "starts"), NNUNET)
def test_windows_lie_where_nnunet_puts_them(
    shape: tuple[int, ...], window: tuple[int, ...], overlap: float, starts: Starts
) -> None:
    assert WindowGrid(shape, window, overlap).starts == starts


@settings(deadline=None, max_examples=60)
@given(shapes, patches, overlaps)
def test_windows_are_the_fewest_that_cover_a_volume_with_the_overlap(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float
) -> None:
    grid = WindowGrid(shape, patch, overlap)
    assert grid.count == len(list(itertools.product(*grid.starts)))
    for starts, extent, window in zip(grid.starts, grid.padded, patch, strict=True):
        steps = np.diff(starts)
        step = max(1.0, window * (1 - overlap))
        assert starts[0] == 0 and starts[-1] == extent - window and (steps > 0).all()
        assert max(steps, default=0) <= step + 1 and max(steps, default=0) - min(steps, default=0) <= 1
        assert (len(starts) - 2) * step < extent - window or len(starts) == 1


def reference_weights(window: tuple[int, ...]) -> np.ndarray:
    """nnU-Net's recipe: an impulse in the middle, smoothed."""
    impulse = np.zeros(window)
    impulse[tuple(extent // 2 for extent in window)] = 1
    smoothed = ndimage.gaussian_filter(impulse, [extent / 8 for extent in window], mode="constant")
    return np.asarray(smoothed / smoothed.max())


@settings(deadline=None, max_examples=30)
@given(patches)
def test_weights_are_those_of_nnunet(patch: tuple[int, int, int]) -> None:
    weights = gaussian(patch, CPU)
    torch.testing.assert_close(weights.double(), torch.from_numpy(reference_weights(patch)), rtol=1e-4, atol=0)
    assert weights.min() > 0


def test_weights_are_those_that_nnunet_computed() -> None:
    """By `compute_gaussian` of nnU-Net 2.8.1 in double precision."""
    weights = gaussian((16, 16, 16), CPU)
    found = [float(weights[at]) for at in ((0, 0, 0), (15, 15, 15), (8, 8, 8), (8, 8, 0))]
    assert found == pytest.approx([3.7751e-11, 1.0467e-08, 1.0, 3.3546e-4], rel=1e-4)
    assert float(gaussian((4, 6, 5), CPU).min()) == pytest.approx(6.7251e-10, rel=1e-4)


def wide_network(seed: int) -> nn.Module:
    """Layers that see over many voxels, so that neighbouring windows disagree."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 5, padding=2))


@torch.no_grad()
def stitched(network: nn.Module, volume: Tensor, grid: WindowGrid) -> Tensor:
    """All planes that leave, put together."""
    parts = [planes.float().clone() for planes in slide(volume, grid, network, 3, CPU)]
    if len(grid.starts[grid.axis]) > 1:
        assert max(part.shape[grid.axis + 1] for part in parts) <= grid.window[grid.axis]
    return torch.cat(parts, grid.axis + 1)


@torch.no_grad()
def summed(network: nn.Module, volume: Tensor, grid: WindowGrid) -> Tensor:
    """Sums over all windows in double precision, all of the volume at once."""
    padded = volume.amin((1, 2, 3))[:, None, None, None].repeat(1, *grid.padded)
    inside = tuple(slice(low, low + extent) for low, extent in zip(grid.before, grid.shape, strict=True))
    padded[:, *inside] = volume
    weights = torch.from_numpy(reference_weights(grid.window))
    sums, total = torch.zeros(3, *grid.padded, dtype=torch.float64), torch.zeros(grid.padded, dtype=torch.float64)
    for corner in itertools.product(*grid.starts):
        box = tuple(slice(start, start + extent) for start, extent in zip(corner, grid.window, strict=True))
        sums[:, *box] += network(padded[:, *box][None])[0].double() * weights
        total[box] += weights
    return (sums / total)[:, *inside].float()


@settings(deadline=None, max_examples=30)
@given(shapes, patches, overlaps, st.integers(0, 1000))
def test_planes_are_those_of_the_whole_volume(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float, seed: int
) -> None:
    network, volume = wide_network(seed), torch.randn(2, *shape)
    grid = WindowGrid(shape, patch, overlap)
    torch.testing.assert_close(stitched(network, volume, grid), summed(network, volume, grid), atol=1e-5, rtol=1e-4)


def test_means_of_many_bytes_are_kept_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the last bits of float16, nothing changes."""
    network, volume = wide_network(1), torch.randn(2, 19, 40, 23)
    grid = WindowGrid((19, 40, 23), (8, 12, 10), 0.5)
    exact = stitched(network, volume, grid)
    assert grid.kept_type(3) == torch.float32
    monkeypatch.setattr(windows, "EXACT_BYTES", 4 * 3 * 19 * 12 * 23 - 1)
    assert grid.kept_type(3) == torch.float16
    assert grid.kept_bytes(3) == 2 * 3 * 19 * 12 * 23
    half = stitched(network, volume, grid)
    assert 0 < (half - exact).abs().max() < 5e-3


def test_a_trunk_takes_a_few_gigabytes() -> None:
    """Of 400x400x600 voxels: all logits of 105 classes would be 40 GB."""
    grid = WindowGrid((400, 400, 600), (112, 112, 128), 0.5)
    assert grid.axis == 2
    assert grid.kept == (400, 400, 128)
    assert grid.kept_bytes(105) == 2 * 105 * 400 * 400 * 128 < 4.1 * 2**30
    assert grid.kept_bytes(32) == 2 * 32 * 400 * 400 * 128 < 1.3 * 2**30  # what the head of size B reads
