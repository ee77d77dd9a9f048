from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anatomask.errors import UserError
from anatomask.training import checkpoints as module
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.settings import OptimiserConfig
from anatomask.training.state import TrainingState
from anatomask.training.task import Task
from anatomask.weights.files import write_weights
from anatomask.weights.tensor_files import read_described
from tests.training.conftest import LineTask

CPU = torch.device("cpu")


def fresh(task: Task, *, scaled: bool = False) -> TrainingState:
    return TrainingState.of(task, OptimiserConfig(lr=0.1), CPU, scaled=scaled)


def train(state: TrainingState) -> None:
    for _ in range(3):
        loss, _ = state.task({"x": torch.ones(2, 1), "y": torch.zeros(2, 1)}, 0.0)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimiser)
        state.scaler.update()


def trained(task: Task, *, scaled: bool = False) -> TrainingState:
    state = fresh(task, scaled=scaled)
    train(state)
    return state


def save(run: Path, step: int, state: TrainingState, score: float | None = None) -> None:
    with Checkpoints(run) as checkpoints:
        checkpoints.save(step, state, score)


def restore(run: Path, state: TrainingState) -> int:
    checkpoints = Checkpoints(run)
    step = checkpoints.step()
    checkpoints.load(step, state.task)
    checkpoints.load_moments(step, state)
    return step


@pytest.mark.parametrize("scaled", [False, True])
def test_weights_moments_and_the_loss_scale_come_back(scaled: bool, tmp_path: Path, line_task: type[LineTask]) -> None:
    mine, other = trained(line_task(), scaled=scaled), fresh(line_task(), scaled=scaled)
    if scaled:
        mine.scaler.update(1024.0)
    save(tmp_path, 3, mine)
    assert restore(tmp_path, other) == 3
    assert torch.equal(mine.task.get_parameter("line.weight"), other.task.get_parameter("line.weight"))
    assert mine.scaler.get_scale() == other.scaler.get_scale() == (1024.0 if scaled else 1.0)
    groups = (state.optimiser.param_groups[0]["params"] for state in (mine, other))
    for ours, theirs in zip(*groups, strict=True):
        assert mine.optimiser.state[ours].keys() == other.optimiser.state[theirs].keys()
        for key, value in mine.optimiser.state[ours].items():
            assert torch.equal(value, other.optimiser.state[theirs][key])


def test_without_a_checkpoint_training_begins_at_zero(tmp_path: Path, line_task: type[LineTask]) -> None:
    assert restore(tmp_path, trained(line_task())) == 0


def test_what_is_written_is_the_state_at_the_call(
    tmp_path: Path, line_task: type[LineTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while the checkpoint is written."""
    state, trained_on = trained(line_task()), threading.Event()
    weight = state.task.get_parameter("line.weight").detach().clone()

    def write_later(*arguments: object) -> None:
        assert trained_on.wait(60)
        write_weights(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_weights", write_later)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, None)
        train(state)
        trained_on.set()
    other = fresh(line_task())
    restore(tmp_path, other)
    assert torch.equal(other.task.get_parameter("line.weight"), weight)
    assert not torch.equal(other.task.get_parameter("line.weight"), state.task.get_parameter("line.weight"))


def test_one_that_was_cut_off_while_being_written_is_never_picked_up(tmp_path: Path, line_task: type[LineTask]) -> None:
    state = trained(line_task())
    save(tmp_path, 3, state)
    for name in (".step_00000006", "step_00000006"):  # killed before the rename; killed before the index
        write_weights(tmp_path / "checkpoints" / name, state.task.kept().state_dict(), state.task.header)
    assert restore(tmp_path, state) == 3
    save(tmp_path, 9, state)
    assert restore(tmp_path, state) == 9
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["index.json", "step_00000009"]


@pytest.mark.parametrize("file", ["optimiser.safetensors", "model.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "removed", "flipped"])
def test_a_damaged_one_is_named(file: str, damage: str, tmp_path: Path, line_task: type[LineTask]) -> None:
    state = trained(line_task())
    save(tmp_path, 3, state)
    path = tmp_path / "checkpoints" / "step_00000003" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    if damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"step_00000003.*{'begin the run anew' if damage != 'removed' else ''}"):
        restore(tmp_path, state)


def test_a_checkpoint_of_an_older_version_goes_on(tmp_path: Path, line_task: type[LineTask]) -> None:
    mine, other = trained(line_task(), scaled=True), fresh(line_task(), scaled=True)
    mine.scaler.update(512.0)
    save(tmp_path, 3, mine)
    folder = tmp_path / "checkpoints" / "step_00000003"
    described = read_described(folder / "optimiser.safetensors")
    save_file(described.tensors, folder / "optimiser.safetensors")
    (folder / "scaler.json").write_text(json.dumps(described.header["scaler"]))
    assert restore(tmp_path, other) == 3
    assert other.scaler.get_scale() == 512.0
    for ours, theirs in zip(mine.task.parameters(), other.task.parameters(), strict=True):
        for key, value in mine.optimiser.state[ours].items():
            assert torch.equal(value, other.optimiser.state[theirs][key])


def test_a_full_disk_is_told_and_leaves_the_last_one_in_place(
    tmp_path: Path, line_task: type[LineTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained(line_task())
    save(tmp_path, 3, state)

    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_described", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 6, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(6, state, None)
        with pytest.raises(OSError, match="No space left"):  # before anything else is lost
            checkpoints.save(9, state, None)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["index.json", "step_00000003"]
    assert restore(tmp_path, fresh(line_task())) == 3
