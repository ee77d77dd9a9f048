"""Put any number of evaluated runs into one table (terminal, Markdown, CSV) and one figure of overlays per data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from rich.console import Console

from anatomask.config import ReportConfig
from anatomask.data.nifti import read_nifti
from anatomask.data.shards import PreparedDataset
from anatomask.data.storage import Storage
from anatomask.errors import UserError
from anatomask.evaluation.results import (
    CASES_FILE,
    PREDICTIONS,
    SUMMARY_FILE,
    case_means,
    check_summary,
    from_csv,
)
from anatomask.names import file_name
from anatomask.reports.figures import CT_WINDOW, OverlayRow, Panel, best_slice, overlay_figure
from anatomask.reports.tables import Row, by_dataset, csv_table, is_csv_table, markdown_table, notes, terminal_table

TABLE = "table.csv"


@dataclass(frozen=True)
class EvaluatedRun:
    """A run's results on disk."""

    folder: Path
    summary: Mapping[str, Any]
    scores: Mapping[str, float]
    """Mean DSC of each case."""


def plan(config: ReportConfig) -> list[tuple[str, str]]:
    """Rows of the dry run."""
    runs = [_read_run(folder) for folder in config.runs]
    _output(config, runs)
    return [
        *(("run", f"{run.folder}: {run.summary['dataset']}, {run.summary['cases']} cases") for run in runs),
        ("table", f"{config.out}/table.md, {config.out}/table.csv"),
        *(("figure", str(path)) for path in _figure_paths(config, _by_dataset(runs)).values()),
    ]


def stage(config: ReportConfig, *, overwrite: bool = False) -> int:
    """Write and print the table, then draw the figures. A report is always written anew."""
    runs = [_read_run(folder) for folder in config.runs]
    rows = [Row.from_summary(run.summary, run.scores.keys()) for run in runs]
    out = _output(config, runs)
    out.write(TABLE, csv_table(rows).encode())  # first: by it, the folder is known as a report's
    out.write("table.md", markdown_table(rows).encode())
    console = Console()
    console.print(terminal_table(rows))
    for note in notes(rows):
        console.print(note, style="dim", markup=False, highlight=False)
    paths = [Path(config.out) / "table.md", Path(config.out) / "table.csv"]
    members = _by_dataset(runs)
    for dataset, path in _figure_paths(config, members).items():
        try:
            paths.append(_draw(config, path, members[dataset]))
        except UserError as error:
            console.print(f"No figure of {dataset}: {error}", markup=False, highlight=False, style="yellow")
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return 0


def _output(config: ReportConfig, runs: Sequence[EvaluatedRun]) -> Storage:
    """The folder for the report. UserError where files of the same names are there that no report wrote."""
    out = Storage(Path(config.out).absolute())
    if not (out.exists(TABLE) and is_csv_table(out.read(TABLE))):
        figures = (path.name for path in _figure_paths(config, _by_dataset(runs)).values())
        out.refuse_foreign((TABLE, "table.md", *figures), "report", "choose another --out")
    return out


def _read_run(folder: str) -> EvaluatedRun:
    storage = Storage(Path(folder).absolute())
    for name in (SUMMARY_FILE, CASES_FILE):
        if not storage.exists(name):
            raise UserError(f"{folder}/{name} is missing; run `anatomask evaluate --run {folder}` first")
    remedy = f"run `anatomask evaluate --run {folder} --overwrite`"
    summary = check_summary(storage.read_json(SUMMARY_FILE, remedy), storage.show(SUMMARY_FILE))
    scores = from_csv(storage.read(CASES_FILE).decode(errors="replace"), storage.show(CASES_FILE), remedy)
    means = case_means(scores, "dsc")
    if len(means) != summary["cases"]:
        raise UserError(
            f"{storage.show(CASES_FILE)} has scores of {len(means)} cases, but {SUMMARY_FILE} counts "
            f"{summary['cases']}; {remedy}"
        )
    return EvaluatedRun(Path(folder), summary, means)


def _by_dataset(runs: Sequence[EvaluatedRun]) -> dict[str, list[EvaluatedRun]]:
    members = by_dataset([(run.summary["dataset"], run.summary["data"]) for run in runs])
    return {dataset: [runs[index] for index in indices] for dataset, indices in members.items()}


def _figure_paths(config: ReportConfig, datasets: Iterable[str]) -> dict[str, Path]:
    """The file of each data set's figure; those whose names differ in nothing that a file name holds are numbered."""
    names: dict[str, str] = {}
    for dataset in datasets:
        name = file_name(dataset.lower()).strip("-")
        numbered = (name, *(f"{name}.{number}" for number in range(2, len(names) + 2)))
        names[dataset] = next(candidate for candidate in numbered if candidate not in names.values())
    return {dataset: Path(config.out) / f"overlays-{name}.png" for dataset, name in names.items()}


def _draw(config: ReportConfig, path: Path, runs: Sequence[EvaluatedRun]) -> Path:
    """Draw the runs of one data set side by side in the file `path`.

    Raises UserError when the prepared data or a prediction is missing, or no case was evaluated by all runs.
    """
    dataset = PreparedDataset.open(runs[0].summary["data"])
    rows = [_overlay(dataset, case, runs) for case in _choose_cases(runs, config.cases)]
    overlay_figure(rows, dataset.class_names, _caption(dataset, rows, _titles(runs)[0]), path)
    return path


def _caption(dataset: PreparedDataset, rows: Sequence[OverlayRow], first: str) -> str:
    low, high = rows[0].window
    grey = f", window {low:g} to {high:g} HU" if dataset.info.schemes[0] == "ct" else ""
    order = f"cases from the best to the worst of {first}" if len(rows) > 1 else f"the median case of {first}"
    return (
        f"{dataset.name}: {order}. Axial slices with most organs, patient's right on the left{grey}. "
        "DSC: mean over the organs of the whole scan."
    )


def _choose_cases(runs: Sequence[EvaluatedRun], count: int) -> list[str]:
    """Cases that all runs evaluated, spread evenly from the first run's best to its worst: no picking."""
    shared = set.intersection(*(set(run.scores) for run in runs))
    if not shared:
        raise UserError("its runs have no evaluated case in common")
    ranked = sorted(shared, key=lambda case: (-runs[0].scores[case], case))
    ranks = [(len(ranked) - 1) / 2] if count == 1 else np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return [ranked[round(float(rank))] for rank in ranks]


def _overlay(dataset: PreparedDataset, case: str, runs: Sequence[EvaluatedRun]) -> OverlayRow:
    """The slice of a case that shows most of its organs, on the grid on which it was scored."""
    truth = nib.as_closest_canonical(dataset.original_label(case))
    labels = np.asarray(truth.dataobj)
    index = best_slice(labels)
    right, anterior, _ = nib.affines.voxel_sizes(truth.affine)
    panels = [Panel("Ground truth", "", labels[:, :, index])]
    for run, title in zip(runs, _titles(runs), strict=True):
        path = run.folder / PREDICTIONS / f"{case}.nii.gz"
        voxels, affine = read_nifti(path)
        if sorted(voxels.shape) != sorted(labels.shape):
            raise UserError(f"{path} has shape {voxels.shape}, the scan {labels.shape}; evaluate the run again")
        prediction = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
        score = f"DSC {100 * run.scores[case]:.1f} %"
        panels.append(Panel(title, score, np.asarray(prediction.dataobj)[:, :, index]))
    image = _image_slice(dataset, case, truth, index)
    window = CT_WINDOW if dataset.info.schemes[0] == "ct" else tuple(np.percentile(image, (1, 99.5)))
    return OverlayRow(case, image, (float(right), float(anterior)), panels, window)


def _image_slice(dataset: PreparedDataset, case: str, grid: nib.Nifti1Image, index: int) -> np.ndarray:
    """The prepared scan's first channel (R, A), linearly interpolated onto one axial slice of `grid`."""
    volume, _ = dataset.read_volume(case, label=False)
    scan = nib.Nifti1Image(volume[0].astype(np.float32), np.asarray(dataset.records[case].affine))
    offset = nib.affines.from_matvec(np.eye(3), (0, 0, index))
    plane = (*grid.shape[:2], 1), grid.affine @ offset
    return np.asarray(resample_from_to(scan, plane, order=1, cval=float(volume[0].min())).dataobj)[:, :, 0]


def _titles(runs: Sequence[EvaluatedRun]) -> list[str]:
    """The method of each run, or the run's name where two runs share a method."""
    methods = [run.summary["method"] for run in runs]
    return [
        run.summary["run"] if methods.count(method) > 1 else method for run, method in zip(runs, methods, strict=True)
    ]
