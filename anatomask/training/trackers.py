"""Experiment trackers that follow a run beside TensorBoard: Weights & Biases, MLflow.

Each is an optional package, and is told where its server is and who asks in the way that its own documentation says
(`wandb login`, `MLFLOW_TRACKING_URI`). Rank 0 alone talks to it.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from anatomask.errors import UserError, first_line
from anatomask.files import write_text
from anatomask.parsing import from_json
from anatomask.training.job import require_trackers
from anatomask.training.journal import note
from anatomask.training.recorder import Recorder, SilentRecorder, flattened, picture_path

PROJECT = "anatomask"
"""Name of the project (Weights & Biases) or experiment (MLflow) that runs belong to, unless their own settings of
the environment name another."""
IDENTITIES = "trackers.json"
"""Name of the file in a run's folder that holds the run's identity in each tracker, by which it is gone on with."""


class WandbRecorder(SilentRecorder):
    """Recorder for Weights & Biases. It passes over updates that were recorded before a resume: they were the same."""

    def __init__(self, run: Path, identity: str | None, settings: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.folder = run
        self.image = wandb.Image
        self.identity = identity or secrets.token_hex(8)
        quiet = wandb.Settings(silent=True, console="off")
        self.run = wandb.init(
            project=wandb.setup().settings.project or PROJECT,
            name=run.name,
            id=self.identity,
            resume="allow",
            config=flattened(settings),
            settings=quiet,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of an update."""
        self.run.log(dict(values), step=step)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record the picture that lies in the run's folder."""
        self.run.log({name: self.image(str(picture_path(self.folder, name)))}, step=step)

    def close(self) -> None:
        """Send the rest."""
        self.run.finish()


class MLflowRecorder(SilentRecorder):
    """Recorder for MLflow."""

    def __init__(self, run: Path, identity: str | None, settings: Mapping[str, Any]) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self.folder = run
        self.mlflow = mlflow
        if not mlflow.is_tracking_uri_set():
            raise UserError(
                "--training.trackers mlflow: the environment variable MLFLOW_TRACKING_URI of the training's process is "
                "not set; set it to the address of your server, or to sqlite:////a/folder/mlflow.db"
            )
        if identity is None and not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            mlflow.set_experiment(PROJECT)
        started = mlflow.start_run(run_id=identity, run_name=run.name if identity is None else None)
        self.identity = str(started.info.run_id)
        if identity is None:
            mlflow.log_params(flattened(settings))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of an update, without waiting for the server."""
        self.mlflow.log_metrics(dict(values), step=step, synchronous=False)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record the picture that lies in the run's folder, in place of its earlier state."""
        self.mlflow.log_artifact(str(picture_path(self.folder, name)), str(Path("pictures", name).parent))

    def close(self) -> None:
        """Send the rest."""
        self.mlflow.flush_async_logging()
        self.mlflow.end_run()


TRACKERS: Mapping[str, Callable[[Path, str | None, Mapping[str, Any]], Any]] = {
    "wandb": WandbRecorder,
    "mlflow": MLflowRecorder,
}


def followed(recorder: Recorder, run: Path, names: Sequence[str], settings: Mapping[str, Any]) -> Recorder:
    """Let trackers follow what a recorder of the run's folder records.

    Raises:
        UserError: a tracker is not installed, or refuses to begin.
    """
    require_trackers(names)
    path = run / IDENTITIES
    identities = from_json(path.read_bytes()) if path.exists() else {}
    followers: dict[str, Recorder] = {}
    for name in names:
        try:
            follower = TRACKERS[name](run, identities.get(name), settings)
        except UserError:
            raise
        except Exception as error:  # each library has errors of its own
            raise UserError(f"--training.trackers {name}: it cannot begin ({first_line(error)})") from error
        followers[name], identities[name] = follower, follower.identity
    if followers:
        write_text(path, json.dumps(identities))
    return FollowedRecorder(recorder, run, followers) if followers else recorder


class FollowedRecorder:
    """Recorder that passes everything on to trackers, and goes on without one that fails."""

    def __init__(self, recorder: Recorder, run: Path, followers: dict[str, Recorder]) -> None:
        self.recorder = recorder
        self.run = run
        self.followers = followers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of an update."""
        self.recorder.scalars(step, values)
        self._tell(lambda one: one.scalars(step, values))

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Record the distribution of the finite ones of `values`, of any shape."""
        self.recorder.histogram(step, name, values)
        self._tell(lambda one: one.histogram(step, name, values))

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record a picture, and keep its newest state as a PNG."""
        self.recorder.figure(step, name, figure)
        self._tell(lambda one: one.figure(step, name, figure))

    def flush(self) -> None:
        """Write what is pending, before a checkpoint relies on it."""
        self.recorder.flush()
        self._tell(lambda one: one.flush())

    def close(self) -> None:
        """Write the rest, and close the files."""
        self.recorder.close()
        self._tell(lambda one: one.close())

    def _tell(self, act: Callable[[Recorder], None]) -> None:
        for name, follower in list(self.followers.items()):
            try:
                act(follower)
            except Exception as error:  # each library has errors of its own
                del self.followers[name]
                note(self.run, f"{name} fails ({first_line(error)}); the training goes on without it")
