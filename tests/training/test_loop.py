from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from anatomask.errors import UserError
from anatomask.runs.checkpoint_index import last_step
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.failures import NonFiniteWatch
from anatomask.training.loop import train, validate
from anatomask.training.parallel import Workers
from anatomask.training.recorder import RunRecorder
from anatomask.training.scalars import ScalarLog
from anatomask.training.settings import OptimiserConfig, Precision, TrainingConfig
from anatomask.training.state import TrainingState
from anatomask.training.update import Update
from tests.training.conftest import LineTask, Notes, Points, TwoLayerTask

CPU = torch.device("cpu")
SCHEDULE = OptimiserConfig(lr=0.2, warmup_epochs=1)
CONFIG = TrainingConfig(epochs=4, batch_size=4, checkpoint_every=7, validate_every=2, log_every=3)


def run(
    folder: Path,
    task: LineTask,
    batches: Points,
    config: TrainingConfig = CONFIG,
    stop_after: int | None = None,
    stop: Callable[[], bool] | None = None,
    schedule: OptimiserConfig = SCHEDULE,
    clock: Callable[[], float] = time.monotonic,
    until: int | None = None,
    written: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Train in `folder` from its last checkpoint; the batches end after `stop_after` updates, as a kill would."""
    folder.mkdir(exist_ok=True)
    workers = Workers()
    with Checkpoints(folder, written=written) as checkpoints:
        start = checkpoints.step()
        checkpoints.load(start, task)
        state = TrainingState.of(task, schedule, CPU, scaled=config.precision == "fp16")
        checkpoints.load_moments(start, state)
        recorder = RunRecorder(folder, start)
        stream = batches(start)
        if stop_after is not None:
            stream = (batch for _, batch in zip(range(stop_after - start), stream, strict=False))
        watch = NonFiniteWatch(
            folder, lambda step: [f"case{step}"], config.on_non_finite, scaled=config.precision == "fp16"
        )
        try:
            train(
                Update(state, task, workers, config, schedule.clip, CPU),
                stream,
                checkpoints,
                ScalarLog(recorder, workers, config.batch_size, CPU, watch),
                config,
                schedule,
                start=start,
                steps_per_epoch=5,
                until=until,
                stop=stop or (lambda: False),
                clock=clock,
            )
        finally:
            recorder.close()
    return task.line.state_dict()


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[tuple[float, float | None]]:
    return [(row["step"], row.get("train/loss")) for row in rows(folder) if "train/lr" in row]


def stopped_after(step: int) -> Callable[[], bool]:
    """Answers yes when update `step` of a run that begins there is done."""
    return iter([False] * (step - 1) + [True]).__next__


def test_training_learns_and_records_every_update(tmp_path: Path, line_task: type[LineTask], points: Points) -> None:
    task = line_task()
    run(tmp_path, task, points)
    written = [row for row in rows(tmp_path) if "train/loss" in row]
    assert [row["step"] for row in written] == list(range(1, 21))
    assert written[-1]["train/loss"] < 0.2 * written[0]["train/loss"]
    assert all(("train/late" in row) == (row["step"] > 10) for row in written)
    assert {"train/lr", "train/gradient_norm", "train/samples_per_second", "train/wait"} <= set(written[0])
    ratios = {row["step"]: row["train/update_ratio"] for row in written if "train/update_ratio" in row}
    assert list(ratios) == [3, 6, 9, 12, 15, 18, 20]
    assert all(0 < ratio < 1 for ratio in ratios.values())
    assert [row["step"] for row in rows(tmp_path) if "train/checkpoint_seconds" in row] == [7, 14, 20]
    assert task.progress == pytest.approx([step / 20 for step in range(20)])


def test_checkpoints_are_written_by_the_clock_too(tmp_path: Path, line_task: type[LineTask], points: Points) -> None:
    """90 seconds pass with each update, so after a checkpoint the third is the first that is four minutes late."""
    now = 1000.0

    def slow(start: int) -> Iterator[dict[str, np.ndarray]]:
        nonlocal now
        for batch in points(start):
            now += 90
            yield batch

    config = replace(CONFIG, checkpoint_every=7, checkpoint_minutes=4.0)
    run(tmp_path, line_task(), slow, config, clock=lambda: now)
    saved = [row["step"] for row in rows(tmp_path) if "train/checkpoint_seconds" in row]
    assert saved == [3, 6, 7, 10, 13, 14, 17, 20]


def test_a_training_that_is_left_goes_no_further_when_it_begins_again(
    tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    """As when a worker is lost after the checkpoint at which it was to be left."""
    for _ in range(2):
        run(tmp_path, line_task(), points, until=10)
        assert last_step(tmp_path) == 10
    whole = run(tmp_path / "whole", line_task(), points)
    assert torch.equal(run(tmp_path, line_task(), points)["weight"], whole["weight"])


@pytest.mark.parametrize("killed_after", [0, 2, 8])
def test_what_is_validated_begins_with_the_untrained_network(
    killed_after: int, tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    """Once, however often the run begins again, also for TensorBoard."""
    initial = float(line_task().state_dict()["line.weight"])
    with pytest.raises(StopIteration):
        run(tmp_path, line_task(), points, stop_after=killed_after)
    run(tmp_path, line_task(), points)
    found = [(row["step"], row["val/slope"]) for row in rows(tmp_path) if "val/slope" in row]
    assert [step for step, _ in found] == [0, 10, 20] and found[0][1] == initial
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("val/slope")] == [0, 10, 20]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("killed_after", [1, 7, 9, 13, 19])
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(
    killed_after: int, precision: Precision, tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    config = replace(CONFIG, precision=precision)
    whole = run(tmp_path / "whole", line_task(), points, config)
    with pytest.raises(StopIteration):
        run(tmp_path / "cut", line_task(), points, config, stop_after=killed_after)
    resumed = run(tmp_path / "cut", line_task(), points, config)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


SAWTOOTH = OptimiserConfig("sgd", 0.02, momentum=0.9, decay="poly", warmup_epochs=1, decoder_first=(1, 1))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("killed_after", [3, 10, 11, 16])
@pytest.mark.parametrize("schedule", [SAWTOOTH, replace(SAWTOOTH, name="adamw", layer_decay=0.5)], ids=["sgd", "adamw"])
def test_a_sawtooth_that_was_cut_off_ends_like_one_that_was_not(
    schedule: OptimiserConfig,
    killed_after: int,
    precision: Precision,
    tmp_path: Path,
    two_layer_task: type[TwoLayerTask],
    points: Points,
) -> None:
    """While the decoder is alone (updates 1 to 10), at the border, and after it."""
    config = replace(CONFIG, precision=precision, checkpoint_every=5 if killed_after == 11 else 3)
    whole = run(tmp_path / "whole", two_layer_task(), points, config, schedule=schedule)
    with pytest.raises(StopIteration):
        run(tmp_path / "cut", two_layer_task(), points, config, stop_after=killed_after, schedule=schedule)
    resumed = run(tmp_path / "cut", two_layer_task(), points, config, schedule=schedule)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    optimisers = (
        load_file(tmp_path / name / "checkpoints" / "step_00000020" / "optimiser.safetensors")
        for name in ("whole", "cut")
    )
    mine, theirs = optimisers
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "schedule",
    [SAWTOOTH, replace(SAWTOOTH, decoder_first=(0, 0), freeze=2), replace(SAWTOOTH, name="adamw", weight_decay=0.1)],
    ids=["sgd sawtooth", "sgd frozen", "adamw sawtooth"],
)
def test_a_frozen_encoder_does_not_move_and_then_it_does(
    schedule: OptimiserConfig, tmp_path: Path, two_layer_task: type[TwoLayerTask], points: Points
) -> None:
    """Not by weight decay nor momentum, to the last bit; nor does it count in the norm of the gradient."""
    task = two_layer_task()
    begins = {name: tensor.clone() for name, tensor in task.line.state_dict().items()}
    frozen = run(tmp_path, task, points, stop=stopped_after(10), schedule=schedule)
    moved = {name for name in begins if not torch.equal(begins[name], frozen[name])}
    assert moved == {"1.weight", "1.bias"}
    written = [row for row in rows(tmp_path) if "train/lr" in row]
    assert all(row["train/lr_lowest"] == 0 < row["train/lr"] for row in written)
    state = load_file(tmp_path / "checkpoints" / "step_00000010" / "optimiser.safetensors")
    assert all(not tensor.any() for name, tensor in state.items() if "/0." in name)
    frozen = {name: tensor.clone() for name, tensor in frozen.items()}
    thawed = run(tmp_path, two_layer_task(), points, schedule=schedule)
    assert all(not torch.equal(frozen[name], thawed[name]) for name in frozen)


def test_what_is_frozen_does_not_count_in_the_norm(two_layer_task: type[TwoLayerTask], points: Points) -> None:
    norms = []
    for frozen in (False, True):
        task = two_layer_task()
        state = TrainingState.of(task, replace(SCHEDULE, freeze=1), CPU)
        assert [group["start"] for group in state.optimiser.param_groups] == [1, 0]
        sample = {name: torch.from_numpy(column) for name, column in next(points(0)).items()}
        rates = [None if frozen else 0.1, 0.1]
        norms.append(float(Update(state, task, Workers(), CONFIG, 1e9, CPU)(sample, 0.0, rates)["gradient_norm"]))
        learning = list(task.line.parameters())[2 if frozen else 0 :]
        gradients = torch.cat([p.grad.flatten() for p in learning if p.grad is not None])
        assert norms[-1] == pytest.approx(float(gradients.norm()))
    assert norms[1] < norms[0]


def test_asked_to_stop_it_ends_with_a_checkpoint_and_goes_on_from_there(
    tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    whole = run(tmp_path / "whole", line_task(), points)
    answers = iter([False] * 4)
    run(tmp_path / "cut", line_task(), points, stop=lambda: next(answers, True))
    assert Checkpoints(tmp_path / "cut").step() == 5
    resumed = run(tmp_path / "cut", line_task(), points)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path: Path, line_task: type[LineTask], points: Points) -> None:
    run(tmp_path, line_task(iter([0.9, 0.5])), points)
    index = Checkpoints(tmp_path).index()
    assert (index["best_step"], index["step"]) == (10, 20)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert kept == ["step_00000010", "step_00000020"]


@pytest.fixture
def poisoned(points: Points) -> Points:
    """The batches of updates 9 and 10 hold NaN."""

    def stream(start: int) -> Iterator[dict[str, np.ndarray]]:
        for step, batch in enumerate(points(start), start=start):
            yield {name: np.full_like(column, np.nan) if step in (8, 9) else column for name, column in batch.items()}

    return stream


def test_numbers_that_are_not_finite_stop_at_the_last_good_checkpoint(
    tmp_path: Path, line_task: type[LineTask], poisoned: Points
) -> None:
    config = replace(CONFIG, log_every=100, checkpoint_every=10)  # read only when the checkpoint is due
    run(tmp_path, line_task(), poisoned, config, stop=stopped_after(4))
    with pytest.raises(UserError, match=r"the loss is nan at update 9. Its cases are case9 .*on-non-finite skip"):
        run(tmp_path, line_task(), poisoned, config)
    assert Checkpoints(tmp_path).step() == 4
    assert json.loads((tmp_path / "non_finite.jsonl").read_text())["cases"] == ["case9"]


@pytest.mark.parametrize("schedule", [SCHEDULE, replace(SCHEDULE, name="sgd", lr=0.02)], ids=["adamw", "sgd"])
def test_they_are_left_out_when_told_to(
    schedule: OptimiserConfig, tmp_path: Path, line_task: type[LineTask], poisoned: Points
) -> None:
    """Weights, moments and their count are after updates 9 and 10 what they were before."""
    config = replace(CONFIG, on_non_finite="skip", checkpoint_every=100)
    kept = []
    for updates in (8, 2):
        run(tmp_path, line_task(), poisoned, config, stop=stopped_after(updates), schedule=schedule)
        folder = tmp_path / "checkpoints" / Checkpoints(tmp_path).index()["last"]
        files = ("model.safetensors", "optimiser.safetensors")
        kept.append({name: tensor for file in files for name, tensor in load_file(folder / file).items()})
    assert Checkpoints(tmp_path).step() == 10
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())
    assert not (tmp_path / "checkpoints" / "step_00000008").exists()
    noted = [json.loads(line)["step"] for line in (tmp_path / "non_finite.jsonl").read_text().splitlines()]
    assert noted == [9, 10]
    assert [loss for step, loss in losses(tmp_path) if step in (9, 10)] == [None, None]
    weights = run(tmp_path, line_task(), poisoned, config, schedule=schedule)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_too_many_left_out_in_a_row_stop_it(tmp_path: Path, line_task: type[LineTask], points: Points) -> None:
    def broken(start: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in points(start):
            yield {name: np.full_like(column, np.inf) for name, column in batch.items()}

    config = replace(CONFIG, epochs=8, on_non_finite="skip")
    with pytest.raises(UserError, match="at update 20, and so were the 19 updates before"):
        run(tmp_path, line_task(), broken, config)


def test_a_loss_scale_that_is_too_large_is_no_fault(tmp_path: Path, line_task: type[LineTask], points: Points) -> None:
    """Scaled gradients overflow until the scale has fallen far enough; those updates are left out."""

    def steep(start: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in points(start):
            yield {"x": batch["x"], "y": batch["y"] * 100}

    run(tmp_path, line_task(), steep, replace(CONFIG, precision="fp16", epochs=8))
    overflowed = [row["step"] for row in rows(tmp_path) if "train/loss" in row and "train/gradient_norm" not in row]
    assert overflowed and overflowed == list(range(1, len(overflowed) + 1))
    assert not (tmp_path / "non_finite.jsonl").exists()


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulated_parts_give_the_gradients_of_the_whole(
    parts: int, tmp_path: Path, line_task: type[LineTask], points: Points
) -> None:
    """Also where they are unequal: four samples in three parts."""
    whole = run(tmp_path / "whole", line_task(), points)
    accumulated = run(tmp_path / "parts", line_task(), points, replace(CONFIG, accumulate=parts))
    for name, tensor in whole.items():
        assert torch.allclose(tensor, accumulated[name], rtol=1e-4)
    for (_, mine), (_, theirs) in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_epochs_follow_the_cases() -> None:
    assert TrainingConfig(batch_size=4).updates_per_epoch(843) == 210
    assert TrainingConfig(batch_size=4).updates_per_epoch(3) == 1
    assert TrainingConfig(batch_size=4, steps_per_epoch=250).updates_per_epoch(3) == 250
    assert TrainingConfig(batch_size=4, crops_per_case=3).updates_per_epoch(8) == 6


def test_validation_leaves_the_compiled_code_of_the_training_alone(line_task: type[LineTask], notes: Notes) -> None:
    compiled = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(inputs)
        return graph.forward

    task = line_task()
    shift = torch.compile(lambda x: x + 1, backend=count)
    task.validate = lambda recorder, step: float(shift(torch.ones(2 + step)).sum())  # type: ignore[method-assign]
    assert validate(task, notes, 0) == 4.0 and validate(task, notes, 3) == 10.0 and not compiled
    assert shift(torch.ones(4)).sum() == 8.0 and len(compiled) == 1
