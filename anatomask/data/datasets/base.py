"""What a reader of a raw data set hands over: cases with their files, and what all cases share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anatomask.data.fingerprint import Scheme
from anatomask.data.listing import is_folder
from anatomask.data.nifti import nifti_grid, read_nifti
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError

DEFAULT_NSD_TOLERANCE = 3.0
"""In mm, for data sets that publish none."""

NIFTI = (".nii.gz", ".nii")

ReadVolume = Callable[[Path], tuple[np.ndarray, np.ndarray]]
"""Of a path: voxels (D, H, W) and the affine (4, 4) to RAS mm. Raises UserError, naming the path."""
ReadGrid = Callable[[Path], tuple[tuple[int, int, int], np.ndarray]]
"""Of a path: shape (D, H, W) and the affine (4, 4) to RAS mm, without reading voxels. Raises UserError."""


@dataclass(frozen=True)
class RawImage:
    """Where one channel of a case comes from, and how it is read."""

    path: Path
    """A file or a folder; messages name it."""
    read: ReadVolume
    """All real voxels, finite."""
    grid: ReadGrid


@dataclass(frozen=True)
class RawLabel:
    """Where a label map comes from, and how it is read."""

    path: Path
    """A file or a folder; messages name it."""
    read: ReadVolume
    """Whole numbers on the images' grid."""
    grid: ReadGrid


@dataclass(frozen=True)
class RawCase:
    """One scan as downloaded. Nothing is read before it is asked for; pickles into workers."""

    case: str
    patient: str
    images: tuple[RawImage, ...]
    """One per channel, all on one grid."""
    label: RawLabel | None = None
    """None: unlabelled."""


@dataclass(frozen=True)
class RawDataset:
    """A data set as downloaded."""

    reader: str
    cases: tuple[RawCase, ...]
    channel_names: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    """Per channel: what its values are and how they are normalised."""
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
    remarks: tuple[str, ...] = ()
    """What the user should know of this folder: what was left out or had to be assumed."""


@dataclass(frozen=True)
class Reader:
    """A layout: whether a folder has it, and the data set in such a folder."""

    matches: Callable[[Path], bool]
    read: Callable[[Path, int, ReaderConfig], RawDataset]
    """Of the source folder, the fold of a given split and the options. Raises UserError where the layout is broken."""
    options: frozenset[str] = frozenset()
    """The fields of `ReaderConfig`, besides `cases`, that it heeds."""


def refused_case(case: str, path: Path, why: str) -> RawCase:
    """A case that cannot be read: whoever tries is told `why`, so that it is skipped by name like any broken one."""
    refuse = partial(_refuse, why=why)
    return RawCase(case, case, (RawImage(path, refuse, refuse),))


def _refuse(path: Path, why: str) -> Any:
    raise UserError(why)


def nifti_image(path: Path) -> RawImage:
    """A channel that is a NIfTI file."""
    return RawImage(path, read_nifti, nifti_grid)


def nifti_label(path: Path) -> RawLabel:
    """A label map that is a NIfTI file."""
    return RawLabel(path, read_nifti, nifti_grid)


def stem(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    for ending in NIFTI:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    raise UserError(f"{path} is not a NIfTI file (.nii or .nii.gz)")


def is_nifti(path: Path) -> bool:
    """Tell whether it has a NIfTI name and is no folder; hidden ones (those of macOS, say) are not.

    It need not be a file that can be read: one that cannot is a case that reading it will name.
    """
    return path.name.endswith(NIFTI) and not path.name.startswith(".") and not is_folder(path)


def is_visible(path: Path, source: Path) -> bool:
    """Whether neither the path nor a folder between it and the source is hidden."""
    return not any(part.startswith(".") for part in path.relative_to(source).parts)


def case_name(*parts: str) -> str:
    """The parts as one name that is safe as a file's on any system: letters, digits, `.`, `-` and `_`."""
    return "_".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


def inner_folder(source: Path, name: str) -> Path:
    """The folder of that name in the source if there is one, else the source: archives unpack either way."""
    return source / name if is_folder(source / name) else source
