from __future__ import annotations

import numpy as np
import pytest
import torch

from anatomask.data.augmentation import augment


def organ(shape: tuple[int, int, int] = (24, 20, 16)) -> tuple[np.ndarray, np.ndarray]:
    """A bright box, and its label, off the centre so that a flip moves it."""
    image = np.zeros((1, *shape), np.float32)
    label = np.zeros(shape, np.uint8)
    label[4:10, 3:9, 2:7] = 3
    image[0][label == 3] = 2.0
    return image, label


def test_the_generator_decides_everything() -> None:
    image, label = organ()
    first, again, other = (
        augment(torch.from_numpy(image), label, (0, 1, 2), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("seed", range(30))
def test_image_and_label_move_together_and_no_class_is_invented(seed: int) -> None:
    image, label = organ()
    moved, moved_label = augment(torch.from_numpy(image), label, (0, 1, 2), np.random.default_rng(seed))
    assert moved.shape == image.shape
    assert moved.dtype == np.float32
    assert np.isfinite(moved).all()
    assert set(np.unique(moved_label)) <= {0, 3}
    assert moved_label.dtype == np.uint8
    inside, outside = moved[0][moved_label == 3].mean(), moved[0][moved_label == 0].mean()
    assert inside - outside > 0.8


@pytest.mark.parametrize("axes", [(), (1,), (1, 2), (0, 1, 2)])
def test_every_mirroring_of_the_axes_occurs_and_no_other(axes: tuple[int, ...]) -> None:
    image, label = organ()
    centres = set()
    for seed in range(60):
        _, moved = augment(torch.from_numpy(image), label, axes, np.random.default_rng(seed))
        centre = np.argwhere(moved == 3).mean(0)
        centres.add(tuple(bool(c > (n - 1) / 2) for c, n in zip(centre, moved.shape, strict=True)))
    assert len(centres) == 2 ** len(axes)
