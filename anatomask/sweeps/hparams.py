"""Trials of a sweep for TensorBoard's HParams: a table, parallel coordinates and scatter plots of fields and scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from anatomask.sweeps.space import Point

HPARAMS = "hparams"
"""Name of the folder of a sweep in which each trial has its events. It holds nothing else, since TensorBoard's table
takes its columns from any one of the runs below a folder."""


def record_trial(sweep: Path, trial: str, point: Point, scores: Mapping[str, float]) -> None:
    """Write a trial's fields and scores as events, in place of those of an earlier try.

    Args:
        sweep: folder of the sweep.
        trial: name of the trial's folder.
        point: its fields.
        scores: its scores by name, such as `dsc` and `nsd/flare22`, as fractions.
    """
    from torch.utils.tensorboard import SummaryWriter  # a second that the command need not wait for

    folder = sweep / HPARAMS / trial
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    shown = {
        field: value if isinstance(value, bool | int | float | str) else str(value) for field, value in point.items()
    }
    with SummaryWriter(str(folder)) as writer:
        writer.add_hparams(shown, dict(scores), run_name=".")  # the run itself, not another below it
