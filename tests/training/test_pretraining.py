from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from anatomask.data.bricks import locations
from anatomask.data.masked_draw import MaskedDraw
from anatomask.data.samples import LoaderConfig
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.methods.anatomask import AnatoMask, AnatoMaskConfig
from anatomask.nn.backbones.stunet import STUNetConfig
from anatomask.training.fixed_scans import FixedCases
from anatomask.training.loop import to_device
from anatomask.training.monitors import MaskMonitor
from anatomask.training.pretraining import PretrainingTask
from tests.training.conftest import Notes

CPU = torch.device("cpu")
LOADER = LoaderConfig(patch_size=(32, 32, 32))
FIXED = FixedCases(("one",), held_out=False)
HEADER = {"kind": "pretraining", "patch_size": [32, 32, 32], "spacing": [2.0, 2.0, 3.0]}


@pytest.fixture
def dataset(prepared: Callable[..., PreparedDataset]) -> PreparedDataset:
    rng = np.random.default_rng(0)
    return prepared(rng.integers(-900, 900, (40, 36, 20)).astype(np.int16))


def make(dataset: PreparedDataset, seed: int = 0, **settings: object) -> PretrainingTask:
    method = AnatoMaskConfig(decoder_width=16, r0=0.5, ema_decay=0.5, **settings)  # type: ignore[arg-type]
    return PretrainingTask(method, STUNetConfig(base=2), LOADER, HEADER, dataset.path, FIXED, seed, CPU)


def batch(dataset: PreparedDataset, size: int = 2) -> dict[str, torch.Tensor]:
    drawn = [MaskedDraw(LOADER)(dataset, "one", np.random.default_rng(k)) for k in range(size)]
    return to_device({name: np.stack([sample[name] for sample in drawn]) for name in drawn[0]}, CPU)


def test_a_step_trains_the_student_and_the_teacher_follows(dataset: PreparedDataset) -> None:
    task = make(dataset)
    method = task.method
    assert isinstance(method, AnatoMask) and method.teacher
    teacher = method.teacher
    before = [parameter.clone() for parameter in teacher.parameters()]
    optimiser = torch.optim.SGD(task.trainable().parameters(), lr=0.1)
    loss, scalars = task(batch(dataset), 0.0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in task.trainable().parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    optimiser.step()
    task.after_step(0.0)
    assert {"r_t", "hard_share", "teacher_loss", "ema_decay"} <= set(scalars)
    moved = [not torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True)]
    assert any(moved)
    for old, teacher_now, student in zip(before, teacher.parameters(), method.student.parameters(), strict=True):
        assert torch.allclose(teacher_now, 0.5 * old + 0.5 * student, atol=1e-6)


def test_the_seed_decides_the_weights_and_a_checkpoint_holds_both_networks(dataset: PreparedDataset) -> None:
    first, again, other = make(dataset), make(dataset), make(dataset, seed=1)
    state = first.method.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.method.state_dict().items())
    assert any(not torch.equal(state[name], tensor) for name, tensor in other.method.state_dict().items())
    assert first.kept() is first.method
    assert {name.split(".")[0] for name in state} == {"student", "teacher"}


@pytest.mark.parametrize("masking", ["anatomask", "random"])
def test_validation_records_a_picture_and_leaves_training_as_it_was(
    dataset: PreparedDataset, masking: str, notes: Notes
) -> None:
    task = make(dataset, masking=masking)
    assert task.trainable().training
    assert task.validate(notes, 1) is None
    assert task.trainable().training
    assert 0 < notes.values["val/loss"] < 10
    assert set(notes.histograms) == {"patch_loss/student"} | (
        {"patch_loss/teacher"} if masking == "anatomask" else set()
    )
    assert int(notes.histograms["patch_loss/student"].isfinite().sum()) == 2 * 5  # two masks of 5 out of 8 patches
    (figure,) = notes.figures.values()
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles == ["input", "random mask", "reconstruction", "patch loss", "self-mask"]
    shown = figure.axes[1].images[0].get_array()
    assert shown is not None and np.ma.getmaskarray(np.ma.masked_invalid(shown)).any()


def test_validation_sees_the_same_scans_and_masks_every_time(dataset: PreparedDataset, notes: Notes) -> None:
    task = make(dataset)
    task.validate(notes, 1)
    first = dict(notes.values)
    torch.rand(1)
    task.validate(notes, 2)
    assert notes.values == first and first["val/loss"] == pytest.approx(first["val/teacher_loss"])
    make(dataset, seed=1).validate(notes, 1)
    assert notes.values != first


def test_overlap_with_organs_is_measured_where_held_out_scans_have_labels(
    prepared: Callable[..., PreparedDataset], notes: Notes
) -> None:
    image = np.random.default_rng(0).integers(-900, 900, (32, 32, 32)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[:16, :16, 20] = 3  # one of 8 patches
    for name, labels, held_out in (("trained-on", label, False), ("unlabelled", None, True), ("held-out", label, True)):
        dataset = prepared(image, label=labels, root=name)
        method = AnatoMaskConfig(decoder_width=16)
        fixed = FixedCases(("one",), held_out)
        task = PretrainingTask(method, STUNetConfig(base=2), LOADER, HEADER, dataset.path, fixed, 0, CPU)
        task.validate(notes, 1)
        assert ("mask/organs_self" in notes.values) == (name == "held-out")
    assert isinstance(task.monitor, MaskMonitor) and isinstance(task.method, AnatoMask)
    (scan,) = task.monitor.scans
    seen = task.method.examine(scan.volume, scan.noise)
    for name, masks in (("random", seen.random_masks), ("self", seen.self_masks), ("hard", seen.hard)):
        share = masks[:, 1].float() / masks.sum(1)  # patch 1 is the one at the far end of the last axis
        assert notes.values[f"mask/organs_{name}"] == pytest.approx(float(share.mean()))


def test_a_training_without_hard_patches_has_no_share_of_them(
    prepared: Callable[..., PreparedDataset], notes: Notes
) -> None:
    image = np.random.default_rng(0).integers(-900, 900, (32, 32, 32)).astype(np.int16)
    dataset = prepared(image, label=(image > 0).astype(np.uint8))
    method = AnatoMaskConfig(decoder_width=16, rT=0.0)
    fixed = FixedCases(("one",), held_out=True)
    PretrainingTask(method, STUNetConfig(base=2), LOADER, HEADER, dataset.path, fixed, 0, CPU).validate(notes, 1)
    assert notes.values["mask/organs_random"] == notes.values["mask/organs_self"] == 1
    assert "mask/organs_hard" not in notes.values


def test_labels_are_never_opened(prepared: Callable[..., PreparedDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(-900, 900, (40, 36, 20)).astype(np.int16)
    dataset = prepared(image, label=(image > 0).astype(np.uint8))
    where = locations(pq.read_metadata(f"{dataset.path}/cases/one.parquet"))
    asked: set[tuple[int, int]] = set()
    read = Storage.read_ranges

    def spy(self: Storage, path: str, ranges: list[tuple[int, int]]) -> object:
        asked.update((first, stop) for first, stop in ranges)
        return read(self, path, ranges)

    monkeypatch.setattr(Storage, "read_ranges", spy)
    batch(dataset)
    assert asked and asked <= set(map(tuple, where["image_0"].tolist()))
    assert not asked & set(map(tuple, where["label"].tolist()))
