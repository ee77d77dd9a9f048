"""A task in float64 that writes down what it is given, and can kill its own process on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn

from anatomask.data.samples import LoaderConfig, SampleSequence
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Root
from anatomask.nn.norms import BatchNorm3d
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.job import TrainingJob
from anatomask.training.recorder import Recorder
from anatomask.training.settings import OptimiserConfig, TrainingConfig
from anatomask.training.task import Task

CASES = tuple(f"case{index}" for index in range(7))
BATCH = 6
CHECKPOINT_EVERY = 4
SEEN = "seen.jsonl"


@dataclass(frozen=True)
class Death:
    """Which worker dies in which update; each death happens once."""

    step: int
    rank: int | None = None
    """None: all of them."""
    waits: bool = False
    """Not by its own hand: it waits until something happens to it."""


def draw(dataset: PreparedDataset, case: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A few numbers that the sample's own generator decides."""
    return {"x": rng.random((2, 2, 2, 2))}


class Witness(Task):
    """A convolution and a BatchNorm, whose statistics make every sample's gradient depend on all of the batch."""

    def __init__(self, run: Path, total: int, deaths: Sequence[Death], device: torch.device) -> None:
        super().__init__()
        self.header = {"kind": "witness"}
        self.run, self.total, self.deaths = run, total, deaths
        torch.manual_seed(0)
        first = nn.Conv3d(2, 3, 1, bias=False)  # a bias before a norm has no gradient but rounding, which Adam inflates
        self.net = nn.Sequential(first, BatchNorm3d(3), nn.Conv3d(3, 1, 2)).double().to(device)

    def trainable(self) -> nn.Module:
        return self.net

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        step, rank = round(progress * self.total) + 1, distributed.get_rank() if distributed.is_initialized() else 0
        for death in self.deaths:
            marker = self.run / f"death-{death.step}-{rank}"
            if step == death.step and death.rank in (None, rank) and not marker.exists():
                marker.touch()
                while Checkpoints(self.run).step() < (step - 1) // CHECKPOINT_EVERY * CHECKPOINT_EVERY:
                    time.sleep(0.05)  # it is written in the background
                if death.waits:
                    time.sleep(120)
                os.kill(os.getpid(), signal.SIGKILL)
        row = {"step": step, "group": os.environ.get("MASTER_PORT"), "samples": sample["sample"].tolist()}
        with (self.run / SEEN).open("a") as file:
            file.write(json.dumps(row) + "\n")
        error = self.net(sample["x"]).flatten(1) - sample["x"].sum((1, 2, 3, 4))[:, None]
        return error.square().mean(), {}

    def after_step(self, progress: float) -> None:
        pass

    def validate(self, recorder: Recorder, step: int) -> float | None:
        return None


def job(run: Path, data: Root, *deaths: Death, steps: int = 12) -> TrainingJob:
    """`steps` updates in batches of six of seven cases."""
    run.mkdir(parents=True, exist_ok=True)
    training = TrainingConfig(
        epochs=2,
        steps_per_epoch=steps // 2,
        batch_size=BATCH,
        checkpoint_every=CHECKPOINT_EVERY,
        log_every=1,
        validate_every=100,
    )
    return TrainingJob(
        run=run,
        data=data,
        sequence=SampleSequence(CASES, 0),
        draw=draw,
        build_task=partial(Witness, run, steps, deaths),
        loader=LoaderConfig(),
        training=training,
        optimiser=OptimiserConfig(lr=0.01, warmup_epochs=0),
        seed=0,
    )


def surviving_samples(run: Path) -> dict[int, list[int]]:
    """Samples of each update by the group of workers that computed it last: what came before was replayed."""
    rows = [json.loads(line) for line in (run / SEEN).read_text().splitlines()]
    groups = {row["step"]: row["group"] for row in rows}
    survived: dict[int, list[int]] = {step: [] for step in sorted(groups)}
    for row in rows:
        if row["group"] == groups[row["step"]]:
            survived[row["step"]] += row["samples"]
    return survived
