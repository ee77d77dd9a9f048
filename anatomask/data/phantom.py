"""Generated CT-like volumes for users without data: one anatomy, deformed, scanned, written as TotalSegmentator v1."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from anatomask.data.claims import Writer, require_same
from anatomask.data.datasets.totalsegmentator import class_names
from anatomask.data.phantom_anatomy import Painter, Patient
from anatomask.data.phantom_atlas import BOTTOM, HALF_DEPTH, HALF_WIDTH, MIDDLE, TOP
from anatomask.data.phantom_shapes import AIR, Canvas, correlated_noise, smooth_field
from anatomask.data.settings import PhantomConfig
from anatomask.data.splits import SplitConfig, split_patients
from anatomask.data.storage import Storage
from anatomask.errors import UserError

FOLDER = "Totalsegmentator_dataset"
SETTINGS = "phantom.json"
PHANTOM = Writer("phantom", SETTINGS, (FOLDER,), ("cases", "size", "spacing", "seed"), "choose another --out")
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "PSR", "ASL")
FEWEST_VOXELS = 10
"""Voxels in the field of view below which a class is left out."""


@dataclass(frozen=True)
class Scan:
    """One phantom on the grid that its scanner wrote."""

    hu: NDArray[np.int16]
    """CT numbers in HU, on the axes of `affine`."""
    label: NDArray[np.uint8]
    """Class ids on the grid of `hu`; 0 is background."""
    affine: NDArray[np.float64]
    """Affine (4, 4) from voxel indices to mm, right-anterior-superior."""


def make_scan(config: PhantomConfig, index: int) -> Scan:
    """Generate scan number `index`, which depends on the seed, the size and the spacing, not on the number of cases."""
    rng = np.random.default_rng([config.seed, index])
    spacing, axes = _field_of_view(config, rng)
    shape = [len(axis) for axis in axes]
    zoom = (axes[0][1] - axes[0][0]) / spacing[0]
    canvas = Canvas(axes, _deformation(rng, axes), softness=float(zoom * np.prod(spacing) ** (1 / 3)))
    patient = Patient(
        fat=rng.uniform(6, 26), contrast=rng.choice([0.0, rng.uniform(0.4, 1.0)], p=[0.25, 0.75]),
        bone=rng.uniform(0.8, 1.1), gas=rng.uniform(0.2, 0.9),
    )  # fmt: skip
    Painter(canvas, patient, {name: number for number, name in class_names().items()}, rng).paint()
    _table(canvas)
    hu = _acquire(canvas, rng)
    label = canvas.label
    counts = np.bincount(label.ravel(), minlength=256)
    label[(counts < FEWEST_VOXELS)[label]] = 0
    affine: NDArray[np.float64] = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-spacing[0] * (shape[0] - 1) / 2, -spacing[1] * (shape[1] - 1) / 2, rng.uniform(-900, 100)]
    return _reorient(hu, label, affine.round(4), str(rng.choice(ORIENTATIONS)))


def write_phantom(config: PhantomConfig, *, overwrite: bool = False) -> Iterator[str]:
    """Write the data set and yield the name of each case as it is complete; cases that were complete are kept.

    Raises:
        UserError: the folder holds a phantom of other settings, or other files.
    """
    storage = Storage(config.out)
    settings = {name: value for name, value in asdict(config).items() if name != "out"}
    before = PHANTOM.earlier(storage)
    if before is not None and overwrite:
        _clear(storage)
    elif before is not None:
        remedy = "choose another --out, or begin anew with --overwrite"
        require_same(storage.show(), "a phantom", before, settings, remedy)
    storage.write_json(SETTINGS, settings)
    rows = [f"{case};;;phantom;ct trunk;{split}" for case, split in sorted(_split(config).items())]
    storage.write(
        f"{FOLDER}/meta.csv", "\n".join(["image_id;age;gender;institute;study_type;split", *rows, ""]).encode()
    )
    return _write_cases(config, storage)


def case_names(config: PhantomConfig) -> list[str]:
    """List the names of the cases, in the style of TotalSegmentator."""
    return [f"s{index:04d}" for index in range(config.cases)]


def _field_of_view(
    config: PhantomConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    """Draw the voxel size in mm, and the anatomical coordinates (mm in the reference body) along each axis."""
    plane = config.spacing * rng.uniform(0.8, 1.25)
    spacing = np.round([plane, plane, config.spacing * rng.uniform(0.8, 1.7)], 2)
    width = config.size * config.spacing * rng.uniform(0.9, 1.1)
    zoom = 2 * HALF_WIDTH * rng.uniform(1.05, 1.2) / width  # reference mm per mm of this body
    length = rng.uniform(300, 470)
    low = rng.uniform(BOTTOM, TOP - length)
    spans = [width * zoom / 2, HALF_DEPTH * rng.uniform(1.15, 1.3)]
    axes = []
    for step, span, shift in zip(spacing[:2], spans, rng.normal((0, MIDDLE), 6), strict=True):
        count = int(np.ceil(2 * span / (zoom * step)))
        axes.append(((np.arange(count) - (count - 1) / 2) * step * zoom + shift).astype(np.float32))
    count = int(np.ceil(length / (zoom * spacing[2])))
    axes.append((low + np.arange(count) * spacing[2] * zoom).astype(np.float32))
    return spacing, axes


def _deformation(rng: np.random.Generator, axes: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Draw a displacement (3, D, H, W) in mm: the body is turned and sheared a little, and bent smoothly."""
    shape = [len(axis) for axis in axes]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    matrix = rng.normal(0, 0.02, (3, 3))
    field = np.stack([smooth_field(rng, shape, (4, 4, 4)) for _ in range(3)])
    field *= np.array([6, 5, 7], dtype=np.float32)[:, None, None, None]
    middle = [0.0, 0.0, 150.0]
    for row in range(3):
        for column in range(3):
            field[row] += np.float32(matrix[row, column]) * (grid[column] - np.float32(middle[column]))
    return field


def _table(canvas: Canvas) -> None:
    """Paint the carbon shell of the table, close behind the back; it does not bend with the patient."""
    x, y = (axis.reshape([-1 if i == n else 1 for i in range(3)]) for n, axis in enumerate(canvas.axes[:2]))
    skin = canvas.hu > AIR / 2
    rows = np.nonzero(skin.any(axis=(0, 2)))[0]
    back = canvas.axes[1][rows[0]] if len(rows) else -HALF_DEPTH
    top = back - 4 + 0.0009 * x**2 - y
    inside = np.where(skin, -np.inf, np.minimum(top, 230 - np.abs(x)))
    cover = np.clip(0.5 + inside / canvas.softness, 0, 1) * (np.clip(1.5 - np.abs(inside - 2) / canvas.softness, 0, 1))
    canvas.hu += np.asarray(cover * (-150 - canvas.hu), dtype=np.float32)


def _acquire(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.int16]:
    """Simulate the scanner: blur, noise correlated by its filter, and a round field of view for some scans."""
    hu = gaussian_filter(canvas.hu, 0.45).astype(np.float32)
    noise = correlated_noise(rng, hu.shape, (0.65, 0.65, 0.4)) * np.float32(rng.uniform(8, 20))
    hu += noise * np.where(hu < AIR / 2, np.float32(0.6), np.float32(1))
    if rng.random() < 0.3:
        x, y = canvas.axes[0][:, None, None], canvas.axes[1][None, :, None]
        outside = np.hypot(x - x.mean(), y - y.mean()) > 0.5 * (x.max() - x.min())
        hu = np.where(outside, -1024, hu)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def _reorient(hu: NDArray[np.int16], label: NDArray[np.uint8], affine: NDArray[np.float64], axcodes: str) -> Scan:
    """Store the same scan with its axes in another order and direction."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
    images = [nib.Nifti1Image(array, affine).as_reoriented(change) for array in (hu, label)]
    arrays = [np.ascontiguousarray(image.dataobj) for image in images]
    return Scan(arrays[0], arrays[1], images[0].affine)


def _write_cases(config: PhantomConfig, storage: Storage) -> Iterator[str]:
    for index, case in enumerate(case_names(config)):
        if not storage.exists(f"{FOLDER}/{case}/ct.nii.gz"):
            _write_case(storage, f"{FOLDER}/{case}", make_scan(config, index))
        yield case


def _write_case(storage: Storage, folder: str, scan: Scan) -> None:
    """Write one binary file per class, empty ones too, as the real data set has; the CT last, to complete the case."""
    present = set(np.unique(scan.label).tolist())
    empty = _nifti(np.zeros(scan.label.shape, dtype=np.uint8), scan.affine)
    for number, name in class_names().items():
        data = _nifti((scan.label == number).astype(np.uint8), scan.affine) if number in present else empty
        storage.write(f"{folder}/segmentations/{name}.nii.gz", data)
    storage.write(f"{folder}/ct.nii.gz", _nifti(scan.hu, scan.affine))


def _nifti(array: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _split(config: PhantomConfig) -> dict[str, str]:
    """Draw the split of each case as for any data set: case -> split."""
    splits = split_patients({case: case for case in case_names(config)}, SplitConfig(seed=config.seed))
    return {case: split for split, cases in splits.items() for case in cases}


def _clear(storage: Storage) -> None:
    """Delete a phantom.

    Raises:
        UserError: other files lie among the phantom's own.
    """
    masks = "|".join(re.escape(f"{name}.nii.gz") for name in class_names().values())
    cases = [case for case in storage.folders(FOLDER) if re.fullmatch(r"s\d{4,}", case)]
    foreign = storage.foreign(FOLDER, r"meta\.csv|s\d{4,}")
    for case in cases:
        foreign += storage.foreign(f"{FOLDER}/{case}", r"ct\.nii\.gz|segmentations")
        foreign += storage.foreign(f"{FOLDER}/{case}/segmentations", masks)
    if foreign:
        raise UserError(f"{storage.show(foreign[0])} is of no phantom; move it elsewhere, or choose another --out")
    storage.clear(FOLDER)
    storage.clear(SETTINGS)
