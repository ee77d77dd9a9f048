from __future__ import annotations

import pytest
import torch

from anatomask.data.augmentation import Augmentation
from anatomask.data.normalisation import normalise
from anatomask.data.shards import PreparedDataset

CPU = torch.device("cpu")
SEEDS = torch.arange(30)


@pytest.fixture
def crop(head: PreparedDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of one crop of a real scan, normalised, and its label."""
    image, label = head.read_crop("one", (12, 20, 30), (32, 32, 40), label=True)
    assert label is not None and label.any()
    volume = normalise(torch.from_numpy(image), torch.from_numpy(head.normalisation("one")))
    return volume[None], torch.from_numpy(label)[None, None]


def test_a_seed_decides_everything_whatever_came_before_and_beside(crop: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, label = crop
    many = Augmentation(CPU)
    images, labels = many(image.expand(30, -1, -1, -1, -1), label.expand(30, -1, -1, -1, -1), SEEDS)
    for index in (29, 3, 17, 0):
        for augmentation in (many, Augmentation(CPU)):
            alone = augmentation(image, label, SEEDS[index : index + 1])
            assert torch.equal(alone[0][0], images[index])
            assert torch.equal(alone[1][0], labels[index])
    unlike = [not torch.equal(images[index], images[0]) for index in range(1, 30)]
    assert sum(unlike) > 15


def test_reduced_precision_of_the_training_step_stays_outside(crop: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, label = crop
    seeds = SEEDS[:15]
    batch = image.expand(15, -1, -1, -1, -1), label.expand(15, -1, -1, -1, -1), seeds
    plain = Augmentation(CPU)(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        inside = Augmentation(CPU)(*batch)
    assert plain[0].dtype == inside[0].dtype == torch.float32
    assert torch.equal(plain[0], inside[0])
    assert torch.equal(plain[1], inside[1])


def test_image_and_label_move_together_and_no_class_is_invented() -> None:
    image, label = torch.zeros(1, 1, 24, 20, 16), torch.zeros(1, 1, 24, 20, 16, dtype=torch.uint8)
    label[..., 4:10, 3:9, 2:7] = 3
    image[label == 3] = 2.0
    images, labels = Augmentation(CPU)(image.expand(30, *image.shape[1:]), label.expand(30, *label.shape[1:]), SEEDS)
    assert images.shape == labels.shape == (30, 1, 24, 20, 16)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.uint8)
    assert torch.isfinite(images).all()
    assert set(labels.unique().tolist()) == {0, 3}
    assert len({tuple(each.nonzero().float().mean(0).tolist()) for each in labels}) > 3  # some are turned
    for moved, moved_label in zip(images, labels, strict=True):
        assert moved[moved_label == 3].mean() - moved[moved_label == 0].mean() > 0.8
