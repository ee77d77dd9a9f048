"""Check of whether a training fits into the memory of this machine, before anything starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from anatomask.data.samples import LoaderConfig, worker_share
from anatomask.errors import UserError
from anatomask.training.settings import TrainingConfig

if TYPE_CHECKING:
    from anatomask.training.cost import StepCost

UNSUSPICIOUS = 0.01
"""Share of the memory up to which a batch's crops need no exact computation, which takes seconds."""

BEYOND_DOUBT = 1.5
"""Factor by which the estimate must exceed the memory: it is accurate to some percent, and leaves out swap."""


def device_memory(gpu: bool) -> int:
    """Return the bytes of memory of this machine's first GPU or, without one, of the machine."""
    if gpu:
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(
    training: TrainingConfig, loader: LoaderConfig, channels: int, workers: int, gpu: bool, cost: Callable[[], StepCost]
) -> None:
    """Check that an update fits into the memory of this machine.

    Args:
        training: settings with the batch size.
        loader: settings with the crop size.
        channels: number of image channels.
        workers: number of workers; CPU workers share the machine's memory, GPU workers have a GPU each.
        gpu: True if the workers use GPUs.
        cost: function that computes the cost of one worker's update; it is called only for a large batch.

    Raises:
        UserError: the update takes far more memory than there is.
    """
    memory = device_memory(gpu)
    sharing = 1 if gpu else workers
    share = len(worker_share(training.batch_size, workers - 1, workers))
    crops = 4 * sharing * share * channels * math.prod(loader.patch_size)
    needed = crops
    if crops <= memory:
        needed = sharing * cost().memory_bytes if crops > UNSUSPICIOUS * memory else 0
        if needed <= BEYOND_DOUBT * memory:
            return
    raise UserError(
        f"training.batch_size {training.batch_size} of {'x'.join(map(str, loader.patch_size))} voxels takes at least "
        f"{needed / 2**30:,.0f} GiB, and {'the GPU' if gpu else 'this machine'} has {memory / 2**30:,.0f} GiB; lower "
        "--training.batch-size or --loader.patch-size: --dry-run shows the memory of an update"
    )
