"""A training as its settings and addresses: what the driver sends to the workers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anatomask.data.samples import Draw, LoaderConfig, SampleSequence
from anatomask.data.storage import Roots, Storage
from anatomask.errors import UserError
from anatomask.runs.remote import RunCopy
from anatomask.training.settings import OptimiserConfig, TrainingConfig

if TYPE_CHECKING:  # the driver needs no network
    from anatomask.training.task import Task


@dataclass(frozen=True, repr=False)
class TrainingJob:
    """Everything that a worker needs. It is sent to the workers, so it holds settings and no tensors."""

    run: Path
    """Folder of the run, on storage that all nodes share, or that has a copy on `storage`."""
    data: Roots
    """Folder that `prepare` wrote, or several."""
    sequence: SampleSequence
    draw: Draw
    build_task: Callable[[torch.device], Task]
    loader: LoaderConfig
    training: TrainingConfig
    optimiser: OptimiserConfig
    seed: int
    until: int | None = None
    """Update after which it is left for now, with a checkpoint. None: it runs to its end."""
    stop: Path | None = None
    """File at which it is left as at its run's own: that of its sweep."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's configuration, for TensorBoard's table of hyperparameters."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all kinds of runs, which are the columns of that table."""
    remarks: tuple[str, ...] = ()
    """Sentences for the run's journal on what is allowed and may surprise the user."""
    origin: str = ""
    """Sentence on what the training starts from, for the run's journal."""
    largest_stride: int = 16
    """Stride of the encoder's coarsest map."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digests of the inputs of the run, by the name that a message gives them."""
    storage: Storage | None = None
    """Object storage that holds a copy of the run's folder. None: there is no copy."""
    needs: tuple[RunCopy, ...] = ()
    """Runs whose weights the task reads, where their folders have copies, too."""

    def __repr__(self) -> str:
        """Return a text without the data's address, which may hold credentials: Ray's dashboard shows it."""
        return f"TrainingJob({str(self.run)!r})"

    @property
    def copy(self) -> RunCopy:
        """Folder of the run, with its copy."""
        return RunCopy(self.run, self.storage)

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch."""
        return self.training.updates_per_epoch(len(self.sequence.cases))

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.training.epochs * self.steps_per_epoch

    @property
    def last_update(self) -> int:
        """Update after which it ends or is left."""
        return self.total_steps if self.until is None else self.until

    def cases(self, step: int) -> list[str]:
        """Return the cases of the batch of update `step` (1 is the first)."""
        size = self.training.batch_size
        return [self.sequence.case(k) for k in range((step - 1) * size, step * size)]


def refuse_wrong_gradients(job: TrainingJob, device: torch.device) -> None:
    """Refuse settings for which torch 2.13 computes wrong gradients: see docs/results/precision.md.

    Raises:
        UserError: the settings are among them.
    """
    first, stride = job.loader.patch_size[0], job.largest_stride
    if device.type == "cpu" and job.training.precision == "bf16" and first <= 2 * stride:  # two voxels at that stride
        raise UserError(
            f"--training.precision bf16: PyTorch's gradients on CPUs are wrong for crops of {first} voxels along the "
            f"first axis; choose --loader.patch-size {3 * stride} … or --training.precision fp32"
        )


PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
"""Package to install for each tracker."""


def require_trackers(names: Sequence[str]) -> None:
    """Check that the trackers' packages are installed here.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--training.trackers {name}: the package {name} is not installed; on every machine that trains, "
                f"pip install {PACKAGES[name]}"
            )
