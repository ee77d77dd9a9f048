"""TotalSegmentator: `sXXXX/ct.nii.gz` and one binary mask per class in `sXXXX/segmentations/`; v1 has 104, v2 117.

Some masks overlap; they are merged in the order of their ids, and the later mask wins. The split in `meta.csv` is used
for v2. That of v1 is not used: the paper divides all its cases 70/10/20.
"""

from __future__ import annotations

import csv
from collections import Counter
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from anatomask.data.datasets.base import (
    DEFAULT_NSD_TOLERANCE,
    RawCase,
    RawDataset,
    RawLabel,
    Reader,
    is_nifti,
    nifti_image,
)
from anatomask.data.datasets.organ_masks import merge_organs
from anatomask.data.listing import is_entry, is_file, is_folder, names_in
from anatomask.data.nifti import nifti_grid
from anatomask.errors import UserError

Version = Literal["v1", "v2"]

SPACING = (1.5, 1.5, 1.5)
SCAN, MASKS, META = "ct.nii.gz", "segmentations", "meta.csv"
FOLDERS = ("Totalsegmentator_dataset", "Totalsegmentator_dataset_v201", "Totalsegmentator_dataset_v2")
"""Names of the folder that unpacking an archive makes."""
OTHER_MASKS = "--dataset folder reads masks of any names"
"""Advice where masks are not those of TotalSegmentator's data set."""
DAMAGED = "s0864"
"""Case whose scan is damaged in the published archive of v1."""


def class_names(version: Version = "v1") -> dict[int, str]:
    """Return class id -> name, in the order of merging."""
    text = files(__package__).joinpath(f"totalsegmentator_{version}_labels.csv").read_text(encoding="utf-8")
    return {int(row["id"]): row["name"] for row in csv.DictReader(text.splitlines())}


def merge_masks(folder: Path, version: Version = "v1") -> tuple[np.ndarray, np.ndarray]:
    """Merge the masks of one case into its label map, (D, H, W) uint8, and return it with its affine (4, 4).

    Args:
        folder: `segmentations/`, one binary mask per class.
        version: version that defines the classes.

    Raises:
        UserError: a mask is missing, unknown, damaged, not binary, or of another shape or place than the first.
    """
    return merge_organs(_mask_paths(folder, version))


def mask_grid(folder: Path, version: Version = "v1") -> tuple[tuple[int, int, int], np.ndarray]:
    """Read shape and affine of the first mask.

    Raises:
        UserError: a mask is missing or unknown.
    """
    return nifti_grid(next(iter(_mask_paths(folder, version).values())))


def _mask_paths(folder: Path, version: Version) -> dict[int, Path]:
    """Return class id -> mask, in the order of merging.

    Raises:
        UserError: a mask is missing or unknown.
    """
    names = class_names(version)
    known = {f"{name}.nii.gz" for name in names.values()}
    found = _masks(folder)
    if found - known:
        raise UserError(f"{folder / min(found - known)} is not a class of TotalSegmentator {version}; {OTHER_MASKS}")
    if known - found:
        raise UserError(
            f"{folder / min(known - found)} is missing ({len(known - found)} of {len(known)} masks are); "
            f"get the case again, or leave it out; {OTHER_MASKS}"
        )
    return {c: folder / f"{name}.nii.gz" for c, name in names.items()}


def _masks(folder: Path) -> set[str]:
    return {name for name in names_in(folder) if name.endswith(".nii.gz") and is_nifti(folder / name)}


def _root(source: Path) -> Path:
    return next((source / name for name in FOLDERS if is_folder(source / name)), source)


def _version(source: Path) -> Version | None:
    """Infer the version from the names of masks; return None if no folder has any, as in other layouts."""
    folders = _folders(_root(source))
    masks = [folder / MASKS for folder in folders if is_folder(folder / MASKS)]
    if not masks or not any(is_entry(folder / SCAN) for folder in folders):
        return None
    only = _only("v1", "v2"), _only("v2", "v1")
    for folder in masks:  # until one decides: some may be empty, or hold a few masks
        try:
            names = _masks(folder)
        except UserError:
            continue  # it will be listed with its reason when its turn comes
        v1, v2 = (not names.isdisjoint(one) for one in only)
        if v1 != v2:
            return "v2" if v2 else "v1"
    return "v1"


def _only(version: Version, other: Version) -> set[str]:
    """Return the mask files that one version has and the other has not."""
    return {f"{name}.nii.gz" for name in {*class_names(version).values()} - {*class_names(other).values()}}


def _folders(root: Path) -> list[Path]:
    """List the folders with a scan or masks, one per case. One without a scan is a case whose reading reports that."""
    return [
        folder
        for folder in sorted(root.iterdir())
        if not folder.name.startswith(".") and (is_entry(folder / SCAN) or is_folder(folder / MASKS))
    ]


def _read(source: Path, version: Version) -> RawDataset:
    names = class_names(version)
    cases = tuple(_case(folder, version) for folder in _folders(_root(source)))
    damaged = version == "v1" and any(raw.case == DAMAGED for raw in cases)
    return RawDataset(
        reader="totalsegmentator" if version == "v1" else "totalsegmentator_v2",
        cases=cases,
        channel_names=("CT",),
        schemes=("ct",),
        class_names=names,
        nsd_tolerance=dict.fromkeys(names, DEFAULT_NSD_TOLERANCE),
        spacing=SPACING,
        splits=_given_split(_root(source) / META, cases) if version == "v2" else None,
        remarks=(f"{DAMAGED}: its scan is damaged in the published archive, not only in your copy",) * damaged,
    )


def _case(folder: Path, version: Version) -> RawCase:
    masks = folder / MASKS
    read, grid = partial(merge_masks, version=version), partial(mask_grid, version=version)
    label = RawLabel(masks, read, grid) if is_folder(masks) else None
    return RawCase(folder.name, folder.name, (nifti_image(folder / SCAN),), label)


def _given_split(path: Path, cases: tuple[RawCase, ...]) -> dict[str, tuple[str, ...]] | None:
    """Read the column `split` of the labelled cases; return None if there is no such file.

    Raises:
        UserError: a labelled case is not listed, or its split is none of train, val and test.
    """
    if not is_file(path):
        return None
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter=";"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table separated by semicolons ({error})") from error
    listed = {row.get("image_id"): row.get("split") for row in rows}
    if len(listed) < len(rows):
        twice = Counter(row.get("image_id") for row in rows).most_common(1)[0][0]
        raise UserError(f"{path} lists case {twice} twice; keep one of the rows")
    splits: dict[str, tuple[str, ...]] = {"train": (), "val": (), "test": ()}
    for raw in cases:
        split = listed.get(raw.case)
        if raw.label is None:
            continue
        if split not in splits:
            raise UserError(
                f"{path} must give case {raw.case} a split (train, val or test), not {split!r}; "
                "correct the row, or remove the file to have the split drawn"
            )
        splits[split] += (raw.case,)
    return splits


READER = Reader(lambda source: _version(source) == "v1", lambda source, fold, options: _read(source, "v1"))
READER_V2 = Reader(lambda source: _version(source) == "v2", lambda source, fold, options: _read(source, "v2"))
