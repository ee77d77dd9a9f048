"""Raw scans to Parquet shards: one Ray Data task per case, then the fingerprint, the splits and the index.

A case whose files are broken is listed with the reason and the others go through; the exit code is then 1. The same
command goes on where an earlier one stopped: a case is finished when its Parquet file exists.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from anatomask.cluster import running
from anatomask.config import PrepareConfig
from anatomask.data.addresses import is_address, public_address
from anatomask.data.classes import select_classes
from anatomask.data.datasets import RawCase, RawDataset, read_dataset
from anatomask.data.fingerprint import Histogram
from anatomask.data.memory import available_memory, bytes_to_prepare, in_units
from anatomask.data.preparation import (
    Outcome,
    bytes_for_histograms,
    choose_schemes,
    claim,
    complete,
    dataset_info,
    doubts,
    fingerprint_cases,
    finished_cases,
    histograms_of,
    kept_splits,
    prepare_and_write,
    records_of,
    settings_of,
    unfinished_dataset,
)
from anatomask.data.preprocess import Grid, median_spacing, readable_grids, target_shape
from anatomask.data.records import CaseRecord, DatasetInfo
from anatomask.data.scale import measure
from anatomask.data.splits import Splits, choose_split, dataset_splits, keep, moved_cases
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.names import some
from anatomask.stages.mapping import mapped, mapped_within_memory
from anatomask.stages.suggestions import after_prepare
from anatomask.terminal.printing import remark
from anatomask.terminal.progress import outages_told, progress_shown


@dataclass(frozen=True)
class Task:
    """What is to be done, once the source has been looked at."""

    root: Storage
    raw: RawDataset
    info: DatasetInfo
    splits: Splits
    settings: dict[str, Any]


def plan(config: PrepareConfig) -> list[tuple[str, str]]:
    """Rows of the dry run, from the headers and from a few cases that are prepared in a temporary folder."""
    task = _look(config)
    labelled = sum(raw.label is not None for raw in task.raw.cases)
    return [
        ("source", f"{config.source} ({task.raw.reader})"),
        ("cases", f"{len(task.raw.cases)}, of which {labelled} have labels"),
        ("patients", str(len({raw.patient for raw in task.raw.cases}))),
        ("finished", f"{len(finished_cases(task.root) & {raw.case for raw in task.raw.cases})}"),
        ("channels", ", ".join(map(" as ".join, zip(task.raw.channel_names, task.raw.schemes, strict=True)))),
        *(("note", remark) for remark in task.raw.remarks),
        ("classes", str(len(task.raw.class_names))),
        ("splits", _sizes(task.splits)),
        ("spacing", " × ".join(f"{mm:g}" for mm in task.info.spacing) + " mm"),
        *_scale(config, task, labelled),
        ("out", public_address(config.out)),
    ]


def _scale(config: PrepareConfig, task: Task, labelled: int) -> list[tuple[str, str]]:
    """Rows of the dry run that grow with the cases: voxels, shards, bytes and CPU time."""
    given = len(task.raw.cases)
    cases = config.plan.cases or given
    channels, room = len(task.info.channel_names), available_memory()
    grids = readable_grids(task.raw.cases)
    targets = [(grid.shape, target_shape(grid.shape, grid.spacing, task.info.spacing)) for grid in grids]
    shapes = [new for old, new in targets if bytes_to_prepare(old, new, channels) <= room]
    per_case = channels * sum(math.prod(shape) for shape in shapes) / max(1, len(shapes))
    voxels = cases * per_case
    uncompressed = voxels * (2 + (labelled > 0) / channels)
    large = len(grids) - len(shapes)
    rows = [
        *([("note", f"{large} cases are left out: too large for {in_units(room)} of memory")] if large else []),
        ("planned for", f"{cases} cases like these {given}" if config.plan.cases else f"these {given} cases"),
        ("voxels", f"{voxels / 1e6:,.1f} million, {per_case / 1e6:.2f} million per case"),
        ("size before compression", f"{uncompressed / 1e9:,.2f} GB"),
    ]
    if not config.plan.sample:
        return rows
    sample = measure(task.info, task.raw.cases, config.plan.sample)
    if not sample.cases:
        return [*rows, ("measured", "nothing: no case of the sample could be prepared")]
    share = voxels / sample.voxels
    originals = f"; {share * sample.original_bytes / 1e9:,.2f} GB of labels as they came" if labelled else ""
    return [
        *rows,
        (
            "measured",
            f"{sample.cases} of the cases, {sample.voxels / 1e6:.1f} million voxels: "
            f"{sample.shard_bytes / sample.voxels:.2f} bytes and {1e6 * sample.cpu_seconds / sample.voxels:.2f} "
            "CPU-microseconds per voxel",
        ),
        ("shards", f"{cases} files, {share * sample.shard_bytes / 1e9:,.2f} GB{originals}"),
        ("CPU time", f"{share * sample.cpu_seconds / 3600:.2f} CPU-hours on processors like this machine's"),
    ]


def stage(config: PrepareConfig, *, overwrite: bool = False) -> int:
    """Prepare what is not finished yet, then write the index; returns 1 when a case was skipped."""
    start = time.perf_counter()
    task = _look(config)
    if left := claim(task.root, task.settings, overwrite):
        remark(f"--overwrite leaves what anatomask did not write: {some(left)}")
    finished = finished_cases(task.root)
    kept_splits(task.root, task.splits, finished)  # one that is damaged is refused before anything slow
    pending = [raw for raw in task.raw.cases if raw.case not in finished]
    with running(config.cluster), outages_told(task.root), progress_shown() as progress:
        # Closed before Ray is: its Data threads would otherwise start another Ray behind our back.
        with closing(_prepare(progress, task, pending)) as stream:
            outcomes = [_checked(outcome) for outcome in stream]
        records = records_of(task.root, task.raw)
        skipped = sorted((outcome for outcome in outcomes if outcome.reason), key=lambda outcome: outcome.case)
        if records:
            splits = kept_splits(task.root, task.splits, set(records))
            with closing(_histograms(progress, task, records, splits)) as histograms:
                complete(task.root, task.info, list(records.values()), splits, histograms, outcomes)
    if skipped:
        _show_skipped(skipped)
    if not records:
        raise UserError(f"none of the {len(task.raw.cases)} cases of {config.source} could be prepared")
    _show_result(task, records, splits, outcomes, time.perf_counter() - start)
    shapes = [record.shape for record in records.values()]
    labelled = any(record.labelled for record in records.values())
    print(*after_prepare(config.out, task.info.spacing, shapes, labelled), sep="\n")
    return 1 if skipped else 0


def _look(config: PrepareConfig) -> Task:
    """Read the source's layout and settle name, spacing and splits.

    Raises UserError for a source that is missing, empty or unknown, or that lies in the output folder or around it.
    """
    source = Path(config.source).absolute()
    root = config.out if is_address(config.out) else str(Path(config.out).absolute())
    fold = config.split.fold if isinstance(config.split.fold, int) else 0
    raw = choose_split(read_dataset(source, config.dataset, fold, config.reader), config.split)
    raw = choose_schemes(select_classes(raw, config.preprocess.classes), config.preprocess.normalisation)
    if not is_address(root):
        _apart(source.resolve(), Path(root).resolve(), config)
    wanted = config.preprocess
    spacing = wanted.spacing or raw.spacing or wanted.default_spacing
    spacing = spacing or _median(readable_grids(raw.cases), config.source)
    if wanted.default_spacing and spacing == raw.spacing != wanted.default_spacing and not wanted.spacing:
        here, recipe = (" x ".join(f"{mm:g}" for mm in one) for one in (spacing, wanted.default_spacing))
        text = f"the data set defines {here} mm, so the recipe's {recipe} mm are not used; --preprocess.spacing sets it"
        raw = replace(raw, remarks=(*raw.remarks, text))
    info = dataset_info(
        raw, config.name or source.resolve().name, spacing, config.preprocess.brick, config.preprocess.codec
    )
    settings = settings_of(str(source.resolve()), raw, info, config.split, config.reader)
    return Task(Storage(root, config.cluster.max_outage), raw, info, dataset_splits(raw, config.split), settings)


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
    work = partial(prepare_and_write, task.root, task.info)
    return mapped_within_memory(
        progress, "resampling and writing", pending, work, lambda raw, error: Outcome(raw.case, str(error))
    )


def _histograms(
    progress: Progress, task: Task, records: dict[str, CaseRecord], splits: Splits
) -> Generator[list[Histogram], None, None]:
    """The intensities of the cases that count for the fingerprint."""
    dataset = unfinished_dataset(task.root, task.info, records, splits)
    cases = fingerprint_cases(dataset)
    needs = max((bytes_for_histograms(records[case]) for case in cases), default=0)
    return mapped(progress, "taking the fingerprint", cases, partial(histograms_of, dataset), needs)


def _checked(outcome: Outcome) -> Outcome:
    """The outcome, unless the output folder refused it: then no case will do better."""
    if outcome.refused is not None:
        raise outcome.refused
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
    task: Task, records: dict[str, CaseRecord], splits: Splits, outcomes: Sequence[Outcome], seconds: float
) -> None:
    written = [outcome for outcome in outcomes if not outcome.reason]
    voxels = sum(math.prod(record.shape) * len(record.channels) for record in records.values())
    storage = task.root
    shards, originals = (sum(storage.sizes(folder).values()) for folder in ("cases", "originals"))
    labels = f", and {originals / 1e6:.1f} MB of labels as they came" if originals else ""
    table = Table(title=f"{task.info.name} in {storage.show()}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("cases", f"{len(records)} ({len(written)} now), {len(outcomes) - len(written)} skipped")
    table.add_row("splits", _sizes(splits))
    if moved := moved_cases(splits, keep(task.splits, set(records))):
        table.add_row(
            "note",
            f"{storage.show('splits.json')} is kept as it is, though these settings would put {some(moved)} into other "
            "splits; --overwrite makes it anew",
        )
    table.add_row("spacing", " × ".join(f"{mm:g}" for mm in task.info.spacing) + " mm")
    table.add_row("voxels", f"{voxels / 1e6:.1f} million")
    table.add_row("size", f"{shards / 1e6:.1f} MB in {len(records)} shards{labels}")
    for text in (*task.raw.remarks, *doubts(task.info, records.values())):
        table.add_row("note", text)
    table.add_row("time", f"{seconds:.0f} s")
    Console().print(table)
    if len(written) < len(outcomes):
        Console(stderr=True).print(
            f"{len(outcomes) - len(written)} cases were skipped, see {storage.show('skipped.json')}; exit code 1",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
