"""Builders of the two tasks, which a job names.

They import networks, losses and TensorBoard only when a worker calls them: the driver and Ray's controller, which read
the job too, need none of it, and it would take them a second each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anatomask.training.task import Task


def pretraining_task(*settings: Any, **more: Any) -> Task:
    """Build a `PretrainingTask`."""
    from anatomask.training.pretraining import PretrainingTask

    return PretrainingTask(*settings, **more)


def finetuning_task(*settings: Any, **more: Any) -> Task:
    """Build a `FinetuningTask`."""
    from anatomask.training.finetuning import FinetuningTask

    return FinetuningTask(*settings, **more)
