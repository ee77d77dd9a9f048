"""Raw data sets as they are to be prepared: classes, schemes, spacing and splits are settled from headers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anatomask.data.classes import select_classes
from anatomask.data.datasets import RawCase, RawDataset, read_dataset
from anatomask.data.preparation import choose_schemes, dataset_info, settings_of
from anatomask.data.preprocess import planned_spacing, readable_grids
from anatomask.data.records import DatasetInfo
from anatomask.data.settings import PreprocessConfig, ReaderConfig
from anatomask.data.splits import SplitConfig, Splits, choose_split, dataset_splits
from anatomask.errors import UserError


@dataclass(frozen=True)
class Source:
    """Raw data set, and everything that decides what is written of it."""

    raw: RawDataset
    info: DatasetInfo
    splits: Splits
    settings: dict[str, Any]
    """Everything that decides what is written, by the user's field names."""


def read_source(
    folder: Path, dataset: str, name: str, reader: ReaderConfig, preprocess: PreprocessConfig, split: SplitConfig
) -> Source:
    """Read the layout of a folder of raw scans and settle classes, schemes, spacing and splits.

    Args:
        folder: raw scans, as downloaded.
        dataset: layout of the folder, as in docs/datasets.md; auto detects it.
        name: name of the data set in tables; the folder's where it is empty.
        reader: settings of the layout's reader.
        preprocess: settings of the preparation.
        split: settings of the split.

    Raises:
        UserError: the folder is missing, empty or of no known layout, or a setting does not fit it.
    """
    fold = split.fold if isinstance(split.fold, int) else 0
    raw = choose_split(read_dataset(folder.absolute(), dataset, fold, reader), split)
    raw = choose_schemes(select_classes(raw, preprocess.classes), preprocess.normalisation)
    spacing = preprocess.spacing or raw.spacing or preprocess.default_spacing
    if spacing is None:
        spacing, how = _plan_spacing(raw, folder)
        raw = replace(raw, remarks=(*raw.remarks, how))
    unused = preprocess.default_spacing
    if unused and spacing == raw.spacing != unused and not preprocess.spacing:
        here, recipe = (" x ".join(f"{mm:g}" for mm in one) for one in (spacing, unused))
        text = f"the data set defines {here} mm, so the recipe's {recipe} mm are not used; --preprocess.spacing sets it"
        raw = replace(raw, remarks=(*raw.remarks, text))
    info = dataset_info(raw, name or folder.resolve().name, spacing, preprocess.brick, preprocess.codec)
    settings = settings_of(str(folder.resolve()), raw, info, split, reader)
    return Source(raw, info, dataset_splits(raw, split), settings)


def planning_cases(raw: RawDataset) -> list[RawCase]:
    """List the cases by which a voxel size is planned: those with labels, else those that are not held back."""
    labelled = [case for case in raw.cases if case.label is not None]
    return labelled or [case for case in raw.cases if case.case not in raw.held_back] or list(raw.cases)


def _plan_spacing(raw: RawDataset, folder: Path) -> tuple[tuple[float, float, float], str]:
    """Plan a voxel size, and say how."""
    cases = planning_cases(raw)
    grids = readable_grids(cases)
    if not grids:
        raise UserError(f"none of the scans of {folder} has a header that can be read")
    spacing, thick = planned_spacing(grids)
    labelled = " labelled" if cases[0].label is not None else ""
    percentile = "" if thick is None else f" and, along {'RAS'[thick]}, the tenth percentile, for slices are thick"
    return spacing, (
        f"voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm are planned from {len(grids)}{labelled} scans as "
        f"nnU-Net does: the median{percentile}; --preprocess.spacing sets others"
    )
