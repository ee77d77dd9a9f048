"""Figures of a report: ground truth and predictions of runs side by side, on a slice of each case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from anatomask.data.shards import PreparedDataset
from anatomask.data.slices import best_slice
from anatomask.names import file_name
from anatomask.reports.evaluated_runs import EvaluatedRun
from anatomask.reports.figures import CT_WINDOW, OverlayRow, Panel, overlay_figure, write_figure
from anatomask.reports.predictions import CaseLabels, choose_cases, read_labels, run_titles, score_text


def overlay_paths(folder: Path, datasets: Iterable[str]) -> dict[str, Path]:
    """Name each data set's figure in `folder`; names that make the same file name are numbered."""
    names: dict[str, str] = {}
    for dataset in datasets:
        name = file_name(dataset.lower()).strip("-")
        numbered = (name, *(f"{name}.{number}" for number in range(2, len(names) + 2)))
        names[dataset] = next(candidate for candidate in numbered if candidate not in names.values())
    return {dataset: folder / f"overlays-{name}.png" for dataset, name in names.items()}


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
    rows = [_overlay(dataset, case, runs) for case in choose_cases(runs, cases)]
    write_figure(overlay_figure(rows, dataset.class_names, _caption(dataset, rows, run_titles(runs)[0])), path)


def _caption(dataset: PreparedDataset, rows: Sequence[OverlayRow], first: str) -> str:
    low, high = rows[0].window
    grey = f", window {low:g} to {high:g} HU" if dataset.info.schemes[0] == "ct" else ""
    order = f"cases from the best to the worst of {first}" if len(rows) > 1 else f"the median case of {first}"
    return (
        f"{dataset.name}: {order}. Axial slices with most organs, patient's right on the left{grey}. "
        "DSC: mean over the organs of the whole scan."
    )


def _overlay(dataset: PreparedDataset, case: str, runs: Sequence[EvaluatedRun]) -> OverlayRow:
    """Draw the slice of a case that shows most of its organs, on the grid on which it was scored."""
    labels = read_labels(dataset, case, runs)
    index = best_slice(labels.truth)
    right, anterior, _ = labels.spacing
    panels = [Panel("Ground truth", "", labels.truth[:, :, index])]
    for run, title, prediction in zip(runs, run_titles(runs), labels.predictions, strict=True):
        panels.append(Panel(title, score_text(run, case), prediction[:, :, index]))
    image = _image_slice(dataset, labels, index)
    window = CT_WINDOW if dataset.info.schemes[0] == "ct" else tuple(np.percentile(image, (1, 99.5)))
    return OverlayRow(case, image, (float(right), float(anterior)), panels, window)


def _image_slice(dataset: PreparedDataset, labels: CaseLabels, index: int) -> np.ndarray:
    """Interpolate the prepared scan's first channel (R, A) linearly onto one axial slice of the grid of `labels`."""
    volume, _ = dataset.read_volume(labels.case, label=False)
    scan = nib.Nifti1Image(volume[0].astype(np.float32), np.asarray(dataset.records[labels.case].affine))
    offset = nib.affines.from_matvec(np.eye(3), (0, 0, index))
    plane = (*labels.truth.shape[:2], 1), labels.affine @ offset
    return np.asarray(resample_from_to(scan, plane, order=1, cval=float(volume[0].min())).dataobj)[:, :, 0]
