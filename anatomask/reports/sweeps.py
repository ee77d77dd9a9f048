"""Results of a sweep: its trials as rows of the tables of `report`, notes on them, and a CSV table of the trials."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anatomask.errors import UserError
from anatomask.evaluation.results import SUMMARY_FILE
from anatomask.reports.comparisons import SCRATCH, scratch_command
from anatomask.reports.evaluated_runs import EvaluatedRun, read_run
from anatomask.reports.paper import ABLATIONS, published
from anatomask.reports.tables import Row, in_what_differ


@dataclass(frozen=True)
class SweepRow:
    """One trial; scores are fractions."""

    name: str
    """Name in the paper's table or, without one, the values that the trial tried."""
    folder: str
    state: str
    """State of the trial: complete, pruned, failed, running or waiting."""
    point: Mapping[str, Any]
    """Fields that the trial set, and their values."""
    scores: Mapping[str, float]
    """DSC of each data set."""
    dsc: float | None
    """Mean DSC over the data sets."""
    error: str = ""
    """Reason for which it failed."""


def as_trials(rows: Sequence[SweepRow], runs: Mapping[str, Sequence[EvaluatedRun]]) -> list[EvaluatedRun]:
    """Name the scored networks of one data set, given by their trials' folders, as rows of a table do.

    A trial's name is its method. Its networks of several seeds are runs of one row.
    """
    named = []
    for number, row in enumerate(rows):
        for run in runs.get(row.folder, ()):
            training = run.summary.get("training")
            kin = training and {**training, "seeds": row.name}  # their pretrainings differ, too
            scratch = row.point.get("finetune.init") == SCRATCH
            start = f"trial {number}" + (f", {row.name}" if scratch and row.name != SCRATCH else "")
            names = {"run": row.folder, "method": SCRATCH if scratch else row.name, "initialisation": start}
            named.append(replace(run, summary={**run.summary, **names, "training": kin}))
    return named


def scratch_twins(folder: Path, trials: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Find, in a folder of runs, the evaluated ones that differ from trials in starting from scratch alone."""
    wanted = {run.summary["training"]["starts"]: run for run in trials if run.summary.get("training")}
    found = []
    for path in sorted(folder.glob(f"*/{SUMMARY_FILE}")):
        try:
            run = read_run(str(path.parent))
        except UserError:  # `report` names the damage
            continue
        twin = wanted.get((run.summary.get("training") or {}).get("starts"))
        if twin is not None and run.summary["method"] == SCRATCH:
            scored = [Row.from_summary(one.summary, one.scores.keys()) for one in (run, twin)]
            found += [] if in_what_differ(scored) or scored[0].data != scored[1].data else [run]
    return found


def sweep_notes(
    rows: Sequence[SweepRow], trials: Sequence[EvaluatedRun], twins: Sequence[EvaluatedRun], paper: Mapping[str, float]
) -> Iterator[str]:
    """Say what the tables of a sweep leave out: the best over all data sets, the paper's numbers, what is missing.

    Args:
        rows: all trials.
        trials: scored networks of the trials, whose folders are those of the finetunings.
        twins: their twins from scratch.
        paper: DSC in percent of the paper's rows, by the names of trials.
    """
    scored = [row for row in rows if row.dsc is not None]
    if scored and len(scored[0].scores) > 1:
        best = max(scored, key=lambda row: row.dsc or 0)
        yield f"Best mean DSC over the data sets: {best.name}, {100 * (best.dsc or 0):.1f} %."
    published = [f"{row.name} {paper[row.name]:.1f}" for row in rows if row.name in paper]
    if published:
        yield f"The paper has, for STU-Net-B on TotalSegmentator's test cases, DSC [%]: {', '.join(published)}."
    without = [f"{row.name} ({row.state}{': ' * bool(row.error)}{row.error})" for row in rows if row.dsc is None]
    if without:
        yield f"Without a score: {', '.join(without)}."
    known = {run.summary["data"] for run in (*twins, *(one for one in trials if one.summary["method"] == SCRATCH))}
    lacking = {run.summary["data"]: run for run in trials if run.summary["data"] not in known}
    for run in lacking.values():
        sweep, runs = run.folder.parents[1], run.folder.parents[2]
        name = f"{sweep.name}-{run.folder.name.removeprefix('finetune-')}-scratch"
        made = scratch_command(run.folder, name, f" --runs {runs}")
        yield (
            f"The trials on {run.summary['dataset']} have no run from scratch beside them, without which nothing shows "
            f"that a pretraining helped: make one with {made}, then `anatomask evaluate --run {runs / name} --split "
            f"{run.summary['split']}`, and repeat the command of the sweep."
        )


def paper_ablation(table: str | None) -> dict[str, float]:
    """Return the DSC in percent of each row of one of the paper's ablations (tables 1 to 3); else nothing."""
    return {score.method: score.mean for score in published((table,))} if table in ABLATIONS else {}


def sweep_csv(rows: Sequence[SweepRow], datasets: Sequence[str], paper: Mapping[str, float]) -> str:
    """Format the trials as CSV with every field of each point, scores as fractions at full precision."""
    fields = list(dict.fromkeys(field for row in rows for field in row.point))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = [f"dsc_{name}_fraction" for name in datasets]
    writer.writerow(["trial", "folder", "state", *fields, *scores, "dsc_mean_fraction", "paper_dsc_percent", "error"])
    for row in rows:
        values = [row.point.get(field) for field in fields]
        each = [row.scores.get(name) for name in datasets]
        writer.writerow([row.name, row.folder, row.state, *values, *each, row.dsc, paper.get(row.name), row.error])
    return text.getvalue()
