from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from anatomask.training.recorder import RunRecorder

SETTINGS = {
    "seed": 3,
    "train_fraction": 0.5,
    "method": {"masking": "random", "decoder_width": None},
    "splits": ["a", "b"],
}


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


@pytest.mark.parametrize("clock", [(3000, 4000, 5000), (5000, 3000, 3000), (3000, 5000, 4000)])
def test_a_clock_that_goes_back_loses_nothing(
    clock: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (now, start) in enumerate(zip(clock, (0, 3, 5), strict=True)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        recorder = RunRecorder(tmp_path, start)
        for step in range(start + 1, start + 6):
            recorder.scalars(step, {"train/loss": 100.0 * number + step})
        recorder.close()
    monkeypatch.undo()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 104.0), (5, 105.0), *((step, 200.0 + step) for step in range(6, 11))]
    assert [(event.step, event.value) for event in board(tmp_path).Scalars("train/loss")] == expected


def test_a_picture_is_kept_as_a_file_and_for_tensorboard(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, 0)
    figure = Figure()
    figure.subplots().plot([0, 1])
    for name in ("reconstruction", "reconstruction/other scan"):
        recorder.figure(1, name, figure)
    recorder.close()
    assert board(tmp_path).Tags()["images"] == ["reconstruction", "reconstruction/other scan"]
    for name in board(tmp_path).Tags()["images"]:
        (event,) = board(tmp_path).Images(name)
        kept = (tmp_path / "pictures" / f"{name}.png").read_bytes()
        assert event.encoded_image_string == kept
        with Image.open(io.BytesIO(kept)) as picture:
            assert (event.step, event.width, event.height) == (1, *picture.size)


def test_a_histogram_is_for_tensorboard_and_leaves_out_what_is_not_finite(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, 0)
    recorder.histogram(1, "patch_loss/student", torch.tensor([[0.5, torch.nan], [2.0, 0.25]]))
    recorder.histogram(1, "patch_loss/teacher", torch.full((3,), torch.nan))
    recorder.close()
    (event,) = board(tmp_path).Histograms("patch_loss/student")
    seen = event.histogram_value
    assert (event.step, seen.num, seen.min, seen.max, seen.sum) == (1, 3, 0.25, 2.0, 2.75)
    assert board(tmp_path).Tags()["histograms"] == ["patch_loss/student"]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_scalars_that_belong_together_share_a_chart(tmp_path: Path) -> None:
    RunRecorder(tmp_path, 0, charts={"masks": ("mask/self", "mask/random")}).close()
    (event,) = board(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    (chart,) = layout.category[0].chart
    assert (chart.title, list(chart.multiline.tag)) == ("masks", ["mask/self", "mask/random"])


def test_losses_of_pretraining_and_finetuning_lie_apart_on_the_board_alone(tmp_path: Path) -> None:
    for kind in ("pretraining", "finetuning"):
        (tmp_path / kind).mkdir()
        recorder = RunRecorder(tmp_path / kind, 0, charts={"loss": ("train/loss", "val/loss")}, kind=kind)
        recorder.scalars(1, {"train/loss": 0.5, "train/lr": 0.1})
        recorder.close()
        assert json.loads((tmp_path / kind / "metrics.jsonl").read_text()) == {
            "step": 1,
            "train/loss": 0.5,
            "train/lr": 0.1,
        }
        assert set(board(tmp_path / kind).Tags()["scalars"]) == {f"{kind}/loss", "train/lr"}
        (event,) = board(tmp_path / kind).Tensors("custom_scalars__config__")
        (chart,) = Layout.FromString(event.tensor_proto.string_val[0]).category[0].chart
        assert list(chart.multiline.tag) == [f"{kind}/loss", "val/loss"]


@pytest.mark.parametrize("checkpoint", [0, 3])
def test_the_settings_are_hyperparameters_of_the_run_itself(checkpoint: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for start in (0, checkpoint):  # the second is a run that was killed and goes on
        recorder = RunRecorder(tmp_path / "run", start, SETTINGS, {"seed": 0, "init": "scratch"})
        for step in range(start + 1, 6):
            recorder.scalars(step, {"val/loss": 0.1 * step})
        recorder.close()
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    events.Reload()
    assert set(events.Runs()) == {"run"}
    found = events.PluginRunToTagToContent(metadata.PLUGIN_NAME)["run"]
    session = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
    values = {name: value.string_value or value.number_value for name, value in session.hparams.items()}
    own = {"seed": 3, "train_fraction": 0.5, "method.masking": "random", "method.decoder_width": "none"}
    assert values == {**own, "splits": "a, b"}
    experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG])
    assert {info.name for info in experiment.hparam_infos} == {*own, "splits", "3 init"}
    assert [info.name.tag for info in experiment.metric_infos] == ["val/loss", "val/dice"]
    assert [event.step for event in events.Scalars("run", "val/loss")] == [1, 2, 3, 4, 5]
