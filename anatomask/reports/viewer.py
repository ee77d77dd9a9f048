"""Scans of a report's viewer: the image of a case, its ground truth and predictions, small enough for a page."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from anatomask.data.shards import PreparedDataset
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.figures import CT_WINDOW, class_colours
from anatomask.reports.predictions import CaseLabels, choose_cases, read_labels, run_titles, score_text

MARGIN_MM = 30.0
"""Distance around everything labelled that is shown."""
BYTES_PER_VOXEL = 0.7
"""Bytes that a voxel of all volumes of a case takes at first guess."""
NO_EXTENSIONS = bytes(4)
"""End of a NIfTI header that no extensions follow."""
BASE64 = 4 / 3
"""Characters of a page per byte of a volume."""


@dataclass(frozen=True)
class ViewedLabels:
    """One label map of a case."""

    title: str
    score: str
    """Score of the case as text; empty for the ground truth."""
    volume: bytes
    """Label map as gzipped NIfTI."""


@dataclass(frozen=True)
class ViewedCase:
    """A case of the viewer. All volumes have one grid."""

    title: str
    description: str
    image: bytes
    """First channel as gzipped NIfTI, 8 bits within `window`."""
    window: tuple[float, float]
    """Values shown as black and white: HU for CT."""
    labels: Sequence[ViewedLabels]
    class_names: Mapping[int, str]
    colours: Mapping[int, tuple[float, float, float]]
    """Colour of each class, parts from 0 to 1."""

    @property
    def characters(self) -> int:
        """Number of characters that its volumes take in a page."""
        return round(BASE64 * (len(self.image) + sum(len(label.volume) for label in self.labels)))


@dataclass(frozen=True)
class Grid:
    """Part of a case's grid, with larger voxels."""

    start: np.ndarray
    """First voxel of the part (3,)."""
    factor: np.ndarray
    """Size of a voxel in those of the case's grid (3,), at least 1."""
    shape: tuple[int, int, int]

    @property
    def voxels(self) -> int:
        """Number of its voxels."""
        return int(np.prod(self.shape))

    def positions(self) -> list[np.ndarray]:
        """List the centre of each voxel in those of the case's grid, along each axis."""
        return [
            start + (np.arange(length) + 0.5) * factor - 0.5
            for start, factor, length in zip(self.start, self.factor, self.shape, strict=True)
        ]

    def affine(self, of_case: np.ndarray) -> np.ndarray:
        """Return its matrix from voxels to mm, given that of the case's grid."""
        first = [positions[0] for positions in self.positions()]
        return np.asarray(of_case @ nib.affines.from_matvec(np.diag(self.factor), first))


def viewed_cases(runs: Sequence[EvaluatedRun], cases: int, characters: float, dataset_title: str) -> list[ViewedCase]:
    """Make the cases of one data set for the viewer.

    Args:
        runs: runs that were evaluated on the same data set.
        cases: number of cases.
        characters: number of characters that they may take in a page, together.
        dataset_title: name of the data set.

    Raises:
        UserError: the prepared data or a prediction is missing or damaged, or no case was evaluated by all runs.
    """
    dataset = PreparedDataset.open(runs[0].summary["data"])
    chosen = choose_cases(runs, cases)
    return [_viewed_case(dataset, case, runs, characters / len(chosen), dataset_title) for case in chosen]


def _viewed_case(
    dataset: PreparedDataset, case: str, runs: Sequence[EvaluatedRun], characters: float, dataset_title: str
) -> ViewedCase:
    """Make a case of at most that many characters, in voxels no larger than that takes."""
    labels = read_labels(dataset, case, runs)
    volume, _ = dataset.read_volume(case, label=False)
    scan = nib.Nifti1Image(volume[0].astype(np.float32), np.asarray(dataset.records[case].affine))
    low, high = CT_WINDOW if dataset.info.schemes[0] == "ct" else np.percentile(volume[0], (1, 99.5)).tolist()
    window = (low, high if high > low else low + 1)
    texts = [
        ("Ground truth", ""),
        *((title, score_text(run, case)) for title, run in zip(run_titles(runs), runs, strict=True)),
    ]

    def made(grid: Grid) -> ViewedCase:
        affine = grid.affine(labels.affine)
        return ViewedCase(
            title=f"{case} ({dataset_title})",
            description=_description(grid, affine, window, " HU" if dataset.info.schemes[0] == "ct" else ""),
            image=_gzipped(_image(scan, grid, affine, window), affine, window),
            window=window,
            labels=[
                ViewedLabels(title, score, _gzipped(_nearest(label, grid), affine))
                for (title, score), label in zip(texts, [labels.truth, *labels.predictions], strict=True)
            ],
            class_names=dataset.class_names,
            colours=class_colours(dataset.class_names),
        )

    grid = fitting_grid(labels, characters / BASE64 / BYTES_PER_VOXEL)
    found = made(grid)
    if (grid.factor > 1).any():  # the guess may have been too low
        grid = fitting_grid(labels, 0.95 * grid.voxels * characters / found.characters)
        found = made(grid)
    while found.characters > characters and grid.voxels > 1:
        grid = fitting_grid(labels, 0.95 * grid.voxels * characters / found.characters)
        found = made(grid)
    return found


def fitting_grid(labels: CaseLabels, voxels: float) -> Grid:
    """Choose the part around everything labelled, or all of a case without labels, with at most that many voxels.

    The smallest edges of its voxels grow first, so that they become cubes.
    """
    labelled = labels.truth > 0
    for prediction in labels.predictions:
        labelled |= prediction > 0
    size = np.array(labelled.shape)
    start, stop = np.zeros(3, int), size
    if labelled.any():
        margin = np.ceil(MARGIN_MM / labels.spacing).astype(int)
        box = ndimage.find_objects(labelled.astype(np.uint8))[0]
        start = np.maximum([part.start for part in box] - margin, 0)
        stop = np.minimum([part.stop for part in box] + margin, size)
    edge = float(labels.spacing.min())
    while True:
        shape = np.maximum(np.rint((stop - start) / np.maximum(edge / labels.spacing, 1)).astype(int), 1)
        if shape.prod() <= voxels or shape.max() == 1:
            return Grid(start, (stop - start) / shape, (int(shape[0]), int(shape[1]), int(shape[2])))
        edge *= 1.03


def _image(scan: nib.Nifti1Image, grid: Grid, affine: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Interpolate the scan onto the grid, averaged over larger voxels, as 0 to 255 within the window."""
    ratio = nib.affines.voxel_sizes(affine) / nib.affines.voxel_sizes(scan.affine)
    voxels = np.asarray(scan.dataobj)
    if (ratio >= 1.5).any():
        voxels = ndimage.uniform_filter(voxels, [max(1, round(float(part))) for part in ratio], mode="nearest")
    smooth = nib.Nifti1Image(voxels, scan.affine)
    found = resample_from_to(smooth, (grid.shape, affine), order=1, mode="nearest")
    low, high = window
    scaled = (np.asarray(found.dataobj) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _nearest(label: np.ndarray, grid: Grid) -> np.ndarray:
    """Take the label at the centre of each voxel of the grid."""
    positions = [np.rint(one).astype(int) for one in grid.positions()]
    return label[np.ix_(*(np.clip(one, 0, size - 1) for one, size in zip(positions, label.shape, strict=True)))]


def _gzipped(volume: np.ndarray, affine: np.ndarray, window: tuple[float, float] | None = None) -> bytes:
    """Encode a volume as gzipped NIfTI; 0 to 255 mean the values of `window`, if there is one."""
    header = nib.Nifti1Image(volume, affine, dtype=np.uint8).header.copy()
    header["vox_offset"] = len(header.binaryblock) + len(NO_EXTENSIONS)
    if window is None:
        header.set_intent("label")
        header["scl_slope"], header["scl_inter"] = 1, 0
    else:  # nibabel would scale the voxels by this slope once more
        low, high = window
        header["scl_slope"], header["scl_inter"] = (high - low) / 255, low
        header["cal_min"], header["cal_max"] = low, high
    return gzip.compress(header.binaryblock + NO_EXTENSIONS + volume.astype(np.uint8).tobytes("F"), 6, mtime=0)


def _description(grid: Grid, affine: np.ndarray, window: tuple[float, float], unit: str) -> str:
    spacing = " × ".join(f"{edge:.2g}" for edge in nib.affines.voxel_sizes(affine))
    size = "larger than" if (grid.factor > 1).any() else "as in"
    return (
        f"The part within {MARGIN_MM:g} mm of everything labelled, in voxels of {spacing} mm, {size} the scan; grey "
        f"values from {window[0]:g} to {window[1]:g}{unit}. Scores are of the whole scan on its own grid."
    )
