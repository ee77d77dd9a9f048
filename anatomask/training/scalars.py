"""Scalars of each update: kept on the device, and read from it for many updates at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from anatomask.training.parallel import Workers
from anatomask.training.recorder import Recorder
from anatomask.training.telemetry import device_scalars

Watch = Callable[[int, Mapping[str, float]], None]
"""Function that gets every update's scalars, and raises when training cannot continue."""


class ScalarLog:
    """Log of each update's scalars: it keeps them on the device and records their means over all workers' samples."""

    def __init__(
        self, recorder: Recorder, workers: Workers, batch_size: int, device: torch.device, watch: Watch
    ) -> None:
        self.recorder = recorder
        self.workers = workers
        self.batch_size = batch_size
        self.device = device
        self.watch = watch
        self.rows: list[tuple[int, dict[str, Tensor | float]]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time since the last flush, which was not training, from the throughput."""
        self.since = time.perf_counter()

    def add(self, step: int, scalars: Mapping[str, Tensor | float]) -> None:
        """Keep the scalars of update `step` (1 is the first) without reading them from the device.

        Tensors are means over this worker's samples; `wait` is the time in seconds that it waited for data.
        """
        self.rows.append((step, dict(scalars)))

    def flush(self) -> None:
        """Record the scalars that were kept.

        Raises:
            Exception: as `watch` raises, once the earlier updates are recorded.
        """
        if not self.rows:
            return
        tensors = [value.detach() for _, row in self.rows for value in row.values() if isinstance(value, Tensor)]
        means = torch.stack([tensor.to(self.device, torch.float64) for tensor in tensors])
        means = self.workers.total(means * (self.workers.share(self.batch_size) / self.batch_size))
        values = iter(means.tolist())  # the host waits here for the device
        seconds = time.perf_counter() - self.since
        shared = {
            "samples_per_second": self.batch_size * len(self.rows) / seconds,
            "wait": sum(float(row["wait"]) for _, row in self.rows) / seconds,
            **device_scalars(self.device),
        }
        rows, self.rows = self.rows, []
        for step, row in rows:
            scalars = {name: next(values) if isinstance(value, Tensor) else value for name, value in row.items()}
            finite = {name: value for name, value in {**scalars, **shared}.items() if math.isfinite(value)}
            self.recorder.scalars(step, {f"train/{name}": value for name, value in finite.items()})
            self.watch(step, {name: value for name, value in scalars.items() if name != "update_ratio"})
        self.restart_clock()
