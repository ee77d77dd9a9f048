"""Real scans for benchmarks of whole trainings: OpenKBP's 203 head-and-neck CTs, prepared without Ray."""

from __future__ import annotations

from pathlib import Path

from anatomask.data.datasets import read_dataset
from anatomask.data.preparation import (
    claim,
    complete,
    dataset_info,
    fingerprint_cases,
    histograms_of,
    prepare_and_write,
    records_of,
    settings_of,
    unfinished_dataset,
)
from anatomask.data.settings import PreprocessConfig
from anatomask.data.shards import PreparedDataset
from anatomask.data.splits import SplitConfig, dataset_splits, keep

SPACING = (4.0, 4.0, 3.0)
"""Voxel size in mm: that of recipe `small`, and about the scans' own."""


def prepared(
    scans: Path, folder: Path, limit: int | None = None, spacing: tuple[float, float, float] = SPACING
) -> PreparedDataset:
    """Open the data set in `folder`, after preparing it from `scans`/openkbp if it is missing.

    `limit` is the number of cases of each split, spread over it. Default: all.
    """
    if (folder / "dataset.json").exists():
        return PreparedDataset.open(str(folder))
    settings = PreprocessConfig()
    raw = read_dataset(scans / "openkbp")
    info = dataset_info(raw, "openkbp", spacing, settings.brick, settings.codec)
    splits = dataset_splits(raw, SplitConfig())
    chosen = {
        case for cases in splits.values() for case in cases[:: max(1, len(cases) // limit) if limit else 1][:limit]
    }
    claim(str(folder), settings_of(str(scans), raw, info, SplitConfig()), overwrite=False)
    outcomes = [prepare_and_write(str(folder), info, case) for case in raw.cases if case.case in chosen]
    if failed := [outcome for outcome in outcomes if outcome.reason]:
        raise SystemExit(f"{failed[0].case}: {failed[0].reason}")
    records = records_of(str(folder), raw)
    unfinished = unfinished_dataset(str(folder), info, records, splits)
    histograms = (histograms_of(unfinished, case) for case in fingerprint_cases(unfinished))
    complete(str(folder), info, list(records.values()), keep(splits, set(records)), histograms, outcomes)
    return PreparedDataset.open(str(folder))
