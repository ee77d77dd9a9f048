"""Prediction: label maps of raw scans on their own grids, from finetuned weights, without labels or prepared data.

One Ray task per scan. A scan is finished when its label map exists, and the same command after a kill continues with
the others. `--out` then holds:

    <case>.nii.gz        label map on the grid of the scan, with its header and the names of classes
    <case>.npz           `--probabilities`: array `probabilities`, (classes + 1, D, H, W) float16
    labels.txt           names and colours of classes for ITK-SNAP
    labels.ctbl          the same for 3D Slicer
    prediction.json      source, weights and settings, so that two predictions never mix
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from anatomask.cluster import running
from anatomask.cluster_settings import ClusterConfig
from anatomask.config import PredictConfig
from anatomask.data.addresses import is_address, public_address
from anatomask.data.datasets.base import RawDataset
from anatomask.data.datasets.scans import read_scans
from anatomask.data.memory import in_units
from anatomask.data.outdated import outdated_note
from anatomask.data.preprocess import shared_grid
from anatomask.data.resampling import target_shape
from anatomask.data.storage import Storage
from anatomask.errors import UserError, unexpected
from anatomask.evaluation.ensemble import require_alike
from anatomask.evaluation.forward import forward_pass
from anatomask.evaluation.label_names import ITK_SNAP, SLICER, itk_snap, slicer
from anatomask.evaluation.network import read_network, require_channel_order
from anatomask.evaluation.prediction import LABEL_MAP, PROBABILITIES, Prediction, bytes_of, class_names, require_apart
from anatomask.evaluation.predictor import mirror_axes
from anatomask.runs.prediction import claim_prediction, finished_cases, prediction_identity
from anatomask.stages.cases import map_cases
from anatomask.stages.remarks import little_context
from anatomask.terminal.printing import remark, show_failures
from anatomask.weights.files import find_weights
from anatomask.weights.tensor_files import Weights


@dataclass(frozen=True)
class Task:
    """Weights, source and output, once they are checked."""

    weights: list[Weights]
    folders: list[Path]
    """Folders of the weights."""
    raw: RawDataset
    out: Storage


def plan(config: PredictConfig) -> list[tuple[str, str]]:
    """Return the rows of the dry run."""
    task = _look(config)
    cases = [case.case for case in task.raw.cases]
    needs, failures = _needs(config, task, cases)
    passes = [2 ** len(mirror_axes(one.header, config.inference)) for one in task.weights]
    header = task.weights[0].header
    largest = max(needs, key=lambda case: needs[case], default="")
    return [
        ("runs", ", ".join(map(public_address, config.run))),
        ("source", f"{config.source} ({task.raw.reader})"),
        ("scans", f"{len(cases)}, of which {len(finished_cases(task.out, cases))} are finished"),
        *(("note", note) for note in (*_remarks(task), *_outdated(task))),
        *(("cannot be read", f"{case}: {why}") for case, why in failures.items()),
        ("classes", f"{header['architecture']['classes']}"),
        ("spacing", " × ".join(f"{mm:g}" for mm in header["spacing"]) + " mm"),
        ("windows", f"{' × '.join(map(str, header['patch_size']))} voxels, {sum(passes)} forward passes each"),
        ("memory that the largest scan reserves", f"{in_units(needs[largest])} ({largest})" if largest else "none"),
        ("out", config.out),
    ]


def stage(config: PredictConfig, *, overwrite: bool = False) -> int:
    """Predict what is not finished yet; return 1 if a scan failed."""
    task = _look(config)
    for note in _remarks(task):
        remark(note)
    cases = [case.case for case in task.raw.cases]
    source = Path(config.source)
    identity = prediction_identity(source, config.checkpoint, task.folders, config.inference, config.probabilities)
    claim_prediction(task.out, identity, cases, overwrite=overwrite)
    names = class_names(task.weights[0])
    task.out.write(ITK_SNAP, itk_snap(names).encode())
    task.out.write(SLICER, slicer(names).encode())
    finished = finished_cases(task.out, cases)
    for note in _outdated(task):
        remark(note)
    needs, failures = _needs(config, task, [case for case in cases if case not in finished])
    prediction = Prediction(
        task.out,
        {case.case: case for case in task.raw.cases if case.case in needs},
        config.inference,
        config.probabilities,
    )
    failures |= predict_cases(prediction, task.weights, needs, config.cluster) if needs else {}
    task.out.clear_unfinished((".",))
    _tell(config, task, cases, finished, failures)
    return 1 if failures else 0


def _look(config: PredictConfig) -> Task:
    """Read weights and source, and check that they can be used together.

    Raises:
        UserError: a run has no segmentation network, runs cannot be averaged, there is no scan, or source and output
            lie in one another.
    """
    if is_address(config.out) or is_address(config.source):
        raise UserError("--source and --out must be on this machine; name local paths")
    folders = [find_weights(run, config.checkpoint) for run in config.run]
    weights = [read_network(folder) for folder in folders]
    require_alike(weights, tuple(map(public_address, config.run)))
    source, out = Path(config.source).absolute(), Path(config.out).absolute()
    require_apart(source, out, "--source", "--out")
    raw = read_scans(source, config.dataset, config.reader)
    require_channel_order(weights[0].header, raw.channel_names, config.source)
    return Task(weights, folders, raw, Storage(out))


def _remarks(task: Task) -> list[str]:
    """List what may surprise: how the source was read, and scans that are small beside a window."""
    header = task.weights[0].header
    shapes = {}
    for raw in task.raw.cases:
        with suppress(Exception):  # whatever a broken file makes its library do: its turn comes
            grid = shared_grid(raw)
            shapes[raw.case] = target_shape(grid.shape, grid.spacing, header["spacing"])
    return [*task.raw.remarks, *little_context(shapes, header["patch_size"])]


def _outdated(task: Task) -> list[str]:
    return outdated_note(task.raw.cases, task.out.times(".", LABEL_MAP), task.out.show(f"<case>{LABEL_MAP}"))


def _needs(config: PredictConfig, task: Task, cases: list[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Find the bytes that each case takes by its header, and why a header cannot be read."""
    known = {case.case: case for case in task.raw.cases}
    needs: dict[str, int] = {}
    failures: dict[str, str] = {}
    if not cases:
        return needs, failures
    forward = forward_pass(task.weights, config.inference)
    for case in cases:
        try:
            needs[case] = bytes_of(known[case], task.weights, config.inference, forward)
        except UserError as error:
            failures[case] = str(error)
        except Exception as error:  # whatever a broken file makes its library do
            failures[case] = unexpected(known[case].images[0].path, error)
    return needs, failures


def predict_cases(
    prediction: Prediction, weights: list[Weights], needs: Mapping[str, int], cluster: ClusterConfig
) -> dict[str, str]:
    """Predict the scans, one Ray task each; return the reason of each that failed."""
    with running(cluster):
        return map_cases("predicting", prediction, weights, needs, cluster)


def _tell(config: PredictConfig, task: Task, cases: list[str], before: set[str], failures: Mapping[str, str]) -> None:
    """Print the failures, and what lies where."""
    show_failures("predict", failures)
    written = len(cases) - len(failures)
    files = f"<case>{LABEL_MAP}" + (f", <case>{PROBABILITIES}" if config.probabilities else "")
    classes = len(class_names(task.weights[0]))
    lines = [
        f"{written} of {len(cases)} scans are predicted ({written - len(before)} now): {config.out}/{files}",
        f"names and colours of the {classes} classes: {ITK_SNAP} (ITK-SNAP), {SLICER} (3D Slicer)",
    ]
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
