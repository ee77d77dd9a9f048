"""Trainings on volumes that stay on a device: random scans, so that nothing but PyTorch is needed, on a GPU too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_pack import KIND, LEVELS, Packed, encode
from gpu_study import Setting, Study
from gpu_training import dice, train
from gpu_volumes import Volumes
from torch import Tensor

from anatomask.errors import UserError
from anatomask.parsing import from_json
from anatomask.training.settings import OptimiserConfig
from anatomask.training.update import set_arithmetic
from anatomask.weights.tensor_files import read_described

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SETTING = Setting(
    base=2, edge=32, pretraining_batch=2, finetuning_batch=2, labels=2, points=4, rate=1e-3, pretraining_rate=1e-3,
    precision="fp32", compiled=False, seed=0,
)  # fmt: skip


def scans() -> Packed:
    """Six scans of soft noise in air, four with two organs; one is shorter than a crop."""
    rng = np.random.default_rng(0)
    cases = {f"case{number}": (40, 36 - 6 * (number == 1), 33 + number) for number in range(6)}
    codes, labels = {}, {}
    for case, shape in cases.items():
        voxels = np.full(shape, -1024)
        voxels[4:-4, 4:-4, 4:-4] = rng.normal(40, 60, [edge - 8 for edge in shape])
        codes[case] = encode(voxels)
        if case not in ("case4", "case5"):
            label = np.zeros(shape, np.uint8)
            label[8:16, 8:16, 8:16], label[20:28, 10:20, 10:20] = 1, 2
            labels[case] = label
    header: dict[str, Any] = {
        "kind": KIND,
        "name": "noise",
        "levels": LEVELS.tolist(),
        "splits": {"train": ["case0", "case1"], "val": ["case2", "case3"], "test": [], "unlabeled": ["case4", "case5"]},
        "class_names": {"1": "Left", "2": "Right"},
        "normalisation": [-200.0, 300.0, 40.0, 60.0],
        "cases": {
            case: {"shape": list(shape), "minimum": -1024, "labelled": case in labels} for case, shape in cases.items()
        },
    }
    return Packed(header, codes, labels)


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Set it, and back."""
    set_arithmetic(precision)
    try:
        yield
    finally:
        set_arithmetic("fp32")


def study(out: Path, device: torch.device = CPU, precision: str = "fp32") -> Study:
    setting = Setting(**{**vars(SETTING), "precision": precision})
    return Study(setting, Volumes.on(device, scans()), out)


def pretrained(out: Path, device: torch.device = CPU, precision: str = "fp32", updates: int = 3) -> dict[str, Tensor]:
    """All tensors of AnatoMask and SparK after a few updates."""
    each = study(out, device, precision)
    plan = each.plan(updates, 0)
    found: dict[str, Tensor] = {}
    with arithmetic(precision):
        for arm, task in each.pretrainings(plan).items():
            each.pretrain(arm, task, plan, updates, None, 1e12)
            found |= {f"{arm}.{n}": t.cpu().clone() for n, t in task.method.student.state_dict().items()}
    return found


def test_arms_start_alike_and_part_where_the_teacher_is_asked(tmp_path: Path) -> None:
    """With as few updates as leave no patch hard, they are the same; with more they are not."""
    once = pretrained(tmp_path, updates=1)
    names = [name.removeprefix("spark.") for name in once if name.startswith("spark.")]
    assert all(torch.equal(once[f"spark.{name}"], once[f"anatomask.{name}"]) for name in names)
    more = pretrained(tmp_path, updates=3)
    assert not all(torch.equal(more[f"spark.{name}"], more[f"anatomask.{name}"]) for name in names)


def test_a_training_is_the_same_every_time_and_whatever_was_before(tmp_path: Path) -> None:
    once, twice = (pretrained(tmp_path) for _ in range(2))
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.items())
    each = study(tmp_path)
    first = each.finetune("anatomask", 0, 4)
    other = each.finetune("scratch", 1, 4)
    again = each.finetune("anatomask", 0, 4)
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert first["curve"] != other["curve"]
    assert set(first["dsc"]) == {"case2", "case3"} and [done for done, _ in first["curve"]] == [1, 2, 3, 4]


def test_weights_go_on_where_they_were(tmp_path: Path) -> None:
    pretrained(tmp_path, updates=3)
    each = study(tmp_path)
    before = read_described(each.weights(tmp_path, "spark"), parse=from_json)
    assert before.header["updates"] == 3
    assert {t.dtype for t in before.tensors.values()} == {torch.float16, torch.int64}
    plan = each.plan(2, 3)
    each.pretrain("spark", each.pretrainings(plan)["spark"], plan, 2, before, 1e12)
    after = read_described(each.weights(tmp_path, "spark"), parse=from_json)
    assert after.header["updates"] == 5
    moved = [(after.tensors[name].double() - tensor.double()).abs().max() for name, tensor in before.tensors.items()]
    assert 0 < max(moved) < 10  # and not drawn anew: BatchNorm's counter says 5
    assert {int(t) for n, t in after.tensors.items() if n.endswith("num_batches_tracked")} == {5}


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    packed = scans()
    packed.header["splits"]["val"] = ["case2"]
    with pytest.raises(UserError, match="at least 2 to score"):
        Study(SETTING, Volumes.on(CPU, packed), tmp_path)
    with pytest.raises(UserError, match="2 labelled training cases"):
        Study(Setting(**{**vars(SETTING), "labels": 3}), Volumes.on(CPU, scans()), tmp_path)


def test_a_training_stops_when_its_time_is_over(tmp_path: Path) -> None:
    each = study(tmp_path)
    config = SETTING.training(2)
    assert len(train(each.finetuning, each.batches(0, 2), 50, config, OptimiserConfig(), CPU, ends=0.0)) == 1


def test_dice_of_every_class_that_is_there() -> None:
    truth = torch.tensor([[[0, 1, 1, 2]]], dtype=torch.uint8)
    found = dice(torch.tensor([[[1, 1, 0, 0]]]), truth, 3)
    assert found[1] == 0.5 and found[2] == 0.0 and np.isnan(found[3])


@GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_the_same_every_time(precision: str, tmp_path: Path) -> None:
    """To the last bit."""
    once, twice = (pretrained(tmp_path, torch.device("cuda"), precision) for _ in range(2))
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.items())


@GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nobody_waits_for_a_gpu_within_an_update(precision: str, tmp_path: Path) -> None:
    device = torch.device("cuda")
    each = study(tmp_path, device, precision)
    plan = each.plan(3, 0)
    generator = torch.Generator(device).manual_seed(0)
    task = each.pretrainings(plan)["anatomask"]
    for training, batch in (
        (task, lambda number: plan.batch(number, generator)),
        (each.finetuning, each.batches(0, 2)),
    ):
        waits = {2: lambda: torch.cuda.set_sync_debug_mode("error"), 3: lambda: torch.cuda.set_sync_debug_mode(0)}
        try:
            with arithmetic(precision):
                losses = train(training, batch, 3, each.setting.training(2), OptimiserConfig(), device, at=waits)
        finally:
            torch.cuda.set_sync_debug_mode(0)
        assert all(np.isfinite(losses))


@GPU
def test_a_gpu_computes_the_losses_of_a_cpu(tmp_path: Path) -> None:
    """On the same crops and noise: the draws of devices differ, so the CPU's are copied."""
    losses = {}
    for device in (CPU, torch.device("cuda")):
        here, there = study(tmp_path), study(tmp_path, device)
        plan = here.plan(2, 0)
        generator = torch.Generator().manual_seed(0)
        drawn = [{name: t.to(device) for name, t in plan.batch(number, generator).items()} for number in range(2)]
        batches = here.batches(0, 2)
        labelled = [{name: t.to(device) for name, t in batches(number).items()} for number in range(2)]
        tasks = there.pretrainings(plan)
        losses[device] = [
            *train(tasks["anatomask"], drawn.__getitem__, 2, SETTING.training(2), OptimiserConfig(), device),
            *train(there.finetuning, labelled.__getitem__, 2, SETTING.training(2), OptimiserConfig(), device),
        ]
    assert losses[torch.device("cuda")] == pytest.approx(losses[CPU], rel=1e-3)
