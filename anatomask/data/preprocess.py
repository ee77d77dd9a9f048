"""One raw case to one prepared volume: orientation, spacing, voxel type."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations
from scipy import ndimage

from anatomask.data.classes import refuse_unknown
from anatomask.data.datasets.base import RawCase, RawImage, RawLabel, is_nifti
from anatomask.data.fingerprint import Scheme
from anatomask.data.grids import same_grid
from anatomask.data.memory import TooLarge, available_memory, bytes_to_prepare, product
from anatomask.data.modality import refuse_label_map
from anatomask.data.nifti import require_spacing
from anatomask.data.records import PreparedCase, triple
from anatomask.data.resampling import (
    ANISOTROPIC,
    resample_image,
    resample_label,
    resampled_affine,
    separate_axis,
    target_shape,
)
from anatomask.errors import UserError

FLOAT16_SAFE = 32768.0
"""Value below the largest float16 (65504), with room for the sums that statistics need."""
HALF_MAX = float(np.finfo(np.float16).max)
LARGEST: dict[Scheme, float] = {"ct": 1e6, "zscore": 1e9, "quantitative": HALF_MAX, "none": HALF_MAX}
"""Largest absolute value of a channel, by its scheme.

Larger values of "ct" and "zscore" mark missing data or damage, and would swamp the others. The other schemes allow no
factor, so their limit is that of half floats.
"""
LARGER_SPACING = (
    "correct the voxel size in its header, leave it out, choose a larger --preprocess.spacing, or take a machine with "
    "more memory"
)
"""Advice where a scan is too large to be prepared."""


@dataclass(frozen=True)
class Grid:
    """Grid of a scan in RAS axes: shape in voxels, spacing in mm."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


def prepare_case(
    raw: RawCase,
    schemes: Sequence[Scheme],
    classes: Collection[int],
    spacing: Sequence[float],
    memory: int | None = None,
) -> PreparedCase:
    """Read one case, turn it to RAS and resample it: images cubic, labels class by class, thick slices one by one.

    Args:
        raw: the case's files.
        schemes: scheme per channel; "ct" is stored as int16 HU, every other one as float16.
        classes: ids that the label may hold besides 0.
        spacing: target in mm (R, A, S).
        memory: bytes that it may take at its peak. Default: what the machine has free.

    Raises:
        TooLarge: the case would take more; only headers were read.
        UserError: a file is missing, damaged, not 3-D or not finite, does not say its spacing in mm, or is smaller than
            a voxel, the files' grids differ, values are too large for their scheme, every voxel of every channel is
            the same, a channel of whole numbers is a label map, or the label holds a value that is not a class. The
            message names the file.
    """
    grid = shared_grid(raw)
    require_memory(str(raw.images[0].path), grid, spacing, len(raw.images), memory)
    for image in raw.images:
        if is_nifti(image.path):
            require_spacing(image.path)
    require_extent(str(raw.images[0].path), grid, spacing)
    volumes, affine = read_images(raw.images)
    original_shape = volumes[0].shape
    label = None
    if raw.label is not None:
        voxels = read_label(raw.label, raw.images[0].path, original_shape, affine)
        refuse_unknown(raw.label.path, voxels, classes)
        label = voxels.astype(np.uint8)
    check_voxels([str(image.path) for image in raw.images], volumes, schemes)
    for image, volume, scheme in zip(raw.images, volumes, schemes, strict=True):
        if scheme != "none":
            refuse_label_map(str(image.path), volume)
    target = target_grid(original_shape, affine, spacing)
    if label is not None:
        oriented = orientations.apply_orientation(label, target.to_ras)
        resampled_label = resample_label(oriented, target.shape, target.separate)
    return PreparedCase(
        case=raw.case,
        patient=raw.patient,
        images=resample_images(volumes, schemes, target),
        schemes=tuple(schemes),
        label=None if label is None else resampled_label,
        affine=target.affine,
        original_shape=triple(original_shape, int),
        original_affine=affine,
        original_label=label,
    )


@dataclass(frozen=True)
class TargetGrid:
    """The grid to which a scan is resampled."""

    to_ras: np.ndarray
    """Orientation (3, 2), as of nibabel, that turns the scan's axes to RAS."""
    shape: tuple[int, int, int]
    """Voxels in RAS axes."""
    separate: int | None
    """RAS axis of thick slices, which are resampled one by one."""
    affine: np.ndarray
    """Matrix (4, 4) from voxel indices to mm."""


def target_grid(shape: Sequence[int], affine: np.ndarray, spacing: Sequence[float]) -> TargetGrid:
    """Find the grid of `spacing` mm (R, A, S) that covers a scan of `shape` voxels in its own axes."""
    to_ras = nib.io_orientation(affine)
    ras_affine = affine @ orientations.inv_ornt_aff(to_ras, shape)
    own = ras_grid(shape, affine)
    new_shape = triple(target_shape(own.shape, own.spacing, spacing), int)
    resampled = resampled_affine(ras_affine, own.shape, new_shape)
    return TargetGrid(to_ras, new_shape, separate_axis(own.spacing, spacing), resampled)


def resample_images(
    volumes: Sequence[np.ndarray], schemes: Sequence[Scheme], target: TargetGrid
) -> tuple[np.ndarray, ...]:
    """Turn channels (D, H, W) to RAS axes, resample them by cubic splines, and store them by their schemes."""
    oriented = [orientations.apply_orientation(volume, target.to_ras) for volume in volumes]
    return tuple(
        to_stored_type(_resample(volume, target.shape, scheme, target.separate), scheme)
        for volume, scheme in zip(oriented, schemes, strict=True)
    )


def check_voxels(names: Sequence[str], volumes: Sequence[np.ndarray], schemes: Sequence[Scheme]) -> None:
    """Check that channels hold a scan, and values that their schemes can keep.

    Raises:
        UserError: every voxel of every channel is the same, or a value is too large; the message uses `names`.
    """
    if all(volume.min() == volume.max() for volume in volumes):
        value = float(volumes[0].flat[0])
        raise UserError(f"{names[0]} is {value:g} in every voxel: no scan; convert it again or leave it out")
    for name, volume, scheme in zip(names, volumes, schemes, strict=True):
        _fits(name, volume, scheme)


def require_memory(
    name: str,
    grid: Grid,
    spacing: Sequence[float],
    channels: int,
    memory: int | None = None,
    remedy: str = LARGER_SPACING,
) -> None:
    """Check that a scan can be resampled to `spacing` mm in `memory` bytes. Default: what the machine has free.

    Raises:
        TooLarge: it takes more; the message uses `name` and ends with `remedy`.
    """
    new_shape = target_shape(grid.shape, grid.spacing, spacing)
    needs = bytes_to_prepare(grid.shape, new_shape, channels)
    limit = available_memory() if memory is None else memory
    if needs > limit:
        raise TooLarge(
            f"{name} has {product(grid.shape)} voxels of {product(grid.spacing)} mm, which become "
            f"{product(new_shape)} of {product(spacing)} mm",
            needs,
            limit,
            remedy,
        )


def require_extent(name: str, grid: Grid, spacing: Sequence[float]) -> None:
    """Check that a scan is at least as long as half a voxel of `spacing` mm along each axis.

    Raises:
        UserError: it is shorter, as when its voxel size is in metres; the message uses `name`.
    """
    if any(round(n * old / new) < 1 for n, old, new in zip(grid.shape, grid.spacing, spacing, strict=True)):
        raise UserError(
            f"{name} has {product(grid.shape)} voxels of {product(grid.spacing)} mm, which is less than a voxel of "
            f"{product(spacing)} mm; correct the voxel size in its header, or leave it out"
        )


def to_stored_type(volume: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Convert to int16 HU for "ct", else to float16.

    "zscore" volumes are scaled by the power of two that brings the peak just below `FLOAT16_SAFE`. A z-score does not
    depend on the factor, and neither large nor tiny units lose precision.
    """
    if scheme == "ct":
        limits = np.iinfo(np.int16)
        return np.clip(np.rint(volume), limits.min, limits.max).astype(np.int16)
    if scheme != "zscore":
        return volume.astype(np.float16)
    peak = largest(volume)
    exponent = math.frexp(FLOAT16_SAFE)[1] - 1 - math.frexp(peak)[1]
    return np.ldexp(volume.astype(np.float64), exponent).astype(np.float16)


def _resample(volume: np.ndarray, shape: Sequence[int], scheme: Scheme, separate: int | None) -> np.ndarray:
    """Resample the volume (float32) to its new grid; where background is 0 (all but "ct"), it stays 0.

    Splines ring: if background did not stay 0, half of it would be counted as body.
    """
    result = resample_image(volume, shape, separate)
    if scheme != "ct" and result.shape != volume.shape and not volume.all():
        body = ndimage.binary_fill_holes(volume != 0)
        result[resample_label(body.astype(np.uint8), shape, separate) == 0] = 0
    return result


def shared_grid(raw: RawCase) -> Grid:
    """Read the grid on which the images of a case lie, without reading their voxels.

    Raises:
        UserError: as `RawImage.grid`, or the images do not lie on one grid.
    """
    first = raw.images[0]
    shape, affine = first.grid(first.path)
    for image in raw.images[1:]:
        same_grid(image.path, *image.grid(image.path), first.path, shape, affine)
    return ras_grid(shape, affine)


def grid_of(image: RawImage) -> Grid:
    """Read a scan's grid, without reading its voxels.

    Raises:
        UserError: as `RawImage.grid`.
    """
    return ras_grid(*image.grid(image.path))


def ras_grid(stored_shape: Sequence[int], affine: np.ndarray) -> Grid:
    """Find the grid in RAS axes of a scan of `stored_shape` voxels in its own axes."""
    to_ras = nib.io_orientation(affine)
    ras_affine = affine @ orientations.inv_ornt_aff(to_ras, stored_shape)
    shape = [0, 0, 0]
    for axis, (ras_axis, _) in enumerate(to_ras):
        shape[int(ras_axis)] = stored_shape[axis]
    return Grid(triple(shape, int), triple(nib.affines.voxel_sizes(ras_affine), float))


def readable_grids(cases: Iterable[RawCase]) -> list[Grid]:
    """Read the grids of those cases whose first image has a readable header."""
    grids = []
    for raw in cases:
        try:
            grids.append(grid_of(raw.images[0]))
        except Exception:  # whatever a broken file makes its library do
            continue  # listed with its reason when its turn comes
    return grids


def planned_spacing(grids: Sequence[Grid]) -> tuple[tuple[float, float, float], int | None]:
    """Plan a voxel size as nnU-Net 2.8.1 does (`ExperimentPlanner.determine_fullres_target_spacing`).

    It is the median along each axis. Where the median scan has thick slices and few of them, both by a factor of 3, it
    is the tenth percentile across them, but no less than along the other axes.

    Returns:
        The size in mm per RAS axis, to a thousandth of a millimetre, and the axis of thick slices, None where there is
        none.
    """
    spacings, shapes = (np.array([getattr(grid, name) for grid in grids]) for name in ("spacing", "shape"))
    target, extent = np.median(spacings, axis=0), np.median(shapes, axis=0)
    thick = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != thick]
    fine = max(target[others])
    if target[thick] > ANISOTROPIC * fine and extent[thick] * ANISOTROPIC < min(extent[others]):
        target[thick] = max(np.percentile(spacings[:, thick], 10), fine)
        return triple(target.round(3), float), thick
    return triple(target.round(3), float), None


def read_images(images: Sequence[RawImage]) -> tuple[list[np.ndarray], np.ndarray]:
    """Read the channels of a case, (D, H, W) each, and the affine (4, 4) of the first.

    Raises:
        UserError: a file cannot be read or holds values that are no measurement, or the channels do not lie on one
            grid. The message names the file.
    """
    volumes: list[np.ndarray] = []
    affine = np.eye(4)
    for image in images:
        volume, own = image.read(image.path)
        if largest(volume) > max(LARGEST.values()):
            raise UserError(
                f"{image.path} has values up to {largest(volume):.3g}, which no scanner measures (a mark for missing "
                "data?); repair it or leave it out"
            )
        if not volumes:
            affine = own
        else:
            same_grid(image.path, volume.shape, own, images[0].path, volumes[0].shape, affine)
        volumes.append(volume)
    return volumes, affine


def largest(volume: np.ndarray) -> float:
    """Return the largest absolute value."""
    return max(-float(volume.min()), float(volume.max()))  # np.abs overflows for the smallest integer


def _fits(name: str, volume: np.ndarray, scheme: Scheme) -> None:
    """Refuse values that are too large to be stored."""
    if largest(volume) > LARGEST[scheme]:
        raise UserError(
            f"{name} has values beyond ±{LARGEST[scheme]:g}, which normalisation {scheme} cannot keep; "
            "repair it, or choose zscore for this channel (--preprocess.normalisation)"
        )


def read_label(label: RawLabel, image: Path, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Read the voxels (D, H, W) of a label map, after checking by its header that it lies on the grid of its image.

    Raises:
        UserError: the label map cannot be read, or lies on another grid. The message names the file.
    """
    same_grid(label.path, *label.grid(label.path), image, shape, affine)
    voxels, own = label.read(label.path)
    same_grid(label.path, voxels.shape, own, image, shape, affine)
    return voxels
