"""Interface of the readers of raw data sets: cases with their files, and what all cases share."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anatomask.data.fingerprint import Scheme
from anatomask.data.listing import files_below, is_folder
from anatomask.data.nifti import nifti_grid, read_nifti
from anatomask.data.settings import ReaderConfig
from anatomask.errors import Note, UserError

DEFAULT_NSD_TOLERANCE = 3.0
"""Tolerance in mm for data sets that publish none."""

MANY_LABELS = 20
"""Number of label maps whose reading takes long enough to be told."""
NIFTI = (".nii.gz", ".nii")

ReadVolume = Callable[[Path], tuple[np.ndarray, np.ndarray]]
"""Function from a path to voxels (D, H, W) and the affine (4, 4) to RAS mm; it raises UserError, naming the path."""
ReadGrid = Callable[[Path], tuple[tuple[int, int, int], np.ndarray]]
"""Function from a path to shape (D, H, W) and affine (4, 4) to RAS mm, without reading voxels; it raises UserError."""


@dataclass(frozen=True)
class RawImage:
    """Source of one channel of a case, and the functions that read it."""

    path: Path
    """File or folder, which messages name."""
    read: ReadVolume
    """Function that reads the voxels: real and finite."""
    grid: ReadGrid


@dataclass(frozen=True)
class RawLabel:
    """Source of a label map, and the functions that read it."""

    path: Path
    """File or folder, which messages name."""
    read: ReadVolume
    """Function that reads the voxels: whole numbers on the images' grid."""
    grid: ReadGrid


@dataclass(frozen=True)
class RawCase:
    """One scan as downloaded. No file is read until its data are requested; it pickles into workers."""

    case: str
    patient: str
    images: tuple[RawImage, ...]
    """Images, one per channel, all on one grid."""
    label: RawLabel | None = None
    """Label map; None for an unlabelled case."""

    @property
    def paths(self) -> list[Path]:
        """Files or folders of the images, and of the label if there is one."""
        return [*(image.path for image in self.images), *([] if self.label is None else [self.label.path])]


@dataclass(frozen=True)
class RawDataset:
    """A data set as downloaded."""

    reader: str
    cases: tuple[RawCase, ...]
    channel_names: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    """Normalisation scheme per channel: what its values are, and so how they are normalised."""
    class_names: Mapping[int, str]
    """Names of classes 1 … K, without background; empty without labels."""
    nsd_tolerance: Mapping[int, float]
    """Tolerance in mm, per class."""
    spacing: tuple[float, float, float] | None = None
    """Target voxel size in mm that the data set defines. Default: the median of its scans."""
    splits: Mapping[str, tuple[str, ...]] | None = None
    """Split of the labelled cases that comes with the data. Default: a split drawn by patient."""
    folds: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    """All folds of a `splits_final.json`, of which `splits` is one: each has its "train" and its "val" cases."""
    held_back: frozenset[str] = frozenset()
    """Unlabelled cases that the publisher keeps for testing; no training uses them."""
    remarks: tuple[str, ...] = ()
    """Remarks for the user on this folder: what was left out or had to be assumed."""


@dataclass(frozen=True)
class Reader:
    """Reader of one layout: whether a folder has it, and the data set in such a folder."""

    matches: Callable[[Path], bool]
    read: Callable[[Path, int, ReaderConfig], RawDataset]
    """Function of the source folder, the fold of a given split and the options; UserError if the layout is broken."""
    options: frozenset[str] = frozenset()
    """Fields of `ReaderConfig`, besides `cases`, that the reader uses."""


def refused_case(case: str, path: Path, why: str) -> RawCase:
    """Make a case that cannot be read: reading it raises `why`, so that it is skipped by name like any broken one."""
    refuse = partial(_refuse, why=why)
    return RawCase(case, case, (RawImage(path, refuse, refuse),))


def _refuse(path: Path, why: str) -> Any:
    raise UserError(why)


def refused_label(path: Path, why: str) -> RawLabel:
    """Make a label that cannot be read: reading it raises `why`, so that its case is skipped, except in prediction."""
    refuse = partial(_refuse, why=why)
    return RawLabel(path, refuse, refuse)


def tell_reading(labels: int, why: str) -> None:
    """Warn with a `Note` that so many label maps are read, if that takes long enough for somebody to wonder."""
    if labels >= MANY_LABELS:
        warnings.warn(Note(f"{labels} label maps are read first, {why}"), stacklevel=2)


def nifti_image(path: Path) -> RawImage:
    """Make a channel from a NIfTI file."""
    return RawImage(path, read_nifti, nifti_grid)


def nifti_label(path: Path) -> RawLabel:
    """Make a label map from a NIfTI file."""
    return RawLabel(path, read_nifti, nifti_grid)


def stem(path: Path) -> str:
    """Return the file's name without `.nii` or `.nii.gz`."""
    for ending in NIFTI:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    raise UserError(f"{path} is not a NIfTI file (.nii or .nii.gz)")


def is_nifti(path: Path) -> bool:
    """Return whether the path has a NIfTI name and is no folder; hidden files (such as those of macOS) do not count.

    The file may be unreadable: it is then a case whose reading reports the reason.
    """
    return path.name.endswith(NIFTI) and not path.name.startswith(".") and not is_folder(path)


def nifti_files(source: Path) -> Iterator[Path]:
    """Find the paths below `source` that are `is_nifti`; links to folders are followed."""
    return filter(is_nifti, files_below(source))


def case_name(*parts: str) -> str:
    """Join the parts into one name that is safe as a file name on any system: letters, digits, `.`, `-` and `_`."""
    return "_".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


def inner_folder(source: Path, name: str) -> Path:
    """Return the folder of that name in the source if there is one, else the source: archives unpack either way."""
    return source / name if is_folder(source / name) else source
