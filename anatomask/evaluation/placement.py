"""Placement of the tasks that predict: the memory that a case takes, and the CPUs or GPU of a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from anatomask.data.memory import bytes_to_prepare
from anatomask.data.preprocess import Grid
from anatomask.data.resampling import target_shape
from anatomask.data.shards import PreparedDataset
from anatomask.errors import UserError
from anatomask.evaluation.settings import InferenceConfig
from anatomask.evaluation.windows import WindowGrid

CPUS_PER_CASE = 4
"""Number of CPU threads that a task takes at most: more hardly speed up a window; other cores take other cases."""
TASK_BYTES = 2**30
"""Bytes that a task takes besides networks and arrays: Python, PyTorch, and what their memory is scattered over."""
SCORE_BYTES = 15
"""Bytes that scoring takes per voxel of the source's grid: three scores and as many label maps, class by class."""


class ForwardPass(NamedTuple):
    """What a window takes on its way through the networks."""

    bytes: int
    """Bytes of the networks, and of all tensors at the peak."""
    channels: int
    """Number of numbers per voxel whose means over windows are kept."""


class Placement(NamedTuple):
    """Share of a node that a task takes."""

    threads: int
    """Number of CPU threads."""
    gpu: bool
    room: int
    """Bytes of main memory that a task can reserve at most."""


def inference_bytes(
    shape: Sequence[int],
    original_shape: Sequence[int],
    channels: int,
    classes: int,
    patch_size: Sequence[int],
    inference: InferenceConfig,
    forward: ForwardPass,
) -> int:
    """Bound the bytes of main memory that predicting one case takes.

    The networks with a window; what is kept of a window; the means, and the sums of weights; a resampled
    plane with its softmax; the scan as stored, normalised and padded; the label map.

    Args:
        shape: voxels of the scan at the network's spacing.
        original_shape: voxels of the scan as it came.
        channels: number of image channels that the network reads, of all runs together.
        classes: number of classes without the background.
        patch_size: voxels of a window; smaller scans are padded to it.
        inference: how windows slide.
        forward: as `forward_pass` counts.
    """
    grid = WindowGrid(tuple(shape), tuple(patch_size), inference.overlap)
    kept = grid.kept_bytes(forward.channels) + 4 * math.prod(grid.kept)
    window = 4 * forward.channels * math.prod(patch_size)
    plane = 4 * 4 * (classes + 1) * math.prod(original_shape) // min(original_shape)
    return forward.bytes + window + kept + plane + 10 * channels * math.prod(grid.padded) + math.prod(original_shape)


def bytes_to_evaluate(
    dataset: PreparedDataset, case: str, patch_size: Sequence[int], inference: InferenceConfig, forward: ForwardPass
) -> int:
    """Bound the bytes of main memory that predicting and scoring a prepared case takes."""
    record, classes = dataset.records[case], len(dataset.class_names)
    channels = len(record.channels)
    needed = inference_bytes(record.shape, record.original_shape, channels, classes, patch_size, inference, forward)
    return TASK_BYTES + needed + SCORE_BYTES * math.prod(record.original_shape)


def bytes_to_predict(
    grid: Grid,
    spacing: Sequence[float],
    channels: int,
    runs: int,
    classes: int,
    patch_size: Sequence[int],
    inference: InferenceConfig,
    forward: ForwardPass,
) -> int:
    """Bound the bytes of main memory that a task needs to resample a raw scan and to predict it.

    Args:
        grid: of the scan as it came, in RAS axes.
        spacing: of the network, in mm.
        channels: number of image channels.
        runs: number of runs that are averaged; each reads the scan normalised in its own way.
        classes: number of classes without the background.
        patch_size: voxels of a window.
        inference: how windows slide.
        forward: as `forward_pass` counts.
    """
    shape = target_shape(grid.shape, grid.spacing, spacing)
    before = bytes_to_prepare(grid.shape, shape, channels)
    during = inference_bytes(shape, grid.shape, channels * runs, classes, patch_size, inference, forward)
    return TASK_BYTES + max(before, during)


def place(
    nodes: Sequence[Mapping[str, float]], cases: int, threads: int | None = None, gpu: bool | None = None
) -> Placement:
    """Choose the CPU threads of a task, and whether it takes a GPU.

    Args:
        nodes: resources of each node as Ray names them: `CPU`, `GPU`, and `memory` in bytes.
        cases: number of cases, a task each.
        threads: CPU threads of a task. Default: a task's share of the CPUs, those of its node for each GPU if it takes
            one, at most `CPUS_PER_CASE`.
        gpu: whether tasks take a GPU. Default: where there is one.

    Raises:
        UserError: no node has as much, so that Ray would wait for ever.
    """
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    gpu = gpus > 0 if gpu is None else gpu
    if gpu and not gpus:
        raise UserError("cluster.gpu: the cluster has no GPU; leave the field out or set it to False")
    usable = [node for node in nodes if not gpu or node.get("GPU", 0)]
    largest = int(max(node.get("CPU", 0) for node in usable))
    share = int(min(node.get("CPU", 0) // node["GPU"] for node in usable)) if gpu else cpus // cases
    threads = threads or max(1, min(CPUS_PER_CASE, share, largest))
    if threads > largest:
        raise UserError(f"cluster.threads: no node has {threads} CPUs, the largest has {largest}")
    return Placement(threads, gpu, int(max(node.get("memory", 0) for node in usable if node.get("CPU", 0) >= threads)))


def too_large(needs: Mapping[str, int], room: int) -> dict[str, str]:
    """Say of the cases that need more memory than a task can reserve how much; `needs` holds their bytes."""
    return {
        case: f"it needs {need / 2**30:.1f} GiB of memory to be predicted, and no node has more than "
        f"{room / 2**30:.1f} GiB for Ray; leave it out, or use a larger machine"
        for case, need in needs.items()
        if need > room
    }
