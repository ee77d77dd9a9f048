"""Preparation of raw scans: one Ray Data task per case writes its shard; then come fingerprint, splits and index.

A case whose files are broken is listed with the reason, and the others are prepared; the exit code is then 1. The same
command continues where an earlier one stopped: a case is finished when its Parquet file exists.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from anatomask.cluster import running
from anatomask.config import PrepareConfig
from anatomask.data.addresses import is_address, public_address
from anatomask.data.datasets import RawCase
from anatomask.data.fingerprint import Histogram
from anatomask.data.memory import in_units
from anatomask.data.outdated import outdated_note
from anatomask.data.preparation import (
    Outcome,
    bytes_for_histograms,
    claim,
    complete,
    doubts,
    fingerprint_cases,
    finished_cases,
    histograms_of,
    kept_splits,
    prepare_and_write,
    records_of,
    unfinished_dataset,
)
from anatomask.data.records import CaseRecord
from anatomask.data.scale import measure, scale_of
from anatomask.data.source import Source, read_source
from anatomask.data.splits import Splits, keep, moved_cases
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.names import some
from anatomask.stages.mapping import mapped, mapped_within_memory
from anatomask.stages.suggestions import after_prepare
from anatomask.terminal.printing import remark
from anatomask.terminal.progress import outages_told, progress_shown


def plan(config: PrepareConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run, from headers and from a few cases that are prepared in a temporary folder."""
    root, source = _look(config)
    raw = source.raw
    labelled = sum(one.label is not None for one in raw.cases)
    return [
        ("source", f"{config.source} ({raw.reader})"),
        ("cases", f"{len(raw.cases)}, of which {labelled} have labels"),
        ("patients", str(len({one.patient for one in raw.cases}))),
        ("finished", f"{len(finished_cases(root) & {one.case for one in raw.cases})}"),
        ("channels", ", ".join(map(" as ".join, zip(raw.channel_names, raw.schemes, strict=True)))),
        *(("note", text) for text in (*raw.remarks, *_outdated(root, source))),
        ("classes", str(len(raw.class_names))),
        ("splits", _sizes(kept_splits(root, source.splits, {one.case for one in raw.cases}))),
        ("spacing", " × ".join(f"{mm:g}" for mm in source.info.spacing) + " mm"),
        *_scale(config, source, labelled),
        ("out", public_address(config.out)),
    ]


def _scale(config: PrepareConfig, source: Source, labelled: int) -> list[tuple[str, str]]:
    """Return the rows of the dry run that grow with the cases: voxels, shards, bytes and CPU time."""
    given = len(source.raw.cases)
    cases = config.plan.cases or given
    scale = scale_of(source.info, source.raw.cases)
    per_case = scale.voxels_per_case
    voxels = cases * per_case
    uncompressed = voxels * (2 + (labelled > 0) / len(source.info.channel_names))
    left_out = f"{scale.left_out} cases are left out: too large for {in_units(scale.memory)} of memory"
    rows = [
        *([("note", left_out)] if scale.left_out else []),
        ("planned for", f"{cases} cases like these {given}" if config.plan.cases else f"these {given} cases"),
        ("voxels", f"{voxels / 1e6:,.1f} million, {per_case / 1e6:.2f} million per case"),
        ("size before compression", f"{uncompressed / 1e9:,.2f} GB"),
    ]
    if not config.plan.sample:
        return rows
    sample = measure(source.info, source.raw.cases, config.plan.sample)
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
    """Prepare what is not finished yet, then write the index; return 1 if a case was skipped."""
    start = time.perf_counter()
    root, source = _look(config)
    if left := claim(root, source.settings, overwrite):
        remark(f"--overwrite leaves what anatomask did not write: {some(left)}")
    finished = finished_cases(root)
    kept_splits(root, source.splits, finished)  # one that is damaged is refused before anything slow
    for note in _outdated(root, source):
        remark(note)
    pending = [raw for raw in source.raw.cases if raw.case not in finished]
    with running(config.cluster), outages_told(root), progress_shown() as progress:
        # Closed before Ray is: its Data threads would otherwise start another Ray behind our back.
        with closing(_prepare(progress, root, source, pending)) as stream:
            outcomes = [_checked(outcome) for outcome in stream]
        records = records_of(root, source.raw)
        skipped = sorted((outcome for outcome in outcomes if outcome.reason), key=lambda outcome: outcome.case)
        if records:
            splits = kept_splits(root, source.splits, set(records))
            with closing(_histograms(progress, root, source, records, splits)) as histograms:
                complete(root, source.info, list(records.values()), splits, histograms, outcomes)
    if skipped:
        _show_skipped(skipped)
    if not records:
        raise UserError(f"none of the {len(source.raw.cases)} cases of {config.source} could be prepared")
    _show_result(root, source, records, splits, outcomes, time.perf_counter() - start)
    shapes = [record.shape for record in records.values()]
    labelled = any(record.labelled for record in records.values())
    info, out = source.info, public_address(config.out)
    print(*after_prepare(out, info.spacing, shapes, labelled, info.reader, len(info.channel_names)), sep="\n")
    return 1 if skipped else 0


def _look(config: PrepareConfig) -> tuple[Storage, Source]:
    """Open the output folder and read the source.

    Raises:
        UserError: the source is missing, empty or of no known layout, or lies in the output folder or around it.
    """
    source = read_source(
        Path(config.source), config.dataset, config.name, config.reader, config.preprocess, config.split
    )
    root = config.out if is_address(config.out) else str(Path(config.out).absolute())
    if not is_address(root):
        _require_apart(Path(config.source).resolve(), Path(root).resolve(), config)
    return Storage(root, config.cluster.max_outage), source


def _outdated(root: Storage, source: Source) -> list[str]:
    return outdated_note(source.raw.cases, root.times("cases", ".parquet"), root.show("cases/<case>.parquet"))


def _require_apart(source: Path, out: Path, config: PrepareConfig) -> None:
    if out.is_relative_to(source):
        raise UserError(f"--out {config.out} lies inside the source {config.source}; choose a folder beside it")
    if source.is_relative_to(out):
        raise UserError(f"the source {config.source} lies inside --out {config.out}; choose a folder beside it")


def _prepare(
    progress: Progress, root: Storage, source: Source, pending: Sequence[RawCase]
) -> Generator[Outcome, None, None]:
    """Prepare the cases in parallel; yield each outcome as it comes."""
    work = partial(prepare_and_write, root, source.info)
    return mapped_within_memory(
        progress, "resampling and writing", pending, work, lambda raw, error: Outcome(raw.case, str(error))
    )


def _histograms(
    progress: Progress, root: Storage, source: Source, records: dict[str, CaseRecord], splits: Splits
) -> Generator[list[Histogram], None, None]:
    """Compute the histograms of the cases that count for the fingerprint; yield each case's as they come."""
    dataset = unfinished_dataset(root, source.info, records, splits)
    cases = fingerprint_cases(dataset)
    needs = max((bytes_for_histograms(records[case]) for case in cases), default=0)
    return mapped(progress, "taking the fingerprint", cases, partial(histograms_of, dataset), needs)


def _checked(outcome: Outcome) -> Outcome:
    """Return the outcome, or raise the error with which the output folder refused it: it would refuse every case."""
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
    root: Storage,
    source: Source,
    records: dict[str, CaseRecord],
    splits: Splits,
    outcomes: Sequence[Outcome],
    seconds: float,
) -> None:
    written = [outcome for outcome in outcomes if not outcome.reason]
    voxels = sum(math.prod(record.shape) * len(record.channels) for record in records.values())
    shards, originals = (sum(root.sizes(folder).values()) for folder in ("cases", "originals"))
    labels = f", and {originals / 1e6:.1f} MB of labels as they came" if originals else ""
    table = Table(title=f"{source.info.name} in {root.show()}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("cases", f"{len(records)} ({len(written)} now), {len(outcomes) - len(written)} skipped")
    table.add_row("splits", _sizes(splits))
    if moved := moved_cases(splits, keep(source.splits, set(records))):
        table.add_row(
            "note",
            f"{root.show('splits.json')} is kept as it is, though these settings would put {some(moved)} into other "
            "splits; --overwrite makes it anew",
        )
    table.add_row("spacing", " × ".join(f"{mm:g}" for mm in source.info.spacing) + " mm")
    table.add_row("voxels", f"{voxels / 1e6:.1f} million")
    table.add_row("size", f"{shards / 1e6:.1f} MB in {len(records)} shards{labels}")
    for text in (*source.raw.remarks, *doubts(source.info, records.values())):
        table.add_row("note", text)
    table.add_row("time", f"{seconds:.0f} s")
    Console().print(table)
    if len(written) < len(outcomes):
        Console(stderr=True).print(
            f"{len(outcomes) - len(written)} cases were skipped, see {root.show('skipped.json')}; exit code 1",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
