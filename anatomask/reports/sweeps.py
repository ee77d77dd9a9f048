"""Table of a sweep: the score of each trial, beside the paper's number where its table has one."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class SweepRow:
    """One trial; scores are fractions."""

    name: str
    """Name in the paper's table or, without one, the values that the trial tried."""
    folder: str
    state: str
    """State of the trial: complete, failed, running or waiting."""
    point: Mapping[str, Any]
    """Fields that the trial set, and their values."""
    scores: Mapping[str, float]
    """DSC of each data set."""
    dsc: float | None
    """Mean DSC over the data sets."""


def paper_ablation(table: str | None) -> dict[str, float]:
    """Return the DSC in percent of each row of one of the paper's ablations (tables 1 to 3); else nothing."""
    with (resources.files("anatomask.reports") / "paper_results.csv").open(encoding="utf-8") as file:
        return {row["method"]: float(row["mean"]) for row in csv.DictReader(file) if row["table"] == table}


def sweep_table(rows: Sequence[SweepRow], datasets: Sequence[str], paper: Mapping[str, float]) -> Table:
    """Build a rich table for 80 columns, in percent; the best mean is bold, trials without a score show their state."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Trial", overflow="fold")
    for title in [*datasets, "Mean DSC [%]"] if len(datasets) > 1 else ["DSC [%]"]:
        table.add_column(title, justify="right", overflow="fold")
    if paper:
        table.add_column("Paper", justify="right", no_wrap=True)
    best = max((row.dsc for row in rows if row.dsc is not None), default=None)
    for row in rows:
        each = [_percent(row.scores.get(name)) for name in datasets] if len(datasets) > 1 else []
        mean = Text(_percent(row.dsc) if row.dsc is not None else row.state)
        if row.dsc is not None and row.dsc == best and len(rows) > 1:
            mean.stylize("bold")
        published = [f"{paper[row.name]:.1f}" if row.name in paper else "–"] if paper else []
        table.add_row(Text(row.name), *each, mean, *published)
    return table


def sweep_csv(rows: Sequence[SweepRow], datasets: Sequence[str], paper: Mapping[str, float]) -> str:
    """Format the same table as CSV with every field of each point, scores as fractions at full precision."""
    fields = list(dict.fromkeys(field for row in rows for field in row.point))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = [f"dsc_{name}_fraction" for name in datasets]
    writer.writerow(["trial", "folder", "state", *fields, *scores, "dsc_mean_fraction", "paper_dsc_percent"])
    for row in rows:
        values = [row.point.get(field) for field in fields]
        each = [row.scores.get(name) for name in datasets]
        writer.writerow([row.name, row.folder, row.state, *values, *each, row.dsc, paper.get(row.name)])
    return text.getvalue()


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.1f}"
