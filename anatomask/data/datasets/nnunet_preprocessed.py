"""nnU-Net's preprocessed folder: plans, `dataset.json`, and per configuration `<case>.b2nd` or `<case>.npz`.

The voxels are already resampled and normalised, so their scheme is "none" and the plans' spacing is the data set's.
nnU-Net keeps the properties of a case in a pickle, which is never opened here. So geometry comes from the plans, and
direction and position come from the header of `gt_segmentations/<case>.nii.gz`. They are exact where nnU-Net cropped
nothing, which the shape shows; otherwise the position is that of the uncropped scan. Without that file the axes are
taken to point R, A, S. Labels are the resampled ones, and scores are computed on this grid, not on the scan's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations

from anatomask.data.arrays import b2nd_shape, finite, npz_names, npz_shape, read_b2nd, read_npz
from anatomask.data.datasets.base import DEFAULT_NSD_TOLERANCE, NIFTI, RawCase, RawDataset, RawImage, RawLabel, Reader
from anatomask.data.datasets.nnunet import SPLITS, chosen_fold, given_folds, ras_spacing, read_header
from anatomask.data.fingerprint import Scheme
from anatomask.data.listing import is_entry, is_file, is_folder
from anatomask.data.nifti import nifti_grid
from anatomask.data.plans import PlannedGrid, find_configuration, planned_grid
from anatomask.data.resampling import resampled_affine, target_shape
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError
from anatomask.names import component
from anatomask.parsing import read_json

HEADER, TRUTH = "dataset.json", "gt_segmentations"
NOT_PLANS = {HEADER, "dataset_fingerprint.json", SPLITS}
SEGMENTATION = "_seg"
NORMALISED: Scheme = "none"


@dataclass(frozen=True)
class Geometry:
    """Position of the voxels of one case."""

    spacing: tuple[float, float, float]
    """Voxel size in mm, in the order (x, y, z) of the source file."""
    backward: tuple[int, int, int]
    truth: Path | None
    """Ground truth on the source's grid; only its header is read."""
    reoriented: bool

    def turned(self, volume: np.ndarray) -> np.ndarray:
        """Turn the array (D, H, W) as stored to the axes (x, y, z)."""
        return volume.transpose(self.backward).transpose(2, 1, 0)

    def affine(self, shape: Sequence[int]) -> np.ndarray:
        """Compute the affine (4, 4) of a volume of this shape (x, y, z).

        Raises:
            UserError: the ground truth is broken.
        """
        if self.truth is None:
            return np.diag([*self.spacing, 1.0])
        source_shape, affine = _to_ras(*nifti_grid(self.truth)) if self.reoriented else nifti_grid(self.truth)
        sizes = nib.affines.voxel_sizes(affine)
        if target_shape(source_shape, sizes, self.spacing) == tuple(shape):
            return resampled_affine(affine, source_shape, shape)
        return affine @ np.diag([*np.divide(self.spacing, sizes), 1.0])


def _to_ras(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    ornt = nib.io_orientation(affine)
    order = np.argsort(ornt[:, 0])
    a, b, c = (shape[axis] for axis in order)
    return (a, b, c), affine @ orientations.inv_ornt_aff(ornt, shape)


def _plans(source: Path) -> dict[Path, Mapping[str, Any]]:
    """List the plans files: those that list configurations."""
    found = {}
    for path in sorted(source.glob("*.json")):
        if path.name not in NOT_PLANS and not path.name.startswith("."):
            content = read_json(path)
            if isinstance(content, Mapping) and isinstance(content.get("configurations"), Mapping):
                found[path] = content
    return found


def _matches(source: Path) -> bool:
    if not is_file(source / HEADER) or is_folder(source / "imagesTr"):
        return False
    try:
        return bool(_plans(source))
    except UserError:
        return True  # reading it will name the file


def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    _, channels, classes = read_header(source / HEADER)
    chosen, folder = _choose(source, options.configuration)
    cases = tuple(_case(source, chosen, folder, case, len(channels)) for case in _names(folder))
    folds = given_folds(source / SPLITS, {raw.case for raw in cases})
    unplaced = sum(_truth(source, raw.case) is None for raw in cases)
    return RawDataset(
        reader="nnunet_preprocessed",
        cases=cases,
        channel_names=channels,
        schemes=tuple(NORMALISED for _ in channels),
        class_names=classes,
        nsd_tolerance=dict.fromkeys(classes, DEFAULT_NSD_TOLERANCE),
        spacing=ras_spacing(cases, replace(chosen, reoriented=False)),  # the cases' own axes say whether they are RAS
        splits=chosen_fold(folds, fold, source / SPLITS),
        folds=folds,
        remarks=(
            f"{chosen.name} of {chosen.plans.name}: resampled and normalised by nnU-Net; scores will be on its grid",
            *((f"{unplaced} cases have no {TRUTH}: their axes are taken to point R, A, S",) if unplaced else ()),
        ),
    )


def _choose(source: Path, wanted: str) -> tuple[PlannedGrid, Path]:
    """Find the configuration of that name or with that folder, and its folder; there must be exactly one, with files.

    Raises:
        UserError: there is none or more than one, or its plans are not understood.
    """
    there: dict[Path, PlannedGrid] = {}
    seen: set[str] = set()
    for path, plans in _plans(source).items():
        for name in plans["configurations"]:
            entries = find_configuration(plans, name, path)
            identifier = str(entries.get("data_identifier", ""))
            try:
                if not identifier or not _names(source / component(identifier)):
                    continue
            except ValueError as error:
                raise UserError(f"{path}: data_identifier of configuration {name}: {error}") from error
            seen |= {name, identifier}
            if wanted in (name, identifier):
                there.setdefault(source / identifier, planned_grid(plans, name, path))
    if len(there) > 1:
        names = ", ".join(sorted(folder.name for folder in there))
        raise UserError(f"{source}: --reader.configuration {wanted} may be {names}; name one of these folders")
    if not there:
        others = ", ".join(sorted(seen)) or "none with files"
        raise UserError(f"{source} has no preprocessed files of --reader.configuration {wanted}; there are {others}")
    ((folder, chosen),) = there.items()
    return chosen, folder


def _names(folder: Path) -> list[str]:
    """List the cases that have a file."""
    blosc = {path.stem for path in folder.glob("*.b2nd") if not path.stem.endswith(SEGMENTATION)}
    return sorted(blosc | {path.stem for path in folder.glob("*.npz")})


def _truth(source: Path, case: str) -> Path | None:
    paths = (source / TRUTH / f"{case}{ending}" for ending in NIFTI)
    return next((path for path in paths if is_entry(path)), None)


def _case(source: Path, chosen: PlannedGrid, folder: Path, case: str, channels: int) -> RawCase:
    z, y, x = (chosen.spacing[axis] for axis in chosen.backward)
    geometry = Geometry((x, y, z), chosen.backward, _truth(source, case), chosen.reoriented)
    path, segmentation = folder / f"{case}.b2nd", folder / f"{case}{SEGMENTATION}.b2nd"
    if not is_entry(path):
        path = segmentation = folder / f"{case}.npz"
    label_grid = partial(read_grid, geometry=geometry, name="seg")
    label = RawLabel(segmentation, partial(read_label, geometry=geometry), label_grid)
    grid = partial(read_grid, geometry=geometry, channels=channels)
    images = tuple(
        RawImage(path, partial(read_image, channel=c, channels=channels, geometry=geometry), grid)
        for c in range(channels)
    )
    return RawCase(case, case, images, label)


def read_image(path: Path, channel: int, channels: int, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Read one channel (x, y, z), and its affine.

    Raises:
        UserError: the file is damaged or has other channels.
    """
    _shape(path, channels=channels)
    stored = read_b2nd(path, channel) if path.suffix == ".b2nd" else read_npz(path, "data")[channel].copy()
    volume = geometry.turned(finite(path, stored))
    return volume, geometry.affine(volume.shape)


def read_label(path: Path, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Read the label map (x, y, z), and its affine; -1, which nnU-Net writes outside the body, becomes background."""
    stored = read_b2nd(path, 0) if path.suffix == ".b2nd" else read_npz(path, "seg")[0]
    volume = geometry.turned(np.maximum(finite(path, stored), 0))
    return volume, geometry.affine(volume.shape)


def read_grid(
    path: Path, geometry: Geometry, name: str = "data", channels: int | None = None
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Read shape (x, y, z) and affine, without reading voxels.

    Args:
        path: path of the file.
        geometry: position of its voxels.
        name: name of the array in an `.npz`.
        channels: number that the array must have, if it is known.

    Raises:
        UserError: the file is damaged, or has other axes or channels.
    """
    shape = _shape(path, name, channels)[1:]
    z, y, x = (shape[axis] for axis in geometry.backward)
    return (x, y, z), geometry.affine((x, y, z))


def _shape(path: Path, name: str = "data", channels: int | None = None) -> tuple[int, ...]:
    """Read the shape (C, D, H, W) of the images or labels.

    Raises:
        UserError: as `read_grid`.
    """
    if path.suffix == ".npz" and name not in npz_names(path):
        raise UserError(f"{path} has no array {name!r}; preprocess the case again")
    shape = b2nd_shape(path) if path.suffix == ".b2nd" else npz_shape(path, name)
    if len(shape) != 4:
        raise UserError(f"{path} has an array of shape {shape}; (channels, z, y, x) is expected")
    if channels is not None and shape[0] != channels:
        raise UserError(f"{path} has {shape[0]} channels, {HEADER} {channels}")
    return shape


READER = Reader(_matches, _read, frozenset({"configuration"}))
