"""Placement of an evaluation's tasks: the memory that a case takes, and the CPUs or GPU of a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.windows import logits_bytes

CPUS_PER_CASE = 4
"""Number of CPU threads that a task takes at most: more hardly speed up a window; other cores take other cases."""
TASK_BYTES = 2**30
"""Bytes that a task takes besides a case's arrays: Python, PyTorch, MONAI and the activations of a window."""


class Need(NamedTuple):
    """Memory that a task reserves, and the case that decides it."""

    memory: int
    """Bytes of main memory."""
    case: str


class Placement(NamedTuple):
    """Share of a node that a task takes."""

    threads: int
    """Number of CPU threads."""
    gpu: bool


def case_bytes(
    shape: Sequence[int], original_shape: Sequence[int], channels: int, classes: int, patch_size: Sequence[int]
) -> int:
    """Estimate the bytes of main memory that a task needs to predict and score one case.

    Per voxel of the prepared grid: logits, the sum of the windows' weights (4 bytes), and each channel as stored and
    as float32 (6); per voxel of the source's: three scores and as many label maps while classes are compared (15).

    Args:
        shape: voxels of the scan at the network's spacing.
        original_shape: voxels of the scan as it came.
        channels: number of image channels.
        classes: number of classes without the background.
        patch_size: voxels of a window; smaller scans are padded to it.
    """
    padded = [max(extent, window) for extent, window in zip(shape, patch_size, strict=True)]
    prepared = logits_bytes(padded, classes) + (4 + 6 * channels) * math.prod(padded)
    return TASK_BYTES + prepared + 15 * math.prod(original_shape)


def largest_need(dataset: PreparedDataset, cases: Sequence[str], patch_size: Sequence[int]) -> Need:
    """Find the case that needs most memory; every task reserves as much as it."""
    classes = len(dataset.class_names)

    def needed(case: str) -> int:
        record = dataset.records[case]
        return case_bytes(record.shape, record.original_shape, len(record.channels), classes, patch_size)

    return max(Need(needed(case), case) for case in cases)


def place(
    nodes: Sequence[Mapping[str, float]], cases: int, need: Need, threads: int | None = None, gpu: bool | None = None
) -> Placement:
    """Choose the CPU threads of a task, and whether it takes a GPU.

    Args:
        nodes: resources of each node as Ray names them: `CPU`, `GPU`, and `memory` in bytes.
        cases: number of cases, a task each.
        need: memory that each task reserves.
        threads: CPU threads of a task. Default: a task's share of the CPUs, at most `CPUS_PER_CASE`.
        gpu: whether tasks take a GPU. Default: where there is one.

    Raises:
        UserError: no node has as much, so that Ray would wait for ever.
    """
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    gpu = gpus > 0 if gpu is None else gpu
    if gpu and not gpus:
        raise UserError("cluster.gpu: the cluster has no GPU; leave the field out or set it to False")
    usable = [node for node in nodes if not gpu or node.get("GPU", 0)]
    room = max(node.get("memory", 0) for node in usable)
    if need.memory > room:
        raise UserError(
            f"case {need.case} needs {need.memory / 2**30:.1f} GiB of memory to be evaluated, and no node has more "
            f"than {room / 2**30:.1f} GiB for Ray; use a larger machine, or leave the case out of the split"
        )
    largest = int(max(node.get("CPU", 0) for node in usable))
    share = cpus // (gpus if gpu else cases)
    threads = threads or max(1, min(CPUS_PER_CASE, share, largest))
    if threads > largest:
        raise UserError(f"cluster.threads: no node has {threads} CPUs, the largest has {largest}")
    return Placement(threads, gpu)
