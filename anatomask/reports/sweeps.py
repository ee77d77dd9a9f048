"""The table of a sweep: what each trial scored, beside the paper's number where its table has one."""

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
    """What it tried, as the paper's table has it where it has one."""
    folder: str
    state: str
    """complete, failed, running or waiting."""
    point: Mapping[str, Any]
    """The fields that it set."""
    scores: Mapping[str, float]
    """DSC of each data set."""
    dsc: float | None
    """Mean over the data sets."""


def paper_ablation(table: str | None) -> dict[str, float]:
    """DSC in percent of each row of one of the paper's ablations (tables 1 to 3); empty for another table."""
    with (resources.files("anatomask.reports") / "paper_results.csv").open(encoding="utf-8") as file:
        return {row["method"]: float(row["mean"]) for row in csv.DictReader(file) if row["table"] == table}


def sweep_table(rows: Sequence[SweepRow], datasets: Sequence[str], paper: Mapping[str, float]) -> Table:
    """A rich table for 80 columns, in percent; the best mean is bold, and trials without a score say their state."""
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
    """The same as CSV with every field of each point, scores as fractions at full precision."""
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
