"""What a run leaves to read: every scalar in `metrics.jsonl`, and scalars and pictures for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from anatomask.files import write_text

METRICS = "metrics.jsonl"


class Recorder(Protocol):
    """Takes what training has to say."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of an update."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record a picture, and keep its newest state as a PNG."""

    def close(self) -> None:
        """Write what is pending."""


class RunRecorder:
    """Writes into the run's folder. What was recorded after update `step` is dropped: it will come again."""

    def __init__(self, run: Path, step: int) -> None:
        self.run = run
        metrics = run / METRICS
        if metrics.exists():
            write_text(metrics, "".join(line for line in _whole_lines(metrics) if json.loads(line)["step"] <= step))
        self.metrics = metrics.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of an update."""
        self.metrics.write(json.dumps({"step": step, **values}) + "\n")
        self.metrics.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record a picture, and keep its newest state as `pictures/<name>.png`."""
        (self.run / "pictures").mkdir(exist_ok=True)
        temporary = self.run / "pictures" / f".{name}.png"
        figure.savefig(temporary, dpi=110, format="png")
        temporary.replace(self.run / "pictures" / f"{name}.png")
        self.board.add_figure(name, figure, step)
        self.board.flush()

    def close(self) -> None:
        """Write what is pending."""
        self.metrics.close()
        self.board.close()


class SilentRecorder:
    """For the workers other than rank 0."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
