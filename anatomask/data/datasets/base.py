"""What a reader of a raw data set hands over: cases with their files, and what all cases share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anatomask.data.fingerprint import Scheme
from anatomask.errors import UserError

DEFAULT_NSD_TOLERANCE = 3.0
"""In mm, for data sets that publish none."""

NIFTI = (".nii.gz", ".nii")


@dataclass(frozen=True)
class RawLabel:
    """Where a label map comes from, and how it is read."""

    path: Path
    """A file or a folder; messages name it."""
    read: Callable[[Path], tuple[np.ndarray, np.ndarray]]
    """Of the path: whole numbers (D, H, W) on the images' grid, and the affine (4, 4). Raises UserError."""


@dataclass(frozen=True)
class RawCase:
    """One scan as downloaded. Nothing is read before it is asked for; pickles into workers."""

    case: str
    patient: str
    images: tuple[Path, ...]
    """One NIfTI file per channel."""
    label: RawLabel | None = None
    """None: unlabelled."""


@dataclass(frozen=True)
class RawDataset:
    """A data set as downloaded."""

    reader: str
    cases: tuple[RawCase, ...]
    channel_names: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    """Per channel: "ct" (HU) or "zscore" (anything else)."""
    class_names: Mapping[int, str]
    """1 … K, without background; empty without labels."""
    nsd_tolerance: Mapping[int, float]
    """In mm, per class."""
    spacing: tuple[float, float, float] | None = None
    """The data set's own target voxel size in mm; none: the median of its scans."""
    splits: Mapping[str, tuple[str, ...]] | None = None
    """The split that comes with the data, of labelled cases; none: drawn by patient."""
    held_back: frozenset[str] = frozenset()
    """Unlabelled cases that the publisher keeps for testing: nothing is trained on them."""


@dataclass(frozen=True)
class Reader:
    """A layout: whether a folder has it, and the data set in such a folder."""

    matches: Callable[[Path], bool]
    read: Callable[[Path, int], RawDataset]
    """Of the source folder and the fold of a given split. Raises UserError where the layout is broken."""


def stem(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    for ending in NIFTI:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    raise UserError(f"{path} is not a NIfTI file (.nii or .nii.gz)")


def is_nifti(path: Path) -> bool:
    """Whether it is a file with a NIfTI name; hidden ones (those of macOS, say) are not."""
    return path.name.endswith(NIFTI) and not path.name.startswith(".") and path.is_file()
