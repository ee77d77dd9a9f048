from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from anatomask.errors import UserError
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.loop import TrainingConfig, train
from anatomask.training.optimiser import OptimiserConfig, build_optimiser
from anatomask.training.recorder import RunRecorder

SCHEDULE = OptimiserConfig(lr=0.2, warmup_epochs=1)
CONFIG = TrainingConfig(epochs=4, batch_size=4, checkpoint_every=7, validate_every=2, log_every=3)


def run(folder: Path, task, batches, config: TrainingConfig = CONFIG, stop_after: int | None = None):
    """Train in `folder` from its last checkpoint; the batches end after `stop_after` updates, as a kill would."""
    folder.mkdir(exist_ok=True)
    optimiser = build_optimiser(task.trainable().parameters(), SCHEDULE)
    checkpoints = Checkpoints(folder)
    start = checkpoints.restore(task, optimiser)
    recorder = RunRecorder(folder, start)
    stream = batches(start)
    if stop_after is not None:
        stream = (batch for _, batch in zip(range(stop_after - start), stream, strict=False))
    try:
        train(
            task,
            stream,
            optimiser,
            checkpoints,
            recorder,
            config,
            SCHEDULE,
            start=start,
            steps_per_epoch=5,
            device=torch.device("cpu"),
        )
    finally:
        recorder.close()
    return task.line.state_dict()


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_records_every_update(tmp_path: Path, line_task, points) -> None:
    task = line_task()
    run(tmp_path, task, points)
    written = rows(tmp_path)
    assert [row["step"] for row in written] == list(range(1, 21))
    assert written[-1]["train/loss"] < 0.2 * written[0]["train/loss"]
    assert all(("train/late" in row) == (row["step"] > 10) for row in written)
    assert {"train/lr", "train/gradient_norm", "train/samples_per_second", "train/wait"} <= set(written[0])
    assert task.progress == pytest.approx([step / 20 for step in range(20)])


@pytest.mark.parametrize("killed_after", [1, 7, 9, 13, 19])
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(
    killed_after: int, tmp_path: Path, line_task, points
) -> None:
    whole = run(tmp_path / "whole", line_task(), points)
    with pytest.raises(StopIteration):
        run(tmp_path / "cut", line_task(), points, stop_after=killed_after)
    resumed = run(tmp_path / "cut", line_task(), points)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [[(row["step"], row["train/loss"]) for row in rows(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path: Path, line_task, points) -> None:
    run(tmp_path, line_task(iter([0.9, 0.5])), points)
    index = Checkpoints(tmp_path).index()
    assert (index["best_step"], index["step"]) == (10, 20)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert kept == ["step_00000010", "step_00000020"]


def test_a_loss_that_is_not_finite_stops_at_the_last_good_checkpoint(tmp_path: Path, line_task, points) -> None:
    def poisoned(start: int):
        for step, batch in enumerate(points(start), start=start):
            yield {name: np.full_like(column, np.nan) if step == 8 else column for name, column in batch.items()}

    with pytest.raises(UserError, match="the loss is nan at update 9"):
        run(tmp_path, line_task(), poisoned)
    assert Checkpoints(tmp_path).step() == 7


def test_epochs_follow_the_cases() -> None:
    assert TrainingConfig(batch_size=4).updates_per_epoch(843) == 210
    assert TrainingConfig(batch_size=4).updates_per_epoch(3) == 1
    assert TrainingConfig(batch_size=4, steps_per_epoch=250).updates_per_epoch(3) == 250
