from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from anatomask.data.augmentation import intensity
from anatomask.data.augmentation.draws import IntensityDraws, draw_intensity


def neutral(samples: int, channels: int) -> IntensityDraws:
    """Draws that change nothing."""
    ones = np.ones((samples, channels))
    threes = np.ones((samples, channels, 3))
    return IntensityDraws(np.arange(samples), np.zeros(samples), 0 * threes, ones, ones, threes, ones, ones)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 2, 16, 20, 24, generator=torch.Generator().manual_seed(0))


@settings(max_examples=60, deadline=None)
@given(edge=st.integers(8, 130), zoom=st.floats(0.5, 1, width=32))
def test_low_resolution_is_torchs_interpolation_twice(edge: int, zoom: float) -> None:
    line = torch.rand(1, 1, edge, generator=torch.Generator().manual_seed(edge))
    kept = functional.interpolate(line, round(edge * zoom), mode="nearest-exact")
    expected = functional.interpolate(kept, edge, mode="linear")[0, 0]
    found = intensity._lowering(torch.tensor([zoom]), edge)[0] @ line[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(edge=st.integers(8, 130), sigma=st.floats(0.5, 1, width=32))
def test_a_blur_is_a_mirrored_convolution(edge: int, sigma: float) -> None:
    radius = min((1, 2, 3), key=lambda r: abs(2 * r + 1 - (6 * sigma + 0.5)))
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    line = torch.rand(1, 1, edge, generator=torch.Generator().manual_seed(edge))
    padded = functional.pad(line, (radius, radius), mode="reflect")
    expected = functional.conv1d(padded, (kernel / kernel.sum())[None, None])[0, 0]
    found = intensity._blurring(torch.tensor([sigma]), edge)[0] @ line[0, 0]
    if abs((6 * sigma + 0.5) % 2) > 1e-3:  # halfway between two odd numbers
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_only_what_was_drawn_changes_and_a_batch_is_its_samples(images: torch.Tensor) -> None:
    before = images.clone()
    assert torch.equal(intensity.change_intensity(images, neutral(3, 2)), images)
    for name, value in (
        ("blur", 0.8), ("brightness", 1.2), ("contrast", 0.8), ("zoom", 0.6), ("inverted_gamma", 1.4), ("gamma", 0.8),
    ):  # fmt: skip
        draws = neutral(3, 2)
        parameter = getattr(draws, name).copy()
        parameter[1, 0], parameter[2, 1] = value, value
        changed = intensity.change_intensity(images, dataclasses.replace(draws, **{name: parameter}))
        same = [(b, c) for b in range(3) for c in range(2) if torch.equal(changed[b, c], images[b, c])]
        assert same == [(0, 0), (0, 1), (1, 1), (2, 0)], name
        alone = dataclasses.replace(neutral(1, 2), **{name: parameter[2:]})
        torch.testing.assert_close(intensity.change_intensity(images[2:], alone), changed[2:], rtol=0, atol=1e-6)
    noisy = intensity.change_intensity(images, dataclasses.replace(neutral(3, 2), noise=np.array([0, 0.1, 0.05])))
    assert torch.equal(noisy[0], images[0])
    assert (noisy - images).std((1, 2, 3, 4)).tolist() == pytest.approx([0, 0.1, 0.05], rel=0.05)
    assert torch.equal(images, before)


def test_the_order_is_nnunets(images: torch.Tensor) -> None:
    """Every change at once is one after the other."""
    draws = IntensityDraws(
        np.array([5]), np.array([0.1]), np.full((1, 2, 3), 0.7), np.full((1, 2), 1.2), np.full((1, 2), 0.8),
        np.full((1, 2, 3), 0.6), np.full((1, 2), 1.3), np.full((1, 2), 0.9),
    )  # fmt: skip
    (volume,) = images[:1]
    volume = volume + intensity.gaussian_noise(volume, 0.1, 5)

    def each(value: float, *shape: int) -> torch.Tensor:
        return torch.full((2, *shape), value)

    for step in (
        lambda x: intensity.blur(x, each(0.7, 3)),
        lambda x: intensity.brighten(x, each(1.2)),
        lambda x: intensity.change_contrast(x, each(0.8)),
        lambda x: intensity.lower_resolution(x, each(0.6, 3)),
        lambda x: intensity.gamma(x, each(1.3), inverted=True),
        lambda x: intensity.gamma(x, each(0.9)),
    ):
        volume = step(volume)
    torch.testing.assert_close(intensity.change_intensity(images[:1], draws)[0], volume, rtol=0, atol=1e-5)


def test_volumes_of_one_value_stay_finite() -> None:
    flat = torch.full((2, 8, 8, 8), -0.3)
    for changed in (
        intensity.gamma(flat, torch.tensor([0.8, 1.4])),
        intensity.gamma(flat, torch.tensor([0.8, 1.4]), inverted=True),
        intensity.change_contrast(flat, torch.tensor([0.8, 1.2])),
        intensity.blur(flat, torch.full((2, 3), 0.9)),
        intensity.lower_resolution(flat, torch.full((2, 3), 0.6)),
    ):
        torch.testing.assert_close(changed, flat, rtol=0, atol=1e-6)


def test_a_seed_decides_everything_whatever_is_beside(images: torch.Tensor) -> None:
    many = images[:1].expand(40, -1, -1, -1, -1)
    changed = intensity.change_intensity(many, draw_intensity(range(40), 2, often=2))
    assert len({float(each.sum()) for each in changed}) > 25
    for k in (39, 3, 17):
        alone = intensity.change_intensity(images[:1], draw_intensity([k], 2, often=2))
        torch.testing.assert_close(alone[0], changed[k], rtol=0, atol=1e-5)
