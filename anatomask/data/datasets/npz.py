"""NPZ shards: a folder of `<case>.npz`, nested or not, written by `numpy.savez` or `savez_compressed`.

| array | shape | |
|---|---|---|
| `image` | (C, D, H, W) or (D, H, W) | voxels as scanned, for CT in HU |
| `affine` or `spacing` | (4, 4) or (3,) | to RAS mm; with `spacing` in mm alone, the axes point R, A, S |
| `label` | (D, H, W) | optional: whole numbers |
| `patient` | () | optional: whose scan it is; otherwise each case is a patient of its own |

A `dataset.json` beside them, as nnU-Net's, names channels and labels; labels are read only if it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from anatomask.data.arrays import finite, npz_names, npz_shape, read_npz
from anatomask.data.datasets.base import (
    DEFAULT_NSD_TOLERANCE,
    RawCase,
    RawDataset,
    RawImage,
    RawLabel,
    Reader,
)
from anatomask.data.datasets.folder import all_ct
from anatomask.data.datasets.nnunet import SPLITS, chosen_fold, given_folds, read_header, scheme_of
from anatomask.data.fingerprint import Scheme
from anatomask.data.grids import places_voxels
from anatomask.data.listing import files_below, is_file
from anatomask.data.settings import ReaderConfig
from anatomask.errors import UserError

HEADER = "dataset.json"


def _matches(source: Path) -> bool:
    return bool(_files(source))


def _files(source: Path) -> list[Path]:
    return sorted(path for path in files_below(source) if path.suffix == ".npz")


def _read(source: Path, fold: int, options: ReaderConfig) -> RawDataset:
    files = _files(source)
    described = is_file(source / HEADER)
    channels, classes = read_header(source / HEADER)[1:] if described else (_channels(files), {})
    cases = tuple(_case(path, source, len(channels), described) for path in files)
    folds = given_folds(source / SPLITS, {raw.case for raw in cases if raw.label is not None})
    schemes = tuple(map(scheme_of, channels)) if described else _schemes(cases, len(channels))
    return RawDataset(
        reader="npz",
        cases=cases,
        channel_names=channels,
        schemes=schemes,
        class_names=classes,
        nsd_tolerance=dict.fromkeys(classes, DEFAULT_NSD_TOLERANCE),
        splits=chosen_fold(folds, fold, source / SPLITS),
        folds=folds,
        remarks=()
        if described
        else (f"no {HEADER} names channels and labels: labels, if there are any, are not read",),
    )


def _channels(files: Sequence[Path]) -> tuple[str, ...]:
    """Count the channels of the first readable file."""
    for path in files:
        try:
            shape = npz_shape(path, "image")
        except Exception:  # whatever a broken file makes its library do
            continue  # it will be listed with its reason when its turn comes
        return tuple(f"channel {c}" for c in range(shape[0] if len(shape) == 4 else 1))
    raise UserError(f"none of the {len(files)} .npz files, such as {files[0]}, has an array 'image' that can be read")


def _schemes(cases: Sequence[RawCase], channels: int) -> tuple[Scheme, ...]:
    return tuple("ct" if all_ct([raw.images[c] for raw in cases]) else "zscore" for c in range(channels))


def _case(path: Path, source: Path, channels: int, labelled: bool) -> RawCase:
    case = "_".join(path.relative_to(source).with_suffix("").parts)
    try:
        names = npz_names(path)
        patient = str(read_npz(path, "patient")) if "patient" in names else case
    except Exception:  # whatever a broken file makes its library do
        names, patient = set(), case
    readers = (partial(read_image, channel=c, channels=channels) for c in range(channels))
    label = RawLabel(path, read_label, partial(read_grid, name="label")) if labelled and "label" in names else None
    return RawCase(case, patient, tuple(RawImage(path, read, read_grid) for read in readers), label)


def read_image(path: Path, channel: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one channel (D, H, W) and the affine (4, 4).

    Raises:
        UserError: the file does not have this layout.
    """
    image = read_npz(path, "image")
    image = image[None] if image.ndim == 3 else image
    if len(image) != channels:
        raise UserError(f"{path} has {len(image)} channels, the data set {channels}")
    own = image[channel] if channels == 1 else image[channel].copy()  # a view would keep the others in memory
    return finite(path, own), _affine(path)


def read_label(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the label map (D, H, W) and the affine (4, 4).

    Raises:
        UserError: the file does not have this layout.
    """
    return finite(path, read_npz(path, "label")), _affine(path)


def read_grid(path: Path, name: str = "image") -> tuple[tuple[int, int, int], np.ndarray]:
    """Read shape and affine, without reading voxels.

    Raises:
        UserError: the file does not have this layout.
    """
    shape = npz_shape(path, name)
    if len(shape) != 3 and (len(shape) != 4 or name != "image"):
        expected = "(C, D, H, W) or (D, H, W)" if name == "image" else "(D, H, W)"
        raise UserError(f"{path} has an array {name!r} of shape {shape}; {expected} is expected")
    a, b, c = shape[-3:]
    return (a, b, c), _affine(path)


def _affine(path: Path) -> np.ndarray:
    names = npz_names(path)
    if "affine" in names:
        if npz_shape(path, "affine") != (4, 4) or not places_voxels(affine := read_npz(path, "affine")):
            raise UserError(f"{path}: affine must be a (4, 4) matrix with an inverse")
        return affine.astype(np.float64)
    if "spacing" not in names:
        raise UserError(f"{path} has neither affine nor spacing; add spacing, three numbers in mm")
    if npz_shape(path, "spacing") != (3,):
        raise UserError(
            f"{path}: spacing must be three positive numbers in mm; its shape is {npz_shape(path, 'spacing')}"
        )
    spacing = read_npz(path, "spacing")
    if spacing.dtype.kind not in "iuf" or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise UserError(f"{path}: spacing must be three positive numbers in mm, not {spacing.tolist()}")
    return np.diag([*spacing.astype(np.float64), 1.0])


READER = Reader(_matches, _read)
