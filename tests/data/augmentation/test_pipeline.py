from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from anatomask.data.augmentation.draws import moves
from anatomask.data.augmentation.pipeline import IntensityAugmentation, placed_crops
from anatomask.data.samples import FinetuningDraw, LoaderConfig, Sample, stacked
from anatomask.data.shards import PreparedDataset
from anatomask.training.loop import to_device

CPU = torch.device("cpu")
DRAW = FinetuningDraw(LoaderConfig(patch_size=(32, 32, 32), foreground=0.5), (0, 1, 2))


@pytest.fixture
def ramps(prepared: Callable[..., PreparedDataset]) -> PreparedDataset:
    """A scan whose three channels are the coordinates of each voxel, and a label that is that of its half."""
    shape = (100, 90, 110)
    coordinates = np.stack(np.meshgrid(*[np.arange(edge, dtype=np.int16) for edge in shape], indexing="ij"))
    return prepared(*coordinates, label=1 + (coordinates[0] >= 50).astype(np.uint8))


def drawn(dataset: PreparedDataset, moved: bool, count: int) -> list[Sample]:
    samples = (DRAW(dataset, "one", np.random.default_rng(k)) for k in range(200))
    return [sample for sample in samples if moves(sample["matrix"]) == moved][:count]


def test_turned_crops_hold_the_scan_up_to_their_corners(ramps: PreparedDataset) -> None:
    samples = drawn(ramps, True, 8)
    assert len({sample["image"].shape for sample in samples}) == 8
    raw = [{**sample, "normalisation": np.array([[-9, 999, 0, 1]] * 3, np.float32)} for sample in samples]
    images, labels = placed_crops(to_device(stacked(raw), CPU), DRAW.loader.patch_size)
    assert images.shape == (8, 3, 32, 32, 32) and labels.shape == (8, 1, 32, 32, 32)
    inside = 0
    for sample, image, label in zip(samples, images, labels[:, 0], strict=True):
        scan = torch.tensor(ramps.records["one"].shape)[:, None, None, None]
        size = torch.tensor(image.shape[1:])
        offset = torch.stack(torch.meshgrid(*[torch.arange(edge) - (edge - 1) / 2 for edge in size], indexing="ij"))
        expected = torch.einsum("ij,jdhw->idhw", torch.from_numpy(sample["matrix"]).float(), offset)
        middle = image[:, 15:17, 15:17, 15:17].mean((1, 2, 3))  # of the crop, which nothing moves
        expected += middle[:, None, None, None]
        within = ((expected >= 0) & (expected <= scan - 1)).all(0)
        torch.testing.assert_close(image[:, within], expected[:, within], rtol=0, atol=2e-3)
        clear = within & ((expected[0] - 49.5).abs() > 1e-2)
        assert torch.equal(label[clear], 1 + (expected[0][clear] > 49.5).to(torch.uint8))
        assert (image[:, ~within] < scan.flatten()[:, None]).all() and (image >= 0).all()
        inside += int(within.all())
    assert inside > 0


def test_what_does_not_move_is_the_crop_as_it_was(head: PreparedDataset) -> None:
    samples = drawn(head, False, 3)
    images, labels = placed_crops(to_device(stacked(samples), CPU), DRAW.loader.patch_size)
    for sample, image, label in zip(samples, images, labels, strict=True):
        low, high, mean, std = sample["normalisation"][0]
        np.testing.assert_array_equal(label[0].numpy(), sample["label"])
        (d, _), (h, _), (w, _) = sample["inside"]
        expected = (np.clip(sample["image"][0, d, h, w], low, high) - mean) / std
        assert image[0, d, h, w].item() == pytest.approx(expected, abs=1e-5)


def test_a_moved_sample_is_the_same_alone_and_beside_others(head: PreparedDataset) -> None:
    samples = [*drawn(head, True, 3), *drawn(head, False, 2)]
    images, labels = placed_crops(to_device(stacked(samples), CPU), DRAW.loader.patch_size)
    for k, sample in enumerate(samples):
        alone = placed_crops(to_device(stacked([sample]), CPU), DRAW.loader.patch_size)
        assert torch.equal(alone[0][0], images[k]) and torch.equal(alone[1][0], labels[k])
    assert set(labels.unique().tolist()) <= {0, *head.class_names}


def test_reduced_precision_of_the_training_step_stays_outside(head: PreparedDataset) -> None:
    sample = to_device(stacked([*drawn(head, True, 2), *drawn(head, False, 1)]), CPU)
    seeds, change = torch.arange(3) + 3, IntensityAugmentation(often=3)

    def made() -> torch.Tensor:
        return change(placed_crops(sample, DRAW.loader.patch_size)[0], seeds)

    plain = made()
    with torch.autocast("cpu", torch.bfloat16):
        inside = made()
    assert plain.dtype == inside.dtype == torch.float32
    assert torch.equal(plain, inside)
