"""TotalSegmentator v1: `sXXXX/ct.nii.gz` and 104 binary masks in `sXXXX/segmentations/`.

The masks overlap here and there; they are merged in the order of their ids, later wins. The official split of
`meta.csv` is not used: the paper divides all cases 70/10/20.
"""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

import numpy as np

from anatomask.data.datasets.base import DEFAULT_NSD_TOLERANCE, RawCase, RawDataset, RawLabel, Reader, is_nifti
from anatomask.data.nifti import read_nifti
from anatomask.errors import UserError

SPACING = (1.5, 1.5, 1.5)
SCAN, MASKS = "ct.nii.gz", "segmentations"


def class_names() -> dict[int, str]:
    """Class id -> name, in the order of merging."""
    text = files(__package__).joinpath("totalsegmentator_v1_labels.csv").read_text()
    return {int(row["id"]): row["name"] for row in csv.DictReader(text.splitlines())}


def merge_masks(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The label map of one case, (D, H, W) uint8, and its affine (4, 4).

    Args:
        folder: `segmentations/`, one binary mask per class.

    Raises:
        UserError: a mask is missing, unknown, damaged, not binary, or of another shape than the first.
    """
    names = class_names()
    known = {f"{name}.nii.gz" for name in names.values()}
    found = {path.name for path in folder.glob("*.nii.gz") if is_nifti(path)}
    if found - known:
        raise UserError(f"{folder / min(found - known)} is not a class of TotalSegmentator v1")
    if known - found:
        raise UserError(f"{folder / min(known - found)} is missing ({len(known - found)} of {len(known)} masks are)")
    first = next(iter(names))
    for c, name in names.items():
        path = folder / f"{name}.nii.gz"
        mask, mask_affine = read_nifti(path)
        if c == first:
            merged, affine = np.zeros(mask.shape, np.uint8), mask_affine
        if mask.shape != merged.shape:
            raise UserError(f"{path} has shape {mask.shape}, the masks before it {merged.shape}")
        inside = mask != 0
        if not np.array_equal(mask[inside], np.ones(int(inside.sum()))):
            raise UserError(f"{path} is not a binary mask: it holds values other than 0 and 1")
        merged[inside] = c
    return merged, affine


def _root(source: Path) -> Path:
    inner = source / "Totalsegmentator_dataset"
    return inner if inner.is_dir() else source


def _matches(source: Path) -> bool:
    """Masks tell it from any other folder of patients with a ct.nii.gz each."""
    folders = _folders(_root(source))
    return any((folder / SCAN).is_file() for folder in folders) and any((folder / MASKS).is_dir() for folder in folders)


def _folders(root: Path) -> list[Path]:
    """A folder per case, with a scan or masks: one that has no scan is a case too, which reading it will name."""
    return [
        folder
        for folder in sorted(root.iterdir())
        if not folder.name.startswith(".") and ((folder / SCAN).is_file() or (folder / MASKS).is_dir())
    ]


def _read(source: Path, fold: int) -> RawDataset:
    names = class_names()
    return RawDataset(
        reader="totalsegmentator",
        cases=tuple(map(_case, _folders(_root(source)))),
        channel_names=("CT",),
        schemes=("ct",),
        class_names=names,
        nsd_tolerance=dict.fromkeys(names, DEFAULT_NSD_TOLERANCE),
        spacing=SPACING,
    )


def _case(folder: Path) -> RawCase:
    masks = folder / MASKS
    label = RawLabel(masks, merge_masks) if masks.is_dir() else None
    return RawCase(folder.name, folder.name, (folder / SCAN,), label)


READER = Reader(_matches, _read)
