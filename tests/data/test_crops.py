from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomask.data.crops import flip, normalised_crops, pad_outside
from anatomask.data.normalisation import normalise
from anatomask.data.samples import stored_crop
from anatomask.data.shards import PreparedDataset

SIZE = (5, 4, 6)
BOUNDS = st.tuples(*[st.tuples(*[st.integers(0, extent)] * 2).map(sorted) for extent in SIZE])


@settings(deadline=None)
@given(
    inside=st.lists(BOUNDS, min_size=1, max_size=3),
    channels=st.integers(1, 2),
    dtype=st.sampled_from([np.int16, np.float16, np.float32]),
    seed=st.integers(0, 99),
)
def test_what_lies_outside_the_scan_is_the_channels_minimum(
    inside: list[list[list[int]]], channels: int, dtype: type[Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = (100 * rng.standard_normal((len(inside), channels, *SIZE))).astype(dtype)
    minimum = image.min((2, 3, 4)) - dtype(1)
    expected = np.empty_like(image)
    expected[...] = minimum[..., None, None, None]
    for b, bounds in enumerate(inside):
        box: tuple[Any, ...] = (b, slice(None), *(slice(first, stop) for first, stop in bounds))
        expected[box] = image[box]
    given = torch.from_numpy(image), torch.tensor(inside, dtype=torch.int16), torch.from_numpy(minimum).float()
    padded = pad_outside(*given)
    assert padded.numpy().dtype == dtype
    np.testing.assert_array_equal(padded.numpy(), expected)
    assert torch.equal(padded[0], pad_outside(*(each[0] for each in given)))


@pytest.mark.parametrize(
    ("origin", "size"),
    [
        ((-5, 2, 10), (64, 64, 96)),  # beyond the scan on both sides of one axis
        ((40, -8, 100), (32, 32, 32)),
        ((10, 10, 10), (32, 32, 32)),
        ((60, 0, 0), (32, 32, 32)),  # beside it
    ],
)
def test_a_real_crop_is_what_reading_and_normalising_it_gives(
    head: PreparedDataset, origin: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    crop = stored_crop(head, "one", origin, size, label=False)
    padded, _ = head.read_crop("one", origin, size, label=False)
    expected = normalise(torch.from_numpy(padded), torch.from_numpy(head.normalisation("one")))
    batch = {name: torch.from_numpy(np.stack([column])) for name, column in crop.items()}
    assert torch.equal(normalised_crops(batch)[0], expected)


def test_flip_mirrors_each_sample_on_its_own() -> None:
    volume = torch.arange(2 * 2 * 3 * 4.0).view(2, 1, 2, 3, 4)
    axes = torch.tensor([[True, False, True], [False, True, False]])
    out = flip(volume, axes)
    assert torch.equal(out[0], volume[0].flip(1, 3))
    assert torch.equal(out[1], volume[1].flip(2))


def test_nothing_is_asked_of_the_device() -> None:
    """Tensors on the meta device hold no values and mix with no other device."""
    with torch.device("meta"):
        crop = {
            "image": torch.empty(2, 1, 32, 32, 32, dtype=torch.int16),
            "inside": torch.empty(2, 3, 2, dtype=torch.int16),
            "minimum": torch.empty(2, 1),
            "normalisation": torch.empty(2, 1, 4),
        }
    axes = torch.tensor([[True, False, True], [False, False, False]])  # on the host
    assert flip(normalised_crops(crop), axes).shape == (2, 1, 32, 32, 32)
