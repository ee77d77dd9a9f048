"""A task small enough to see through: a line fitted to points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from anatomask.training.recorder import Recorder
from anatomask.training.task import Task

Points = Callable[[int], Iterator[dict[str, np.ndarray]]]
"""Batches from an update on."""


class LineTask(Task):
    """y = w x + b by least squares, with scores handed in."""

    def __init__(self, scores: Iterator[float | None] | None = None) -> None:
        super().__init__()
        self.header = {"kind": "line"}
        torch.manual_seed(0)
        self.line: nn.Module = nn.Linear(1, 1)
        self.scores = scores or iter(lambda: None, 0)
        self.progress: list[float] = []

    def trainable(self) -> nn.Module:
        return self.line

    def forward(self, sample: Mapping[str, Tensor], progress: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        self.progress.append(progress)
        loss = (self.line(sample["x"]) - sample["y"]).square().mean()
        extra = {"late": loss.detach()} if progress >= 0.5 else {}
        return loss, extra

    def after_step(self, progress: float) -> None:
        pass

    def validate(self, recorder: Recorder, step: int) -> float | None:
        recorder.scalars(step, {"val/slope": float(next(self.line.parameters()).detach().flatten()[0])})
        return next(self.scores) if step else None


class TwoLayerTask(LineTask):
    """The same with two linear layers, of which the first is the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))

    def encoder_depths(self) -> Mapping[nn.Module, int]:
        return {next(self.line.children()): 1}


@pytest.fixture
def two_layer_task() -> type[TwoLayerTask]:
    return TwoLayerTask


@pytest.fixture
def line_task() -> type[LineTask]:
    return LineTask


@pytest.fixture
def points() -> Points:
    """Batches from update `start` on, a pure function of the update."""

    def stream(start: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, 1000):
            x = np.random.default_rng(step).random((4, 1), dtype=np.float32)
            yield {"x": x, "y": 3 * x + 1}

    return stream


class Notes:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.figures: dict[str, Figure] = {}
        self.histograms: dict[str, Tensor] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.values |= values

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        self.histograms[name] = values

    def figure(self, step: int, name: str, figure: Figure) -> None:
        self.figures[name] = figure

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def notes() -> Notes:
    return Notes()
