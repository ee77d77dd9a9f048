"""Figures of a report: ground truth and predictions of runs side by side, on a slice of each case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from anatomask.data.shards import PreparedDataset
from anatomask.data.slices import best_slice
from anatomask.names import file_name
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.figures import CT_WINDOW, OverlayRow, Panel, overlay_figure, write_figure
from anatomask.reports.predictions import (
    CaseLabels,
    choose_cases,
    median_and_worst,
    read_labels,
    run_titles,
    score_text,
)

MOST_COLUMNS = 9
"""Number of predictions of a case that are shown at most beside each other."""
NEIGHBOURHOOD_MM = 5.0
"""SD of the Gaussian within which differing voxels are counted."""


def overlay_paths(folder: Path, datasets: Iterable[str], kind: str = "overlays") -> dict[str, Path]:
    """Name each data set's figure of a kind in `folder`; names that make the same file name are numbered."""
    names: dict[str, str] = {}
    for dataset in datasets:
        name = file_name(dataset.lower()).strip("-")
        numbered = (name, *(f"{name}.{number}" for number in range(2, len(names) + 2)))
        names[dataset] = next(candidate for candidate in numbered if candidate not in names.values())
    return {dataset: folder / f"{kind}-{name}.png" for dataset, name in names.items()}


def draw_overlays(path: Path, runs: Sequence[EvaluatedRun], cases: int) -> None:
    """Draw the predictions of runs of one data set side by side.

    Args:
        path: file to write (PNG).
        runs: runs that were evaluated on the same data set.
        cases: number of cases shown.

    Raises:
        UserError: the prepared data or a prediction is missing, or no case was evaluated by all runs.
    """
    dataset = PreparedDataset.open(runs[0].summary["data"])
    rows = []
    for case in choose_cases(runs, cases):
        labels = read_labels(dataset, case, runs)
        rows.append(_overlay(dataset, labels, runs, best_slice(labels.truth)))
    write_figure(overlay_figure(rows, dataset.class_names, _caption(dataset, rows, run_titles(runs)[0])), path)


def draw_differences(path: Path, runs: Sequence[EvaluatedRun]) -> None:
    """Draw the median and the worst case where the predictions of runs of one data set differ most, with an arrow.

    Args:
        path: file to write (PNG).
        runs: two or more runs that were evaluated on the same data set.

    Raises:
        UserError: as `draw_overlays`.
    """
    dataset = PreparedDataset.open(runs[0].summary["data"])
    rows = []
    for case in median_and_worst(runs):
        labels = read_labels(dataset, case, runs)
        index, target = largest_difference(labels)
        rows.append(replace(_overlay(dataset, labels, runs, index), target=target))
    order = "the median and the worst case by the mean DSC of the runs shown" if len(rows) > 1 else "the only case"
    caption = (
        f"{dataset.name}: {order}, on the axial slices on which the predictions differ in most voxels. Arrows point to "
        "where they differ most. Patient's right on the left. DSC: mean over the organs of the whole scan."
    )
    write_figure(overlay_figure(rows, dataset.class_names, caption), path)


def largest_difference(labels: CaseLabels) -> tuple[int, tuple[float, float] | None]:
    """Find where predictions differ most from each other.

    Returns:
        Index of the axial slice on which most voxels have different labels, and the place (R, A) in it around which
        they are densest; the slice that shows most organs and None where all predictions are equal.
    """
    first, *others = labels.predictions
    differing = np.zeros(first.shape, bool)
    for other in others:
        differing |= other != first
    if not differing.any():
        return best_slice(labels.truth), None
    index = int(differing.sum(axis=(0, 1)).argmax())
    sigma = [NEIGHBOURHOOD_MM / edge for edge in labels.spacing[:2]]
    density = ndimage.gaussian_filter(differing[:, :, index].astype(float), sigma, mode="constant")
    right, anterior = np.unravel_index(int(density.argmax()), density.shape)
    return index, (float(right), float(anterior))


def _caption(dataset: PreparedDataset, rows: Sequence[OverlayRow], first: str) -> str:
    low, high = rows[0].window
    grey = f", window {low:g} to {high:g} HU" if dataset.info.schemes[0] == "ct" else ""
    order = f"cases from the best to the worst of {first}" if len(rows) > 1 else f"the median case of {first}"
    return (
        f"{dataset.name}: {order}. Axial slices with most organs, patient's right on the left{grey}. "
        "DSC: mean over the organs of the whole scan."
    )


def _overlay(dataset: PreparedDataset, labels: CaseLabels, runs: Sequence[EvaluatedRun], index: int) -> OverlayRow:
    """Draw an axial slice of a case, on the grid on which it was scored."""
    right, anterior, _ = labels.spacing
    panels = [Panel("Ground truth", "", labels.truth[:, :, index])]
    for run, title, prediction in zip(runs, run_titles(runs), labels.predictions, strict=True):
        panels.append(Panel(title, score_text(run, labels.case), prediction[:, :, index]))
    image = _image_slice(dataset, labels, index)
    window = CT_WINDOW if dataset.info.schemes[0] == "ct" else tuple(np.percentile(image, (1, 99.5)))
    return OverlayRow(labels.case, image, (float(right), float(anterior)), panels, window)


def _image_slice(dataset: PreparedDataset, labels: CaseLabels, index: int) -> np.ndarray:
    """Interpolate the prepared scan's first channel (R, A) linearly onto one axial slice of the grid of `labels`.

    Between the outermost centres of coarser prepared voxels and the scan's edge, the nearest value is taken.
    """
    volume, _ = dataset.read_volume(labels.case, label=False)
    scan = nib.Nifti1Image(volume[0].astype(np.float32), np.asarray(dataset.records[labels.case].affine))
    offset = nib.affines.from_matvec(np.eye(3), (0, 0, index))
    plane = (*labels.truth.shape[:2], 1), labels.affine @ offset
    return np.asarray(resample_from_to(scan, plane, order=1, mode="nearest").dataobj)[:, :, 0]
