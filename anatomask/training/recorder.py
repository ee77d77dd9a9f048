"""Recorder of a run: every scalar in `metrics.jsonl`; scalars, histograms and pictures for TensorBoard."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from anatomask.errors import UserError
from anatomask.files import add_filename, replacing, write_text
from anatomask.parsing import from_json
from anatomask.training.journal import METRICS

DPI = 110
EVENTS = re.compile(r"events\.out\.tfevents\.(\d{10})\.(.+)")
"""Pattern of the file names of TensorBoard's writer: the second of their start, the host, the process."""
RGBA = 4
"""Number by which TensorBoard denotes the colours of a PNG with transparency."""
HISTOGRAM_BINS = 64
COMPARED_BY = ("val/loss", "val/dice")
"""Scalars by which TensorBoard's table compares runs: of pretrainings, and of finetunings."""
FIRST_COLUMNS = {
    "method.name": "1 method",
    "method.mask_ratio": "2 mask ratio",
    "init": "3 init",
    "data": "4 data",
    "optimiser.lr": "5 learning rate",
}
"""Settings that matter most, by their column in TensorBoard's table: it sorts by name, and shows the first five."""
FLUSH_SECONDS = 10
"""Seconds of TensorBoard's data that are lost at most when the process is killed."""


class Recorder(Protocol):
    """Interface for recording a training."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of an update."""

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Record the distribution of the finite ones of `values`, of any shape."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record a picture, and keep its newest state as a PNG."""

    def flush(self) -> None:
        """Write what is pending, before a checkpoint relies on it."""

    def close(self) -> None:
        """Write the rest, and close the files."""


class RunRecorder:
    """Recorder into the run's folder. Records after update `step` are dropped, because they will be recorded again; a
    training that begins records update 0, too."""

    def __init__(
        self,
        run: Path,
        step: int,
        settings: Mapping[str, Any] | None = None,
        columns: Mapping[str, Any] | None = None,
        charts: Mapping[str, Sequence[str]] | None = None,
        kind: str = "train",
    ) -> None:
        """Open the files of the run.

        Args:
            settings: settings for TensorBoard's table of hyperparameters.
            columns: settings of other kinds of runs. The table takes its columns from any one of its runs, so each
                run lists all of them.
            charts: scalars that TensorBoard draws together, by title.
            kind: what TensorBoard calls the training's loss, in place of `train`: losses of pretrainings and of
                finetunings are no numbers for one chart.
        """
        self.run = run
        self.kind = kind
        metrics = run / METRICS
        rows = _rows(metrics)
        self.reached = max((at for at, _ in rows), default=0)
        """Last update that had been recorded, which may be one of those that are recorded again."""
        write_text(metrics, "".join(line for at, line in rows if at <= step and step > 0))
        self.metrics = metrics.open("a", encoding="utf-8")
        _date_back(run, int(time.time()))
        self.board = SummaryWriter(str(run), purge_step=step + 1 if step else 0, flush_secs=FLUSH_SECONDS)
        if step == 0 and settings is not None:
            self._hyperparameters(settings, columns or {})
        if step == 0 and charts:
            self.board.add_custom_scalars(
                {"charts": {title: ["Multiline", list(map(self._tag, tags))] for title, tags in charts.items()}}
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values of an update."""
        with add_filename(self.run / METRICS):
            self.metrics.write(json.dumps({"step": step, **values}) + "\n")
            self.metrics.flush()
        with add_filename(self.run):
            for name, value in values.items():
                self.board.add_scalar(self._tag(name), value, step)

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Record the distribution of the finite ones of `values`, of any shape, for TensorBoard only."""
        finite = values[values.isfinite()]
        if finite.numel():
            with add_filename(self.run):
                self.board.add_histogram(name, finite, step, bins=HISTOGRAM_BINS)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record a picture, and keep its newest state as `pictures/<name>.png`."""
        path = picture_path(self.run, name)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")
        width, height = (round(inches * DPI) for inches in figure.get_size_inches())
        image = Summary.Image(height=height, width=width, colorspace=RGBA, encoded_image_string=path.read_bytes())
        with add_filename(self.run):
            self._write(Summary(value=[Summary.Value(tag=name, image=image)]), step)
            self.board.flush()

    def flush(self) -> None:
        """Write what is pending: what was recorded before a checkpoint is not recorded again."""
        with add_filename(self.run / METRICS):
            os.fsync(self.metrics.fileno())
        with add_filename(self.run):
            self.board.flush()

    def close(self) -> None:
        """Write the rest, and close the files."""
        with add_filename(self.run):
            self.metrics.close()
            self.board.close()

    def _tag(self, name: str) -> str:
        return f"{self.kind}/loss" if name == "train/loss" else name

    def _hyperparameters(self, settings: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """Write the hyperparameters into the run's own events: `SummaryWriter.add_hparams` would make another run."""
        flat = flattened(settings)
        own, every = (
            {FIRST_COLUMNS.get(name, name): value for name, value in one.items()}
            for one in (flat, flattened(columns) | flat)
        )
        experiment, _, _ = hparams(every, dict.fromkeys(COMPARED_BY, 0.0))
        _, session, _ = hparams(own, {})
        self._write(experiment, 0)
        self._write(session, 0)
        self.board.flush()

    def _write(self, summary: Summary, step: int) -> None:
        self.board._get_file_writer().add_summary(summary, step)


def picture_path(run: Path, name: str) -> Path:
    """Return the path of the newest state of a picture."""
    return run / "pictures" / f"{name}.png"


def _date_back(run: Path, now: int) -> None:
    """Rename event files of earlier starts to times before `now` (s since 1970), keeping their order.

    TensorBoard reads them in the order of their names, which begin with the clock's time. If the clock was set back, or
    another machine's differs, TensorBoard would drop the new values instead of the old ones that are computed again.
    """
    names = [found for path in run.iterdir() if (found := EVENTS.fullmatch(path.name))]
    for number, name in enumerate(sorted(names, key=lambda name: name[0], reverse=True), start=1):
        if int(name[1]) > now - number:
            (run / name[0]).rename(run / f"events.out.tfevents.{now - number:010d}.{name[2]}")


class SilentRecorder:
    """Recorder of the workers other than rank 0, which writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Do nothing."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names; a list becomes one text."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[f"{prefix}{name}"] = ", ".join(map(str, value))
        else:
            flat[f"{prefix}{name}"] = "none" if value is None else value  # TensorBoard would leave it out
    return flat


def _rows(metrics: Path) -> list[tuple[int, str]]:
    """Yield the update and the text of each whole line.

    Raises:
        UserError: a line is damaged.
    """
    if not metrics.exists():
        return []
    rows = []
    for number, line in enumerate(metrics.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            continue
        try:
            rows.append((int(from_json(line)["step"]), line.decode()))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"line {number} of {metrics} is damaged; delete the line") from error
    return rows
