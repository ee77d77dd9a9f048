"""The training loop. It takes a task, batches and a recorder, and knows no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from anatomask.errors import UserError
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.optimiser import OptimiserConfig, learning_rate
from anatomask.training.recorder import Recorder
from anatomask.training.task import Task


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how large, how often."""

    epochs: int = 1000
    """Epochs; the schedules run over all of them."""
    steps_per_epoch: int | None = None
    """Updates per epoch; none: so many that an epoch sees each case once."""
    batch_size: int = 4
    """Samples per update, over all workers."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward; weights stay fp32."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    validate_every: int = 5
    """Epochs between validations and between pictures."""
    log_every: int = 10
    """Updates between transfers of the scalars from the device; each update's are recorded."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "checkpoint_every", "validate_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1, not {self.steps_per_epoch}")

    def updates_per_epoch(self, cases: int) -> int:
        """Updates per epoch for a data set of `cases` cases."""
        return self.steps_per_epoch or max(1, cases // self.batch_size)


def train(
    task: Task,
    batches: Iterator[dict[str, np.ndarray]],
    optimiser: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    recorder: Recorder,
    config: TrainingConfig,
    schedule: OptimiserConfig,
    *,
    start: int,
    steps_per_epoch: int,
    device: torch.device,
    synchronise: Callable[[nn.Module], None] = lambda module: None,
) -> None:
    """Train from update `start` to the last; `synchronise` averages the gradients over the workers.

    Raises:
        UserError: when the loss is no longer finite, naming the update and the remedy.
    """
    total = config.epochs * steps_per_epoch
    parameters = list(task.trainable().parameters())
    log = ScalarLog(recorder, config.batch_size)
    for step in range(start, total):
        epoch, progress = step // steps_per_epoch, step / total
        rate = learning_rate(epoch, config.epochs, schedule)
        for group in optimiser.param_groups:
            group["lr"] = rate

        asked = time.perf_counter()
        sample = to_device(next(batches), device)
        waited = time.perf_counter() - asked

        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, scalars = task.step(sample, progress)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        synchronise(task.trainable())
        gradient_norm = nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimiser.step()
        task.after_step(progress)

        done = step + 1
        log.add(done, {"loss": loss.detach(), **scalars, "gradient_norm": gradient_norm, "lr": rate, "wait": waited})
        last = done == total
        if last or done % config.log_every == 0:
            log.flush()
        score = None
        if last or done % (config.validate_every * steps_per_epoch) == 0:
            log.flush()
            score = task.validate(recorder, done)
            log.restart_clock()
        if last or score is not None or done % config.checkpoint_every == 0:
            log.flush()
            checkpoints.save(done, task, optimiser, score)
            log.restart_clock()


def to_device(batch: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The columns of a batch as tensors on `device`, copied without waiting where the device allows it."""
    tensors = {name: torch.as_tensor(np.ascontiguousarray(column)) for name, column in batch.items()}
    if device.type != "cuda":
        return tensors
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}


class ScalarLog:
    """Collects the scalars of each update on the device and records them a batch of updates at a time."""

    def __init__(self, recorder: Recorder, batch_size: int) -> None:
        self.recorder = recorder
        self.batch_size = batch_size
        self.rows: list[tuple[int, dict[str, Tensor | float]]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of the throughput what was not training."""
        self.since = time.perf_counter()

    def add(self, step: int, scalars: Mapping[str, Tensor | float]) -> None:
        """Keep the scalars of update `step` (1 is the first) without reading them from the device."""
        self.rows.append((step, dict(scalars)))

    def flush(self) -> None:
        """Record what was kept. Raises UserError when a loss is not finite."""
        if not self.rows:
            return
        tensors = [value for _, row in self.rows for value in row.values() if isinstance(value, Tensor)]
        values = iter(torch.stack([tensor.float() for tensor in tensors]).tolist())
        seconds = time.perf_counter() - self.since
        rate = self.batch_size * len(self.rows) / seconds
        waiting = sum(float(row["wait"]) for _, row in self.rows) / seconds
        for step, row in self.rows:
            scalars = {name: next(values) if isinstance(value, Tensor) else value for name, value in row.items()}
            scalars |= {"samples_per_second": rate, "wait": waiting}
            bad = [name for name in ("loss", "gradient_norm") if not np.isfinite(scalars[name])]
            if bad:
                raise UserError(
                    f"the {bad[0]} is {scalars[bad[0]]} at update {step}. The last checkpoint is good: lower "
                    "--optimiser.lr (a new run), or look for extreme voxels in the data"
                )
            self.recorder.scalars(step, {f"train/{name}": value for name, value in scalars.items()})
        self.rows.clear()
        self.restart_clock()
