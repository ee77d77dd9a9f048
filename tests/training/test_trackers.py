"""Trackers: what they are told, how a run goes on in them and without them. The libraries themselves where they are."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from anatomask.errors import UserError
from anatomask.training import trackers
from anatomask.training.job import require_trackers
from anatomask.training.journal import JOURNAL
from anatomask.training.recorder import RunRecorder, SilentRecorder
from anatomask.training.settings import TrainingConfig
from anatomask.training.trackers import followed

SETTINGS = {"method": {"mask_ratio": 0.6}, "seed": 0}


class Witness(SilentRecorder):
    """Tracker that keeps what it is told and fails at the update 3."""

    def __init__(self, run: Path, identity: str | None, settings: Mapping[str, Any]) -> None:
        self.identity = identity or "new"
        self.began = identity
        self.told: list[tuple[int, Any]] = []
        made.append(self)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == 3:
            raise ConnectionError("no server")
        self.told.append((step, dict(values)))

    def figure(self, step: int, name: str, figure: Figure) -> None:
        self.told.append((step, name))


made: list[Witness] = []


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> list[Witness]:
    """The trackers that were opened: Witnesses in place of wandb, which is taken as installed."""
    made.clear()
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": Witness})
    monkeypatch.setattr(trackers, "require_trackers", lambda names: None)
    return made


def picture() -> Figure:
    figure = Figure()
    figure.subplots().plot([0, 1])
    return figure


def test_a_tracker_is_told_everything_and_its_run_is_gone_on_with(tmp_path: Path, witness: list[Witness]) -> None:
    for start in (0, 1):
        recorder = followed(RunRecorder(tmp_path, start), tmp_path, ("wandb",), SETTINGS)
        recorder.scalars(start + 1, {"train/loss": 0.5})
        recorder.figure(start + 1, "views", picture())
        recorder.close()
    assert [one.began for one in witness] == [None, "new"]
    assert witness[1].told == [(2, {"train/loss": 0.5}), (2, "views")]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(tmp_path: Path, witness: list[Witness]) -> None:
    recorder = followed(RunRecorder(tmp_path, 0), tmp_path, ("wandb",), SETTINGS)
    for step in (1, 2, 3, 4):
        recorder.scalars(step, {"train/loss": 0.5})
    recorder.close()
    assert [step for step, _ in witness[0].told] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert "wandb fails (no server); the training goes on without it" in (tmp_path / JOURNAL).read_text()


def test_one_that_cannot_begin_or_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*given: Any) -> Witness:
        raise RuntimeError("not logged in")

    monkeypatch.setattr(trackers, "require_trackers", lambda names: None)
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": refuses})
    with pytest.raises(UserError, match=r"trackers wandb: it cannot begin \(not logged in\)"):
        followed(RunRecorder(tmp_path, 0), tmp_path, ("wandb",), SETTINGS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mlflow-skinny"):
        require_trackers(("mlflow",))
    with pytest.raises(ValueError, match="trackers"):
        TrainingConfig(trackers=("wandb", "wandb"))


def test_weights_and_biases_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for start in (0, 1):
        recorder = followed(RunRecorder(tmp_path, start), tmp_path, ("wandb",), SETTINGS)
        recorder.scalars(start + 1, {"train/loss": 0.5})
        recorder.figure(start + 1, "views", picture())
        recorder.close()
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert len(list(tmp_path.glob(f"wandb/offline-*/run-{identity}.wandb"))) == 2
    assert not (tmp_path / JOURNAL).exists()


def test_mlflow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where it lays pictures
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        followed(RunRecorder(tmp_path, 0), tmp_path, ("mlflow",), SETTINGS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for start in (0, 1):
        recorder = followed(RunRecorder(tmp_path, start), tmp_path, ("mlflow",), SETTINGS)
        recorder.scalars(start + 1, {"train/loss": start})
        recorder.figure(start + 1, "views", picture())
        recorder.close()
    client, identity = mlflow.MlflowClient(), json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert [(one.step, one.value) for one in client.get_metric_history(identity, "train/loss")] == [(1, 0), (2, 1)]
    assert client.get_run(identity).data.params == {"method.mask_ratio": "0.6", "seed": "0"}
    assert [one.path for one in client.list_artifacts(identity, "pictures")] == ["pictures/views.png"]
    assert not (tmp_path / JOURNAL).exists()
