"""Raw scans to Parquet shards: one Ray Data task per case, then the fingerprint, the splits and the index.

A case whose files are broken is listed with the reason and the others go through; the exit code is then 1. The same
command goes on where an earlier one stopped: a case is finished when its Parquet file exists.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from anatomask.cluster import running
from anatomask.config import PrepareConfig
from anatomask.data.classes import select_classes
from anatomask.data.datasets import RawCase, RawDataset, read_dataset
from anatomask.data.fingerprint import Histogram
from anatomask.data.preparation import (
    Outcome,
    choose_schemes,
    claim,
    complete,
    dataset_info,
    fingerprint_cases,
    finished_cases,
    histograms_of,
    prepare_and_write,
    records_of,
    settings_of,
    unfinished_dataset,
)
from anatomask.data.preprocess import Grid, median_spacing, readable_grids, target_shape
from anatomask.data.records import CaseRecord, DatasetInfo
from anatomask.data.splits import Splits, dataset_splits, keep
from anatomask.errors import UserError
from pipelines import door
from pipelines.mapping import mapped
from pipelines.progress import progress_bar


@dataclass(frozen=True)
class Task:
    """What is to be done, once the source has been looked at."""

    root: str
    raw: RawDataset
    info: DatasetInfo
    splits: Splits
    settings: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage from the command line; returns the exit code."""
    return door.run("prepare", stage, plan, argv)


def plan(config: PrepareConfig) -> list[tuple[str, str]]:
    """Rows of the dry run, from the headers alone."""
    task = _look(config)
    grids = readable_grids(task.raw.cases)
    voxels = sum(math.prod(target_shape(grid.shape, grid.spacing, task.info.spacing)) for grid in grids)
    labelled = sum(raw.label is not None for raw in task.raw.cases)
    channels = len(task.raw.channel_names)
    return [
        ("source", f"{config.source} ({task.raw.reader})"),
        ("cases", f"{len(task.raw.cases)}, of which {labelled} have labels"),
        ("finished", f"{len(finished_cases(task.root) & {raw.case for raw in task.raw.cases})}"),
        ("channels", ", ".join(map(" as ".join, zip(task.raw.channel_names, task.raw.schemes, strict=True)))),
        *(("note", remark) for remark in task.raw.remarks),
        ("classes", str(len(task.raw.class_names))),
        ("splits", _sizes(task.splits)),
        ("spacing", " × ".join(f"{mm:g}" for mm in task.info.spacing) + " mm"),
        ("voxels", f"{voxels * channels / 1e6:.1f} million"),
        ("size before compression", f"{voxels * (2 * channels + 1) / 1e9:.2f} GB"),
        ("out", config.out),
    ]


def stage(config: PrepareConfig, *, overwrite: bool = False) -> int:
    """Prepare what is not finished yet, then write the index; returns 1 when a case was skipped."""
    start = time.perf_counter()
    task = _look(config)
    claim(task.root, task.settings, overwrite)
    finished = finished_cases(task.root)
    pending = [raw for raw in task.raw.cases if raw.case not in finished]
    with running(config.cluster), progress_bar() as progress:
        # Closed before Ray is: its Data threads would otherwise start another Ray behind our back.
        with closing(_prepare(progress, task, pending)) as stream:
            outcomes = [_checked(outcome, config.out) for outcome in stream]
        records = records_of(task.root, task.raw)
        skipped = sorted((outcome for outcome in outcomes if outcome.reason), key=lambda outcome: outcome.case)
        if skipped:
            progress.stop()
            _show_skipped(skipped)
        if not records:
            raise UserError(f"none of the {len(task.raw.cases)} cases of {config.source} could be prepared")
        histograms = _histograms(progress, task, records)
    complete(task.root, task.info, list(records.values()), keep(task.splits, set(records)), histograms, outcomes)
    _show_result(config, task, records, outcomes, time.perf_counter() - start)
    return 1 if skipped else 0


def _look(config: PrepareConfig) -> Task:
    """Read the source's layout and settle name, spacing and splits.

    Raises UserError for a source that is missing, empty or unknown, or that lies in the output folder or around it.
    """
    source = Path(config.source).absolute()
    root = config.out if "://" in config.out else str(Path(config.out).absolute())
    raw = read_dataset(source, config.dataset, config.split.fold, config.reader)
    raw = choose_schemes(select_classes(raw, config.preprocess.classes), config.preprocess.normalisation)
    if "://" not in root:
        _apart(source.resolve(), Path(root).resolve(), config)
    wanted = config.preprocess
    spacing = wanted.spacing or raw.spacing or wanted.default_spacing
    spacing = spacing or _median(readable_grids(raw.cases), config.source)
    info = dataset_info(
        raw, config.name or source.resolve().name, spacing, config.preprocess.brick, config.preprocess.codec
    )
    settings = settings_of(str(source.resolve()), raw, info, config.split, config.reader)
    return Task(root, raw, info, dataset_splits(raw, config.split), settings)


def _apart(source: Path, out: Path, config: PrepareConfig) -> None:
    if out.is_relative_to(source):
        raise UserError(f"--out {config.out} lies inside the source {config.source}; choose a folder beside it")
    if source.is_relative_to(out):
        raise UserError(f"the source {config.source} lies inside --out {config.out}; choose a folder beside it")


def _median(grids: Sequence[Grid], source: str) -> tuple[float, float, float]:
    if not grids:
        raise UserError(f"none of the scans of {source} has a header that can be read")
    return median_spacing(grids)


def _prepare(progress: Progress, task: Task, pending: Sequence[RawCase]) -> Generator[Outcome, None, None]:
    """Prepare the cases in parallel; yields each outcome as it comes."""
    return mapped(progress, "resampling and writing", pending, partial(prepare_and_write, task.root, task.info))


def _histograms(progress: Progress, task: Task, records: dict[str, CaseRecord]) -> list[list[Histogram]]:
    """The intensities of the cases that count for the fingerprint."""
    dataset = unfinished_dataset(task.root, task.info, records, task.splits)
    cases = fingerprint_cases(dataset)
    return list(mapped(progress, "taking the fingerprint", cases, partial(histograms_of, dataset)))


def _checked(outcome: Outcome, out: str) -> Outcome:
    """The outcome, unless the output folder refused it: then no case will do better."""
    if outcome.write_error:
        raise OSError(outcome.write_error, os.strerror(outcome.write_error), out)
    return outcome


def _sizes(splits: Splits) -> str:
    return ", ".join(f"{len(cases)} {name}" for name, cases in splits.items())


def _show_skipped(skipped: Iterable[Outcome]) -> None:
    table = Table(title="Skipped cases", title_justify="left")
    table.add_column("case", style="bold", overflow="fold")
    table.add_column("reason", overflow="fold")
    for outcome in skipped:
        table.add_row(outcome.case, outcome.reason)
    Console(stderr=True).print(table, markup=False)


def _show_result(
    config: PrepareConfig, task: Task, records: dict[str, CaseRecord], outcomes: Sequence[Outcome], seconds: float
) -> None:
    written = [outcome for outcome in outcomes if not outcome.reason]
    voxels = sum(math.prod(record.shape) * len(record.channels) for record in records.values())
    table = Table(title=f"{task.info.name} in {config.out}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("cases", f"{len(records)} ({len(written)} now), {len(outcomes) - len(written)} skipped")
    table.add_row("splits", _sizes(keep(task.splits, set(records))))
    table.add_row("spacing", " × ".join(f"{mm:g}" for mm in task.info.spacing) + " mm")
    table.add_row("voxels", f"{voxels / 1e6:.1f} million")
    for remark in task.raw.remarks:
        table.add_row("note", remark)
    table.add_row("time", f"{seconds:.0f} s")
    Console().print(table)
    if len(written) < len(outcomes):
        Console(stderr=True).print(
            f"{len(outcomes) - len(written)} cases were skipped, see {config.out}/skipped.json; exit code 1",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    raise SystemExit(main())
