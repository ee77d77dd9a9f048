"""The training loop. It takes a state, batches and a log, and does not depend on Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anatomask.data.samples import ON_HOST
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.recorder import Recorder
from anatomask.training.scalars import ScalarLog
from anatomask.training.schedule import progress_of_update, rate_of_update, weight_decay
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.task import Task
from anatomask.training.telemetry import update_ratio
from anatomask.training.update import Update


def train(
    update: Update,
    batches: Iterator[dict[str, np.ndarray]],
    checkpoints: Checkpoints,
    log: ScalarLog,
    config: TrainingConfig,
    schedule: OptimiserConfig,
    *,
    start: int,
    steps_per_epoch: int,
    until: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train from update `start` to the last one, or to the checkpoint after update `until` or once `stop` returns True.

    `clock` returns the seconds by which a checkpoint is due (`checkpoint_minutes`).

    Raises:
        UserError: loss or gradient are no longer finite; the message names the cases and the remedy.
    """
    total, task, workers = config.epochs * steps_per_epoch, update.state.task, update.workers
    if start == 0:  # while the readers start
        validate(task, log.recorder, 0)
        log.restart_clock()
    saved = clock()
    for step in range(start, total if until is None else until):
        progress, done = progress_of_update(step, steps_per_epoch, config.epochs, schedule, config.batch_size), step + 1
        task.epoch = step // steps_per_epoch
        last, logging = done == total, done == total or done % config.log_every == 0

        asked = time.perf_counter()
        sample = to_device(next(batches), update.device)
        waited = time.perf_counter() - asked

        groups = update.state.optimiser.param_groups
        rates = [
            rate_of_update(
                step, steps_per_epoch, config.epochs, schedule, group["start"], group["factor"], config.batch_size
            )
            for group in groups
        ]
        for group in groups:
            group["weight_decay"] = group["weight_decay"] and weight_decay(progress, schedule)
        scalars: dict[str, Tensor | float] = {**update(sample, progress, rates), **recorded(rates), "wait": waited}
        if logging:
            scalars["update_ratio"] = update_ratio(update.state.optimiser)
        log.add(done, scalars)
        if logging:
            log.flush()

        stopping = due = False
        if workers.count == 1 or logging:  # several workers agree when they wait for each other anyway
            late = clock() - saved >= 60 * config.checkpoint_minutes
            stopping, due = workers.any((stop(), late), update.device)
        stopping = stopping or done == until
        score = None
        if last or done % (config.validate_every * steps_per_epoch) == 0:
            log.flush()
            score = validate(task, log.recorder, done)
            log.restart_clock()
        if last or stopping or due or score is not None or done % config.checkpoint_every == 0:
            log.flush()
            began = time.perf_counter()
            log.recorder.flush()
            checkpoints.save(done, update.state, score)
            saved = clock()
            log.recorder.scalars(done, {"train/checkpoint_seconds": time.perf_counter() - began})
            log.restart_clock()
        if stopping:
            return


def validate(task: Task, recorder: Recorder, step: int) -> float | None:
    """Validate as `Task.validate`, without compiled code, which is for the shapes of the training alone."""
    with torch.compiler.set_stance("force_eager"):
        return task.validate(recorder, step)


def recorded(rates: Sequence[float | None]) -> dict[str, float]:
    """Return the highest learning rate of the groups and, of several, the lowest (0 while one does not learn)."""
    known = [rate or 0.0 for rate in rates]
    return {"lr": max(known)} if len(known) == 1 else {"lr": max(known), "lr_lowest": min(known)}


def to_device(batch: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Any]:
    """Copy the columns of a batch (except `ON_HOST`) to `device`, asynchronously if the device allows it.

    Returns:
        A tensor of each column, or a list of one per sample where these differ in shape.
    """

    def tensor(name: str, array: np.ndarray) -> Tensor:
        host = torch.as_tensor(np.ascontiguousarray(array))
        return host if device.type != "cuda" or name in ON_HOST else host.pin_memory().to(device, non_blocking=True)

    return {
        name: [tensor(name, each) for each in column] if column.dtype == object else tensor(name, column)
        for name, column in batch.items()
    }
