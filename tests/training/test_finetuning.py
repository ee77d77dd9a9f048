from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from anatomask.data.augmentation.draws import draw_intensity, moves
from anatomask.data.augmentation.intensity import change_intensity
from anatomask.data.augmentation.spatial import resample
from anatomask.data.normalisation import normalise
from anatomask.data.samples import FinetuningDraw, LoaderConfig, SampleSequence, stacked
from anatomask.data.shards import PreparedDataset
from anatomask.data.slices import best_slice
from anatomask.evaluation.settings import InferenceConfig
from anatomask.evaluation.validation import Validated, Validation
from anatomask.nn.backbones.base import Segmenter
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.training.finetuning import FinetuningTask
from anatomask.training.loop import to_device
from tests.training.conftest import Notes

CPU = torch.device("cpu")
DRAW = FinetuningDraw(LoaderConfig(patch_size=(64, 32, 48)), (0, 1, 2))
HEADER = {
    "kind": "segmentation",
    "architecture": {"classes": 5},
    "patch_size": list(DRAW.loader.patch_size),
    "spacing": [2.0, 2.0, 3.0],
}


def nothing(network: Segmenter) -> list[str]:
    return []


def make(seed: int = 0, start: Callable[[Segmenter], list[str]] = nothing) -> FinetuningTask:
    scores = Validated({"a": 0.5, "b": 1.0})
    return FinetuningTask(STUNetConfig(base=2), HEADER, start, lambda network, device: scores, seed, CPU)


def batch(dataset: PreparedDataset, numbers: Sequence[int]) -> dict[str, Any]:
    """What the readers send for these samples, on the device."""
    return to_device(stacked([DRAW(dataset, "one", SampleSequence(("one",), 0).rng(k)) for k in numbers]), CPU)


def seen(dataset: PreparedDataset, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that the network reads, and labels that the loss reads, of these samples."""
    task = make()
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []

    def loss(logits: object, label: torch.Tensor) -> torch.Tensor:
        labels.append(label)
        return torch.zeros(())

    task.network.register_forward_pre_hook(lambda module, inputs: images.extend(inputs))
    task.loss = loss
    with torch.no_grad():
        task(batch(dataset, numbers), 0.0)
    return images[0], labels[0]


def test_a_real_crop_is_padded_normalised_augmented_and_mirrored_in_that_order(head: PreparedDataset) -> None:
    numbers = range(8)
    images, labels = seen(head, numbers)
    assert images.shape == labels.shape == (8, 1, *DRAW.loader.patch_size)
    sent = batch(head, numbers)
    assert all(sent["flip"].any(0)) and not all(sent["flip"].all(0))
    assert 0 < sum(moves(matrix.numpy()) for matrix in sent["matrix"]) < 8
    for k in numbers:
        stored, label, matrix = sent["image"][k].clone(), sent["label"][k], sent["matrix"][k].numpy()
        assert stored.dtype == torch.int16
        first, stop = 4 - int(sent["box_start"][k, 0]), 59 - int(sent["box_start"][k, 0])
        stored[:, :first], stored[:, stop:] = -1024, -1024  # 55 voxels of the scan, and its minimum beyond
        for axis, (first, stop) in enumerate(sent["inside"][k, 1:].tolist(), start=2):
            stored.narrow(axis, 0, first).fill_(-1024)
            stored.narrow(axis, stop, stored.shape[axis] - stop).fill_(-1024)
        volume = normalise(stored, torch.from_numpy(head.normalisation("one")))
        if moves(matrix):
            start, size = sent["box_start"][k].tolist(), DRAW.loader.patch_size
            volume, label = resample(volume, label, matrix, start, size)
        changed = change_intensity(volume[None], draw_intensity([int(sent["seed"][k])], 1))
        axes = [axis + 1 for axis in range(3) if sent["flip"][k, axis]]
        torch.testing.assert_close(images[k], changed[0].flip(axes), rtol=0, atol=1e-5)
        assert torch.equal(labels[k, 0], label.flip([axis - 1 for axis in axes]))


def test_a_sample_is_the_same_in_whatever_batch(head: PreparedDataset) -> None:
    images, labels = seen(head, [3, 4, 5, 6])
    for order in ([6, 3], [5], [4, 4]):
        there, theirs = seen(head, order)
        chosen = [k - 3 for k in order]
        torch.testing.assert_close(there, images[chosen], rtol=0, atol=1e-5)
        assert torch.equal(theirs, labels[chosen])


def test_a_step_reaches_every_parameter_but_the_lowest_head(head: PreparedDataset) -> None:
    task = make()
    loss, _ = task(batch(head, [0]), 0.0)
    loss.backward()
    named = dict(task.trainable().named_parameters())
    assert [name for name, parameter in named.items() if parameter.grad is None] == ["heads.0.weight", "heads.0.bias"]
    assert not any(named[name].requires_grad for name in ("heads.0.weight", "heads.0.bias"))


def test_both_twins_start_alike_where_nothing_was_pretrained() -> None:
    def start(network: Segmenter) -> list[str]:
        with torch.no_grad():
            network.get_parameter("encoder.stages.0.0.conv1.weight").fill_(7)
        return []

    scratch, pretrained = make(), make(start=start)
    theirs = pretrained.network.state_dict()
    differing = [name for name, tensor in scratch.network.state_dict().items() if not torch.equal(tensor, theirs[name])]
    assert differing == ["encoder.stages.0.0.conv1.weight"]


def test_validation_records_each_class_and_scores_by_their_mean(notes: Notes) -> None:
    task = make()
    assert task.validate(notes, 1) == 0.75
    assert notes.values == {"val/dice": 0.75, "val_dice/a": 0.5, "val_dice/b": 1.0}
    assert task.network.training and not notes.figures


def test_validation_shows_a_slice_of_a_real_scan(head: PreparedDataset, notes: Notes) -> None:
    header = HEADER | {"class_names": {str(number): name for number, name in head.class_names.items()}}
    validation = Validation(head.storage, ("one",), (64, 32, 48), InferenceConfig(overlap=0.0))
    task = FinetuningTask(STUNetConfig(base=2), header, nothing, validation, 0, CPU)
    (shown,) = validation(task.network, CPU).slices
    image, label = head.read_volume("one", label=True)
    assert label is not None
    k = best_slice(label)
    np.testing.assert_array_equal(shown.truth, label[:, :, k])
    np.testing.assert_array_equal(shown.image, image[0, :, :, k])
    assert shown.case == "one" and shown.prediction.shape == shown.truth.shape and 0 <= shown.dsc < 0.2
    score = task.validate(notes, 1)
    assert list(notes.figures) == ["segmentations"] and score == notes.values["val/dice"]
