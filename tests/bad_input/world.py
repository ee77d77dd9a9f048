"""The good input that every kind of bad input starts from, and the verbs without Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from rich.progress import Progress

from anatomask.cli.main import main
from anatomask.cluster_settings import ClusterConfig
from anatomask.cluster_shares import TrainingResources, TrialResources, this_machine
from anatomask.data.memory import available_memory
from anatomask.data.samples import Draw, SampleSequence
from anatomask.data.stream import SampleReader
from anatomask.errors import UserError
from anatomask.evaluation.case import Evaluation
from anatomask.evaluation.prediction import Prediction
from anatomask.training.checkpoints import Checkpoints
from anatomask.training.job import TrainingJob
from anatomask.training.parallel import Workers
from anatomask.training.state import TrainingState
from anatomask.training.worker import run_share
from anatomask.weights.files import Weights
from tests.bad_input.kinds import EVALUATE, GO_ON, SAME_FINETUNING, SAME_PRETRAINING

CASES = ("anna", "bert", "cora", "dora", "emil", "fred")
"""Names of the scans; the last has no label."""
SHAPE = (20, 18, 16)
"""Voxels of a scan, of 2 mm."""
RESOURCES = TrainingResources(1, 1, False, worker_cpus=0.5, readers=1, reader_cpus=0.5, threads=1)
OF_TRIAL = TrialResources(RESOURCES, RESOURCES, side_by_side=1)


class Accepted(Exception):
    """The input was accepted: the work itself would begin now."""


def write_scans(folder: Path) -> None:
    """Write a data set in nnU-Net's layout: noise, with two organs in all but the last scan."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    (folder / "imagesUnlabeled").mkdir()
    header = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}}
    (folder / "dataset.json").write_text(json.dumps(header | {"file_ending": ".nii.gz", "numTraining": len(CASES)}))
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for case in CASES:
        image = rng.integers(-1000, 1000, SHAPE).astype(np.int16)
        label = np.zeros(SHAPE, np.uint8)
        label[2:9, 3:12, 4:11], label[12:17, 5:11, 3:9] = 1, 2
        labelled = case != CASES[-1]
        nib.save(
            nib.Nifti1Image(image, affine),
            folder / ("imagesTr" if labelled else "imagesUnlabeled") / f"{case}_0000.nii.gz",
        )
        if labelled:
            nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"{case}.nii.gz")


def serially(
    progress: Progress, title: str, items: Sequence[Any], work: Callable[[Any], Any], memory: int = 0
) -> Iterator[Any]:
    """Do what `anatomask.stages.mapping.mapped` does, in this process."""
    yield from map(work, items)


def evaluate_serially(
    evaluation: Evaluation, weights: Weights, cases: Sequence[str], cluster: ClusterConfig
) -> dict[str, str]:
    """Do what `anatomask.stages.evaluate.evaluate_cases` does, in this process."""
    failures = {}
    for case in cases:
        try:
            evaluation.finish(weights, case, torch.device("cpu"))
        except UserError as error:
            failures[case] = str(error)
    return failures


def predict_serially(
    prediction: Prediction, weights: list[Weights], needs: Mapping[str, int], cluster: ClusterConfig
) -> dict[str, str]:
    """Do what `anatomask.stages.predict.predict_cases` does, in this process."""
    failures = {}
    for case in needs:
        try:
            prediction.finish(weights, case, torch.device("cpu"))
        except UserError as error:
            failures[case] = str(error)
    return failures


def save_untrained(job: TrainingJob, resources: TrainingResources, max_failures: int) -> None:
    """Write the checkpoint that ends a run, without having trained."""
    cpu = torch.device("cpu")
    state = TrainingState.of(job.build_task(cpu), job.optimiser, cpu)
    with Checkpoints(job.run) as checkpoints:
        checkpoints.save(job.total_steps, state, 0.5)


def batches_here(
    data: Any, sequence: SampleSequence, draw: Draw, samples: np.ndarray, batch_size: int, **options: Any
) -> Iterator[dict[str, np.ndarray]]:
    """Do what `anatomask.data.stream.stream_batches` does, in this process."""
    reader = SampleReader(data, sequence, draw)
    for numbers in samples.reshape(-1, batch_size):
        yield reader({"sample": numbers})


def train_here(job: TrainingJob, resources: TrainingResources, max_failures: int) -> None:
    """Do what `anatomask.training.ray_train.fit` does, in this process."""
    if Checkpoints(job.run).step() < job.total_steps:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("anatomask.training.worker.stream_batches", batches_here)
            run_share(job, resources, Workers(), torch.device("cpu"))


def accept(*arguments: Any, **options: Any) -> Any:
    """Stand for work that only begins when the input was accepted."""
    raise Accepted


def without_ray(patch: pytest.MonkeyPatch, train: Callable[..., Any]) -> None:
    """Let the verbs run in this process; trainings are done by `train`."""
    for module in ("prepare", "mapping"):
        patch.setattr(f"anatomask.stages.{module}.mapped", serially)
    patch.setattr("anatomask.stages.mapping.memory_of_tasks", lambda tasks: (available_memory(), available_memory()))
    for module in ("prepare", "survey", "jobs", "sweep"):
        patch.setattr(f"anatomask.stages.{module}.running", nullcontext)
    patch.setattr("anatomask.stages.jobs.training_resources", lambda config: RESOURCES)
    patch.setattr("anatomask.stages.jobs.fit", train)
    patch.setattr("anatomask.stages.sweep.trial_resources", lambda *settings: OF_TRIAL)
    patch.setattr("anatomask.stages.sweep.node_resources", this_machine)
    patch.setattr("anatomask.stages.sweep.run_trials", accept)
    patch.setattr("anatomask.stages.evaluate.evaluate_cases", evaluate_serially)
    patch.setattr("anatomask.stages.predict.predict_cases", predict_serially)


def build(root: Path) -> None:
    """Fill `root` with scans, the prepared data set, a pretraining and an evaluated finetuning."""
    write_scans(root / "scans")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch, save_untrained)
        patch.chdir(root)
        for command in (GO_ON, SAME_PRETRAINING, SAME_FINETUNING, EVALUATE):
            assert main(command.split()) == 0, command


def copy(root: Path, folder: Path) -> None:
    """Copy what `build` made, and let the paths in its files be those of the copy."""
    shutil.copytree(root, folder, dirs_exist_ok=True)
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".yaml"):
            path.write_text(path.read_text().replace(str(root), str(folder)))
