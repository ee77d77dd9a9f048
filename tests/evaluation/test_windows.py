"""Windows over a volume, against MONAI's sliding window, which keeps the logits of all of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from torch import Tensor, nn

from anatomask.evaluation import windows
from anatomask.evaluation.windows import WindowGrid, gaussian, slide

CPU = torch.device("cpu")
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
patches = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12))
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.7])


@settings(deadline=None, max_examples=60)
@given(shapes, patches, overlaps)
def test_windows_lie_where_monai_puts_them(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float
) -> None:
    grid = WindowGrid(shape, patch, overlap)
    interval = _get_scan_interval(grid.padded, patch, 3, (overlap,) * 3)
    theirs = dense_patch_slices(grid.padded, patch, interval)
    assert list(itertools.product(*grid.starts)) == [tuple(part.start for part in box) for box in theirs]
    assert grid.count == len(theirs)


@settings(deadline=None, max_examples=30)
@given(patches)
def test_weights_are_those_of_monai(patch: tuple[int, int, int]) -> None:
    torch.testing.assert_close(gaussian(patch, CPU), compute_importance_map(patch, mode="gaussian", sigma_scale=0.125))


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


@settings(deadline=None, max_examples=30)
@given(shapes, patches, overlaps, st.integers(0, 1000))
def test_planes_are_those_of_the_whole_volume(
    shape: tuple[int, int, int], patch: tuple[int, int, int], overlap: float, seed: int
) -> None:
    network, volume = wide_network(seed), torch.randn(2, *shape)
    grid = WindowGrid(shape, patch, overlap)
    inferer = SlidingWindowInferer(patch, 2, overlap, mode="gaussian")
    padded = volume.amin((1, 2, 3))[:, None, None, None].repeat(1, *grid.padded)
    inside = tuple(slice(low, low + extent) for low, extent in zip(grid.before, shape, strict=True))
    padded[:, *inside] = volume
    with torch.no_grad():
        theirs = inferer(padded[None], network)[0][:, *inside]
    torch.testing.assert_close(stitched(network, volume, grid), theirs, atol=1e-5, rtol=1e-4)


def test_sums_of_many_bytes_are_kept_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the last bits of float16, nothing changes."""
    network, volume = wide_network(1), torch.randn(2, 19, 40, 23)
    grid = WindowGrid((19, 40, 23), (8, 12, 10), 0.5)
    exact = stitched(network, volume, grid)
    assert grid.sums_type(2) == torch.float32
    monkeypatch.setattr(windows, "EXACT_BYTES", 4 * 3 * 19 * 12 * 23 - 1)
    assert grid.sums_type(2) == torch.float16
    assert grid.sums_bytes(2) == 2 * 3 * 19 * 12 * 23
    half = stitched(network, volume, grid)
    assert 0 < (half - exact).abs().max() < 5e-3


def test_a_trunk_with_105_classes_takes_a_few_gigabytes() -> None:
    """Of 400x400x600 voxels: all logits would be 40 GB."""
    grid = WindowGrid((400, 400, 600), (112, 112, 128), 0.5)
    assert grid.axis == 2
    assert grid.sums == (400, 400, 128)
    assert grid.sums_bytes(104) == 2 * 105 * 400 * 400 * 128 < 4.1 * 2**30
