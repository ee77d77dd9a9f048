from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anatomask.training.recorder import RunRecorder


def board(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def test_what_came_after_the_checkpoint_is_dropped_on_resume(tmp_path: Path) -> None:
    first = RunRecorder(tmp_path, 0)
    for step in range(1, 6):
        first.scalars(step, {"train/loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')  # killed while writing
    second = RunRecorder(tmp_path, 3)
    second.scalars(4, {"train/loss": 40.0})
    second.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert [(event.step, event.value) for event in board(tmp_path).Scalars("train/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_a_picture_is_kept_as_a_file_and_for_tensorboard(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, 0)
    figure = Figure()
    figure.subplots().plot([0, 1])
    recorder.figure(1, "reconstruction", figure)
    recorder.close()
    assert (tmp_path / "pictures" / "reconstruction.png").stat().st_size > 1000
    assert board(tmp_path).Tags()["images"] == ["reconstruction"]
