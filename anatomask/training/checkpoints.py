"""Checkpoints of a run: folders written whole or not at all, and an index that names the last and the best."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anatomask.errors import UserError

if TYPE_CHECKING:
    from anatomask.training.loop import Task

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
        return json.loads(path.read_text()) if path.exists() else {}

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
        save_file(_optimiser_tensors(task, optimiser), temporary / OPTIMISER)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        temporary.rename(self.folder / name)

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


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: a temporary name, then a rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _optimiser_tensors(task: Task, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}/{name}": value.contiguous()
        for name, parameter in task.trainable().named_parameters()
        for key, value in optimiser.state[parameter].items()
    }


def _load_optimiser(task: Task, optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(task.trainable().named_parameters())
    for entry, tensor in tensors.items():
        key, name = entry.split("/", 1)
        parameter = parameters[name]
        optimiser.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)
