"""Checkpoints of a run: folders written whole or not at all, and an index that names the last and the best."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from anatomask.errors import UserError
from anatomask.files import flush, write_text
from anatomask.training.task import Task
from anatomask.weights import write_tensors

OPTIMISER = "optimiser.safetensors"


class Checkpoints:
    """`checkpoints/step_00000200/…` and `checkpoints/index.json`; all but the last and the best are removed.

    A folder is written under a temporary name and renamed, then the index is replaced: a checkpoint that was cut off
    is in no index. With `writes=False` (workers other than rank 0) nothing is written.
    """

    def __init__(self, run: Path, *, writes: bool = True) -> None:
        self.folder = run / "checkpoints"
        self.writes = writes

    def index(self) -> dict[str, Any]:
        """Names of the `last` and the `best` checkpoint, with their updates and the best score; empty at first."""
        path = self.folder / "index.json"
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); begin the run anew with --overwrite") from error

    def step(self) -> int:
        """Updates behind the last checkpoint; 0 when there is none."""
        return int(self.index().get("step", 0))

    def save(self, step: int, task: Task, optimiser: torch.optim.Optimizer, score: float | None) -> None:
        """Write the checkpoint of update `step`; it becomes the best one when `score` beats all before."""
        if not self.writes:
            return
        name = f"step_{step:08d}"
        temporary = self.folder / f".{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        task.save(temporary)
        write_tensors(temporary / OPTIMISER, _optimiser_tensors(task, optimiser))
        shutil.rmtree(self.folder / name, ignore_errors=True)
        temporary.rename(self.folder / name)
        flush(self.folder)

        index = self.index() | {"last": name, "step": step}
        if score is not None and score >= index.get("best_score", float("-inf")):
            index |= {"best": name, "best_step": step, "best_score": score}
        write_text(self.folder / "index.json", json.dumps(index, indent=1))
        for folder in self.folder.glob("step_*"):
            if folder.name not in (index["last"], index.get("best")):
                shutil.rmtree(folder)

    def restore(self, task: Task, optimiser: torch.optim.Optimizer) -> int:
        """Load the last checkpoint into `task` and `optimiser`; the updates behind it, 0 when there is none.

        Raises:
            UserError: naming the folder, when it is damaged.
        """
        index = self.index()
        if not index:
            return 0
        folder = self.folder / index["last"]
        try:
            task.load(folder)
            _load_optimiser(task, optimiser, load_file(folder / OPTIMISER))
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{folder} is damaged ({error}); remove it, or begin anew with --overwrite") from error
        return int(index["step"])


def _optimiser_tensors(task: Task, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}/{name}": value
        for name, parameter in task.trainable().named_parameters()
        for key, value in optimiser.state[parameter].items()
    }


def _load_optimiser(task: Task, optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(task.trainable().named_parameters())
    for entry, tensor in tensors.items():
        key, name = entry.split("/", 1)
        parameter = parameters[name]
        # In the parameter's own memory format, which the optimiser's fused loops want.
        optimiser.state[parameter][key] = tensor if key == "step" else torch.empty_like(parameter.data).copy_(tensor)
