"""Views of UniMiSS: where they lie, what is done to them, and the slices that both show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from anatomask.data.samples import LoaderConfig, SampleSequence
from anatomask.data.shards import PreparedDataset
from anatomask.data.sub_volumes import PROBABILITIES, SubVolumesDraw, blur_slices, change_slices, sub_volumes
from tests.methods.drawn import drawn_batch

SIZE = (32, 32, 32)
DRAW = SubVolumesDraw(LoaderConfig(patch_size=SIZE))


@pytest.fixture
def ramp(prepared: Callable[..., PreparedDataset]) -> PreparedDataset:
    """A scan whose voxels tell where they are: 10⁴·r + 10²·a + s, which an int16 does not hold, so as floats."""
    r, a, s = np.meshgrid(*[np.arange(edge, dtype=np.float32) for edge in (80, 70, 60)], indexing="ij")
    return prepared(10_000 * r + 100 * a + s)


def test_views_lie_in_one_region_and_share_slices(ramp: PreparedDataset) -> None:
    flips, plane = [], []
    for k in range(40):
        sample = DRAW(ramp, "one", SampleSequence(("one",), 0).rng(k))
        boxes, depth = [], []
        for prefix, common in zip(("", "second_"), sample["common"], strict=True):
            voxels = sample[f"{prefix}image"][0].astype(np.float64)
            assert voxels.shape[2] == 32 and all(int(0.8 * 32) <= edge <= int(1.2 * 32) for edge in voxels.shape[:2])
            boxes.append((voxels // 10_000, voxels // 100 % 100))
            mirrored = voxels[..., ::-1] if sample[f"{prefix}flip"][2] else voxels
            depth.append(mirrored[..., common][0, 0] % 100)
            flips.append(sample[f"{prefix}flip"])
            plane.append(voxels.shape[:2])
        assert len(sample["common"][0]) == 16 and np.array_equal(*depth)
        for first, second in zip(*boxes, strict=True):
            assert max(first.max(), second.max()) - min(first.min(), second.min()) < int(1.8 * 32)
    assert np.mean(flips) == pytest.approx(0.8, abs=0.1) and len(set(plane)) > 20


def test_a_scan_smaller_than_the_crop_is_padded(prepared: Callable[..., PreparedDataset]) -> None:
    small = prepared(np.random.default_rng(0).normal(size=(20, 40, 10)).astype(np.float32))
    first, second = sub_volumes(drawn_batch(small, DRAW, (0, 1)), SIZE)
    assert first.shape == second.shape == (2, 1, 32, 32, 32) and first.isfinite().all() and second.isfinite().all()


def test_the_seed_alone_decides_and_views_differ(head_scan: PreparedDataset) -> None:
    sample = drawn_batch(head_scan, DRAW, range(2))
    first, second = sub_volumes(sample, SIZE)
    alone = {name: column[1:] for name, column in sample.items()}
    again = sub_volumes(alone, SIZE)
    assert torch.equal(first[1:], again[0]) and torch.equal(second[1:], again[1])
    assert not torch.equal(first, second) and first.shape == (2, 1, 32, 32, 32)


def test_slices_are_changed_one_by_one_as_often_as_published() -> None:
    """What noise, a factor and an added value leave of constant slices tells which of them were changed."""
    mean = torch.full((32, 1, 8, 8), 5.0)
    first: list[Tensor] = []
    second: list[Tensor] = []
    for seed in range(60):
        for found, probabilities in ((first, PROBABILITIES[0]), (second, PROBABILITIES[1])):
            changed = change_slices(mean, seed, probabilities)
            found.append(changed.mean((1, 2, 3)))
            assert torch.equal(changed, change_slices(mean, seed, probabilities))
    spread = [torch.stack(found).std(1) > 0.3 for found in (first, second)]  # a factor of its own for each slice
    assert spread[0].float().mean() == pytest.approx(1 - 0.2 * 0.2, abs=0.12) and spread[1].all()
    assert torch.cat(first).mean() == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.4, 2.0])
def test_the_blur_is_that_of_scipy(sigma: float) -> None:
    slices = torch.randn(2, 1, 12, 9)
    found = blur_slices(slices, torch.tensor([sigma, 1.0]))
    expected = ndimage.gaussian_filter(slices[0, 0].double().numpy(), sigma)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=1e-4, atol=1e-5)
