"""Checkpoints of a run: folders written atomically, in the background, and an index of the last and the best."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from anatomask.errors import UserError
from anatomask.files import flush, write_text
from anatomask.parsing import from_json
from anatomask.runs.checkpoint_index import CHECKPOINTS, INDEX, STEP, read_index
from anatomask.training.state import TrainingState
from anatomask.training.task import Task
from anatomask.weights.files import load_matching, read_weights, write_weights
from anatomask.weights.tensor_files import read_described, write_described

OPTIMISER = "optimiser.safetensors"
OLDER_SCALER = "scaler.json"
"""File in which an older version kept the state of the loss scale, apart from the optimiser's file."""
REMEDY = "put its files back, or begin the run anew with --overwrite"


class Checkpoints:
    """Folders `checkpoints/step_00000200/…` and their `checkpoints/index.json`; only the last and the best are kept.

    A folder is written under a temporary name and renamed, then the index is replaced: an interrupted checkpoint is in
    no index. A thread writes from a copy, and leaving the `with` block waits for it. With `writes=False` (workers other
    than rank 0) nothing is written. The thread calls `written` after each checkpoint.
    """

    def __init__(self, run: Path, *, writes: bool = True, written: Callable[[], None] = lambda: None) -> None:
        self.folder = run / CHECKPOINTS
        self.writes = writes
        self.written = written
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        if error is None:
            self.wait()

    def index(self) -> dict[str, Any]:
        """Read the index: the names of the `last` and the `best` checkpoint, and more; empty at first.

        Raises:
            UserError: as `read_index`.
        """
        return read_index(self.folder)

    def step(self) -> int:
        """Return the update of the last checkpoint; 0 when there is none."""
        return int(self.index().get("step", 0))

    def save(self, step: int, state: TrainingState, score: float | None) -> None:
        """Copy the state after update `step`, and write it while training continues.

        The checkpoint becomes the best one if no earlier `score` exceeds its own. All workers call this: sharded
        weights are gathered.

        Raises:
            OSError: writing the previous checkpoint failed.
        """
        self.wait()  # so that there is one copy at a time
        weights = {name: self._copied(tensor) for name, tensor in state.task.kept().state_dict().items()}
        moments = {name: self._copied(tensor) for name, tensor in _optimiser_tensors(state).items()}
        scaler = dict(state.scaler.state_dict())
        if not self.writes:
            return
        copied = torch.cuda.Event() if next(state.task.parameters()).is_cuda else None
        if copied is not None:
            copied.record()
        self.pending = self.thread.submit(
            self._write, step, weights, dict(state.task.header), moments, scaler, score, copied
        )

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            OSError: writing failed.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def load(self, step: int, task: Task) -> None:
        """Load the weights after update `step` into `task`; do nothing if it is 0.

        Raises:
            UserError: the checkpoint is damaged; the message names its folder.
        """
        folder = self.folder / _name(step)
        if not step:
            return
        if not folder.is_dir():
            raise _damaged(folder, "it does not exist")
        load_matching(task.kept(), read_weights(folder, REMEDY).tensors)

    def load_moments(self, step: int, state: TrainingState) -> None:
        """Load everything else that the checkpoint holds besides the weights.

        Raises:
            UserError: as `load`.
        """
        folder = self.folder / _name(step)
        if not step:
            return
        try:
            if (folder / OLDER_SCALER).exists():
                moments = load_file(folder / OPTIMISER)
                scaler = from_json((folder / OLDER_SCALER).read_bytes())
            else:
                described = read_described(folder / OPTIMISER, REMEDY)
                moments, scaler = described.tensors, described.header["scaler"]
            _load_optimiser(state, moments)
            state.scaler.load_state_dict(scaler)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise _damaged(folder, str(error)) from error

    def _copied(self, tensor: Tensor) -> Tensor:
        """Copy the whole state to the host, safe from later updates; from a GPU, once the stream is done."""
        whole = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()
        if not self.writes:
            return whole.new_empty(0)  # so that no device holds all that was gathered
        host = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=whole.is_cuda)
        return host.copy_(whole, non_blocking=True)

    def _write(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        header: Mapping[str, Any],
        moments: Mapping[str, Tensor],
        scaler: Mapping[str, Any],
        score: float | None,
        copied: torch.cuda.Event | None,
    ) -> None:
        if copied is not None:
            copied.synchronize()
        name = _name(step)
        temporary = self.folder / f".{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            write_weights(temporary, weights, header)
            write_described(temporary / OPTIMISER, moments, {"scaler": scaler})
        except OSError:  # a full disk: what is half there helps nobody
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(self.folder / name, ignore_errors=True)
        temporary.rename(self.folder / name)
        flush(self.folder)

        index = self.index() | {"last": name, "step": step}
        if score is not None and score >= index.get("best_score", float("-inf")):
            index |= {"best": name, "best_step": step, "best_score": score}
        write_text(self.folder / INDEX, json.dumps(index, indent=1))
        for folder in self.folder.iterdir():
            own = folder.name.removeprefix(".")  # one with a dot was cut off
            if STEP.fullmatch(own) and own < name and folder.name != index.get("best"):
                shutil.rmtree(folder)
        self.written()


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"{folder} is damaged ({why}); {REMEDY}")


def _optimiser_tensors(state: TrainingState) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value
        for name, parameter in state.task.trainable().named_parameters()
        for key, value in state.optimiser.state.get(parameter, {}).items()
    }


def _load_optimiser(state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(state.task.trainable().named_parameters())
    for entry, tensor in tensors.items():
        key, name = entry.split("/", 1)
        parameter = parameters[name]
        if key == "step":
            state.optimiser.state[parameter][key] = tensor.to(parameter.device, copy=True)  # not the file's own memory
            continue
        if isinstance(parameter.data, DTensor):
            tensor = distribute_tensor(
                tensor.to(parameter.device), parameter.data.device_mesh, parameter.data.placements
            )
        # In the parameter's own memory format, which the optimiser's fused loops need.
        state.optimiser.state[parameter][key] = torch.empty_like(parameter.data).copy_(tensor)
