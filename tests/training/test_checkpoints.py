from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anatomask.errors import UserError
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.optimiser import OptimiserConfig, build_optimiser


def trained(task):
    optimiser = build_optimiser(task.trainable().parameters(), OptimiserConfig(lr=0.1))
    for _ in range(3):
        task.step({"x": torch.ones(2, 1), "y": torch.zeros(2, 1)}, 0.0)[0].backward()
        optimiser.step()
    return optimiser


def test_weights_and_moments_come_back(tmp_path: Path, line_task) -> None:
    task = line_task()
    optimiser = trained(task)
    Checkpoints(tmp_path).save(3, task, optimiser, None)
    other = line_task()
    fresh = build_optimiser(other.trainable().parameters(), OptimiserConfig(lr=0.1))
    assert Checkpoints(tmp_path).restore(other, fresh) == 3
    assert torch.equal(task.line.weight, other.line.weight)
    for mine, theirs in zip(optimiser.param_groups[0]["params"], fresh.param_groups[0]["params"], strict=True):
        for key, value in optimiser.state[mine].items():
            assert torch.equal(value, fresh.state[theirs][key])


def test_without_a_checkpoint_training_begins_at_zero(tmp_path: Path, line_task) -> None:
    task = line_task()
    assert Checkpoints(tmp_path).restore(task, trained(task)) == 0


def test_one_that_was_cut_off_while_being_written_is_never_picked_up(tmp_path: Path, line_task) -> None:
    task = line_task()
    optimiser = trained(task)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, task, optimiser, None)
    task.save(tmp_path / "checkpoints" / ".step_00000006")  # killed before the rename
    task.save(tmp_path / "checkpoints" / "step_00000006")  # killed before the index
    assert checkpoints.restore(task, optimiser) == 3
    checkpoints.save(6, task, optimiser, None)
    assert checkpoints.restore(task, optimiser) == 6


def test_a_damaged_one_is_named(tmp_path: Path, line_task) -> None:
    task = line_task()
    optimiser = trained(task)
    Checkpoints(tmp_path).save(3, task, optimiser, None)
    file = tmp_path / "checkpoints" / "step_00000003" / "optimiser.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="step_00000003 is damaged"):
        Checkpoints(tmp_path).restore(task, optimiser)


def test_a_failed_write_leaves_the_last_one_in_place(
    tmp_path: Path, line_task, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = line_task()
    optimiser = trained(task)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, task, optimiser, None)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(task, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(6, task, optimiser, None)
    assert Checkpoints(tmp_path).step() == 3
    assert (tmp_path / "checkpoints" / "step_00000003" / "model.safetensors").exists()
